"""The command line: `python -m vitjax.weights {show,convert} ...`."""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from vitjax.errors import UserError

EPILOG = """\
examples:
  python -m vitjax.weights show B_16.npz
  python -m vitjax.weights show runs/s16:ema_params
  python -m vitjax.weights convert model.safetensors vit_b16.npz --model vit_b16 --names augreg
  python -m vitjax.weights convert resnet50.pth resnet50.safetensors --model resnet50
  python -m vitjax.weights convert runs/s16 vit_s16.safetensors --model vit_s16 --names timm --res 384
"""
SOURCE = "a file, a run's folder, or a name such as augreg:vit_b16; `:img` behind it means a sub-tree"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; exit code 0, or 2 for a mistake of the user's own."""
    try:
        args = _parser().parse_args(argv)
        return show(args) if args.command == "show" else convert(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m vitjax.weights", epilog=EPILOG, allow_abbrev=False,
                     description="Looks into files of weights, and writes them in other forms.",
                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="{show,convert}")
    showing = commands.add_parser("show", allow_abbrev=False, help="whose file it is, and what is in it")
    showing.add_argument("source", metavar="FILE", help=SOURCE)
    converting = commands.add_parser(
        "convert", allow_abbrev=False, help="read weights as those of a model, and write them"
    )
    converting.add_argument("source", metavar="SOURCE", help=SOURCE)
    converting.add_argument("out", metavar="OUT", help="what to write; ends in .npz or .safetensors")
    converting.add_argument("--model", required=True, help="whose weights they are, such as vit_b16")
    converting.add_argument(
        "--classes", type=int, metavar="N", help="what the head must have; 0 drops it (default: as in SOURCE)"
    )
    converting.add_argument(
        "--res", type=int, metavar="PIXELS", help="resize positions to square images of this size"
    )
    converting.add_argument(
        "--names",
        default="vitjax",
        metavar="{vitjax,augreg,timm,spt_lsa}",
        help="whose names (default: vitjax)",
    )
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}. See python -m vitjax.weights --help.")


def show(args: argparse.Namespace) -> int:
    """Prints the family of a file and every array in it, of which at most positions are read."""
    from vitjax.weights import families
    from vitjax.weights.archive import open_archive
    from vitjax.weights.loading import key_and_subtree, locate
    from vitjax.weights.stored import printable, shown

    path, behind = locate(args.source)
    key, subtree = key_and_subtree(path, behind)
    with open_archive(path, key) as archive:
        try:
            weights = families.recognise(archive, subtree)
            entries, described, notes = weights.entries, weights.described, weights.notes
        except UserError as error:
            if subtree:
                raise
            entries, described, notes = archive.entries, "of no one known family", (str(error),)
        for stored in entries.values():
            print(f"{printable(stored.name)[1:-1]:80} {shown(stored.shape):24} {stored.dtype}")
        numbers = sum(math.prod(stored.shape) for stored in entries.values())
        size = sum(stored.nbytes for stored in entries.values())
        print(f"\n{archive.path}: {archive.kind}, {described}")
        print(f"{len(entries)} entries, {numbers:,} numbers, {size / 1e6:,.1f} MB")
        print("\n".join(notes), end="\n" if notes else "")
    return 0


def convert(args: argparse.Namespace) -> int:
    """Reads weights as those of a model and writes them in the form asked for."""
    from vitjax.weights.loading import load
    from vitjax.weights.saving import check, save

    check(args.out, None, args.names)
    if args.classes is not None and args.classes < 0:
        raise UserError(f"--classes {args.classes} must be 0 or more.")
    provided = _provided(args.source, args.model)
    params = abstract(args.model, provided, args.classes, args.res)
    heads = [name for name in ("head", "head_dist") if f"{name}/kernel" in provided]
    dropped = [f"{name}/.*" for name in heads] if args.classes == 0 else []
    loaded = load(args.source, params, dont_load=dropped)
    save(args.out, loaded.params, names=args.names)
    print(f"{loaded.report}\nwrote {args.out}, names of {args.names}")
    return 0


