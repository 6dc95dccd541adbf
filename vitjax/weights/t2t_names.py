"""The names of yitu-opensource/T2T-ViT, which those of aanna0701/SPT_LSA_ViT extend, into ours and back."""

from collections.abc import Collection, Mapping

import ml_dtypes
import numpy as np

from vitjax.layers.position import sinusoid
from vitjax.weights.stored import Stored, is_float
from vitjax.weights.timm_names import SAME, VIT, Table, linear, norm, out, projections

_POSITIONS = "pos_embed"
_MOST = 1 << 24  # bytes; positions that declare more are not read for a comparison
_MHA = "MultiHeadDotProductAttention_0"
_THEIRS, _OURS = "tokens_to_token.attention{i+1}", "tokens_to_token/token_layer_{i}"

_SHARED: Table = {
    **{name: row for name, row in VIT.items() if not name.startswith(("patch_embed.", "attn_pool."))},
    "blocks.{i}.attn.scale": (SAME, f"Transformer/encoderblock_{{i}}/{_MHA}/scale"),
    **norm(f"{_THEIRS}.norm1", f"{_OURS}/LayerNorm_0"),
    **norm(f"{_THEIRS}.norm2", f"{_OURS}/LayerNorm_1"),
    **norm("tokens_to_token.norm", "tokens_to_token/norm"),
    **linear("tokens_to_token.project", "tokens_to_token/projection"),
}

T2T_TRANSFORMER: Table = {
    **_SHARED,
    **projections(f"{_THEIRS}.attn.qkv", f"{_OURS}/{_MHA}", ("query", "key", "value")),
    **out(f"{_THEIRS}.attn.proj", f"{_OURS}/{_MHA}"),
    f"{_THEIRS}.attn.scale": (SAME, f"{_OURS}/{_MHA}/scale"),
    **linear(f"{_THEIRS}.mlp.fc1", f"{_OURS}/MlpBlock_0/Dense_0"),
    **linear(f"{_THEIRS}.mlp.fc2", f"{_OURS}/MlpBlock_0/Dense_1"),
}

T2T_PERFORMER: Table = {
    **_SHARED,
    **projections(f"{_THEIRS}.kqv", f"{_OURS}/{_MHA}", ("key", "query", "value")),
    **out(f"{_THEIRS}.proj", f"{_OURS}/{_MHA}"),
    f"{_THEIRS}.w": (SAME, f"{_OURS}/{_MHA}/directions"),
    **linear(f"{_THEIRS}.mlp.0", f"{_OURS}/MlpBlock_0/Dense_0"),
    **linear(f"{_THEIRS}.mlp.2", f"{_OURS}/MlpBlock_0/Dense_1"),
}

T2T: Table = {**T2T_TRANSFORMER, **T2T_PERFORMER}  # to read


def is_t2t(names: Collection[str]) -> bool:
    """Whether these are the names of a T2T-ViT."""
    return any(name.startswith("tokens_to_token.") for name in names)


def computed(entries: Mapping[str, Stored]) -> tuple[str, ...]:
    """Names of what a model of `posemb="sinusoid"` computes: the file's positions, if they are that.

    They need not be. Where the official code takes weights to another image size it interpolates the sinusoid
    of the first, and such a file is for a model of `posemb="learn"`.
    """
    stored = entries.get(_POSITIONS)
    if stored is None or len(stored.shape) != 3 or stored.shape[0] != 1 or stored.nbytes > _MOST:
        return ()
    if not is_float(stored.dtype):
        return ()
    error = np.abs(stored.read().astype(np.float64) - sinusoid(*stored.shape[1:])).max(initial=0)
    return (_POSITIONS,) if error <= 2 * ml_dtypes.finfo(stored.dtype).eps else ()
