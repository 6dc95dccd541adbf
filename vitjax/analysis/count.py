"""What models compute and store: `python -m vitjax.analysis.count MODEL... [options]`.

Parameters, multiply-accumulates of binary and of real operands, the OPs of the literature of binary networks
and the size of a packed file, read from the traced computation (`arithmetic`): nothing runs, and a model that
nobody has counted before counts like any other. Conventions and their sources: docs/counting.md.
"""

import argparse
import ast
import csv
import dataclasses
import io
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from vitjax.errors import UserError, nearest

FORMATS = ("table", "csv", "json")
NUM_CLASSES = 1000
OPS_A_WORD = 64  # binary multiply-accumulates that count as one of real numbers
BYTES = 4  # of a real number in a file

EPILOG = """\
examples:
  python -m vitjax.analysis.count vit_s16 deit_s16@384
  python -m vitjax.analysis.count vit_s16 --set pool=gap --set depth=6 --size 64 --classes 10 --format csv
MODEL@PIXELS sets the resolution of one model. Exit code: 0; 2 for a mistake of the user's own.
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """What a model costs for one image.

    Attributes:
      model: name.
      settings: fields that were set, as `field=value ...`.
      resolution: pixels of a side.
      num_classes: of the head.
      parameters: everything that is learned.
      float_parameters: those that are not binary.
      binary_parameters: weights of which the network takes the signs alone.
      buffers: numbers beside the parameters that the network needs: running means and variances.
      macs: multiply-accumulates of all products and convolutions.
      bops: those of two binary operands.
      float_macs: the others.
      scalings: multiplications of an element by the learned scale of its channel (LayerScale, affine).
      flops: `float_macs` and `scalings`.
      ops: `bops` / 64 and `flops`.
      bytes: of parameters and buffers in float32.
      packed_bytes: the same with one bit a binary weight, and the float32 scales that belong to them.
    """

    model: str
    settings: str
    resolution: int
    num_classes: int
    parameters: int
    float_parameters: int
    binary_parameters: int
    buffers: int
    macs: int
    bops: int
    float_macs: int
    scalings: int
    flops: int
    ops: float
    bytes: int
    packed_bytes: int


def count(
    name: str,
    resolution: int | None = None,
    num_classes: int = NUM_CLASSES,
    fields: Mapping[str, Any] | None = None,
) -> Row:
    """Counts a model of the registry, or one outside the package by its dotted path.

    Args:
      name: as `vitjax.models.create` takes it.
      resolution: pixels of a side; None: what results of the model were published at, else 224.
      num_classes: of the head.
      fields: of the model, in place of what the name stands for.

    Raises:
      UserError: no such model or field, images that it does not take, or products whose number cannot be told
        without running it.
    """
    from vitjax import models
    from vitjax.analysis.published import native_resolution

    fields = dict(fields or {})
    resolution = resolution or native_resolution(name)
    model = models.create(name, num_classes=num_classes, **fields)
    if hasattr(model, "decode_step"):
        raise UserError(f"{name} is a model of sequences: what is counted here is the work for one image.")
    settings = " ".join(f"{field}={value}" for field, value in fields.items())
    try:
        return _row(model, name, settings, resolution, num_classes)
    except (UserError, ValueError) as error:
        described = " ".join([name, settings]).strip()
        raise UserError(f"{described} at {resolution} pixels: {error}") from error


def _row(model: Any, name: str, settings: str, resolution: int, num_classes: int) -> Row:
    import jax
    import jax.numpy as jnp

    from vitjax.analysis import arithmetic

    image = jax.ShapeDtypeStruct((1, resolution, resolution, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    network = arithmetic.read(model, variables, image)
    sizes = {key: sum(leaf.size for leaf in jax.tree.leaves(tree)) for key, tree in variables.items()}
    parameters, binary, operations = sizes["params"], sum(network.binary.values()), network.operations
    buffers = sum(sizes.values()) - parameters
    flops = operations.real + operations.scaled
    return Row(
        model=name,
        settings=settings,
        resolution=resolution,
        num_classes=num_classes,
        parameters=parameters,
        float_parameters=parameters - binary,
        binary_parameters=binary,
        buffers=buffers,
        macs=operations.products,
        bops=operations.binary,
        float_macs=operations.real,
        scalings=operations.scaled,
        flops=flops,
        ops=operations.binary / OPS_A_WORD + flops,
        bytes=BYTES * (parameters + buffers),
        packed_bytes=BYTES * (parameters - binary + buffers + network.scales)
        + sum(-(-size // 8) for size in network.binary.values()),
    )


_COLUMNS = {  # and whether they stand to the left
    "model": (lambda row: " ".join([row.model, row.settings]).strip(), True),
    "pixels": (lambda row: str(row.resolution), False),
    "parameters": (lambda row: f"{row.parameters:,}", False),
    "binary": (lambda row: f"{row.binary_parameters:,}", False),
    "float": (lambda row: f"{row.float_parameters:,}", False),
    "buffers": (lambda row: f"{row.buffers:,}", False),
    "MMACs": (lambda row: _millions(row.macs), False),
    "MBOPs": (lambda row: _millions(row.bops), False),
    "MFLOPs": (lambda row: _millions(row.flops), False),
    "MOPs": (lambda row: _millions(row.ops), False),
    "MiB": (lambda row: f"{row.bytes / 2**20:,.2f}", False),
    "packed": (lambda row: f"{row.packed_bytes / 2**20:,.2f}", False),
}


def table(rows: Sequence[Row]) -> str:
    """The rows as lines of text for a terminal; operations in millions, sizes in MiB."""
    columns = []
    for name, (show, left) in _COLUMNS.items():
        cells = [name, *map(show, rows)]
        width = max(map(len, cells))
        columns.append([cell.ljust(width) if left else cell.rjust(width) for cell in cells])
    return "\n".join("  ".join(cells).rstrip() for cells in zip(*columns, strict=True))


def _millions(number: float) -> str:
    return f"{number / 1e6:,.2f}"


def to_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV, one column a field; nothing is rounded."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows)
    return text.getvalue().rstrip("\n")


def to_json(rows: Sequence[Row]) -> str:
    """The rows as a JSON list of objects, one key a field; nothing is rounded."""
    return json.dumps([dataclasses.asdict(row) for row in rows], indent=2)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}. See python -m vitjax.analysis.count --help.")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads and checks the command line; `models` become (name, pixels or None) pairs, `set` a dict."""
    parser = _Parser(prog="python -m vitjax.analysis.count", epilog=EPILOG, allow_abbrev=False,
                     description="Counts parameters, operations and bytes of models, by shape alone.",
                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add(
        "models", nargs="+", metavar="MODEL[@PIXELS]", help="such as vit_s16, or my_package.my_module.MyModel"
    )
    add("--size", metavar="PIXELS",
        help="of a side; default: what results of the model were published at, else 224")  # fmt: skip
    add("--classes", default=str(NUM_CLASSES), metavar="N", help=f"of the head ({NUM_CLASSES})")
    add("--set", action="append", default=[], metavar="FIELD=VALUE",
        help="a field of the models, as config.model has it; may be repeated")  # fmt: skip
    add("--format", default="table", metavar="FORMAT", help="table, csv or json (table)")
    args = parser.parse_args(argv)
    args.size = None if args.size is None else _number("--size", args.size)
    args.classes = _number("--classes", args.classes)
    args.set = _fields(args.set)
    if args.format not in FORMATS:
        raise UserError(
            f"--format {args.format!r} is none of {', '.join(FORMATS)}.{nearest(args.format, FORMATS)}"
        )
    args.models = [_model(word, args.size) for word in dict.fromkeys(args.models)]
    return args


def _model(word: str, size: int | None) -> tuple[str, int | None]:
    name, at, pixels = word.partition("@")
    return name, _number(word, pixels) if at else size


def _number(option: str, word: str) -> int:
    if not (word.isascii() and word.isdigit() and int(word) > 0):
        raise UserError(f"{option} {word!r} must be a whole number of 1 or more.")
    return int(word)


def _fields(words: Sequence[str]) -> dict[str, Any]:
    """Values are Python literals, (8, 4, 1, 1), and what is none is text: gap."""
    fields: dict[str, Any] = {}
    for word in words:
        field, sign, text = word.partition("=")
        if not (sign and field.isidentifier()):
            raise UserError(f"--set {word!r} cannot be read: write FIELD=VALUE, such as pool=gap.")
        if field in fields:
            raise UserError(f"--set names {field!r} twice: keep one.")
        if field in ("name", "num_classes"):
            raise UserError(
                f"--set {word!r}: the model's name is an argument of its own, and --classes sets its head."
            )
        try:
            fields[field] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            fields[field] = text
    return fields


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
        rows = [count(name, size, args.classes, args.set) for name, size in args.models]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print({"table": table, "csv": to_csv, "json": to_json}[args.format](rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
