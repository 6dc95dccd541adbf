"""The command line: `python -m vitjax.sweep list|run|status|report|advise --sweep FILE --workdir DIR`."""

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence

from vitjax.errors import UserError
from vitjax.main import local_folder
from vitjax.sweep import trials

EPILOG = """\
examples:
  python -m vitjax.sweep list --sweep configs/sweeps/augreg.py:models=vit_s16+vit_b16
  python -m vitjax.sweep run --sweep FILE.py --workdir runs/sweep --parallel 2
  python -m vitjax.sweep run --sweep FILE.py --workdir /shared/sweep --executor slurm --parallel 32 \\
      --slurm partition=gpu gpus_per_node=1 time=240
  python -m vitjax.sweep status --workdir runs/sweep
  python -m vitjax.sweep report --workdir runs/sweep
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Exit code: 0; 2 for a mistake of the user's own; 3 if trials failed for good; 130 or 143 if told to stop.
    """
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
        return args.command(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of `list | head` has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}. See {self.prog} --help.")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line; `command` is the function to call with what was read."""
    parser = _Parser(prog="python -m vitjax.sweep", epilog=EPILOG, allow_abbrev=False,
                     description="Many trials of one config file.",
                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    commands = parser.add_subparsers(required=True, metavar="list|run|status|report|advise")
    own: dict[str, Callable] = {"list": _list, "run": _run, "status": _status}
    helps = {
        "list": "what the sweep file describes; checks it",
        "run": "train all trials that are not finished",
        "status": "how far each trial is",
        "report": "write the table and the page",
        "advise": "print what the trials say",
    }
    for name, text in helps.items():
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument(
            "--sweep", required=name in ("list", "run"), metavar="FILE.py[:ARG]", help="sweep file"
        )
        command.add_argument("--workdir", required=name != "list", metavar="DIR", help="folder of the sweep")
        command.set_defaults(command=own.get(name))
        if name == "run":
            _add_run_arguments(command)
        elif name not in own and name in argv:  # the other modes start without what these two import
            module = importlib.import_module(f"vitjax.sweep.{name}")
            module.add_arguments(command)
            command.set_defaults(command=_with_workdir(module.run))
    return parser.parse_args(argv)


def _with_workdir(run: Callable) -> Callable:
    def command(args: argparse.Namespace) -> int:
        args.workdir = _folder(args).path
        return run(args)

    return command


def _add_run_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--parallel", type=int, default=1, metavar="N", help="number of workers (1)")
    command.add_argument(
        "--retries", type=int, default=1, metavar="K", help="how often a failed trial is tried again (1)"
    )
    command.add_argument(
        "--index", metavar="I/N", help="only the I-th of N shares of the trials, from 0, in this process"
    )
    command.add_argument(
        "--executor", choices=("local", "slurm", "inline"), default="local",
        help="submitit on this machine (local) or on a cluster (slurm); inline trains in this process",
    )  # fmt: skip
    command.add_argument(
        "--slurm",
        nargs="+",
        default=(),
        metavar="KEY=VALUE",
        help="for Slurm: partition, time, gpus_per_node ...",
    )
    command.add_argument("--detach", action="store_true", help="with Slurm: submit and do not wait")
    command.add_argument(
        "--extend", action="store_true", help="the sweep file may have got more trials than the folder has"
    )


def _list(args: argparse.Namespace) -> int:
    plan = trials.read(args.sweep)
    trials.check_unset_keys(plan.trials.values())
    for trial in plan.trials.values():
        keys = " ".join(f"--config.{key}={value!r}" for key, value in trial.overrides.items())
        print(f"{trial.name}  {trial.config} {keys}".rstrip())
    print(f"{len(plan.trials)} trials")
    return 0


def _run(args: argparse.Namespace) -> int:
    from vitjax.sweep.run import run

    for option in ("parallel", "retries"):
        if getattr(args, option) < (option == "parallel"):
            raise UserError(f"--{option} {getattr(args, option)}: {int(option == 'parallel')} or more.")
    if (args.slurm or args.detach) and args.executor != "slurm":
        raise UserError("--slurm and --detach go with --executor slurm.")
    share = _share(args.index) if args.index else None
    plan = trials.read(args.sweep)
    folder = _folder(args)
    folder.settle(plan, extend=args.extend)
    return run(
        plan,
        folder,
        parallel=args.parallel,
        retries=args.retries,
        executor=args.executor,
        share=share,
        slurm=args.slurm,
        detach=args.detach,
    )


def _status(args: argparse.Namespace) -> int:
    from vitjax.sweep import status

    folder = _folder(args)
    print(status.table(folder, folder.read()))
    return 0


def _folder(args: argparse.Namespace):
    from vitjax.sweep.folder import Folder

    return Folder(local_folder(args.workdir))


def _share(text: str) -> tuple[int, int]:
    """Reads `I/N`."""
    first, slash, last = text.partition("/")
    if not (slash and first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise UserError(f"--index {text}: write I/N with 0 <= I < N, such as 0/4 to 3/4 for four shares.")
    return int(first), int(last)
