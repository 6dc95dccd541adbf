"""PiT's names: those of timm, of the official files, and of the reduced networks of aanna0701/SPT_LSA_ViT.

In naver-ai/pit poolings are a list of their own, in timm each belongs to the stage after it; otherwise both
have the same names. A distilled network has both of its tokens in one array.
"""

import math
from collections.abc import Collection

import numpy as np

from vitjax.errors import UserError
from vitjax.weights.spt_lsa_names import spt, spt_pooling, vit_block
from vitjax.weights.timm_cnn_names import CONV_HEAD
from vitjax.weights.timm_names import CONV, SAME, Layout, Table, linear, norm, out, projections

_STAGE, _BLOCK, _POOLING = "stage_{i}", "stage_{i}/encoderblock_{j}", "pooling_{i}"
_MHA = "MultiHeadDotProductAttention_0"


def positions(grid: tuple[int, int] | None = None) -> Layout:
    """`[1, D, h, w]` and `[1, h*w, D]`, on that grid of (height, width); None: on a square one."""

    def back(arrays):
        (posemb,) = arrays
        side = math.isqrt(posemb.shape[1])
        height, width = grid or (side, side)
        if height * width != posemb.shape[1]:
            raise UserError(
                f"The {posemb.shape[1]} positions of this PiT lie on no square, and timm's form of them has "
                "height and width, and no place for a class token's: write it with the names of vitjax, or "
                "those of spt_lsa if it is a reduced one."
            )
        return posemb.reshape(1, height, width, -1).transpose(0, 3, 1, 2)

    return Layout(lambda array, _: [array.reshape(*array.shape[:2], -1).transpose(0, 2, 1)], back)


TOKENS = Layout(  # [1, 2, D] and twice [1, 1, D]
    lambda array, _: np.split(array, 2, axis=1),
    lambda tokens: np.concatenate(tokens, axis=1),
)


def _convolution(theirs: str, ours: str) -> Table:
    return {f"{theirs}.weight": (CONV, f"{ours}/kernel"), f"{theirs}.bias": (SAME, f"{ours}/bias")}


def _pooling(theirs: str) -> Table:
    return _convolution(f"{theirs}.conv", f"{_POOLING}/depthwise") | linear(f"{theirs}.fc", f"{_POOLING}/cls")


_THEIRS = "transformers.{i}.blocks.{j}"

_COMMON: Table = {
    "pos_embed": (positions(), "pos_embedding"),
    **_convolution("patch_embed.conv", "embedding"),
    **norm(f"{_THEIRS}.norm1", f"{_BLOCK}/LayerNorm_0"),
    **projections(f"{_THEIRS}.attn.qkv", f"{_BLOCK}/{_MHA}", ("query", "key", "value")),
    **out(f"{_THEIRS}.attn.proj", f"{_BLOCK}/{_MHA}"),
    **norm(f"{_THEIRS}.norm2", f"{_BLOCK}/LayerNorm_1"),
    **linear(f"{_THEIRS}.mlp.fc1", f"{_BLOCK}/MlpBlock_0/Dense_0"),
    **linear(f"{_THEIRS}.mlp.fc2", f"{_BLOCK}/MlpBlock_0/Dense_1"),
    **norm("norm", "encoder_norm"),
    **linear("head", "head"),
    **linear("head_dist", "head_dist"),
}
_ONE_TOKEN: Table = {"cls_token": (SAME, "cls")}
_TWO_TOKENS: Table = {"cls_token": (TOKENS, ("cls", "dist"))}

TIMM: Table = {**_COMMON, **_pooling("transformers.{i+1}.pool"), **_ONE_TOKEN}
TIMM_DISTILLED: Table = {**TIMM, **_TWO_TOKENS}
# To read only: the official files' names of poolings, and timm's.
OFFICIAL: Table = {**TIMM, **_pooling("pools.{i}")}
OFFICIAL_DISTILLED: Table = {**OFFICIAL, **_TWO_TOKENS}

# Their list `layers` has stages and poolings in turn.
_REDUCED: Table = {
    **_convolution("to_patch_embedding.0", "embedding"),
    **spt("to_patch_embedding", "embedding"),
    "pos_embedding": (SAME, "pos_embedding"),
    "cls_token": (SAME, "cls"),
    **vit_block("layers.{2i}.layers.{j}", _BLOCK),
    **norm("mlp_head.0", "encoder_norm"),
    **linear("mlp_head.1", "head"),
}
_BETWEEN = "layers.{2i+1}"
_CONVOLVED: Table = {
    **_REDUCED,
    **_convolution(f"{_BETWEEN}.downsample.net.0", f"{_POOLING}/depthwise"),
    f"{_BETWEEN}.downsample.net.1.weight": (CONV_HEAD, f"{_POOLING}/pointwise/kernel"),
    f"{_BETWEEN}.downsample.net.1.bias": (SAME, f"{_POOLING}/pointwise/bias"),
    **linear(f"{_BETWEEN}.cls_ff", f"{_POOLING}/cls"),
}
_SHIFTED: Table = {**_REDUCED, **spt_pooling(_BETWEEN, _POOLING)}

# To read; to write, a pooling must have one name (`released_table_of`).
RELEASED: Table = {**_CONVOLVED, **_SHIFTED}


def is_timm(names: Collection[str]) -> bool:
    """Whether these are the names of a PiT in timm, or in the official code."""
    return any(name.startswith("transformers.0.blocks.") for name in names)


def is_official(names: Collection[str]) -> bool:
    """Whether these are the names of a PiT in the official code."""
    return is_timm(names) and any(name.startswith("pools.") for name in names)


def is_released(names: Collection[str]) -> bool:
    """Whether these are the names of a PiT in the official code of the small-dataset paper."""
    return any(name.startswith("layers.0.layers.") for name in names)


def is_ours(names: Collection[str]) -> bool:
    """Whether these are our names of a PiT's parameters."""
    return any(name.startswith("stage_0/encoderblock") and f"/{_MHA}/" in name for name in names)


def table_of(names: Collection[str]) -> Table:
    """The table by which the official code or timm names arrays, with which it reads them, by their names."""
    return OFFICIAL_DISTILLED if any(name.startswith("head_dist.") for name in names) else OFFICIAL


def timm_table_of(names: Collection[str]) -> Table:
    """The table by which timm names parameters of these names of ours."""
    return TIMM_DISTILLED if "dist" in names else TIMM


def released_table_of(names: Collection[str]) -> Table:
    """The table by which the code of the small-dataset paper names parameters of these names of ours."""
    return _SHIFTED if "pooling_0/projection/kernel" in names else _CONVOLVED
