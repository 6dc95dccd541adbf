"""The command line: `python -m vitjax.analysis.attention --workdir W [W2 ...] --images IMAGES`."""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Sequence

from vitjax.errors import UserError, nearest

METHODS = ("cls", "rollout", "heads")
COUNT = 12
EPILOG = """\
examples:
  python -m vitjax.analysis.attention --workdir runs/vit runs/sl_vit --images data:test
  python -m vitjax.analysis.attention --workdir runs/vit:ema_params --images photos/ --method rollout
  python -m vitjax.analysis.attention --model deit_s16 --weights deit_small.pth --images cat.jpg \\
      --pp "decode|resize_small(256)|central_crop(224)|vgg_value_range"
What the maps are, and what they are not: docs/attention.md.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; exit code 0, or 2 for a mistake of the user's own."""
    try:
        return run(parse(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}. See python -m vitjax.analysis.attention --help.")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = _Parser(prog="python -m vitjax.analysis.attention", epilog=EPILOG, allow_abbrev=False,
                     description="Shows what the attention of trained models looks at.",
                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add("--workdir", nargs="+", metavar="W", default=[],
        help="folders of runs, side by side; W:ema_params for averaged parameters")  # fmt: skip
    add("--model", metavar="NAME", help="a model instead, vit_b16 or vit_b16,pool='gap'")
    add("--weights", metavar="FILE", help="its weights, a file or a name such as augreg:vit_b16")
    add("--images", nargs="+", required=True, metavar="IMAGES",
        help="files, folders, or data:SPLIT of the data set of the run's first evaluator")  # fmt: skip
    add("--data", metavar="NAME", help="another data set for data:SPLIT, such as digits")
    add("--count", type=int, default=COUNT, metavar="N",
        help=f"the first N images of a folder or data set ({COUNT})")  # fmt: skip
    add(
        "--method", nargs="+", default=list(METHODS), metavar="METHOD", help="cls, rollout, heads (all three)"
    )
    add("--layer", type=int, default=-1, metavar="N", help="of cls and heads, from 0, or from the end (-1)")
    add("--pp", metavar="STRING",
        help="preprocessing; default: that of the first evaluator of the run's config")  # fmt: skip
    add("--out", metavar="DIR", help="where to write (WORKDIR/attention of the first run, or ./attention)")
    args = parser.parse_args(argv)
    if bool(args.workdir) == bool(args.model):
        raise UserError("name what to look into: either --workdir, or --model with --weights.")
    if bool(args.model) != bool(args.weights):
        raise UserError("--model and --weights go together: numbers of a model, and whose they are.")
    if args.count < 1:
        raise UserError(f"--count {args.count} must be 1 or more.")
    args.method = [word for text in args.method for word in text.split(",")]
    for word in args.method:
        if word not in METHODS:
            raise UserError(f"--method {word!r} is none of {', '.join(METHODS)}.{nearest(word, METHODS)}")
    return args


def run(args: argparse.Namespace) -> int:
    """Reads, looks, and writes what the command line asks for; returns the exit code."""
    from vitjax.analysis.attention import images, networks, page
    from vitjax.analysis.attention.look import look

    if args.workdir:
        described = [networks.of_workdir(source, args.pp) for source in args.workdir]
        if len({one.label for one in described}) < len(described):  # a/vit and b/vit
            described = [dataclasses.replace(one, label=one.weights) for one in described]
    else:
        described = [networks.of_file(args.model, args.weights, args.pp)]
    examples = images.read(args.images, args.count, args.data or described[0].data)
    looks = []
    for one in described:
        try:
            network = networks.load(one, examples.examples, examples.names)
            looks.append(look(network, args.method, args.layer))
        except UserError as error:
            raise UserError(f"{one.label}: {error}") from error
    if args.out:
        out = pathlib.Path(args.out)
    else:
        out = networks.folder_of(described[0]) if args.workdir else pathlib.Path("attention")
    for seen in looks:
        layer = seen.shown_layer
        print(f"{seen.network.label}: {layer.name}, {layer.whose}, {len(seen.layers)} attention layers")
    print(page.write(out, looks, examples))
    return 0
