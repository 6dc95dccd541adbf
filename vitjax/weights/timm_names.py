"""timm's PyTorch state dicts, into our parameters and back.

One table says which of their tensors is which of ours and how it lies in memory.
Another architecture joins by a table of its own.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.traverse_util
import numpy as np

from vitjax.errors import UserError, nearest
from vitjax.weights.templates import Templates, fill, marked, match


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one of their tensors holds one or more of ours; the two functions are inverse."""

    into: Callable[[np.ndarray, int], Sequence[np.ndarray]]  # (theirs, num_heads) -> ours
    back: Callable[[Sequence[np.ndarray]], np.ndarray]


def _into_heads(count: int) -> Layout:
    """`[count*H*Dh, D]` of stacked Linears, as `count` kernels `[D, H, Dh]`."""

    def into(array, num_heads):
        dim = array.shape[1]
        return list(array.reshape(count, num_heads, -1, dim).transpose(0, 3, 1, 2))

    def back(kernels):
        return np.concatenate([kernel.reshape(len(kernel), -1).T for kernel in kernels])

    return Layout(into, back)


def _head_bias(count: int) -> Layout:
    """`[count*H*Dh]`, as `count` biases `[H, Dh]`."""
    return Layout(
        lambda array, num_heads: list(array.reshape(count, num_heads, -1)),
        lambda biases: np.concatenate([bias.reshape(-1) for bias in biases]),
    )


SAME = Layout(lambda array, _: [array], lambda arrays: arrays[0])
DENSE = Layout(lambda array, _: [array.T], lambda arrays: arrays[0].T)  # [out, in] and [in, out]
CONV = Layout(  # OIHW and HWIO
    lambda array, _: [array.transpose(2, 3, 1, 0)],
    lambda arrays: arrays[0].transpose(3, 2, 0, 1),
)
OUT_OF_HEADS = Layout(  # [D, H*Dh] and [H, Dh, D]
    lambda array, num_heads: [array.T.reshape(num_heads, -1, len(array))],
    lambda arrays: arrays[0].reshape(-1, arrays[0].shape[-1]).T,
)

# Their names to the layout and the names of ours (see `templates`): {i} is the number of a block, or of a
# stage with {j} for its unit; {i+1} where one side counts from one.
Table = dict[str, tuple[Layout, str | tuple[str, ...]]]


def linear(theirs: str, ours: str) -> Table:
    """A Linear of theirs and a Dense of ours."""
    return {f"{theirs}.weight": (DENSE, f"{ours}/kernel"), f"{theirs}.bias": (SAME, f"{ours}/bias")}


def norm(theirs: str, ours: str) -> Table:
    """A norm's scale and bias."""
    return {f"{theirs}.weight": (SAME, f"{ours}/scale"), f"{theirs}.bias": (SAME, f"{ours}/bias")}


def projections(theirs: str, ours: str, parts: Sequence[str]) -> Table:
    """One Linear of theirs that stacks the projections `parts` of our attention `ours`."""
    return {
        f"{theirs}.weight": (_into_heads(len(parts)), tuple(f"{ours}/{part}/kernel" for part in parts)),
        f"{theirs}.bias": (_head_bias(len(parts)), tuple(f"{ours}/{part}/bias" for part in parts)),
    }


def out(theirs: str, ours: str) -> Table:
    """The Linear after the heads of our attention `ours`."""
    return {
        f"{theirs}.weight": (OUT_OF_HEADS, f"{ours}/out/kernel"),
        f"{theirs}.bias": (SAME, f"{ours}/out/bias"),
    }


_BLOCK = "Transformer/encoderblock_{i}"
_MHA = "MultiHeadDotProductAttention_0"

VIT: Table = {
    "cls_token": (SAME, "cls"),
    "dist_token": (SAME, "dist"),
    "pos_embed": (SAME, "pos_embedding"),
    "patch_embed.proj.weight": (CONV, "embedding/kernel"),
    "patch_embed.proj.bias": (SAME, "embedding/bias"),
    **norm("blocks.{i}.norm1", f"{_BLOCK}/LayerNorm_0"),
    **projections("blocks.{i}.attn.qkv", f"{_BLOCK}/{_MHA}", ("query", "key", "value")),
    **out("blocks.{i}.attn.proj", f"{_BLOCK}/{_MHA}"),
    "blocks.{i}.ls1.gamma": (SAME, f"{_BLOCK}/LayerScale_0/gamma"),
    **norm("blocks.{i}.norm2", f"{_BLOCK}/LayerNorm_1"),
    **linear("blocks.{i}.mlp.fc1", f"{_BLOCK}/MlpBlock_0/Dense_0"),
    **linear("blocks.{i}.mlp.fc2", f"{_BLOCK}/MlpBlock_0/Dense_1"),
    "blocks.{i}.ls2.gamma": (SAME, f"{_BLOCK}/LayerScale_1/gamma"),
    **norm("norm", "Transformer/encoder_norm"),
    "attn_pool.latent": (SAME, "MAPHead_0/probe"),
    **projections("attn_pool.q", f"MAPHead_0/{_MHA}", ("query",)),
    **projections("attn_pool.kv", f"MAPHead_0/{_MHA}", ("key", "value")),
    **out("attn_pool.proj", f"MAPHead_0/{_MHA}"),
    **norm("attn_pool.norm", "MAPHead_0/LayerNorm_0"),
    **linear("attn_pool.mlp.fc1", "MAPHead_0/MlpBlock_0/Dense_0"),
    **linear("attn_pool.mlp.fc2", "MAPHead_0/MlpBlock_0/Dense_1"),
    **norm("fc_norm", "fc_norm"),
    **linear("pre_logits.fc", "pre_logits"),
    **linear("head", "head"),
    **linear("head_dist", "head_dist"),
}


