"""Who may import whom (docs/design.md), and what importing costs."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Rooms that stand at the bottom and may be imported by all: errors, durations, atomic files, config binding.
GROUND = {"errors", "durations", "files", "config"}
MAY_IMPORT = {
    "errors": set(),
    "durations": {"errors"},
    "files": {"errors"},
    "config": {"errors", "durations"},
    "kernels": GROUND,
    "layers": GROUND | {"kernels"},
    "models": GROUND | {"layers"},
    "losses": GROUND,
    "decoding": GROUND,
    "teachers": GROUND | {"data", "models", "run_info", "weights"},
    "tasks": GROUND | {"losses", "models", "teachers"},
    "data": GROUND,
    "optim": GROUND,
    "sharding": GROUND,
    "checksum": GROUND,
    "checkpoint_files": GROUND | {"checksum"},
    "checkpoint": GROUND | {"checkpoint_files", "checksum"},
    "preemption": GROUND,
    "metrics": GROUND,
    "progress": GROUND | {"metrics"},
    "run_info": GROUND,
    "train_state": GROUND,
    "diagnostics": GROUND | {"layers"},
    "weights": GROUND | {"models", "layers", "checkpoint"},
    "model_init": GROUND | {"weights"},
    "evaluators": GROUND | {"data", "decoding", "losses", "sharding"},
    "analysis": GROUND
    | {"metrics", "run_info", "data", "layers", "models", "tasks", "teachers", "weights", "optim"}
    | {"train_state", "compiler", "host_memory"},
    # The spine may use every room, but not the modes that stand on it.
    "experiment": {
        "analysis",
        "data",
        "diagnostics",
        "evaluators",
        "model_init",
        "models",
        "optim",
        "sharding",
        "tasks",
        "teachers",
        "train_state",
        "train_input",
        "checksum",
        "weights",
        "compiler",
        *GROUND,
    },
    "compiler": GROUND,
    "train_input": GROUND | {"data"},
    "feeding": {"experiment", "metrics", "sharding", "train_state"},
    "host_memory": GROUND,
    "average": None,
    "check": None,
    "teacher_logits": None,
    "translate": None,
    "sweep": None,
    "train": None,
    "main": None,
}


def room(path):
    return path.relative_to(ROOT / "vitjax").parts[0].removesuffix(".py")


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "vitjax":
            parts = node.module.split(".")[1:]
            yield from [parts[0]] if parts else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("vitjax.")]


MODULES = sorted(
    path for path in (ROOT / "vitjax").rglob("*.py") if path.parent.name + path.name != "vitjax__init__.py"
)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_only_what_stands_below_them(path):
    name = room(path)
    assert name in MAY_IMPORT, f"docs/design.md and this test do not know the room {name!r}"
    allowed = MAY_IMPORT[name]
    if allowed is not None:
        assert set(imported_rooms(path)) - {name} <= allowed


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("**/*.py")), ids=lambda path: path.name)
def test_configs_import_nothing_heavy(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert all(alias.name in sys.stdlib_module_names for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            sweeps = node.module == "vitjax.sweep" and [alias.name for alias in node.names] == ["grid"]
            light = node.module in ("ml_collections", "configs") or node.module in sys.stdlib_module_names
            assert light or sweeps


def loaded_after(statement):
    """Names of all modules that a fresh interpreter has loaded after the statement."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{statement}\nprint('\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(run.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import vitjax, vitjax.main",
        "from vitjax import config; config.load('configs/augreg.py:vit_b16')",
        "from vitjax.main import main; main(['--config=configs/augreg.py', '--workdir=x', '--config.lrr=1'])",
        "from vitjax.sweep.main import main; main(['list', '--sweep=configs/sweeps/augreg.py'])",
        "from vitjax.sweep import run, status, worker",
    ],
)
def test_the_command_line_and_configs_load_without_the_heavy_stack(statement):
    heavy = {"jax", "flax", "optax", "orbax", "grain", "cv2", "matplotlib", "tensorflow_datasets"}
    assert not loaded_after(statement) & heavy


def test_a_run_never_loads_tensorflow_or_tfds():
    loaded = loaded_after(
        "import vitjax.train, vitjax.check, vitjax.data.sources, vitjax.data.pp, vitjax.evaluators.fewshot"
    )
    assert not {name.split(".")[0] for name in loaded} & {"tensorflow", "tensorflow_datasets", "torch"}
