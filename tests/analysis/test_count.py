"""The published tables of binary networks, the whole registry, and the command line."""

import csv
import io
import json

import flax.linen as nn
import jax
import pytest

from vitjax import models
from vitjax.analysis.count import Row, count, main
from vitjax.errors import UserError
from vitjax.layers.batch_norm import BatchNorm
from vitjax.layers.binary import Affine, BinaryDense

LADDER = ["binary_deit_s16", "binary_deit_s16_gap", "binary_deit_s16_branches", "binary_deit_s16_affine"]
PYRAMIDS = ["binaryvit_s", "binaryvit_s_star"]
REACTNETS = ["reactnet_a", "react_resnet18", "react_resnet34"]

# PyTorch has one counter for each batch norm beside its mean and variance, which nothing needs and we have
# not. A block has nine norms and a tenth where keys are reduced; the pyramid one behind its stem, and two at
# each change of stage; all networks one at the end.
COUNTERS = 12 * 9 + 1
PYRAMID_COUNTERS = 1 + 19 * 9 + 7 + 3 * 2 + 1

# Learnable parameters of the published code with 1000 classes, binary weights among them, and buffers.
PARAMETERS = {
    LADDER[0]: (22_294_900, 21_233_664, 111_469 - COUNTERS),
    LADDER[1]: (22_294_132, 21_233_664, 111_469 - COUNTERS),
    LADDER[2]: (22_330_996, 21_233_664, 111_469 - COUNTERS),
    LADDER[3]: (22_349_428, 21_233_664, 111_469 - COUNTERS),
    PYRAMIDS[0]: (22_491_771, 21_196_800, 126_266 - PYRAMID_COUNTERS),
    PYRAMIDS[1]: (22_488_635, 20_508_672, 126_266 - PYRAMID_COUNTERS),
    "deit_s16": (22_050_664, 0, 0),
    REACTNETS[0]: (29_343_592, 28_253_184, None),
    REACTNETS[1]: (11_704_424, 10_985_472, None),
    REACTNETS[2]: (21_827_432, 21_086_208, None),
}

# BOPs in 1e9; BOPs / 64, float multiply-accumulates, scales of channels, FLOPs and OPs in 1e8.
OPERATIONS = {
    LADDER[0]: ("4.541", "0.709", "0.582", "0.000", "0.582", "1.291"),
    LADDER[1]: ("4.516", "0.706", "0.582", "0.000", "0.582", "1.287"),
    LADDER[2]: ("4.516", "0.706", "0.582", "0.036", "0.618", "1.324"),
    LADDER[3]: ("4.516", "0.706", "0.582", "0.054", "0.636", "1.342"),
    PYRAMIDS[0]: ("3.822", "0.597", "0.101", "0.090", "0.192", "0.789"),
    PYRAMIDS[1]: ("3.745", "0.585", "0.872", "0.090", "0.962", "1.548"),
    REACTNETS[0]: ("4.817", "0.753", "0.119", "0.000", "0.119", "0.871"),
    REACTNETS[1]: ("1.676", "0.262", "1.378", "0.000", "1.378", "1.640"),
    REACTNETS[2]: ("3.526", "0.551", "1.378", "0.000", "1.378", "1.929"),
}


@pytest.fixture(scope="module")
def rows():
    """Each model is traced once."""
    made: dict[str, Row] = {}

    def row(name: str) -> Row:
        made[name] = made.get(name) or count(name, 224)
        return made[name]

    return row


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_published_ones(rows, name):
    row = rows(name)
    learnable, binary, buffers = PARAMETERS[name]
    assert (row.parameters, row.binary_parameters) == (learnable, binary)
    assert row.float_parameters == learnable - binary
    if buffers is not None:
        assert row.buffers == buffers


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_the_published_ones(rows, name):
    row = rows(name)
    giga = f"{row.bops / 1e9:.3f}"
    rest = (row.bops / 64, row.float_macs, row.scalings, row.flops, row.ops)
    assert (giga, *(f"{number / 1e8:.3f}" for number in rest)) == OPERATIONS[name]
    assert row.macs == row.bops + row.float_macs


def architectures() -> list[str]:
    """One name of the registry for each module class, and for each with shifted patches."""
    found = {}
    for name in models.names():
        model = models.create(name)
        if not hasattr(model, "decode_step"):  # what takes sequences and no images
            found.setdefault((type(model), getattr(model, "spt", None)), name)
    return list(found.values())


@pytest.mark.parametrize("name", architectures())
def test_every_architecture_of_the_registry_can_be_counted(name):
    """Each name of an architecture runs the same code, with other numbers."""
    fields = {"scan": True} if hasattr(models.create(name), "scan") else {}  # quicker to trace
    row = count(name, num_classes=10, fields=fields)
    assert row.parameters == row.float_parameters + row.binary_parameters > 0
    assert row.macs == row.bops + row.float_macs > 0
    assert row.bytes == 4 * (row.parameters + row.buffers) >= row.packed_bytes
    assert (row.binary_parameters > 0) == (row.bops > 0) == (row.packed_bytes < row.bytes)