def _conv_norm(theirs_conv: str, theirs_norm: str, ours: str) -> Table:
    """A weight-standardised convolution and its norm; {} in `ours` stands for `conv` or `gn`."""
    conv = {f"{theirs_conv}.weight": (CONV, f"{ours.replace('{}', 'conv')}/kernel")}
    return {**conv, **norm(theirs_norm, ours.replace("{}", "gn"))}


_BACKBONE = "patch_embed.backbone"
_STAGE_BLOCK = f"{_BACKBONE}.stages.{{i}}.blocks.{{j}}"
_UNIT = "block{i+1}/unit{j+1}"

HYBRID: Table = {
    **VIT,
    **_conv_norm(f"{_BACKBONE}.stem.conv", f"{_BACKBONE}.stem.norm", "{}_root"),
    **_conv_norm(f"{_STAGE_BLOCK}.downsample.conv", f"{_STAGE_BLOCK}.downsample.norm", f"{_UNIT}/{{}}_proj"),
    **_conv_norm(f"{_STAGE_BLOCK}.conv1", f"{_STAGE_BLOCK}.norm1", f"{_UNIT}/{{}}1"),
    **_conv_norm(f"{_STAGE_BLOCK}.conv2", f"{_STAGE_BLOCK}.norm2", f"{_UNIT}/{{}}2"),
    **_conv_norm(f"{_STAGE_BLOCK}.conv3", f"{_STAGE_BLOCK}.norm3", f"{_UNIT}/{{}}3"),
}
# Without stages (R+Ti/16) timm has no `stem` in the names.
ROOT_HYBRID: Table = {**VIT, **_conv_norm(f"{_BACKBONE}.conv", f"{_BACKBONE}.norm", "{}_root")}

ALL: Table = {**ROOT_HYBRID, **HYBRID}  # to read; to write, a root must have one name (`table_of`)


def table_of(params: Mapping[str, Any]) -> Table:
    """Returns the table by which timm names our nested parameters."""
    if "conv_root" not in params:
        return VIT
    return HYBRID if "block1" in params else ROOT_HYBRID


def from_timm(
    state: Mapping[str, np.ndarray], *, num_heads: int | Callable[[str], int], table: Table = ALL
) -> dict[str, Any]:
    """Converts a timm state dict (name -> array, torch layouts) into our nested parameters.

    `num_heads` is that of all attentions, or a function of one of our names (`tables.heads_in`).
    Blocks come out in loop form, `encoderblock_{i}`; `layers.encoder.loop_to_scan`
    stacks them. An entry the table does not know is a `UserError`.
    """
    params, templates = {}, Templates(table)
    for name, array in state.items():
        found = templates.find(name)
        if found is None:
            raise UserError(
                f"The file holds {name!r}, which this model has no place for.{nearest(marked(name), table)}"
            )
        theirs, numbers = found
        layout, ours = table[theirs]
        paths = (ours,) if isinstance(ours, str) else ours
        paths = [fill(path, numbers) for path in paths]
        heads = num_heads if isinstance(num_heads, int) else num_heads(paths[0])
        for path, value in zip(paths, layout.into(np.asarray(array), heads), strict=True):
            params[path] = value
    return flax.traverse_util.unflatten_dict(params, sep="/")


def to_timm(
    params: Mapping[str, Any], *, table: Table | None = None, whose: str = "timm"
) -> dict[str, np.ndarray]:
    """The inverse of `from_timm`, for parameters, or gradients, in loop form; `table_of` them by default.

    UserError: `whose` names, those of the table, have none for a parameter.
    """
    table = table_of(params) if table is None else table
    flat = flax.traverse_util.flatten_dict(dict(params), sep="/")
    state = {}
    for theirs, (layout, ours) in table.items():
        paths = (ours,) if isinstance(ours, str) else ours
        for numbers in [n for name in flat if (n := match(paths[0], name)) is not None]:
            arrays = [flat.pop(fill(path, numbers), None) for path in paths]
            if all(array is not None for array in arrays):
                state[fill(theirs, numbers)] = layout.back([np.asarray(array) for array in arrays])
    if flat:
        raise UserError(f"{whose} has no name for the parameter {next(iter(flat))!r}.")
    return state
