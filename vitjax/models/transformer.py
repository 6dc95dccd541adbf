"""The original Transformer: a sequence of tokens in, the next token of another sequence out.

Sources: "Attention Is All You Need" (arXiv 1706.03762); tensorflow/tensor2tensor,
`tensor2tensor/models/transformer.py`, for what the paper does not say.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from vitjax.errors import UserError, nearest
from vitjax.layers.cached_attention import CachedAttention, Memory
from vitjax.layers.embedding import TokenEmbedding
from vitjax.layers.initialisation import AUGREG, TENSOR2TENSOR, Initialisation
from vitjax.layers.mlp import ACTIVATIONS, MlpBlock
from vitjax.layers.norm import LayerNorm
from vitjax.layers.position import concatenated_sinusoid, sinusoid

Cache = dict[str, Any]  # every leaf has the batch first

# Names of `initialisation`: of the linear layers, and the deviation of embeddings, by default width ** -0.5.
INITIALISATIONS: dict[str, tuple[Initialisation, float | None]] = {
    "tensor2tensor": (TENSOR2TENSOR, None),
    "flax": (AUGREG, 1.0),
}

_CHOICES = {
    "norm": ("post", "pre"),
    "positions": ("interleaved", "concatenated", "learned"),
    "tie": ("all", "decoder", "none"),
    "activation": ACTIVATIONS,
    "initialisation": tuple(INITIALISATIONS),
    "dtype": ("float32", "bfloat16"),
}


class TransformerBlock(nn.Module):
    """A layer of encoder or decoder: self-attention, in a decoder attention to the encoder, and the MLP.

    Each of them is a branch f of the residual stream x. `norm="post"`: LN(x + dropout(f(x))), the paper's.
    `"pre"`: x + dropout(f(LN(x))). The stream is float32, `dtype` is that of the products.
    """

    num_heads: int
    mlp_dim: int
    decoder: bool = False
    head_dim: int | None = None
    value_head_dim: int | None = None
    norm: str = "post"
    attention_bias: bool = False
    activation: str = "relu"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    norm_epsilon: float = 1e-6
    initialisation: Initialisation = TENSOR2TENSOR
    dtype: DTypeLike = jnp.float32

    def setup(self):
        """Makes the branches and their norms."""
        self.self_attention, self.self_attention_norm = self._attention(), self._norm()
        if self.decoder:
            self.cross_attention, self.cross_attention_norm = self._attention(), self._norm()
        self.mlp, self.mlp_norm = self._mlp(), self._norm()
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, x, encoded=None, *, mask=None, cross_mask=None, train: bool = False):
        """Returns `x` `[B, N, D]` after the layer; a decoder's also attends to `encoded` `[B, M, D]`.

        Masks are True where query n may see key m: `[B, 1, N, N]` and `[B, 1, N, M]`.
        """
        attend = lambda y: self.self_attention(y, mask=mask, train=train)
        x = self._residual(x, attend, self.self_attention_norm, train)
        if self.decoder:
            attend = lambda y: self.cross_attention(y, encoded, mask=cross_mask, train=train)
            x = self._residual(x, attend, self.cross_attention_norm, train)
        return self._residual(x, lambda y: self.mlp(y, train=train), self.mlp_norm, train)

    def remember(self, encoded) -> Memory:
        """Returns keys and values of `encoded` `[B, M, D]` for this layer's attention to the encoder."""
        return self.cross_attention.remember(encoded)

    def step(self, x, written: Memory, encoded: Memory, position, masks):
        """Takes one token `[B, 1, D]` through a decoder's layer, in inference.

        Args:
          x: the stream at `position`.
          written: keys and values of the tokens before it.
          encoded: those of the encoder's result, by `remember`.
          position: int32 `[B]`, how many tokens are before it.
          masks: for the two attentions, `[B, 1, 1, length]` and `[B, 1, 1, M]`.

        Returns:
          `x` after the layer, and `written` with this token.
        """
        own_mask, cross_mask = masks
        memory = written

        def attend(y):
            nonlocal memory
            memory = self.self_attention.write(y, written, position)
            return self.self_attention.recall(y, memory, own_mask)

        x = self._residual(x, attend, self.self_attention_norm, False)
        attend_encoder = lambda y: self.cross_attention.recall(y, encoded, cross_mask)
        x = self._residual(x, attend_encoder, self.cross_attention_norm, False)
        return self._residual(x, self.mlp, self.mlp_norm, False), memory

    def _residual(self, x, branch, norm, train):
        y = branch(norm(x).astype(self.dtype) if self.norm == "pre" else x)
        x = x + self.drop(y.astype(jnp.float32), deterministic=not train)
        return x if self.norm == "pre" else norm(x)

    def _attention(self):
        return CachedAttention(
            self.num_heads,
            self.attention_bias,
            self.dtype,
            self.initialisation,
            self.head_dim,
            out_bias=self.attention_bias,
            value_head_dim=self.value_head_dim,
            weights_dropout=self.attention_dropout,
        )

    def _mlp(self):
        return MlpBlock(
            self.mlp_dim,
            self.activation_dropout,
            "tanh",
            self.dtype,
            self.initialisation,
            activation=self.activation,
        )

    def _norm(self):
        return LayerNorm(self.norm_epsilon)


