"""What input on the device costs: a training step on it against the same step on a constant batch.

Three programs take turns in one process; each is a loop of --steps steps in one dispatch:

  constant batch       floats that went through the preprocessing before
  constant uint8       the same examples each step, preprocessed in it
  on-device input      examples drawn from the whole set in each step, and preprocessed

The goal is a step on on-device input of at most 1.05 times that on a constant batch.

  python benchmarks/on_device_input.py --model small_vit --batch 128 --threads 1
  python benchmarks/on_device_input.py --model sl_vit --batch 128 --device gpu --dtype bfloat16 --steps 200
"""

import argparse
import dataclasses
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent.parent)]  # runs from a checkout as it is

from benchmarks import measure  # noqa: E402
from vitjax.host_memory import keep_freed_memory  # noqa: E402

PACKAGES = ("jax", "jaxlib", "flax", "optax")
TO_MODEL = (
    "vgg_value_range((129.3, 124.1, 112.4), (68.2, 65.4, 70.4))"
    "|onehot({num_classes}, key='label', key_result='labels')|keep('image', 'labels')"
)
PP = f"flip_lr|random_crop(32, padding=4)|{TO_MODEL}|mixup(0.2)"


def main() -> None:
    """Measures and writes `results/on_device_input_{device}.csv`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="small_vit", help="name of the registry")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=32, help="pixels of the images")
    parser.add_argument("--examples", type=int, default=50_000, help="in the set")
    parser.add_argument("--pp", default=PP, help="preprocessing string")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--steps", type=int, default=2, help="in a dispatch")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=9)
    args = parser.parse_args()
    if args.device == "cpu":
        measure.pin(args.threads)
        keep_freed_memory()  # vitjax.main does
    # One thread: CPU seconds, which other programs disturb little. More: wall seconds on an idle machine.
    cpu_clock = args.device == "cpu" and args.threads == 1
    clock = time.process_time if cpu_clock else time.perf_counter
    seconds = measure.interleave(programs(args), args.repetitions, clock)
    rows = []
    for name, times in seconds.items():
        row = dict(vars(args))
        row |= dict(program=name, clock="cpu" if cpu_clock else "wall")
        step = statistics.median(times) / args.steps
        row |= dict(milliseconds=round(1e3 * step, 3), images_per_second=round(args.batch / step))
        rows.append(row | measure.ratio(times, seconds["constant batch"]))
        print(rows[-1], flush=True)
    print(measure.write(f"on_device_input_{args.device}", rows, PACKAGES), flush=True)


def programs(args: argparse.Namespace) -> dict[str, Any]:
    """Returns a function a program that runs its steps once and waits for them."""
    import jax
    import numpy as np

    from vitjax.train_state import make_many, make_step

    run = experiment_of(args)
    data, _ = run.load_on_device()
    hyper = run.placed_hyperparameters()
    batch = jax.jit(lambda data: data.batch(data.indices(np.int32(0))))(data)
    floats = jax.jit(run.preprocess.device)(batch, jax.random.key(0))

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Constant:
        """A batch in the place of a set."""

        examples: dict

        def indices(self, step: Any) -> Any:
            """Nothing depends on them."""
            return step

        def batch(self, indices: Any) -> dict:
            """The same each time."""
            return self.examples

    def stepping(preprocess: Any, data: Any) -> Any:
        many = run.jit_steps(make_many(make_step(run.task, run.optimizer, preprocess), args.steps))
        state = run.init_state()

        def steps() -> None:
            nonlocal state
            state, metrics = many(state, data, hyper, np.int32(args.steps))
            jax.block_until_ready((state, metrics))

        return steps

    return {
        "constant batch": stepping(lambda batch, rng: batch, Constant(floats)),
        "constant uint8": stepping(run.preprocess.device, Constant(batch)),
        "on-device input": stepping(run.preprocess.device, data),
    }


def experiment_of(args: argparse.Namespace) -> Any:
    """The experiment on a set of noise."""
    import numpy as np
    from ml_collections import ConfigDict

    from vitjax import experiment

    rng = np.random.default_rng(0)
    shape = (args.examples, args.size, args.size, 3)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "noise.npz"
        np.savez(path, images=rng.integers(0, 256, shape, np.uint8), labels=np.arange(args.examples) % 100)
        config = dict(
            input=dict(data=f"arrays:{path}", pp=args.pp, batch_size=args.batch, on_device=True),
            model=dict(name=args.model, dtype=args.dtype),
            task=dict(name="classify", loss="softmax_xent"),
            schedule=dict(decay_type="cosine", warmup_steps=100),
            num_classes=100,
            wd=0.05,
            lr=1e-3,
            total_steps=100_000,
        )
        return experiment.build(ConfigDict(config))


if __name__ == "__main__":
    main()
