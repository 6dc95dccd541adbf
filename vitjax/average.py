"""The command line: `python -m vitjax.average --workdir W [--last 5] [--to W/averaged]`.

"Attention Is All You Need" (arXiv 1706.03762, section 6.1) translates with the mean of the parameters
of the last 5 checkpoints, written 10 minutes apart, and of the last 20 of the big model. Any run's
checkpoints can be averaged so, if it kept them: config.keep_last, or config.keep_ckpt_steps.
"""

import argparse
import pathlib
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vitjax.errors import UserError

CHECKPOINTS = "checkpoints"
WEIGHTS = (".npz", ".safetensors")
# What a mean is taken of; all else, such as the optimizer's state, is the newest checkpoint's.
AVERAGED = ("params", "model_state", "ema_params", "ema_model_state")
# Files of a workdir without which nobody can make anything of its checkpoints.
BESIDE = ("config.json", "vocabulary.model")
EPILOG = """\
examples:
  python -m vitjax.average --workdir runs/base                      writes the workdir runs/base/averaged
  python -m vitjax.average --workdir runs/big --last 20 --to runs/big_averaged
  python -m vitjax.average --workdir runs/base --to base.safetensors     weights alone
a workdir is evaluated and translated with like any other, with the config of the run:
  python -m vitjax.main --config CONFIG --workdir runs/base/averaged --eval_only
weights alone are to start from: --config.model_init.weights=base.safetensors
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; exit code 0, or 2 for a mistake of the user's own."""
    try:
        args = _parser().parse_args(argv)
        average(args.workdir, args.last, args.to, tell=print)
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m vitjax.average", epilog=EPILOG, allow_abbrev=False,
                     description="Averages the parameters of a run's last checkpoints.",
                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument(
        "--workdir", required=True, type=pathlib.Path, metavar="DIR", help="of the run, which may go on"
    )
    parser.add_argument(
        "--last", type=int, default=5, metavar="N", help="how many of the newest checkpoints (default: 5)"
    )
    parser.add_argument(
        "--to",
        type=pathlib.Path,
        metavar="DIR|FILE",
        help="a new workdir, or a file .npz or .safetensors (default: WORKDIR/averaged)",
    )
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}. See python -m vitjax.average --help.")


