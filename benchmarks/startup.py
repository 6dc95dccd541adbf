"""Seconds from the prompt to something: import, `--help`, and the quickstart's first step, compiled already.

python benchmarks/startup.py --repetitions 5
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]  # runs from a checkout as it is

from benchmarks import measure  # noqa: E402

MAIN = [sys.executable, "-m", "vitjax.main"]
ONE_STEP = ["--config", "configs/quickstart.py", "--config.total_steps=1"]
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain")


def main() -> None:
    """Measures and writes `results/startup.csv`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    measure.pin(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{folder}/cache", "JAX_PLATFORMS": "cpu"}
        number = iter(range(1000))
        commands = {
            "python -c pass": lambda: [sys.executable, "-c", "pass"],
            "import vitjax": lambda: [sys.executable, "-c", "import vitjax"],
            "import jax": lambda: [sys.executable, "-c", "import jax"],
            "vitjax.main --help": lambda: [*MAIN, "--help"],
            "quickstart, 1 step and its evaluation": lambda: [
                *MAIN,
                *ONE_STEP,
                "--workdir",
                f"{folder}/run{next(number)}",
            ],
        }
        cold = spend(
            commands["quickstart, 1 step and its evaluation"](), environment
        )  # fills the cache of compiled programs
        spent = {name: [] for name in commands}
        for _ in range(args.repetitions):
            for name, command in commands.items():
                spent[name].append(spend(command(), environment))
        first_step = split_of(pathlib.Path(folder) / f"run{args.repetitions}")
    spent = {"the same, nothing compiled": [cold], **spent}
    rows: list[dict] = [row(name, values) for name, values in spent.items()]
    for phase, seconds in first_step.items():
        rows.append(dict(what=f"of it, {phase}", repetitions=1, wall_s=round(seconds, 3)))
    for line in rows:
        print(line)
    print(measure.write("startup", rows, PACKAGES))


def spend(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Returns wall seconds and CPU seconds of a command."""
    used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    wall, cpu = time.perf_counter(), used()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command} failed:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - wall, used() - cpu


def row(name: str, values: list[tuple[float, float]]) -> dict:
    """Returns the row of one command."""
    wall, cpu = ([v[i] for v in values] for i in (0, 1))
    return dict(
        what=name,
        repetitions=len(values),
        wall_s=round(statistics.median(wall), 3),
        cpu_s=round(statistics.median(cpu), 3),
        cpu_s_min=round(min(cpu), 3),
        cpu_s_max=round(max(cpu), 3),
    )


def split_of(workdir: pathlib.Path) -> dict[str, float]:
    """The split of wall time by phase that the run itself wrote down."""
    for path in workdir.glob("*.json"):
        about = json.loads(path.read_text())
        if isinstance(about, dict) and "wall_time" in about:
            return about["wall_time"]
    return {}


if __name__ == "__main__":
    main()
