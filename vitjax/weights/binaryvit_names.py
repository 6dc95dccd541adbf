"""BinaryViT's names: those of Phuoc-Hoan-Le/BinaryViT, of the pyramid and of all rows of its ladder.

Its teacher has names of Hugging Face's ViT (`huggingface_names`), after which the rest is called as well.
"""

import re
from collections.abc import Collection

from vitjax.weights.timm_names import CONV, DENSE, SAME, Layout, Table, linear, norm

# A shift of maps: [1, C, 1, 1] and [C].
MOVE = Layout(lambda array, _: [array.reshape(-1)], lambda arrays: arrays[0][None, :, None, None])


def _norm(theirs: str, ours: str) -> Table:
    """A batch norm with its statistics, or a layer norm, which has none."""
    return {
        **norm(theirs, ours),
        f"{theirs}.running_mean": (SAME, f"{ours}/mean"),
        f"{theirs}.running_var": (SAME, f"{ours}/var"),
    }


def _rprelu(theirs: str, ours: str) -> Table:
    return {
        f"{theirs}.move1": (SAME, f"{ours}/move1"),
        f"{theirs}.prelu.weight": (SAME, f"{ours}/slope"),
        f"{theirs}.move2": (SAME, f"{ours}/move2"),
    }


def _affine(theirs: str, ours: str) -> Table:
    return {f"{theirs}.alpha": (SAME, f"{ours}/alpha"), f"{theirs}.move": (SAME, f"{ours}/move")}


def _shortcut_dense(move: str, dense: str, norm: str, rprelu: str, ours: str) -> Table:
    return {
        move: (SAME, f"{ours}/dense/move"),
        f"{dense}.weight": (DENSE, f"{ours}/dense/kernel"),
        **_norm(norm, f"{ours}/norm"),
        **_rprelu(rprelu, f"{ours}/rprelu"),
    }


def _attention(theirs: str, ours: str) -> Table:
    table: Table = {f"{theirs}.att_prob_clip": (SAME, f"{ours}/clip")}
    for name, letter, underscore in (
        ("query", "q", ""),
        ("key", "k", ""),
        ("value", "v", ""),
        ("reduction", "r", "_"),
    ):
        table |= _shortcut_dense(
            f"{theirs}.move{letter}",
            f"{theirs}.{name}",
            f"{theirs}.norm{underscore}{letter}",
            f"{theirs}.rprelu{letter}",
            f"{ours}/{name}",
        )
        if name != "reduction":
            table[f"{theirs}.move{letter}2"] = (SAME, f"{ours}/move_{letter}")
    return (
        table
        | _norm(f"{theirs}.norm_context", f"{ours}/context_norm")
        | _rprelu(f"{theirs}.rprelu_context", f"{ours}/context_rprelu")
    )


def _layer(theirs: str, ours: str) -> Table:
    """A shortcut layer whose parts have a module of their own."""
    return _shortcut_dense(f"{theirs}.move", f"{theirs}.dense", f"{theirs}.norm", f"{theirs}.rprelu", ours)


def _block(theirs: str, ours: str) -> Table:
    table: Table = {
        **_norm(f"{theirs}.layernorm_before", f"{ours}/norm_0"),
        **_attention(f"{theirs}.attention.attention", f"{ours}/attention"),
        **_layer(f"{theirs}.attention.output", f"{ours}/output"),
        **_affine(f"{theirs}.attention.output.layerscale", f"{ours}/affine_0"),
        **_norm(f"{theirs}.layernorm_after", f"{ours}/norm_1"),
        **_layer(f"{theirs}.intermediate", f"{ours}/expand"),
        **_layer(f"{theirs}.output", f"{ours}/contract"),
        **_affine(f"{theirs}.output.layerscale", f"{ours}/affine_1"),
    }
    for size in (3, 5):
        # "h" pools over rows, so along a column, with a window as high as its size.
        table |= _affine(f"{theirs}.layerscale_h{size}", f"{ours}/column_{size}")
        table |= _affine(f"{theirs}.layerscale_w{size}", f"{ours}/row_{size}")
    return table


def _downsampling(theirs: str, ours: str, positions: str) -> Table:
    return {
        **_norm(f"{theirs}.norm0", f"{ours}/norm_0"),
        f"{theirs}.move": (MOVE, f"{ours}/conv/move"),
        f"{theirs}.proj.weight": (CONV, f"{ours}/conv/kernel"),
        **_norm(f"{theirs}.norm", f"{ours}/norm_1"),
        **_rprelu(f"{theirs}.rprelu", f"{ours}/rprelu"),
        f"{theirs}.position_embeddings": (SAME, positions),
    }


_PATCHES = "vit.embeddings.patch_embeddings.projection"

BINARYVIT: Table = {
    "vit.embeddings.cls_token": (SAME, "cls"),
    "vit.embeddings.position_embeddings": (SAME, "pos_embedding"),
    f"{_PATCHES}.weight": (CONV, "embedding/kernel"),
    f"{_PATCHES}.bias": (SAME, "embedding/bias"),
    **_norm("vit.embeddings.norm", "embedding_norm"),
    **_block("vit.encoder.layer.{i}", "encoderblock_{i}"),
    **_downsampling("vit.encoder.patch_embed{i+1}", "downsampling_{i}", "pos_embedding_{i+1}"),
    **_norm("vit.layernorm", "encoder_norm"),
    **linear("classifier", "head"),
}


def is_binaryvit(names: Collection[str]) -> bool:
    """Whether these are the names of a BinaryViT, and not of its teacher."""
    return any(re.fullmatch(r"vit\.encoder\.layer\.\d+\.attention\.attention\.moveq", name) for name in names)


def is_ours(names: Collection[str]) -> bool:
    """Whether these are our names of a BinaryViT's parameters."""
    return "encoderblock_0/attention/query/dense/move" in names
