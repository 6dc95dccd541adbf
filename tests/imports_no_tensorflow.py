"""Imports every module of the package and every config, and fails if one of them pulls TensorFlow in.

Run as a script (`make tensorflow-free`), so that nothing else has been imported before.
"""

import importlib
import pathlib
import pkgutil
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Arguments of configs that do not guess what they need.
NEEDED = {"binaryvit": "distill=none", "reactnet": "bireal_resnet18"}
FORBIDDEN = ("tensorflow", "tensorflow_text", "tensorflow_addons")


def main() -> int:
    sys.path.insert(0, str(ROOT))
    import vitjax
    from vitjax import config
    from vitjax.sweep import trials

    modules = [module.name for module in pkgutil.walk_packages(vitjax.__path__, "vitjax.")]
    for name in modules:
        importlib.import_module(name)
    configs = [path for path in sorted((ROOT / "configs").glob("*.py")) if path.stem != "common"]
    for path in configs:
        config.load(f"{path}:{NEEDED[path.stem]}" if path.stem in NEEDED else str(path))
    for path in (ROOT / "configs/sweeps").glob("*.py"):
        trials.read(str(path))
    found = [name for name in FORBIDDEN if name in sys.modules]
    print(f"{len(modules)} modules and {len(configs)} configs imported, TensorFlow: {found or 'absent'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