class Transformer(nn.Module):
    """Encoder and decoder of the original Transformer; the defaults are the paper's base model.

    `model.apply(variables, inputs, decoder_inputs, train=False) -> (logits, out)` is one pass over whole
    targets (teacher forcing): `logits[:, t]` are for the token after `decoder_inputs[:, t]`, which sees no
    later one. `encode`, `start_cache` and `decode_step` give the same logits a token at a time. Ids are
    integers; several sentences may be packed in a row, told apart by segments. `train=True` needs the
    `dropout` random stream if one of the rates is not 0.

    Fields:
      num_classes: size of the vocabulary, one for both sides.
      width: d_model.
      depth: layers of the encoder.
      decoder_depth: of the decoder; None: as many.
      mlp_dim: d_ff.
      num_heads: h.
      head_dim: d_k, size of a head's queries and keys; None: width / num_heads.
      value_head_dim: d_v, of its values; None: as `head_dim`.
      norm: where the LayerNorm of a branch is. `post`: after its addition to the stream, the paper's.
        `pre`: before the branch (tensor2tensor since version 3, flax's example).
      final_norm: one more LayerNorm after each stack; None: just with `pre`, where nothing else ends in one.
      positions: `interleaved` sinusoids, the paper's; `concatenated`, tensor2tensor's; `learned` (row E
        of Table 3), a table for either side, normal with deviation width^-0.5.
      max_length: how many positions are learned.
      scale_embedding: multiply embeddings by sqrt(width).
      scale_logits: divide logits by sqrt(width) (flax's example, which does not scale embeddings).
      tie: what shares one table. `all`: inputs, targets and logits. `decoder`: targets and logits. `none`.
      attention_bias: biases in all four linear layers of attention; the paper's formulas have none.
      activation: of the MLP, `relu` or `gelu`.
      dropout: P_drop, rate after the embedding and of every branch.
      attention_dropout: of attention weights.
      activation_dropout: after the MLP's activation.
      norm_epsilon: of every LayerNorm; the paper does not say, 1e-6 is tensor2tensor's.
      initialisation: how parameters begin. `tensor2tensor`: linear layers Glorot-uniform, biases zero,
        embeddings normal with deviation width^-0.5. `flax`: the same with biases of the MLP of deviation 1e-6
        and embeddings of deviation 1.
      dtype: of products' operands. Parameters, residual stream, norms, softmax and logits are float32 always.
    """

    num_classes: int | None = None
    width: int = 512
    depth: int = 6
    decoder_depth: int | None = None
    mlp_dim: int = 2048
    num_heads: int = 8
    head_dim: int | None = None
    value_head_dim: int | None = None
    norm: str = "post"
    final_norm: bool | None = None
    positions: str = "interleaved"
    max_length: int = 512
    scale_embedding: bool = True
    scale_logits: bool = False
    tie: str = "all"
    attention_bias: bool = False
    activation: str = "relu"
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    norm_epsilon: float = 1e-6
    initialisation: str = "tensor2tensor"
    dtype: str = "float32"

    def __post_init__(self):
        """Refuses bad values where the model is made, not inside the first trace."""
        for field, valid in _CHOICES.items():
            value = getattr(self, field)
            if value not in valid:
                hint = nearest(value.lower(), valid) if isinstance(value, str) else ""
                raise UserError(f"{field}={value!r} is none of {', '.join(map(repr, valid))}.{hint}")
        for field in ("width", "depth", "mlp_dim", "num_heads", "max_length"):
            if getattr(self, field) < 1:
                raise UserError(f"{field}={getattr(self, field)!r} must be 1 or more.")
        for field in ("decoder_depth", "head_dim", "value_head_dim"):
            if getattr(self, field) is not None and getattr(self, field) < 1:
                raise UserError(f"{field}={getattr(self, field)!r} must be 1 or more, or None.")
        for field in ("dropout", "attention_dropout", "activation_dropout"):
            if not 0 <= getattr(self, field) < 1:
                raise UserError(f"{field}={getattr(self, field)!r} is not a rate: 0 <= {field} < 1.")
        if self.head_dim is None and self.width % self.num_heads:
            raise UserError(f"width={self.width} cannot be split over num_heads={self.num_heads} heads.")
        if self.positions == "concatenated" and self.width < 4:
            raise UserError(f"positions='concatenated' needs a width of at least 4, not width={self.width}.")
        super().__post_init__()

    def setup(self):
        """Makes tables, layers and final norms."""
        vocab_size = self.num_classes
        if not vocab_size:
            raise UserError("num_classes=None: a Transformer needs the size of its vocabulary.")
        begin, deviation = INITIALISATIONS[self.initialisation]
        draw = nn.initializers.normal(deviation or self.width**-0.5)
        table = lambda: TokenEmbedding(vocab_size, self.width, draw, self.dtype)
        self.embedding = table()  # of the targets, and of all that shares it
        if self.tie != "all":
            self.inputs_embedding = table()
        if self.tie == "none":
            self.head = table()
        if self.positions == "learned":
            learned = lambda: TokenEmbedding(self.max_length, self.width)
            self.inputs_positions, self.targets_positions = learned(), learned()
        self.encoder = [self._block(begin, False) for _ in range(self.depth)]
        self.decoder = [self._block(begin, True) for _ in range(self.decoder_depth or self.depth)]
        if self.has_final_norm:
            self.encoder_norm, self.decoder_norm = LayerNorm(self.norm_epsilon), LayerNorm(self.norm_epsilon)
        self.drop = nn.Dropout(self.dropout)

    @property
    def has_final_norm(self) -> bool:
        """Whether each stack ends in a norm of its own."""
        return self.norm == "pre" if self.final_norm is None else self.final_norm

    def __call__(
        self,
        inputs,
        decoder_inputs,
        *,
        inputs_positions=None,
        inputs_segments=None,
        targets_positions=None,
        targets_segments=None,
        train: bool = False,
    ) -> tuple[Any, dict[str, Any]]:
        """Returns logits `[B, T, V]`, float32, and the named intermediates.

        Args:
          inputs: ids of the source `[B, S]`.
          decoder_inputs: ids of the target, moved right by one, `[B, T]`.
          inputs_positions: place of each token in its sentence, from 0; None: in its row.
          inputs_segments: which sentence of the row each token belongs to; 0 is padding; None: all to one.
          targets_positions: as `inputs_positions`.
          targets_segments: those that a target's tokens see of the source, and of the target before them.
          train: switches dropout on.

        `out`: `inputs_embedded` `[B, S, D]` and `targets_embedded` `[B, T, D]`, with positions and before
        dropout; `encoder_tokens` and `decoder_tokens`, what layers return (lists); `encoded` and `decoded`,
        the last of them, after the final norm if there is one; `logits`.
        """
        out: dict[str, Any] = {}
        encoded = self._encode(inputs, inputs_positions, inputs_segments, train, out)
        self._refuse_unlike("decoder_inputs", decoder_inputs, targets_positions, targets_segments)
        own, cross = self._masks(inputs, decoder_inputs, inputs_segments, targets_segments)
        x = self._embed("targets", decoder_inputs, targets_positions)
        out["targets_embedded"] = x
        x = self.drop(x, deterministic=not train)
        out["decoder_tokens"] = []
        for block in self.decoder:
            x = block(x, encoded, mask=own, cross_mask=cross, train=train)
            out["decoder_tokens"].append(x)
        out["decoded"] = self.decoder_norm(x) if self.has_final_norm else x
        out["logits"] = self._logits(out["decoded"])
        return out["logits"], out

    def encode(self, inputs, *, positions=None, segments=None):
        """Returns the encoder's result `[B, S, D]`, float32, in inference; the arguments are `__call__`'s."""
        return self._encode(inputs, positions, segments, False, {})

    def start_cache(self, encoded, inputs_segments, max_length: int) -> Cache:
        """Returns what `decode_step` knows before the first token, for at most `max_length` of them.

        Every leaf has the batch first: rows can be repeated, reordered and dropped: `self` and `cross`,
        keys and values `[B, max_length or S, H, Dh]` of a decoder layer; `seen`, bool `[B, S]`, which tokens
        of the source there are; `position`, int32 `[B]`.

        Args:
          encoded: by `encode`, one sentence a row.
          inputs_segments: `[B, S]`, above 0 at the sentence's tokens; None: there is no padding.
          max_length: how many tokens a target has at most.
        """
        if self.positions == "learned" and max_length > self.max_length:
            raise UserError(
                f"Targets of {max_length} tokens are longer than model.max_length={self.max_length} learned "
                "positions."
            )
        rows, source = encoded.shape[:2]
        seen = jnp.ones((rows, source), bool) if inputs_segments is None else inputs_segments > 0
        head_dim = self.head_dim or self.width // self.num_heads
        empty = lambda size: jnp.zeros((rows, max_length, self.num_heads, size), self.dtype)
        return {
            "self": [
                {"key": empty(head_dim), "value": empty(self.value_head_dim or head_dim)}
                for _ in self.decoder
            ],
            "cross": [block.remember(encoded) for block in self.decoder],
            "seen": seen,
            "position": jnp.zeros(rows, jnp.int32),
        }

    def decode_step(self, tokens, cache: Cache) -> tuple[Any, Cache]:
        """Returns logits `[B, V]`, float32, for the token after `tokens` `[B]`, and the cache with those.

        The first `tokens` are the vocabulary's bos. After `max_length` steps the cache is full: what comes
        then is not remembered.
        """
        position = cache["position"]
        length = cache["self"][0]["key"].shape[1]
        own = jnp.arange(length) <= position[:, None]
        masks = own[:, None, None], cache["seen"][:, None, None]
        x = self._embed("targets", tokens[:, None], position[:, None], length)
        written = []
        for block, before, encoded in zip(self.decoder, cache["self"], cache["cross"], strict=True):
            x, after = block.step(x, before, encoded, position, masks)
            written.append(after)
        x = self.decoder_norm(x) if self.has_final_norm else x
        return self._logits(x[:, 0]), {**cache, "self": written, "position": position + 1}

    def _encode(self, inputs, positions, segments, train, out):
        self._refuse_unlike("inputs", inputs, positions, segments)
        x = out["inputs_embedded"] = self._embed("inputs", inputs, positions)
        x = self.drop(x, deterministic=not train)
        mask = None if segments is None else same_segment(segments, segments)
        out["encoder_tokens"] = []
        for block in self.encoder:
            x = block(x, mask=mask, train=train)
            out["encoder_tokens"].append(x)
        out["encoded"] = self.encoder_norm(x) if self.has_final_norm else x
        return out["encoded"]

    def _masks(self, inputs, targets, inputs_segments, targets_segments):
        """What targets may see: of the targets, `[B or 1, 1, T, T]`, and of the inputs, `[B, 1, T, S]`."""
        length = targets.shape[1]
        own = (jnp.arange(length) <= jnp.arange(length)[:, None])[None, None]
        if targets_segments is not None:
            own &= same_segment(targets_segments, targets_segments)
        if inputs_segments is None and targets_segments is None:
            return own, None
        one = lambda tokens: jnp.ones(tokens.shape, jnp.int32)
        of_inputs = one(inputs) if inputs_segments is None else inputs_segments
        of_targets = one(targets) if targets_segments is None else targets_segments
        return own, same_segment(of_targets, of_inputs)

    def _embed(self, side, tokens, positions, length=None):
        """Embeds ids `[B, N]` with positions, of which there are `length`, by default N: `[B, N, D]`."""
        table = self.embedding if side == "targets" or self.tie == "all" else self.inputs_embedding
        x = table(tokens)
        if self.scale_embedding:
            x = x * self.width**0.5
        length = length or tokens.shape[1]
        if self.positions == "learned":
            if length > self.max_length:
                raise UserError(
                    f"{length} {side} are more than model.max_length={self.max_length} learned positions: "
                    "set it to the longest sequence, text.length."
                )
            learned = self.inputs_positions if side == "inputs" else self.targets_positions
            return x + learned(jnp.arange(length)[None] if positions is None else positions)
        fixed = jnp.asarray(
            {"interleaved": sinusoid, "concatenated": concatenated_sinusoid}[self.positions](
                length, self.width
            )
        )
        return x + (fixed if positions is None else fixed[0][positions])

    def _logits(self, x):
        table = self.head if self.tie == "none" else self.embedding
        logits = table.logits(x)
        return logits / self.width**0.5 if self.scale_logits else logits

    def _block(self, begin, decoder):
        return TransformerBlock(
            self.num_heads,
            self.mlp_dim,
            decoder,
            self.head_dim,
            self.value_head_dim,
            self.norm,
            self.attention_bias,
            self.activation,
            self.dropout,
            self.attention_dropout,
            self.activation_dropout,
            self.norm_epsilon,
            begin,
            self.dtype,
        )

    def _refuse_unlike(self, name, tokens, positions, segments):
        """Raises `UserError` for tokens that are no ids `[B, N]`, and for what is not one for each."""
        if not jnp.issubdtype(tokens.dtype, jnp.integer) or tokens.ndim != 2:
            raise UserError(
                f"A Transformer takes integer ids [batch, length] as {name}, not "
                f"{tokens.dtype}{list(tokens.shape)}."
            )
        for what, given in (("positions", positions), ("segments", segments)):
            if given is not None and given.shape != tokens.shape:
                raise UserError(f"{what}{list(given.shape)} do not belong to {name}{list(tokens.shape)}.")


