"""CaiT's names in timm, which are those of the official files as well; and how official DeiT files differ."""

from collections.abc import Collection

from vitjax.weights.timm_names import ALL, SAME, VIT, Table, linear, norm, out, projections

_MHA = "MultiHeadDotProductAttention_0"


def _layer_scales(theirs: str, ours: str) -> Table:
    return {f"{theirs}.gamma_{i + 1}": (SAME, f"{ours}/LayerScale_{i}/gamma") for i in (0, 1)}


def _class_attention(theirs: str, ours: str) -> Table:
    """A block of the second stage; queries, keys and values are Linears of their own."""
    table = norm(f"{theirs}.norm1", f"{ours}/LayerNorm_0") | norm(f"{theirs}.norm2", f"{ours}/LayerNorm_1")
    for part in ("query", "key", "value"):
        table |= projections(f"{theirs}.attn.{part[0]}", f"{ours}/{_MHA}", (part,))
    return {
        **table,
        **out(f"{theirs}.attn.proj", f"{ours}/{_MHA}"),
        **linear(f"{theirs}.mlp.fc1", f"{ours}/MlpBlock_0/Dense_0"),
        **linear(f"{theirs}.mlp.fc2", f"{ours}/MlpBlock_0/Dense_1"),
        **_layer_scales(theirs, ours),
    }


_BLOCK = "Transformer/encoderblock_{i}"

CAIT: Table = {
    **{name: row for name, row in VIT.items() if ".ls" not in name},
    **_layer_scales("blocks.{i}", _BLOCK),
    **linear("blocks.{i}.attn.proj_l", f"{_BLOCK}/{_MHA}/proj_l"),
    **linear("blocks.{i}.attn.proj_w", f"{_BLOCK}/{_MHA}/proj_w"),
    **_class_attention("blocks_token_only.{i}", "class_attention_{i}"),
    **norm("norm", "encoder_norm"),
}


# DeiT III in the official files has CaiT's names for LayerScale; otherwise DeiT's are timm's. To read only.
OFFICIAL_DEIT: Table = {**ALL, **_layer_scales("blocks.{i}", _BLOCK)}


def is_cait(names: Collection[str]) -> bool:
    """Whether these are the names of a CaiT."""
    return any(name.startswith("blocks_token_only.") for name in names)


def is_ours(names: Collection[str]) -> bool:
    """Whether these are our names of a CaiT's parameters."""
    return any(name.startswith("class_attention_") for name in names)