def _provided(source: str, model: str) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters in a file, by our names in loop form; none is read."""
    from vitjax import models
    from vitjax.weights import families, merge
    from vitjax.weights.archive import open_archive
    from vitjax.weights.loading import key_and_subtree, locate
    from vitjax.weights.tables import heads_of

    path, behind = locate(source)
    key, subtree = key_and_subtree(path, behind)
    num_heads = heads_of(getattr(models.create(model), "num_heads", 1))
    with open_archive(path, key) as archive:
        weights = families.recognise(archive, subtree)
        moves, _ = weights.family.translate(weights.entries, num_heads)
        provided: dict[str, tuple[int, ...]] = {}
        for move in moves:
            shape = weights.entries[move.entry].shape
            move = merge.unstacked(move, shape)
            provided |= zip(move.targets, merge.shapes_of(move, shape), strict=False)
    return provided


def fields(provided: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The fields of a model that tell in its parameters: pooling, norms, layers that may be there."""
    from vitjax.weights import pit_names, reactnet_names, relative_position, swin_names, timm_cnn_names

    names = set(provided)
    if swin_names.is_ours(names):
        tables = [shape[0] for name, shape in provided.items() if relative_position.is_table(name) and shape]
        windows = [window for entries in tables if (window := relative_position.window(entries))]
        return {
            **({"window": max(windows)} if windows else {}),  # those of late stages may be smaller
            "abs_pos": "pos_embedding" in names,
            "spt_pooling": "pooling_0/projection/bias" in names,
            "qkv_bias": any("/query/bias" in name for name in names),
        }
    if reactnet_names.is_mobile(names):
        return {}
    if table := timm_cnn_names.table_of(names):  # of ReActNets in the layout of ResNets, that of ResNets
        small = provided["conv_root/kernel"][0] == 3
        return {"stem": "small" if small else "imagenet"} if table is timm_cnn_names.RESNET else {}
    has = lambda part: any(part in name for name in names)
    if has("tokens_to_token/"):
        return {
            "qkv_bias": any(name.startswith("Transformer/") and "/query/bias" in name for name in names),
            "posemb": "learn" if "pos_embedding" in names else "sinusoid",
            "unused_norm": "tokens_to_token/norm/scale" in names,
        }
    out: dict[str, Any] = {
        "pool": "map" if has("MAPHead_0/") else "gap" if has("fc_norm/") or "cls" not in names else "tok",
        "class_token": "cls" in names,
        "fc_norm": has("fc_norm/"),
        "qkv_bias": has("/query/bias"),
        "layer_scale": 1e-5 if has("/LayerScale_") else None,
        "posemb": "learn" if "pos_embedding" in names else "sincos2d",
    }
    if pit_names.is_ours(names):
        out["spt_pooling"] = has("pooling_0/projection/")
    if "pre_logits/bias" in names:
        out["rep_size"] = provided["pre_logits/bias"][0]
    if "pos_embedding" in names:
        entries = provided["pos_embedding"][1]
        out["posemb_layout"] = "big_vision" if math.isqrt(entries) ** 2 == entries else "augreg"
    return out


def abstract(
    name: str, provided: Mapping[str, tuple[int, ...]], classes: int | None, res: int | None
) -> Mapping[str, Any]:
    """The shapes of a model's parameters and batch statistics, its variant read off the file's names.

    Args:
      name: of a registered model.
      provided: the file's shapes by our names.
      classes: of the head; None: as in the file.
      res: pixels of a square image; None: as many as make the file's number of positions.
    """
    import jax

    from vitjax import models
    from vitjax.weights import variables

    if classes is None:
        classes = provided.get("head/bias", (0,))[0]
    model = models.create(name, num_classes=classes or None, **fields(provided))
    channels = provided.get("conv_root/kernel", provided.get("embedding/kernel", (0, 0, 3, 0)))[-2]

    def at(height, width):
        image = jax.ShapeDtypeStruct((1, height, width, channels), "float32")
        made = jax.eval_shape(model.init, jax.random.key(0), image)
        return variables.join(made["params"], made)

    if res is not None:
        return at(res, res)
    if "pos_embedding" not in provided:
        return at(*getattr(model, "image_unit", (224, 224)))
    entries = provided["pos_embedding"][1]
    side = math.isqrt(entries)
    overlap = getattr(model, "overlap", (0, 0))
    stride = getattr(model, "stride", (16, 16))
    params = at(*(side * step + more for step, more in zip(stride, overlap, strict=True)))
    if params["pos_embedding"].shape[1] == entries:
        return params
    raise UserError(f"{entries} positions are those of no square image for {name}: say --res.")


if __name__ == "__main__":
    sys.exit(main())