def same_segment(queries, keys):
    """Returns where a query `[B, N]` and a key `[B, M]` are of one segment: bool `[B, 1, N, M]`.

    Padding, 0, sees padding, which keeps its softmax from having nothing to choose from; nothing else does.
    """
    return (queries[:, :, None] == keys[:, None])[:, None]


# Table 3 of the paper by its rows: what differs from the base model. Rows D-ls0 and D-ls2 differ in the label
# smoothing alone, which is the recipe's (configs/translate.py), as is the number of steps of the big model.
TABLE_3: dict[str, dict[str, Any]] = {
    "base": {},
    "a_h1": {"num_heads": 1},
    "a_h4": {"num_heads": 4},
    "a_h16": {"num_heads": 16},
    "a_h32": {"num_heads": 32},
    "b_dk16": {"head_dim": 16, "value_head_dim": 64},
    "b_dk32": {"head_dim": 32, "value_head_dim": 64},
    "c_n2": {"depth": 2},
    "c_n4": {"depth": 4},
    "c_n8": {"depth": 8},
    "c_d256": {"width": 256},
    "c_d1024": {"width": 1024},
    "c_ff1024": {"mlp_dim": 1024},
    "c_ff4096": {"mlp_dim": 4096},
    "d_drop0": {"dropout": 0.0},
    "d_drop2": {"dropout": 0.2},
    "e": {"positions": "learned"},
    "big": {"width": 1024, "mlp_dim": 4096, "num_heads": 16, "dropout": 0.3},
}

# For Multi30k: "Good for Misconceived Reasons" (arXiv 2105.14462), whose authors call it tiny.
_TINY = {"width": 128, "depth": 4, "mlp_dim": 256, "num_heads": 4, "dropout": 0.3}
SIZES = {**TABLE_3, "tiny": _TINY, "small": _TINY}


def names() -> tuple[str, ...]:
    """`transformer_base`, `transformer_big`, the other rows of Table 3, and a small one by both its names."""
    return tuple(f"transformer_{size}" for size in SIZES)


def configure(name: str) -> tuple[type[nn.Module], dict[str, Any]] | None:
    """Returns the class and the fields that `transformer_{size}` stands for; None for any other name."""
    if name not in names():
        return None
    return Transformer, dict(SIZES[name.removeprefix("transformer_")])
