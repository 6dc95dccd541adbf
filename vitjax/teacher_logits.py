"""Records a teacher's logits for a run: `python -m vitjax.teacher_logits --config FILE.py[:ARG] --out FILE`.

The config is that of the run, with its teacher in `config.task.teacher`. The run then reads the file in place
of running the teacher: `--config.task.teacher.logits=FILE`. The loss is the same, since the teacher is shown
the very images of every step, crop, mixup and all. Killed, the same command goes on.
"""

import contextlib
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vitjax import config as config_lib
from vitjax.errors import UserError
from vitjax.main import Parser, keep_compiled_programs, set_matmul_precision, split_overrides

if TYPE_CHECKING:
    from vitjax.experiment import Experiment


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; exit code 0, or 2 for a mistake of the user's own."""
    try:
        return run(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(argv: Sequence[str]) -> int:
    """Parses the command line, builds the run and records."""
    own, overrides = split_overrides(argv)
    parser = Parser(
        prog="python -m vitjax.teacher_logits",
        description="Records the logits of config.task.teacher for every step and row of a run.",
        epilog="any key of the config can be overridden: --config.seed=1",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE.py[:ARG]", help="config of the run")
    parser.add_argument("--out", required=True, metavar="FILE", help="the file of logits to write")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "float16"), help="of the logits in the file"
    )
    args = parser.parse_args(own)
    config = config_lib.load(args.config, overrides)
    _run_the_teacher(config)
    keep_compiled_programs()
    set_matmul_precision(config)

    from vitjax import experiment

    record(experiment.build(config), pathlib.Path(args.out), args.dtype)
    return 0


def _run_the_teacher(config: Any) -> None:
    """Takes `logits` out of the teacher's section, since the file is still to be made."""
    task = config.get("task") or {}
    teacher = task.get("teacher") or {}
    if not teacher.get("weights") or task.get("kind") == "none":
        raise UserError(
            "config.task names no teacher whose logits could be recorded: set config.task = "
            "dict(name='distill', teacher=dict(weights=...)) and a kind other than 'none'."
        )
    if "logits" in teacher:
        with config.unlocked():
            del config.task.teacher["logits"]


def record(run: "Experiment", out: pathlib.Path, dtype: str) -> None:
    """Writes the logits of all steps of a run to `out`, from where an earlier call stopped.

    Raises:
      UserError: there are logits of another run, or they cannot be written.
    """
    import numpy as np

    from vitjax.checksum import checksum
    from vitjax.progress import Progress
    from vitjax.teachers.recorded import Recorded, Writer

    teacher = run.task.teacher
    about = dict(
        teacher=teacher.section.identity, checksum=checksum(run.frozen), stream=teacher.student.stream
    )
    print("\n".join(run.task.notes))
    if out.exists():
        Recorded(dataclasses.replace(teacher.section, logits=str(out)), teacher.student)
        print(f"{out} is there already")
        return
    with contextlib.closing(Writer(out, about, run.total_steps, run.num_classes, dtype)) as writer:
        if writer.done:
            print(f"{writer.done:,} steps are there: going on")
        with Progress(run.total_steps, batch_size=run.input.batch_size, start_step=writer.done) as progress:
            for step, logits in _logits(run, writer.done):
                writer.write(step, np.asarray(logits))
                progress.update(step + 1)
                if run.logged(step + 1):
                    progress.report(step + 1)
        writer.finish()
    print(f"{out}: read it with --config.task.teacher.logits={out}")


def _logits(run: "Experiment", start: int) -> Iterator[tuple[int, Any]]:
    """Yields each step from `start` on with the teacher's logits, one step behind the device."""
    from vitjax import sharding

    logits_of, late = _program(run), None
    with contextlib.closing(run.batches(start)) as loader:
        batches = sharding.prefetch(loader, run.mesh)
        for step in range(start, run.total_steps):
            now = (step, logits_of(next(batches)[1], step))
            if late is not None:
                yield late
            late = now
    if late is not None:
        yield late


def _program(run: "Experiment") -> Callable[[dict, int], Any]:
    """Returns `(batch, step) -> logits`: what the training step shows its teacher, and nothing else of it."""
    import jax

    from vitjax import compiler
    from vitjax.train_state import step_rngs

    @functools.partial(
        jax.jit,
        out_shardings=jax.sharding.NamedSharding(run.mesh, jax.P()),
        compiler_options=compiler.options(run.model),  # those of the training step, for the same rounding
    )
    def logits(batch: dict, step: jax.Array, rng: jax.Array, frozen: Any) -> jax.Array:
        data_rng, _ = step_rngs(rng, step)
        return run.task.teacher.logits(frozen, run.preprocess.device(batch, data_rng))

    rng = run.hyperparameters.rng
    return lambda batch, step: logits(batch, jax.numpy.int32(step), rng, run.frozen)


if __name__ == "__main__":
    sys.exit(main())
