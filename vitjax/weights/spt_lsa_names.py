"""Names of ViT and CaiT in the official code of the small-dataset paper, aanna0701/SPT_LSA_ViT.

Its Linears, norms and attentions have equal names in all of its networks that are not taken from elsewhere;
the functions here are for their tables.
"""

import math
from collections.abc import Collection

import numpy as np

from vitjax.weights.timm_names import SAME, Layout, Table, linear, norm, out, projections

MHA = "MultiHeadDotProductAttention_0"
CHANNELS = 3  # of images; the code knows no other


def _kernel_of_patches(matrix: np.ndarray) -> np.ndarray:
    """`[D, p*p*3]`, the embedding of square patches, as `[p, p, 3, D]`. ValueError: of no such patches."""
    side = math.isqrt(matrix.shape[1] // CHANNELS)
    return matrix.T.reshape(side, side, CHANNELS, len(matrix))


PATCHES = Layout(
    lambda array, _: [_kernel_of_patches(array)],
    lambda arrays: arrays[0].reshape(-1, arrays[0].shape[-1]).T,
)
LAYER_SCALE = Layout(lambda array, _: [array.reshape(-1)], lambda arrays: arrays[0].reshape(1, 1, -1))


def spt(theirs: str, ours: str) -> Table:
    """A shifted patch tokenization: of images, or of tokens."""
    return norm(f"{theirs}.merging.1", f"{ours}/norm") | linear(f"{theirs}.merging.2", f"{ours}/projection")


def spt_pooling(theirs: str, ours: str) -> Table:
    """The same as a pooling of tokens, with or without a class token."""
    return spt(theirs, ours) | linear(f"{theirs}.class_linear", f"{ours}/cls")


def attention(theirs: str, ours: str, kinds: dict[str, tuple[str, ...]]) -> Table:
    """An attention; `kinds`: which projections their Linears `to_...` hold. LSA's scale is there or not."""
    table: Table = {f"{theirs}.scale": (SAME, f"{ours}/scale")}
    for linears, parts in kinds.items():
        weight = f"{theirs}.{linears}.weight"  # there is no bias
        table[weight] = projections(f"{theirs}.{linears}", ours, parts)[weight]
    return table | out(f"{theirs}.to_out.0", ours)


def head_mixes(theirs: str, ours: str) -> Table:
    """The mixes of an attention with talking heads, which have no bias."""
    mixes = {"mix_heads_pre_attn": "proj_l", "mix_heads_post_attn": "proj_w"}
    return {f"{theirs}.{name}": (SAME, f"{ours}/{mix}/kernel") for name, mix in mixes.items()}


def mlp(theirs: str, ours: str) -> Table:
    """The feed-forward half of a block."""
    return linear(f"{theirs}.net.0", f"{ours}/Dense_0") | linear(f"{theirs}.net.3", f"{ours}/Dense_1")


def vit_block(theirs: str, ours: str) -> Table:
    """A block of ViT or PiT."""
    return {
        **norm(f"{theirs}.0.norm", f"{ours}/LayerNorm_0"),
        **attention(f"{theirs}.0.fn", f"{ours}/{MHA}", {"to_qkv": ("query", "key", "value")}),
        **norm(f"{theirs}.1.norm", f"{ours}/LayerNorm_1"),
        **mlp(f"{theirs}.1.fn", f"{ours}/MlpBlock_0"),
    }


def cait_block(theirs: str, ours: str) -> Table:
    """A block of either stage of CaiT."""
    table: Table = {}
    for i in (0, 1):
        table[f"{theirs}.{i}.scale"] = (LAYER_SCALE, f"{ours}/LayerScale_{i}/gamma")
        table |= norm(f"{theirs}.{i}.fn.norm", f"{ours}/LayerNorm_{i}")
    inside, attends = f"{theirs}.0.fn.fn", f"{ours}/{MHA}"
    table |= attention(inside, attends, {"to_q": ("query",), "to_kv": ("key", "value")})
    return table | head_mixes(inside, attends) | mlp(f"{theirs}.1.fn.fn", f"{ours}/MlpBlock_0")


def _around(spt_embedding: str, encoder_norm: str) -> Table:
    """What is before and after the blocks."""
    return {
        "to_patch_embedding.1.weight": (PATCHES, "embedding/kernel"),
        "to_patch_embedding.1.bias": (SAME, "embedding/bias"),
        **spt(spt_embedding, "embedding"),
        "pos_embedding": (SAME, "pos_embedding"),
        "cls_token": (SAME, "cls"),
        **norm("mlp_head.0", encoder_norm),
        **linear("mlp_head.1", "head"),
    }


_BLOCK = "Transformer/encoderblock_{i}"

VIT: Table = {
    **_around("to_patch_embedding", "Transformer/encoder_norm"),
    **vit_block("transformer.layers.{i}", _BLOCK),
}
CAIT: Table = {
    **_around("to_patch_embedding.0", "encoder_norm"),
    **cait_block("patch_transformer.layers.{i}", _BLOCK),
    **cait_block("cls_transformer.layers.{i}", "class_attention_{i}"),
}


def is_vit(names: Collection[str]) -> bool:
    """Whether these are the names of a ViT."""
    return any(name.startswith("transformer.layers.") for name in names)


def is_cait(names: Collection[str]) -> bool:
    """Whether these are the names of a CaiT."""
    return any(name.startswith("patch_transformer.layers.") for name in names)


def table_of(params: Collection[str]) -> Table:
    """The table for a network of ours, by the flat names of its parameters."""
    return CAIT if any(name.startswith("class_attention_") for name in params) else VIT