def average(
    workdir: pathlib.Path,
    last: int = 5,
    to: pathlib.Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> list[int]:
    """Writes the mean of the last checkpoints of a run; returns their steps.

    Means are taken in float64 and rounded once, to the type of the parameters. Moving averages and what the
    model keeps itself, such as batch statistics, are averaged like parameters; for batch statistics that is
    an approximation.

    Args:
      workdir: of the run; nothing in it is changed.
      last: how many of its newest checkpoints.
      to: a folder that becomes a workdir, with one checkpoint of the newest step and the optimizer's state
        of that step; or a file of weights by its suffix. `workdir/averaged` by default.
      tell: takes lines of text.

    Raises:
      UserError: there are fewer checkpoints, one is damaged or of another network, or `to` is taken.
    """
    to = workdir / "averaged" if to is None else to
    folder = workdir / CHECKPOINTS
    steps = _last_steps(folder, last)
    if to.suffix in WEIGHTS:
        leaves, _ = _mean(folder, steps, tell)
        _write_weights(to, leaves)
    else:
        _refuse_taken(to)
        leaves, about = _mean(folder, steps, tell)
        _write_workdir(to, workdir, leaves, about | {"averaged": steps})
    tell(f"wrote {to}: the mean of the checkpoints of steps {', '.join(map(str, steps))}")
    return steps


def _last_steps(folder: pathlib.Path, last: int) -> list[int]:
    """The last checkpoints' steps, ascending."""
    if last < 1:
        raise UserError(f"--last {last}: 1 checkpoint or more.")
    found = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    steps = sorted(int(name) for name in found if name.isdecimal())
    if len(steps) < last:
        there = f": steps {', '.join(map(str, steps))}" if steps else ""
        raise UserError(
            f"--last {last}: there are {len(steps)} checkpoints in {folder}{there}. Take --last of so many "
            "at most; a run keeps more of them with config.keep_last, or with config.keep_ckpt_steps."
        )
    return steps[-last:]


def _mean(
    folder: pathlib.Path, steps: Sequence[int], tell: Callable[[str], None]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The newest checkpoint's leaves by name, means in place of the averaged ones, and its record."""
    import jax.numpy as jnp

    from vitjax import checkpoint_files as files

    newest, about = _read(folder / str(steps[-1]), lambda name: True)
    total = {
        name: leaf.astype(np.float64)
        for name, leaf in newest.items()
        if name.split("/")[0] in AVERAGED and jnp.issubdtype(leaf.dtype, jnp.floating)
    }
    tell(f"step {steps[-1]}: {sum(leaf.size for leaf in total.values()):,} numbers to average")
    of_newest = {name: newest[name] for name in total}
    for step in reversed(steps[:-1]):
        leaves, record = _read(folder / str(step), lambda name: name.split("/")[0] in AVERAGED)
        there = {name: record["leaves"][name] for name in leaves if name in total or name not in newest}
        if told := files.difference(there, of_newest):
            raise UserError(f"{folder / str(step)} is of another network than {steps[-1]}: {told}.")
        for name in total:
            total[name] += leaves[name].astype(np.float64)
        tell(f"step {step}")
    means = {name: (leaf / len(steps)).astype(newest[name].dtype) for name, leaf in total.items()}
    return newest | means, about


def _read(path: Any, wanted: Callable[[str], bool]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The wanted leaves of one checkpoint, held against their checksums, and its record."""
    import jax.numpy as jnp

    from vitjax import checkpoint_files as files

    path = files.absolute(path)
    try:
        record = files.read_record(path)
        saved = record["leaves"]
        like = {
            name: np.zeros(shape, jnp.dtype(dtype))
            for name, (dtype, shape, _) in saved.items()
            if wanted(name)
        }
        return files.read(path, saved, like), record
    except files.DamagedError as e:
        raise UserError(
            f"The checkpoint {path} is damaged: {e}. Move it away, and average those that are left."
        ) from e


def _write_weights(path: pathlib.Path, leaves: Mapping[str, np.ndarray]) -> None:
    """Writes parameters, with what belongs to them, as a file of weights by our names."""
    from vitjax import weights
    from vitjax.checkpoint_files import nest
    from vitjax.weights import variables

    tree = nest(dict(leaves))
    weights.save(path, variables.join(tree["params"], tree.get("model_state", {})))


def _refuse_taken(to: pathlib.Path) -> None:
    if to.exists() and not to.is_dir():
        raise UserError(
            f"--to {to} is a file; name a new folder, or a file that ends in {' or '.join(WEIGHTS)}."
        )
    if (to / CHECKPOINTS).exists():
        raise UserError(f"--to {to} holds checkpoints already. Name another folder, or move that one away.")


def _write_workdir(
    to: pathlib.Path, workdir: pathlib.Path, leaves: Mapping[str, np.ndarray], about: dict[str, Any]
) -> None:
    """Makes a workdir: the checkpoint last, so that a folder with one is whole."""
    from vitjax import checkpoint_files
    from vitjax.checkpoint_files import brief, nest
    from vitjax.files import cannot_write, folder

    folder(to / CHECKPOINTS)
    try:
        for name in BESIDE:
            if (workdir / name).exists():
                shutil.copyfile(workdir / name, to / name)
    except OSError as e:
        raise cannot_write(to, e) from e
    about = {key: value for key, value in about.items() if key not in ("format", "leaves", "metrics")}
    path = checkpoint_files.absolute(to / CHECKPOINTS / str(about["step"]))
    try:
        checkpoint_files.write(path, nest(dict(leaves)), **about, metrics={}).result()
    except OSError as e:
        raise UserError(f"Cannot write {path}: {brief(e)}. Make room there, or name another --to.") from e


if __name__ == "__main__":
    sys.exit(main())
