"""Hugging Face transformers' ViT, to our names.

Both as `save_pretrained` writes them and as `state_dict()` of transformers 5 names them (`layers`, `q_proj`).
Their pooler, a dense layer and tanh, is our representation layer.
"""

import re
from collections.abc import Collection

import numpy as np

from vitjax.weights.timm_names import CONV, DENSE, OUT_OF_HEADS, SAME, Layout, Table

_BLOCK = "Transformer/encoderblock_{i}"
_MHA = f"{_BLOCK}/MultiHeadDotProductAttention_0"
_INTO_HEADS = Layout(  # [H*Dh, D] and [D, H, Dh]
    lambda array, num_heads: [array.T.reshape(array.shape[1], num_heads, -1)],
    lambda arrays: arrays[0].reshape(len(arrays[0]), -1).T,
)
_HEAD_BIAS = Layout(  # [H*Dh] and [H, Dh]
    lambda array, num_heads: [array.reshape(num_heads, -1)],
    lambda arrays: np.reshape(arrays[0], -1),
)


def _dense(theirs: str, ours: str, kernel: Layout = DENSE, bias: Layout = SAME) -> Table:
    return {f"{theirs}.weight": (kernel, f"{ours}/kernel"), f"{theirs}.bias": (bias, f"{ours}/bias")}


def _norm(theirs: str, ours: str) -> Table:
    return {f"{theirs}.weight": (SAME, f"{ours}/scale"), f"{theirs}.bias": (SAME, f"{ours}/bias")}


def _block(theirs: str, query_key_value: str, out: str, fc1: str, fc2: str) -> Table:
    table = _norm(f"{theirs}.layernorm_before", f"{_BLOCK}/LayerNorm_0")
    for part in ("query", "key", "value"):
        name = query_key_value.format(part=part, letter=part[0])
        table |= _dense(f"{theirs}.{name}", f"{_MHA}/{part}", _INTO_HEADS, _HEAD_BIAS)
    return {
        **table,
        **_dense(f"{theirs}.{out}", f"{_MHA}/out", OUT_OF_HEADS),
        **_norm(f"{theirs}.layernorm_after", f"{_BLOCK}/LayerNorm_1"),
        **_dense(f"{theirs}.{fc1}", f"{_BLOCK}/MlpBlock_0/Dense_0"),
        **_dense(f"{theirs}.{fc2}", f"{_BLOCK}/MlpBlock_0/Dense_1"),
    }


_BODY: Table = {
    "embeddings.cls_token": (SAME, "cls"),
    "embeddings.position_embeddings": (SAME, "pos_embedding"),
    **_dense("embeddings.patch_embeddings.projection", "embedding", CONV),
    **_block(
        "encoder.layer.{i}",
        "attention.attention.{part}",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ),
    **_block("layers.{i}", "attention.{letter}_proj", "attention.o_proj", "mlp.fc1", "mlp.fc2"),
    **_norm("layernorm", "Transformer/encoder_norm"),
    **_dense("pooler.dense", "pre_logits"),
}

VIT: Table = {
    **_BODY,  # of ViTModel
    **{f"vit.{name}": row for name, row in _BODY.items()},  # of ViTForImageClassification
    **_dense("classifier", "head"),
}


def is_huggingface(names: Collection[str]) -> bool:
    """Whether these are the names of a ViT of transformers."""
    return any(re.match(r"(vit\.)?embeddings\.patch_embeddings\.projection\.", name) for name in names)
