"""Share of a sweep's wall time that is spent in training steps, compilation cache empty and full.

python benchmarks/sweep_overhead.py --trials 8 --steps 1500

Trials of one shape: quickstart's ViT on digits with different learning rates and seeds, one worker. The wall
time is that of the whole command, start-up of runner and worker included; the time in steps is what each
trial notes in its run.json.
"""

import argparse
import collections
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]  # runs from a checkout as it is

from benchmarks import measure  # noqa: E402

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "submitit")
SWEEP = """
from vitjax.sweep import grid

def get_sweep():
    lrs = [round(1e-3 * (1 + i / 10), 5) for i in range({trials} // 2)]
    overrides = {{"total_steps": {steps}, "evals.val.log_percent": 0.25, "ckpt_percent": 0.5}}
    return grid.Sweep({config!r}, grid.keys({{"lr": lrs}}), seeds=(0, 1), overrides=overrides)
"""


def main() -> None:
    """Measures and writes `results/sweep_overhead.csv`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=8, help="an even number")
    parser.add_argument("--steps", type=int, default=1500, help="length of a trial")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    measure.pin(args.threads)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        sweep = pathlib.Path(folder) / "sweep.py"
        config = str(ROOT / "configs/quickstart.py")
        sweep.write_text(SWEEP.format(trials=args.trials, steps=args.steps, config=config))
        for cache in ("cold", "warm"):
            workdir = pathlib.Path(folder) / cache
            seconds = run(sweep, workdir, pathlib.Path(folder) / "compiled")
            rows.append(row(cache, seconds, workdir, args.steps))
            print(rows[-1], flush=True)
    print(measure.write("sweep_overhead", rows, PACKAGES))


def run(sweep: pathlib.Path, workdir: pathlib.Path, cache: pathlib.Path) -> float:
    """Runs the sweep with a compilation cache of its own; returns wall seconds of the whole command."""
    command = [sys.executable, "-m", "vitjax.sweep", "run", "--sweep", sweep, "--workdir", workdir]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PLATFORMS": "cpu"}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command} failed:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - start


def row(cache: str, wall: float, workdir: pathlib.Path, steps: int) -> dict:
    """Returns the row of one sweep: shares of its wall time by phase, and what lies outside of all trials."""
    phases: collections.Counter = collections.Counter()
    trials = list((workdir / "trials").glob("*/run.json"))
    for path in trials:
        phases.update(json.loads(path.read_text())["wall_time"])
    shares = {f"{phase}_share": round(seconds / wall, 3) for phase, seconds in phases.items()}
    return dict(
        cache=cache,
        trials=len(trials),
        steps_a_trial=steps,
        wall_s=round(wall, 1),
        step_s_a_trial=round(phases["step"] / len(trials), 2),
        **shares,
        outside_trials_share=round(1 - sum(phases.values()) / wall, 3),
    )


if __name__ == "__main__":
    main()
