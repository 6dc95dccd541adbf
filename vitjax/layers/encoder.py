"""The pre-norm transformer encoder: one block, and a stack of them looped or scanned."""

import dataclasses
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


class LayerScale(nn.Module):
    """A learned factor a channel on a residual branch, small at first (CaiT, section 2.1)."""

    init_value: float

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

    @nn.compact
    def __call__(self, x, drop_path=None, train: bool = False):
        """Returns `(tokens, tokens)` for tokens `[B, N, D]`: scan's carry, and what it collects.

        `drop_path` is the probability to drop a branch: None, a number, or traced when scanned over.
        """
        y = LayerNorm(self.norm_epsilon, self.dtype, name="LayerNorm_0")(x)
        x = x + self._branch(self.attend(y), drop_path, train, "0")

        y = LayerNorm(self.norm_epsilon, self.dtype, name="LayerNorm_1")(x)
        x = x + self._branch(self.feed_forward(y, train), drop_path, train, "1")
        return x, x

    def attend(self, x, context=None):
        """Attention from `x` `[B, N, D]` to `context` `[B, M, D]`, by default to `x` itself."""
        kind = TalkingHeadsAttention if self.talking_heads else MultiHeadDotProductAttention
        attention = kind(
            self.num_heads,
            self.qkv_bias,
            self.dtype,
            self.initialisation,
            self.head_dim,
            locality=self.locality,
            name="MultiHeadDotProductAttention_0",
        )
        return attention(x, context)

    def feed_forward(self, x, train):
        """The MLP."""
        mlp = MlpBlock(
            self.mlp_dim, self.dropout, self.gelu, self.dtype, self.initialisation, name="MlpBlock_0"
        )
        return mlp(x, train=train)

    def _branch(self, y, drop_path, train, number):
        y = y.astype(jnp.float32)  # before rescaling: 1/0.9 in bfloat16 would shift every branch by 0.2 %
        y = nn.Dropout(self.dropout, name=f"Dropout_{number}")(y, deterministic=not train)
        if self.layer_scale is not None:
            y = LayerScale(self.layer_scale, name=f"LayerScale_{number}")(y)
        return DropPath(self.drop_path_rescale, name=f"DropPath_{number}")(y, drop_path, train=train)


class ClassAttentionBlock(EncoderBlock):
    """The block of CaiT's second stage: it updates the class token from all tokens and leaves the patches.

    "Going deeper with Image Transformers" (arXiv 2103.17239), section 3: u = LN([class, patches]);
    class + attention(from u's class token, to u), then class + MLP(LN(class)), each with LayerScale.
    Without dropout and stochastic depth, as in the official code.
    """

    @nn.compact
    def __call__(self, cls, patches):
        """Returns the class token `[B, 1, D]` after the block, from it and `patches` `[B, N, D]`."""
        tokens = jnp.concatenate([cls, patches], axis=1)
        tokens = LayerNorm(self.norm_epsilon, self.dtype, name="LayerNorm_0")(tokens)
        cls = cls + self._branch(self.attend(tokens[:, :1], tokens), None, False, "0")

        y = LayerNorm(self.norm_epsilon, self.dtype, name="LayerNorm_1")(cls)
        return cls + self._branch(self.feed_forward(y, False), None, False, "1")


class Encoder(nn.Module):
    """A stack of equal blocks and the final LayerNorm `encoder_norm`.

    `scan` compiles one block and runs it `depth` times: parameters are stacked on a
    leading axis under `encoderblock` instead of one tree each under
    `encoderblock_{i}` (`loop_to_scan`, `scan_to_loop`). `remat` names what a block
    may keep for the backward pass (`REMAT_POLICIES`); the rest is computed again.
    Neither changes the function; random draws of dropout do differ under `scan`.
    """

    depth: int
    block: type[nn.Module] = EncoderBlock  # called as block(**fields)(x, drop_path, train)
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    drop_path: Sequence[float] | None = None  # the rate of each block (`drop_path.linear_rates`)
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
        rates = self.drop_path
        if self.scan:
            stack = nn.scan(
                block,
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]
                length=self.depth,
            )
            rates = None if rates is None else jnp.asarray(rates, jnp.float32)
            x, tokens = stack(**self.fields, name="encoderblock")(x, rates, train)
        else:
            tokens = []
            for i in range(self.depth):
                rate = None if rates is None else rates[i]
                x, after = block(**self.fields, name=f"encoderblock_{i}")(x, rate, train)
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
