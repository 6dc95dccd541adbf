"""The official JAX files: AugReg (before Linen and with it) and big_vision, to our names and back.

Ours are the names of Linen. Before it, Flax numbered the modules of a block as they came, whatever they were;
Linen numbers each class by itself.
"""

import re
from collections.abc import Collection, Iterable

from vitjax.weights.tables import Move, as_it_is

_OLD_BLOCK = {
    "MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0",
    "LayerNorm_2": "LayerNorm_1",
    "MlpBlock_3": "MlpBlock_0",
}
_NEW_BLOCK = {new: old for old, new in _OLD_BLOCK.items()}
_OLD_POSITIONS = ("Transformer/posembed_input/pos_embedding", "Transformer/pos_embedding")
_IN_BLOCK = re.compile(r"((?:.*/)?encoderblock(?:_\d+)?/)([^/]+)(/.*)")
# A MAP head has one of each; old big_vision files have them at the top, beside everything else.
_MAP_PARTS = r"(?:LayerNorm|MlpBlock|MultiHeadDotProductAttention)"


def is_flax(names: Collection[str]) -> bool:
    """Whether these are the names of a Vision Transformer or a residual network in Flax."""
    known = r"(Transformer|stage_\d+)/encoderblock|Transformer/encoder_norm|(embedding|conv_root)/kernel$"
    return any(re.match(known, name) for name in names)


def label(names: Collection[str]) -> str:
    """Which of the namings it is, for reports."""
    old = any(re.search(r"encoderblock(_\d+)?/(MlpBlock_3|LayerNorm_2|Multi\w+_1)/", name) for name in names)
    stacked = any("/encoderblock/" in f"/{name}" for name in names)
    return ("pre-Linen Flax names" if old else "Linen names") + (", blocks stacked" if stacked else "")


def moves(names: Iterable[str]) -> list[Move]:
    """What becomes of each array; a name that needs no change, known or not, is kept."""
    return [as_it_is(name, to_ours(name)) for name in names]


def to_ours(name: str) -> str:
    """`Transformer/encoderblock_3/MlpBlock_3/...` -> `Transformer/encoderblock_3/MlpBlock_0/...`."""
    if name in _OLD_POSITIONS:
        return "pos_embedding"
    if match := _IN_BLOCK.fullmatch(name):
        return f"{match[1]}{_OLD_BLOCK.get(match[2], match[2])}{match[3]}"
    if name == "probe" or re.match(rf"{_MAP_PARTS}_\d+/", name):
        name = f"MAPHead_0/{name}"
    return re.sub(rf"^(MAPHead_0/{_MAP_PARTS})_\d+/", r"\1_0/", name)


def to_augreg(name: str) -> str:
    """Our name in the numbering of the AugReg collection, from before Linen."""
    if name == "pos_embedding":
        return _OLD_POSITIONS[0]
    if match := _IN_BLOCK.fullmatch(name):
        return f"{match[1]}{_NEW_BLOCK.get(match[2], match[2])}{match[3]}"
    return name
