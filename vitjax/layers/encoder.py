"""The pre-norm transformer encoder: one block, and a stack of them looped or scanned."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vitjax.layers.attention import MultiHeadDotProductAttention, TalkingHeadsAttention
from vitjax.layers.drop_path import DropPath
from vitjax.layers.initialisation import AUGREG, Initialisation
from vitjax.layers.locality import NOWHERE, Locality
from vitjax.layers.mlp import MlpBlock
from vitjax.layers.norm import LayerNorm

# What a rematerialised block may keep for the backward pass, by jax's own names.
REMAT_POLICIES = (
    "nothing_saveable",
    "dots_saveable",
    "dots_with_no_batch_dims_saveable",
    "everything_saveable",
)


# What the class token attends to in class attention: the norm of itself and the patches, the original; the
# norm of itself, and the patches as they leave the first stage; those patches alone.
CLASS_KEYS = ("normed", "class_and_patches", "patches")


class LayerScale(nn.Module):
    """A learned factor a channel on a residual branch, small at first (CaiT, section 2.1)."""

    init_value: float | jax.Array  # an array only where blocks are scanned over

    @nn.compact
    def __call__(self, x):
        """Scales `[..., D]`."""
        return x * self.param("gamma", nn.initializers.constant(self.init_value), (x.shape[-1],))


class EncoderBlock(nn.Module):
    """Pre-norm block: x + drop(attention(LN(x))), then x + drop(MLP(LN(x))).

    Dropout acts on each branch (and inside the MLP), then LayerScale if there is
    one, then stochastic depth. The residual stream is float32; `dtype` is that of
    the matrix products.
    """

    num_heads: int
    mlp_dim: int
    dropout: float = 0.0
    drop_path_rescale: bool = True
    gelu: str = "tanh"
    qkv_bias: bool = True
    layer_scale: float | None = None
    norm_epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32
    initialisation: Initialisation = AUGREG
    talking_heads: bool = False
    head_dim: int | None = None  # by default the width over the heads
    locality: Locality = NOWHERE
    mixing_bias: bool = True  # of talking heads
    out_projection: bool = True  # of the attention
    precision: str = "float"  # of attention and MLP, see `layers.precision`

    @nn.compact
    def __call__(self, x, drop_path=None, train: bool = False, layer_scale=None):
        """Returns `(tokens, tokens)` for tokens `[B, N, D]`: scan's carry, and what it collects.

        `drop_path` is the probability to drop a branch: None, a number, or traced when scanned over.
        `layer_scale` is where LayerScale begins in this block, by default at the field of the name.
        """
        layer_scale = self.layer_scale if layer_scale is None else layer_scale
        y = LayerNorm(self.norm_epsilon, self.dtype, name="LayerNorm_0")(x)
        x = x + self._branch(self.attend(y), drop_path, train, "0", layer_scale)

        y = LayerNorm(self.norm_epsilon, self.dtype, name="LayerNorm_1")(x)
        x = x + self._branch(self.feed_forward(y, train), drop_path, train, "1", layer_scale)
        return x, x

    def attend(self, x, context=None, locality: Locality | None = None):
        """Attention from `x` `[B, N, D]` to `context` `[B, M, D]`, by default to `x` itself."""
        kind: Any = MultiHeadDotProductAttention
        if self.talking_heads:
            kind = functools.partial(TalkingHeadsAttention, mixing_bias=self.mixing_bias)
        attention = kind(
            self.num_heads,
            self.qkv_bias,
            self.dtype,
            self.initialisation,
            self.head_dim,
            locality=self.locality if locality is None else locality,
            out_projection=self.out_projection,
            precision=self.precision,
            name="MultiHeadDotProductAttention_0",
        )
        return attention(x, context)

    def feed_forward(self, x, train):
        """The MLP."""
        mlp = MlpBlock(
            self.mlp_dim,
            self.dropout,
            self.gelu,
            self.dtype,
            self.initialisation,
            self.precision,
            name="MlpBlock_0",
        )
        return mlp(x, train=train)

    def _branch(self, y, drop_path, train, number, layer_scale):
        y = y.astype(jnp.float32)  # before rescaling: 1/0.9 in bfloat16 would shift every branch by 0.2 %
        y = nn.Dropout(self.dropout, name=f"Dropout_{number}")(y, deterministic=not train)
        if layer_scale is not None:
            y = LayerScale(layer_scale, name=f"LayerScale_{number}")(y)
        return DropPath(self.drop_path_rescale, name=f"DropPath_{number}")(y, drop_path, train=train)


class ClassAttentionBlock(EncoderBlock):
    """The block of CaiT's second stage: it updates the class token from all tokens and leaves the patches.

    "Going deeper with Image Transformers" (arXiv 2103.17239), section 3: u = LN([class, patches]);
    class + attention(from u's class token, to u), then class + MLP(LN(class)), each with LayerScale.
    Of `locality` the mask is for the class token among the keys; without it there, nothing is masked.
    """

    keys: str = "normed"  # one of CLASS_KEYS

    @nn.compact
    def __call__(self, cls, patches, drop_path=None, train: bool = False):
        """Returns the class token `[B, 1, D]` after the block, from it and `patches` `[B, N, D]`."""
        query, context = self._query_and_context(cls, patches)
        of_patches = dataclasses.replace(self.locality, masked_diagonal=False)
        y = self.attend(query, context, of_patches if self.keys == "patches" else self.locality)
        cls = cls + self._branch(y, drop_path, train, "0", self.layer_scale)

        y = LayerNorm(self.norm_epsilon, self.dtype, name="LayerNorm_1")(cls)
        y = self.feed_forward(y, train)
        return cls + self._branch(y, drop_path, train, "1", self.layer_scale)

    def _query_and_context(self, cls, patches):
        norm = LayerNorm(self.norm_epsilon, self.dtype, name="LayerNorm_0")
        if self.keys == "normed":
            tokens = norm(jnp.concatenate([cls, patches], axis=1))
            return tokens[:, :1], tokens
        query, patches = norm(cls), patches.astype(self.dtype)
        return query, patches if self.keys == "patches" else jnp.concatenate([query, patches], axis=1)


class Encoder(nn.Module):
    """A stack of equal blocks and the final LayerNorm `encoder_norm`.

    `scan` compiles one block and runs it `depth` times: parameters are stacked on a
    leading axis under `encoderblock` instead of one tree each under
    `encoderblock_{i}` (`loop_to_scan`, `scan_to_loop`). `remat` names what a block
    may keep for the backward pass (`REMAT_POLICIES`); the rest is computed again.
    Neither changes the function; random draws of dropout do differ under `scan`.
    """

    depth: int
    # Called as block(**fields)(x, drop_path, train), and with one more where there is a `layer_scale`.
    block: type[nn.Module] = EncoderBlock
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    drop_path: Sequence[float] | None = None  # the rate of each block (`drop_path.linear_rates`)
    layer_scale: Sequence[float] | None = None  # where it begins in each block; None: as `fields` has it
    final_norm_epsilon: float | None = 1e-6  # None: no final norm
    scan: bool = False
    remat: str | None = None

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        """Returns `(encoded, tokens)`: `[B, N, D]`, and the tokens after each block.

        Those are a list of `depth` arrays, or `[depth, B, N, D]` under `scan`.
        """
        block = self.block
        if self.remat:
            policy = getattr(jax.checkpoint_policies, self.remat)
            # XLA could undo a rematerialisation by merging equal terms, but not across a scan's iterations.
            block = nn.remat(block, policy=policy, prevent_cse=not self.scan, static_argnums=(3,))  # 3: train
        rates, layer_scale = self.drop_path, self.layer_scale
        if self.scan:
            scanned = () if layer_scale is None else (jnp.asarray(layer_scale, jnp.float32),)
            stack = nn.scan(
                block,
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(0, nn.broadcast, *(0 for _ in scanned)),  # pyright: ignore[reportArgumentType]
                length=self.depth,
            )
            rates = None if rates is None else jnp.asarray(rates, jnp.float32)
            x, tokens = stack(**self.fields, name="encoderblock")(x, rates, train, *scanned)
        else:
            tokens = []
            for i in range(self.depth):
                rate = None if rates is None else rates[i]
                begins = () if layer_scale is None else (layer_scale[i],)
                x, after = block(**self.fields, name=f"encoderblock_{i}")(x, rate, train, *begins)
                tokens.append(after)
        if self.final_norm_epsilon is not None:
            x = LayerNorm(self.final_norm_epsilon, name="encoder_norm")(x)
        return x, tokens


def loop_to_scan(params: Mapping[str, Any]) -> dict[str, Any]:
    """Stacks `encoderblock_{i}` trees, wherever they are in `params`, into one `encoderblock` tree."""
    if not isinstance(params, Mapping):
        return params
    blocks = [name for name in params if re.fullmatch(r"encoderblock_\d+", name)]
    out = {name: loop_to_scan(value) for name, value in params.items() if name not in blocks}
    if blocks:
        ordered = [params[f"encoderblock_{i}"] for i in range(len(blocks))]
        out["encoderblock"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ordered)
    return out


def scan_to_loop(params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `loop_to_scan`."""
    if not isinstance(params, Mapping):
        return params
    out = {name: scan_to_loop(value) for name, value in params.items() if name != "encoderblock"}
    if "encoderblock" in params:
        stacked = params["encoderblock"]
        depth = len(jax.tree.leaves(stacked)[0])
        out |= {f"encoderblock_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(depth)}
    return out
