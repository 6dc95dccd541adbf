"""What distillation costs: its training step against the student's step and the teacher's forward pass.

Three programs take turns in one process, each jitted with the options of `vitjax.compiler`, on the same uint8
images:

  student step       the distillation step of a student whose teacher's logits come with the batch
  teacher forward    the teacher's logits, of images that are preprocessed already
  distillation step  the step with the teacher in it

The goal is a distillation step of at most 1.05 times the sum of the other two.

  python benchmarks/distill_step.py --student deit_s16_distilled --teacher regnety_16gf --batch 8 --threads 1
"""

import argparse
import pathlib
import statistics
import sys
import time
from typing import Any

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent.parent)]  # runs from a checkout as it is

from benchmarks import measure  # noqa: E402
from vitjax.host_memory import keep_freed_memory  # noqa: E402

PACKAGES = ("jax", "jaxlib", "flax", "optax")
NUM_CLASSES = 1000


def main() -> None:
    """Measures and writes `results/distill_step_{device}.csv`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--student", default="vit_s16", help="name of the registry")
    parser.add_argument("--teacher", default="vit_b16", help="name of the registry")
    parser.add_argument("--kind", choices=("hard", "soft"), default="hard")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="pixels of the student's images")
    parser.add_argument(
        "--teacher_size", type=int, help="pixels of the teacher's, as the student's by default"
    )
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=15)
    args = parser.parse_args()
    if args.device == "cpu":
        measure.pin(args.threads)
        keep_freed_memory()  # vitjax.main does
    # One thread: CPU seconds, which other programs disturb little. More: wall seconds on an idle machine.
    cpu_clock = args.device == "cpu" and args.threads == 1
    clock = time.process_time if cpu_clock else time.perf_counter
    seconds = measure.interleave(programs(args), args.repetitions, clock)
    apart = [a + b for a, b in zip(seconds["student step"], seconds["teacher forward"], strict=True)]
    rows = []
    for name, times in {**seconds, "student step + teacher forward": apart}.items():
        row = {key: value for key, value in vars(args).items() if key != "repetitions"}
        row |= dict(repetitions=args.repetitions, program=name, clock="cpu" if cpu_clock else "wall")
        row["milliseconds"] = round(1e3 * statistics.median(times), 2)
        rows.append(row | measure.ratio(times, apart))
        print(rows[-1], flush=True)
    print(measure.write(f"distill_step_{args.device}", rows, PACKAGES), flush=True)


class Given:
    """A teacher whose logits are an entry of the batch."""

    def logits(self, frozen: Any, batch: dict) -> Any:
        """Its answers."""
        return batch["_teacher_logits"]


def programs(args: argparse.Namespace) -> dict[str, Any]:
    """Returns a function a program that runs it once and waits for it."""
    import jax
    import numpy as np

    from vitjax import compiler, models, optim, tasks
    from vitjax.data import pp, value_scale
    from vitjax.teachers import Student
    from vitjax.train_state import Hyperparameters, make_init, make_step

    module = models.create(args.student, num_classes=NUM_CLASSES)
    preprocess = pp.parse(f"value_range(-1, 1)|onehot({NUM_CLASSES}, key='label', key_result='labels')")
    shape = (args.batch, args.size, args.size, 3)
    student = Student(NUM_CLASSES, shape, value_scale.after(preprocess), {}, steps=1)
    teacher = dict(weights="random", model=dict(name=args.teacher), input="vgg_value_range", convert=True)
    teacher["input"] = dict(values="vgg_value_range", size=args.teacher_size or args.size)
    task, alone = (
        tasks.create(dict(name="distill", kind=args.kind, teacher=teacher), module, student) for _ in range(2)
    )
    alone.teacher = Given()
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, shape, np.uint8),
        "label": rng.integers(0, NUM_CLASSES, args.batch).astype(np.int32),
        "_teacher_logits": rng.normal(size=(args.batch, NUM_CLASSES)).astype(np.float32),
    }
    batch, frozen = jax.device_put((batch, task.frozen))
    options = compiler.options(module)
    abstract = jax.eval_shape(lambda rng: task.init(rng, preprocess.device(batch, rng)), jax.random.key(0))
    optimizer = optim.create(abstract[0], total_steps=1000, batch_size=args.batch, lr=1e-3, wd=1e-4)
    # Metrics are read every 50 steps, as in a run.
    hyper = Hyperparameters(jax.random.key(0), optimizer.hyperparameters, log_every=50, total_steps=1000)

    def stepping(task: Any, frozen: Any) -> Any:
        given = jax.device_put(hyper.replace(frozen=frozen))
        step = make_step(task, optimizer, preprocess.device)
        step = jax.jit(step, donate_argnums=0, compiler_options=options)
        state = jax.jit(make_init(task, optimizer, preprocess.device))(batch, jax.random.key(0))

        def run() -> None:
            nonlocal state
            state, metrics = step(state, batch, given)
            jax.block_until_ready((state, metrics))

        return run

    images = jax.jit(preprocess.device)(batch, jax.random.key(0))
    forward = jax.jit(task.teacher.logits, compiler_options=options)
    return {
        "student step": stepping(alone, None),
        "teacher forward": lambda: forward(frozen, images).block_until_ready(),
        "distillation step": stepping(task, frozen),
    }


if __name__ == "__main__":
    main()