def test_a_model_of_sequences_is_refused():
    with pytest.raises(UserError, match="transformer_tiny is a model of sequences"):
        count("transformer_tiny", num_classes=10)


class Tiny(nn.Module):
    """A binary classifier with one of everything that the table tells apart."""

    num_classes: int = 3
    width: int = 2
    note: str = "text"

    @nn.compact
    def __call__(self, x, train=False):
        """Returns `[B, num_classes]` and nothing beside."""
        x = Affine()(BatchNorm()(x, train=train).reshape(x.shape[0], -1))
        return nn.Dense(self.num_classes)(BinaryDense(self.width)(x)), {}


TINY = f"{__name__}.Tiny"


def test_each_column_by_hand():
    numbers = 4 * 4 * 3
    row = count(TINY, 4, 5, {"width": 7})
    norm, affine, move, head = 2 * 3, 2 * numbers, numbers, 7 * 5 + 5
    weights, scales = numbers * 7, 7
    float_parameters = norm + affine + move + head
    packed = 4 * (float_parameters + norm + scales) + weights // 8
    assert row == Row(
        model=TINY,
        settings="width=7",
        resolution=4,
        num_classes=5,
        parameters=float_parameters + weights,
        float_parameters=float_parameters,
        binary_parameters=weights,
        buffers=norm,
        macs=weights + 7 * 5,
        bops=weights,
        float_macs=7 * 5,
        scalings=numbers,
        flops=7 * 5 + numbers,
        ops=weights / 64 + 7 * 5 + numbers,
        bytes=4 * (float_parameters + weights + norm),
        packed_bytes=packed,
    )


def run(capsys, *arguments):
    assert main([*arguments, "--classes", "5", "--set", "width=7"]) == 0
    return capsys.readouterr().out


def test_csv_and_json_round_nothing(capsys):
    row = count(TINY, 4, 5, {"width": 7})
    (line,) = csv.DictReader(io.StringIO(run(capsys, TINY, "--size", "4", "--format", "csv")))
    fields = vars(row)
    assert line == {key: str(value) for key, value in fields.items()}
    assert json.loads(run(capsys, f"{TINY}@4", "--format", "json")) == [fields]


def test_the_table_has_a_line_a_model(capsys):
    lines = run(capsys, f"{TINY}@4", f"{TINY}@8", f"{TINY}@4", "--size", "9").splitlines()
    heading, four, eight = (line.split() for line in lines)
    assert heading[:6] == ["model", "pixels", "parameters", "binary", "float", "buffers"]
    assert heading[6:] == ["MMACs", "MBOPs", "MFLOPs", "MOPs", "MiB", "packed"]
    assert four[:7] == [TINY, "width=7", "4", "526", "336", "190", "6"]
    assert eight[2:5] == ["8", "1,966", "1,344"]


@pytest.mark.parametrize("value", ["text", "'text'"])
def test_values_are_literals_or_text(value, capsys):
    assert main([f"{TINY}@4", "--set", f"note={value}", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["settings"] == "note=text"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["vitt_s16"], ["'vitt_s16'", "Did you mean 'vit_s16'"]),
        (["vit_s16@zero"], ["vit_s16@zero", "'zero'", "whole number"]),
        (["vit_s16", "--size", "0"], ["--size '0'"]),
        (["vit_s16", "--classes", "many"], ["--classes 'many'"]),
        (["vit_s16", "--set", "depth"], ["--set 'depth'", "FIELD=VALUE"]),
        (["vit_s16", "--set", "=3"], ["--set '=3'"]),
        (["vit_s16", "--set", "depth=3", "--set", "depth=4"], ["'depth'", "twice"]),
        (["vit_s16", "--set", "num_classes=3"], ["num_classes=3", "--classes"]),
        (["vit_s16", "--set", "dept=3"], ["model.dept", "Did you mean 'depth'"]),
        (["vit_s16", "--set", "depth=deep"], ["model.depth", "'deep'"]),
        (["vit_s16", "--format", "tsv"], ["--format 'tsv'", "table, csv, json", "Did you mean 'csv'"]),
        (["vit_s16@65", "--set", "depth=2"], ["vit_s16 depth=2 at 65 pixels", "64x64"]),
        ([], ["MODEL[@PIXELS]", "--help"]),
    ],
)
def test_mistakes_are_told_by_name(arguments, words, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert not printed.out and printed.err.startswith("error: ") and "Traceback" not in printed.err
    assert all(word in printed.err for word in words), printed.err


class Loop(nn.Module):
    """Multiplies until it is done, which no shape tells."""

    num_classes: int = 3

    @nn.compact
    def __call__(self, x, train=False):
        """Returns its image."""
        return jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: x @ x.swapaxes(-1, -2) @ x, x), {}


def test_what_cannot_be_counted_is_refused_by_name(capsys):
    assert main([f"{__name__}.Loop@4"]) == 2
    assert f"{__name__}.Loop at 4 pixels: The products inside a 'while'" in capsys.readouterr().err
