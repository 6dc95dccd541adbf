"""The layers between soft splits, which mix the tokens of a large map: a transformer's, or a Performer's.

"Tokens-to-Token ViT" (arXiv 2101.11986), section 3.1, and yitu-opensource/T2T-ViT. Both make narrow tokens of
wide ones, so the residual of their attention is its values. aanna0701/SPT_LSA_ViT has the same class of
attention after the last split, where its residual is its input.
"""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from vitjax.layers.attention import MultiHeadDotProductAttention
from vitjax.layers.initialisation import AUGREG, Initialisation
from vitjax.layers.locality import NOWHERE, Locality
from vitjax.layers.mlp import MlpBlock
from vitjax.layers.norm import LayerNorm

TOKEN_LAYERS = ("performer", "transformer")
RANDOM_FEATURES = "random_features"  # the collection of what is drawn once and never trained


class ValueResidualAttention(MultiHeadDotProductAttention):
    """Attention with one head from tokens to `head_dim` channels, plus its own values: v + out(weights v)."""

    dropout: float = 0.0  # after `out`
    sees_pixels: bool = False  # then the layers that read them stay float, whatever the precision

    @property
    def precision_of_inputs(self) -> str:
        """The `precision` of queries, keys and values' own linear layers."""
        return "float" if self.sees_pixels else self.precision

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        """Maps tokens `[B, N, D]` to `[B, N, head_dim]`, float32."""
        x = x.astype(self.dtype)
        query, key, value = self.project(x, x)
        y = self.merge(self.attended(query, key, value), value.shape[-1]).astype(jnp.float32)
        return value[:, :, 0] + nn.Dropout(self.dropout)(y, deterministic=not train)


class InputResidualAttention(MultiHeadDotProductAttention):
    """Attention plus its own input: x + attention(x)."""

    @nn.compact
    def __call__(self, x, context=None):
        """Attends as `MultiHeadDotProductAttention` does, and adds `x` `[B, N, D]`."""
        return x + super().__call__(x, context).astype(x.dtype)


class PerformerAttention(ValueResidualAttention):
    """The same with softmax kernels estimated by random features: time and memory linear in N.

    "Rethinking Attention with Performers" (arXiv 2009.14794). exp(q k) is estimated by phi(q) phi(k), with
    phi(x) = exp(w x - |x|^2 / 2) / sqrt(m), of m directions w, orthogonal and sqrt(m) long, drawn once. They
    are the variable `directions` `[m, head_dim]` in the collection `random_features`: no gradient, optimiser
    or weight decay reaches them, and they are saved and loaded with the model, since other directions are
    another function. Products are not scaled by 1/sqrt(head_dim), as in the official code, and there is no
    matrix of logits for `locality` to act on. Features and sums are float32 whatever the dtype.

    `attention_weights` are the estimated ones, `attention_logits` the logarithm of the estimated kernel; they
    are made only if somebody asks for the collection `intermediates`. A `precision` is that of linear layers;
    features are no probabilities, so products with them stay float.
    """

    feature_ratio: float = 0.5  # m / head_dim

    def attended(self, query, key, value):
        """Averages the values by the estimated weights of each query: `[B, N, 1, head_dim]`."""
        count = int(query.shape[-1] * self.feature_ratio)
        draw = lambda: nn.initializers.orthogonal(math.sqrt(count))(
            self.make_rng("params"), (count, query.shape[-1])
        )
        directions = self.variable(RANDOM_FEATURES, "directions", draw).value
        query, key = (positive_features(x[:, :, 0].astype(jnp.float32), directions) for x in (query, key))
        value = value.astype(jnp.float32)
        total = query @ key.sum(1)[:, :, None] + 1e-8  # [B, N, 1]
        if self.is_mutable_collection("intermediates") and not self.is_initializing():
            kernel = jnp.einsum("bnm,bkm->bnk", query, key)[:, None]
            logits = jnp.log(jnp.maximum(kernel, jnp.finfo(kernel.dtype).tiny))
            self.sow("intermediates", "attention_logits", logits)
            self.sow("intermediates", "attention_weights", kernel / total[:, None])
        moments = jnp.einsum("bnm,bnhe->bmhe", key, value)
        y = jnp.einsum("bnm,bmhe->bnhe", query, moments) / total[:, :, None]
        return y.astype(self.dtype)


def positive_features(x, directions):
    """Returns exp(w x - |x|^2 / 2) / sqrt(m), `[..., m]`, of vectors `[..., E]` and directions `[m, E]`."""
    half_square = jnp.square(x).sum(-1, keepdims=True) / 2
    return jnp.exp(x @ directions.T - half_square) / math.sqrt(len(directions))


class TokenLayer(nn.Module):
    """x -> y = attention(LN(x)), which has a residual of its own, then y + MLP(LN(y)).

    `kind` is one of `TOKEN_LAYERS`. A `transformer` has no biases for query, key and value, and scales logits
    by (width of x)^-1/2 though queries have `token_dim` channels, as in the official code; a `performer` has
    biases, no scale, and dropout after its attention and its MLP.

    With a `precision` linear layers are those of `layers.precision`; but where `sees_pixels`, those of
    queries, keys and values stay as they are, like any embedding of pixels.
    """

    kind: str
    token_dim: int
    dropout: float = 0.0
    gelu: str = "erf"
    norm_epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32
    initialisation: Initialisation = AUGREG
    locality: Locality = NOWHERE
    precision: str = "float"
    sees_pixels: bool = False

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        """Maps tokens `[B, N, D]` to `[B, N, token_dim]`, float32."""
        performer = self.kind == "performer"
        attention = (PerformerAttention if performer else ValueResidualAttention)(
            1,
            performer,
            self.dtype,
            self.initialisation,
            self.token_dim,
            x.shape[-1] ** -0.5,
            self.locality,
            precision=self.precision,
            dropout=self.dropout,
            sees_pixels=self.sees_pixels,
            name="MultiHeadDotProductAttention_0",
        )
        y = LayerNorm(self.norm_epsilon, self.dtype, name="LayerNorm_0")(x)
        x = attention(y, train=train)
        y = LayerNorm(self.norm_epsilon, self.dtype, name="LayerNorm_1")(x)
        common = (self.gelu, self.dtype, self.initialisation, self.precision)
        y = MlpBlock(self.token_dim, 0.0, *common, name="MlpBlock_0")(y)
        return x + nn.Dropout(self.dropout)(y.astype(jnp.float32), deterministic=not train)
