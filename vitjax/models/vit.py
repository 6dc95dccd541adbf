"""The Vision Transformer, with the choices of the published AugReg and big_vision models as fields.

Sources: "An Image is Worth 16x16 Words" (arXiv 2010.11929), "How to train your ViT?" (arXiv 2106.10270),
google-research/vision_transformer and google-research/big_vision.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vitjax.errors import UserError, nearest
from vitjax.layers.binary import PRECISIONS
from vitjax.layers.drop_path import linear_rates, uniform_rates
from vitjax.layers.encoder import REMAT_POLICIES, Encoder, EncoderBlock
from vitjax.layers.initialisation import INITIALISATIONS, Initialisation
from vitjax.layers.locality import LSA, locality
from vitjax.layers.mlp import GELU
from vitjax.layers.norm import LayerNorm
from vitjax.layers.patches import PatchEmbedding, pair
from vitjax.layers.pooling import MAPHead
from vitjax.layers.position import sincos_2d, sinusoid
from vitjax.layers.shifted_patches import SPT, ShiftedPatchTokenization, shifts_of

# Table 2 of "Scaling Vision Transformers" and big_vision's additions: width, depth, mlp_dim, num_heads.
SIZES = {
    "mu": (32, 1, 128, 2),
    "ti": (192, 12, 768, 3),
    "s": (384, 12, 1536, 6),
    "m": (512, 12, 2048, 8),
    "b": (768, 12, 3072, 12),
    "l": (1024, 24, 4096, 16),
    "so400m": (1152, 27, 4304, 16),
    "h": (1280, 32, 5120, 16),
    "g": (1408, 40, 6144, 16),
    "g_opt": (1536, 40, 6144, 16),
    "G": (1664, 48, 8192, 16),
    "G_opt": (1536, 48, 8192, 16),
    "e": (1792, 56, 15360, 16),
}

_CHOICES = {
    "pool": ("tok", "gap", "map", "0", "none"),
    "posemb": ("learn", "sincos2d", "sinusoid"),
    "posemb_layout": ("augreg", "big_vision"),
    "gelu": GELU,
    "spt": SPT,
    "lsa": LSA,
    "initialisation": tuple(INITIALISATIONS),
    "remat": (None, *REMAT_POLICIES),
    "precision": PRECISIONS,
    "dtype": ("float32", "bfloat16"),
}


class ViT(nn.Module):
    """A Vision Transformer; the defaults are those of the AugReg models.

    `model.apply(variables, image, train=False) -> (logits, out)` for float images
    `[B, H, W, C]`; height and width may differ and must be multiples of the patch.
    `train=True` needs the `dropout` random stream if `dropout` or `drop_path` is on.

    Fields:
      num_classes: size of the head; None or 0 for no head (`logits` are then `pre_logits`).
      patch_size: one number, or (height, width).
      pool: what the head sees. `tok`: the class token. `gap`: mean of the patch tokens. `map`: attention
        pooling. `0`: the first token, class token or not. `none`: all tokens.
      class_token: whether there is one; by default exactly for `pool="tok"`.
      fc_norm: normalise after pooling instead of before (timm's `fc_norm`, its default for average pooling).
      rep_size: size of the layer before the head (Dense `pre_logits`, tanh); True means `width`, False none.
      posemb: `learn`, or one that is fixed: `sincos2d` of MoCo v3, by row and column, or `sinusoid` of the
        original Transformer, by place in the sequence, where the class token is the first (T2T-ViT).
      posemb_layout: `augreg`: the class token is put in front and then positions are added; it has its own
        entry; drawn with deviation 0.02. `big_vision`: positions are added to the patches, deviation
        1/sqrt(width), then the class token is put in front (also DeiT III).
      dropout: rate after the position embedding, after attention and after both layers of the MLP.
      drop_path: rate of stochastic depth in the last block, growing linearly from 0 in the first.
      drop_path_uniform: have that rate in all blocks instead (CaiT, DeiT III).
      drop_path_rescale: divide what survives by its probability (Scenic, timm); False: do not (big_vision).
      gelu: `tanh` approximation (the JAX code bases) or exact `erf` (PyTorch's).
      head_dim: size of a head's queries, keys and values; by default `width / num_heads`.
      out_projection: multiply the heads' results with a matrix; without one (the official code of the
        small-dataset paper, for one head of the model's width) they go side by side onto the residual stream.
      spt: shifted patch tokenization in place of the linear embedding: `none`, or where the views look:
        `diagonal` (the paper's four), `cardinal`, `all` eight.
      spt_ratio: by how much of a patch views are shifted, rounded down to pixels.
      lsa: locality self-attention: `none`, `both` of its parts as in the paper, or `temperature` or `mask`.
      lsa_mask: what the masked diagonal of the logits is overwritten with (`layers.locality`).
      layer_scale: initial value of LayerScale on both branches; None for none.
      norm_epsilon: of every LayerNorm.
      initialisation: how parameters begin. `augreg`: linear layers xavier-uniform, biases of the MLP with
        deviation 1e-6, patch embedding lecun-normal, class token zero. `deit`: normal with deviation 0.02,
        the tokens and positions, too; biases zero; patch embedding uniform as PyTorch has it.
        `small_datasets`: matrices xavier-normal, those of query, key and value as one, and the patch
        embedding; tokens and positions normal with deviation 1; biases zero.
      head_bias: initial bias of the head (AugReg: -6.9 for 1000 classes with sigmoid loss, -10 for 21k).
      head_zeroinit: start the head's kernel at zero; False: lecun-normal, or 0.02 of `deit`, or xavier-normal
        of `small_datasets`.
      scan: compile one block and scan it over the depth, parameters stacked (`layers.encoder.loop_to_scan`).
      remat: recompute blocks in the backward pass, keeping what this policy of jax names (`REMAT_POLICIES`).
      dtype: of matrix products. Parameters, residual stream, norms, softmax and logits are float32 always.
      precision: bits of weights and activations in all linear layers but the embedding and the head, and in
        the products of attention: `float`, `binary` (one bit each), `w1a32` or `w32a1`. All but `float` make
        another network (`layers.precision`): its linear layers have no biases (`qkv_bias` is nothing to
        them), but a norm, a shortcut and an RPReLU each, which also takes the place of `gelu`.
    """

    num_classes: int | None = None
    width: int = 768
    depth: int = 12
    mlp_dim: int = 3072
    num_heads: int = 12
    patch_size: int | Sequence[int] = 16
    pool: str = "tok"
    class_token: bool | None = None
    fc_norm: bool = False
    rep_size: int | bool = False
    posemb: str = "learn"
    posemb_layout: str = "augreg"
    dropout: float = 0.0
    drop_path: float = 0.0
    drop_path_uniform: bool = False
    drop_path_rescale: bool = True
    gelu: str = "tanh"
    qkv_bias: bool = True
    head_dim: int | None = None
    out_projection: bool = True
    spt: str = "none"
    spt_ratio: float = 0.5
    lsa: str = "none"
    lsa_mask: float = -np.inf
    layer_scale: float | None = None
    norm_epsilon: float = 1e-6
    initialisation: str = "augreg"
    head_bias: float = 0.0
    head_zeroinit: bool = True
    scan: bool = False
    remat: str | None = None
    dtype: str = "float32"
    precision: str = "float"

    def __post_init__(self):
        """Refuses bad values where the model is made, not inside the first trace."""
        for field, valid in _CHOICES.items():
            value = getattr(self, field)
            if value not in valid:
                raise UserError(
                    f"{field}={value!r} is none of {', '.join(map(repr, valid))}.{_hint(value, valid)}"
                )
        self.refuse_bad_sizes()
        if self.rep_size < 0:
            raise UserError(f"rep_size={self.rep_size!r} must be a number of features, True or False.")
        for field in ("dropout", "drop_path"):
            if not 0 <= getattr(self, field) < 1:
                raise UserError(f"{field}={getattr(self, field)!r} is not a rate: 0 <= {field} < 1.")
        patch_size = pair(self.patch_size)
        if self.spt != "none":
            shifts_of(patch_size, self.spt_ratio)
        if math.isnan(self.lsa_mask) or self.lsa_mask == math.inf:
            raise UserError(f"lsa_mask={self.lsa_mask!r} must be a number, or -inf (the paper's).")
        if self.pool == "tok" and self.class_token is False:
            raise UserError(
                "pool='tok' reads the class token, but class_token=False: choose pool='gap' or 'map'."
            )
        super().__post_init__()

    def refuse_bad_sizes(self) -> None:
        """Raises a `UserError` for sizes that no network has."""
        for field in ("width", "depth", "mlp_dim", "num_heads"):
            if getattr(self, field) < 1:
                raise UserError(f"{field}={getattr(self, field)!r} must be 1 or more.")
        if self.head_dim is None and self.width % self.num_heads:
            raise UserError(f"width={self.width} cannot be split over num_heads={self.num_heads} heads.")
        if self.head_dim is not None and self.head_dim < 1:
            raise UserError(f"head_dim={self.head_dim!r} must be 1 or more, or None for width / num_heads.")
        if not self.out_projection and self.head_dim not in (None, self.width / self.num_heads):
            raise UserError(
                f"out_projection=False: {self.num_heads} heads of head_dim={self.head_dim} do not fit onto a "
                f"residual stream of width={self.width}; num_heads * head_dim must be the width."
            )

    @property
    def embedding_width(self) -> int:
        """Width of the tokens that enter the first block."""
        return self.width

    @property
    def has_class_token(self) -> bool:
        """Whether the first token is a class token."""
        return self.pool == "tok" if self.class_token is None else self.class_token

    @property
    def tokens_in_front(self) -> tuple[str, ...]:
        """Names of the tokens before those of the patches, in their order."""
        return ("cls",) if self.has_class_token else ()

    @property
    def distilled(self) -> bool:
        """Whether there is a second head, to be taught by a teacher (`models.deit`)."""
        return False

    @property
    def initialisers(self) -> Initialisation:
        """What `initialisation` names."""
        return INITIALISATIONS[self.initialisation]

    @property
    def stride(self) -> tuple[int, int]:
        """Pixels from one token to the next, (down, across)."""
        return pair(self.patch_size)

    @nn.compact
    def __call__(self, image, *, train: bool = False) -> tuple[Any, dict[str, Any]]:
        """Returns logits `[B, num_classes]`, float32, and the named intermediates.

        `out`: `stem` `[B, h, w, D]`, the embedded patches; `with_posemb` `[B, N, D]`,
        what enters the first block (before dropout); `tokens`, what leaves each block
        (a list, or stacked `[depth, B, N, D]` under `scan`); `encoded` `[B, N, D]`, the
        same after the final norm; `head_input` `[B, D]`, pooled; `pre_logits`, what the
        head sees; `logits`. With `pool="none"` the last three keep the axis of tokens.
        """
        if not jnp.issubdtype(image.dtype, jnp.floating):
            raise UserError(
                f"The model takes float images, not {image.dtype}: end pp with e.g. value_range(-1, 1)."
            )
        out = self.embed(image, train)
        x = out["with_posemb"] = self.add_positions(out["stem"])
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        x, encoded = self.encode_on(out["stem"].shape[1:3], x, train)
        out |= encoded
        x = out["head_input"] = self.pool_tokens(x)
        if self.fc_norm:
            x = LayerNorm(self.norm_epsilon, name="fc_norm")(x)
        if self.rep_size:
            size = x.shape[-1] if self.rep_size is True else self.rep_size
            x = jnp.tanh(nn.Dense(size, name="pre_logits")(x))
        out |= self.classify(x, train)
        return out["logits"], out

    def classify(self, x, train) -> dict[str, Any]:
        """Returns `pre_logits`, what the head sees of `x`, and `logits`; a subclass may have more heads."""
        return {"pre_logits": x, "logits": self.head(x, "head")}

    def head(self, x, name):
        """The linear classifier `name`; without classes, `x` as it is."""
        if not self.num_classes:
            return x
        # The head is a sliver of the work and the loss is sensitive to it: float32 whatever the dtype.
        kernel = nn.initializers.zeros if self.head_zeroinit else self.initialisers.head
        bias = nn.initializers.constant(self.head_bias)
        if not self.head_bias:
            bias = self.initialisers.bias_of(x.shape[-1], bias)
        return nn.Dense(self.num_classes, kernel_init=kernel, bias_init=bias, name=name)(x)

    def embed(self, image, train) -> dict[str, Any]:
        """Returns `stem`, the embedded patches `[B, h, w, D]`; a subclass may have more to show."""
        return {"stem": self.patch_embedding()(image)}

    def patch_embedding(self) -> nn.Module:
        """The layer that embeds patches of an image, or of a feature map."""
        patch_size = pair(self.patch_size)
        if self.spt == "none":
            return PatchEmbedding(
                self.embedding_width, patch_size, self.dtype, self.initialisers, name="embedding"
            )
        return ShiftedPatchTokenization(
            self.embedding_width,
            patch_size,
            self.spt,
            self.spt_ratio,
            1e-5,
            self.dtype,
            self.initialisers,
            name="embedding",
        )

    def add_positions(self, x):
        """Turns the grid `[B, h, w, D]` into tokens with positions and class token: `[B, N, D]`, float32."""
        batch, height, width, dim = x.shape
        x = x.reshape(batch, height * width, dim).astype(jnp.float32)
        tokens = [self.token(name) for name in self.tokens_in_front]
        prepend = lambda x: jnp.concatenate([*(jnp.tile(token, (batch, 1, 1)) for token in tokens), x], 1)

        if self.posemb == "sincos2d":  # the class token has no place on the grid, so it gets no position
            return prepend(x + sincos_2d(height, width, dim))
        if self.posemb == "sinusoid":
            x = prepend(x)
            return x + sinusoid(x.shape[1], dim)
        if self.posemb_layout == "augreg":
            x = prepend(x)
            return x + self.position_embedding(x.shape[1:], self.initialisers.position_std or 0.02)
        std = self.initialisers.position_std or 1 / np.sqrt(dim)
        return prepend(x + self.position_embedding(x.shape[1:], std))

    def token(self, name):
        """A learned token `[1, 1, D]`."""
        return self.param(name, self.initialisers.token, (1, 1, self.embedding_width))

    def position_embedding(self, shape, std):
        """Returns the learned embedding `[1, N, D]`; one made for another number of tokens is a mistake."""
        made_for = self.get_variable("params", "pos_embedding")
        if made_for is not None and made_for.shape[1] != shape[0]:
            raise UserError(
                f"The position embedding has {made_for.shape[1]} entries, but images of this size have "
                f"{shape[0]} tokens: crop images everywhere to the size that the model was made with."
            )
        return self.param("pos_embedding", nn.initializers.normal(std), (1, *shape))

    def encode_on(self, grid, x, train) -> tuple[Any, dict[str, Any]]:
        """`encode` of tokens whose patches lie on `grid` (h, w), for a subclass to which that matters."""
        del grid
        return self.encode(x, train)

    def encode(self, x, train) -> tuple[Any, dict[str, Any]]:
        """Returns what is pooled, `[B, N, D]`, and the intermediates: `tokens`, `encoded`."""
        x, tokens = self.encoder(final_norm=not self.fc_norm)(x, train=train)
        return x, {"tokens": tokens, "encoded": x}

    @property
    def block(self) -> type[nn.Module]:
        """The kind of all blocks."""
        return EncoderBlock

    def block_fields(self) -> dict[str, Any]:
        """The fields of every block."""
        return {
            "num_heads": self.num_heads,
            "mlp_dim": self.mlp_dim,
            "dropout": self.dropout,
            "drop_path_rescale": self.drop_path_rescale,
            "gelu": self.gelu,
            "qkv_bias": self.qkv_bias,
            "layer_scale": self.layer_scale,
            "norm_epsilon": self.norm_epsilon,
            "dtype": self.dtype,
            "precision": self.precision,
            "initialisation": self.initialisers,
            "head_dim": self.head_dim,
            "locality": locality(self.lsa, self.lsa_mask),
            "out_projection": self.out_projection,
        }

    def layer_scales(self, depth: int) -> Sequence[float] | None:
        """Where LayerScale begins in each of `depth` blocks; None: where `block_fields` says."""
        del depth
        return None

    def encoder(self, final_norm: bool) -> nn.Module:
        """The blocks and, with `final_norm`, the norm after them; see `layers.encoder.Encoder`."""
        rates = uniform_rates if self.drop_path_uniform else linear_rates
        return Encoder(
            self.depth,
            self.block,
            self.block_fields(),
            drop_path=rates(self.drop_path, self.depth) if self.drop_path else None,
            layer_scale=self.layer_scales(self.depth),
            final_norm_epsilon=self.norm_epsilon if final_norm else None,
            scan=self.scan,
            remat=self.remat,
            name="Transformer",
        )

    def pool_tokens(self, x):
        """Reduces tokens `[B, N, D]` to what `pool` says: `[B, D]`."""
        match self.pool:
            case "tok" | "0":
                return x[:, 0]
            case "gap":
                return x[:, len(self.tokens_in_front) :].mean(1)
            case "map":
                last_block = self.block_fields()
                head = MAPHead(
                    last_block["num_heads"],
                    last_block["mlp_dim"],
                    self.gelu,
                    self.qkv_bias,
                    self.norm_epsilon,
                    self.dtype,
                    self.initialisers,
                    self.precision,
                    name="MAPHead_0",
                )
                return head(x)
            case _:
                return x


def _hint(value, valid) -> str:
    return nearest(value.lower(), [v for v in valid if v]) if isinstance(value, str) else ""


def names() -> tuple[str, ...]:
    """The sizes with the usual patches; `vit_{size}{patch}` takes any other patch just as well."""
    return tuple(f"vit_{size}{patch}" for size in SIZES for patch in (8, 14, 16, 32))


def configure(name: str) -> tuple[type[nn.Module], dict[str, Any]] | None:
    """Returns the class and the fields that `vit_{size}{patch}` stands for; None for any other name.

    Sizes are in lower case, but as in the papers g and G are two models: `vit_g14`
    (1.0 billion parameters) and `vit_G14` (1.8 billion), and likewise `vit_g_opt14`,
    `vit_G_opt14`.
    """
    match = re.fullmatch(r"vit_(\w+?)([1-9]\d*)", name)
    if match is None or match[1] not in SIZES:
        return None
    width, depth, mlp_dim, num_heads = SIZES[match[1]]
    return ViT, {
        "width": width,
        "depth": depth,
        "mlp_dim": mlp_dim,
        "num_heads": num_heads,
        "patch_size": int(match[2]),
    }
