"""The command line: `python -m vitjax.main --config FILE.py[:ARG] --workdir DIR [--config.key=value ...]`."""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

from ml_collections import ConfigDict

from vitjax import config as config_lib
from vitjax.errors import TrainingFailed, UserError, nearest
from vitjax.host_memory import jax_runs_on_cpu, keep_freed_memory

EPILOG = """\
examples:
  python -m vitjax.main --config configs/quickstart.py --workdir runs/quickstart
  python -m vitjax.main --config configs/augreg.py:vit_s32,aug=light1,data=digits --workdir runs/s32
  python -m vitjax.main --config configs/augreg.py:vit_b16 --check
any key of the config can be overridden: --config.lr=3e-4 --config.total_steps=20
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; exit code 0, or 2 for a mistake of the user's own, or 3 for a diverged run."""
    try:
        return run(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingFailed as error:
        print(f"training failed: {error}", file=sys.stderr)
        return 3


def run(argv: Sequence[str]) -> int:
    """Parses the command line, reads the config and does what was asked for."""
    args, overrides = parse(argv)
    config = config_lib.load(args.config, overrides)
    workdir = None if args.check else local_folder(args.workdir)
    keep_compiled_programs()
    if jax_runs_on_cpu():
        keep_freed_memory()

    # The heavy imports wait until the command line and the config are known to be sound.
    from vitjax.preemption import Preempted

    with Preempted() as stop:  # before jax.distributed, which takes SIGTERM over
        if args.multihost:
            from vitjax.sharding import start_processes

            start_processes()
        set_matmul_precision(config)
        if workdir is None:
            from vitjax.check import check

            return check(config)
        from vitjax.train import evaluate, train

        return evaluate(config, workdir) if args.eval_only else train(config, workdir, stop)


def set_matmul_precision(config: ConfigDict) -> None:
    """Sets jax's matmul precision to that of the config; without one, to what the environment says."""
    import jax

    default = os.environ.get("JAX_DEFAULT_MATMUL_PRECISION")
    precision = config_lib.settings(config).matmul_precision or default
    try:
        jax.config.update("jax_default_matmul_precision", precision)
    except ValueError as error:
        valid = ("default", "high", "highest", "bfloat16", "tensorfloat32", "float32")
        raise UserError(
            f"config.matmul_precision={precision!r} is none of {', '.join(valid)}."
            f"{nearest(str(precision), valid)}"
        ) from error


def local_folder(workdir: str | None) -> pathlib.Path:
    """Returns the workdir as a path; a bucket is refused, since metrics are appended to a file."""
    if not workdir:
        raise UserError("--workdir DIR is required: it takes checkpoints, metrics and the report.")
    if "://" in workdir:
        raise UserError(
            f"--workdir {workdir}: name a folder of this machine; mount a bucket (gcsfuse) to use it."
        )
    return pathlib.Path(workdir)


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Splits a command line into its own words and config overrides `{"optax.b1": "0.95"}`."""
    own, overrides = [], {}
    rest = iter(argv)
    for word in rest:
        if word.startswith(("--config.", "-config.")):
            key, equals, value = word.split("config.", 1)[1].partition("=")
            if not equals:
                value = next(rest, None)
            if value is None:
                raise UserError(f"{word} has no value: write {word}=VALUE.")
            overrides[key] = value
        else:
            own.append(word)
    return own, overrides


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Splits the command line into options and config overrides."""
    own, overrides = split_overrides(argv)
    parser = Parser(prog="python -m vitjax.main", epilog=EPILOG, allow_abbrev=False,
                     description="Trains and evaluates what a config file describes.",
                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument(
        "--config", required=True, metavar="FILE.py[:ARG]", help="config file and its argument"
    )
    parser.add_argument(
        "--workdir", metavar="DIR", help="checkpoints, metrics and report; found again on restart"
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "--check", action="store_true", help="build everything by shape only, print it, and stop"
    )
    modes.add_argument("--eval_only", action="store_true", help="run the evaluators on the newest checkpoint")
    parser.add_argument(
        "--multihost", action="store_true", help="join the processes of a TPU pod or Slurm job"
    )
    return parser.parse_args(own), overrides


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are `UserError`s."""

    def error(self, message: str):
        """Raises, instead of leaving the program."""
        raise UserError(f"{message}. See {self.prog} --help.")


def keep_compiled_programs() -> None:
    """Lets jax keep compiled programs in the user's cache, so that a second start skips compilation."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(cache, "vitjax", "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


if __name__ == "__main__":
    sys.exit(main())
