"""Swin's names: those of the official files, of timm, and of the released networks for small data sets.

A pooling is at the end of the stage before it in the official code, in timm before 0.9 and in
aanna0701/SPT_LSA_ViT, and at the beginning of the stage after it in timm since then. The head differs, too;
all else has the same name everywhere.
"""

import re
from collections.abc import Collection

from vitjax.weights.timm_names import CONV, SAME, Table, linear, norm, out, projections

_THEIRS, _OURS = "layers.{i}.blocks.{j}", "stage_{i}/encoderblock_{j}"
_ATTENTION = f"{_OURS}/WindowAttention_0"

_COMMON: Table = {
    "patch_embed.proj.weight": (CONV, "embedding/kernel"),
    "patch_embed.proj.bias": (SAME, "embedding/bias"),
    **norm("patch_embed.norm", "embedding_norm"),
    **norm(f"{_THEIRS}.norm1", f"{_OURS}/LayerNorm_0"),
    "layers.{i}.blocks.{j}.attn.relative_position_bias_table": (SAME, f"{_ATTENTION}/relative_position_bias"),
    **projections(f"{_THEIRS}.attn.qkv", _ATTENTION, ("query", "key", "value")),
    **out(f"{_THEIRS}.attn.proj", _ATTENTION),
    **norm(f"{_THEIRS}.norm2", f"{_OURS}/LayerNorm_1"),
    **linear(f"{_THEIRS}.mlp.fc1", f"{_OURS}/MlpBlock_0/Dense_0"),
    **linear(f"{_THEIRS}.mlp.fc2", f"{_OURS}/MlpBlock_0/Dense_1"),
    **norm("norm", "encoder_norm"),
}


def _merging(theirs: str) -> Table:
    return {
        **norm(f"{theirs}.norm", "pooling_{i}/norm"),
        f"{theirs}.reduction.weight": linear(theirs, "pooling_{i}/projection")[f"{theirs}.weight"],
    }


def _shifted_patches(theirs: str, ours: str) -> Table:
    return norm(f"{theirs}.merging.1", f"{ours}/norm") | linear(f"{theirs}.merging.2", f"{ours}/projection")


TIMM: Table = {**_COMMON, **_merging("layers.{i+1}.downsample"), **linear("head.fc", "head")}

_RELEASED: Table = {
    **_COMMON,
    "absolute_pos_embed": (SAME, "pos_embedding"),
    **_shifted_patches("patch_embed", "embedding"),
    "layers.{i}.blocks.{j}.attn.scale": (SAME, f"{_ATTENTION}/scale"),
    **linear("head", "head"),
}
OFFICIAL: Table = {**_RELEASED, **_merging("layers.{i}.downsample")}
SHIFTED_POOLING: Table = {**_RELEASED, **_shifted_patches("layers.{i}.downsample", "pooling_{i}")}

ALL: Table = {**OFFICIAL, **SHIFTED_POOLING}  # to read; to write, a pooling must have one name (`released`)


def released(ours: Collection[str]) -> Table:
    """The table by which the official or the released code names these parameters of ours."""
    return SHIFTED_POOLING if "pooling_0/projection/bias" in ours else OFFICIAL


def is_swin(names: Collection[str]) -> bool:
    """Whether these are the names of a Swin."""
    return any(name.endswith(".attn.relative_position_bias_table") for name in names)


def is_official(names: Collection[str]) -> bool:
    """Whether they are those of the official code, and not those that timm has since 0.9."""
    own = re.compile(r"layers\.0\.downsample\..*|head\.(weight|bias)|absolute_pos_embed")
    return is_swin(names) and any(own.fullmatch(name) for name in names)


def is_released(names: Collection[str]) -> bool:
    """Whether they are those of a released network for small data sets with SPT or LSA."""
    own = re.compile(r"patch_embed\.merging\..*|layers\.\d+\.blocks\.\d+\.attn\.scale")
    return is_swin(names) and any(own.fullmatch(name) for name in names)


def is_ours(names: Collection[str]) -> bool:
    """Whether these are our names of a Swin's parameters."""
    return any(name.endswith("/WindowAttention_0/relative_position_bias") for name in names)
