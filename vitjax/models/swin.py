"""Swin: a pyramid of Transformer stages whose attention stays within shifted windows.

Sources: "Swin Transformer" (arXiv 2103.14030) and microsoft/Swin-Transformer; for SPT, LSA and the reduced
networks "Vision Transformer for Small-Size Datasets" (arXiv 2112.13492) and aanna0701/SPT_LSA_ViT.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitjax.errors import UserError, nearest
from vitjax.layers.binary import PRECISIONS
from vitjax.layers.drop_path import linear_rates
from vitjax.layers.encoder import REMAT_POLICIES
from vitjax.layers.initialisation import INITIALISATIONS, Initialisation
from vitjax.layers.locality import LSA, locality
from vitjax.layers.mlp import GELU
from vitjax.layers.norm import LayerNorm
from vitjax.layers.patch_merging import PatchMerging
from vitjax.layers.patches import PatchEmbedding, pair
from vitjax.layers.shifted_patches import SPT, ShiftedPatchTokenization, shifts_of
from vitjax.layers.token_pooling import ShiftedPatchPooling
from vitjax.layers.window_attention import Pair, WindowBlock

# configs/swin/*.yaml of the official repository: width, depths, num_heads.
SIZES = {
    "t": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "s": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "b": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "l": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}

_CHOICES = {
    "gelu": GELU,
    "spt": SPT,
    "lsa": LSA,
    "initialisation": tuple(INITIALISATIONS),
    "remat": (None, *REMAT_POLICIES),
    "precision": PRECISIONS,
    "dtype": ("float32", "bfloat16"),
}


class Stage(NamedTuple):
    """The map of a stage and the windows it is cut into, in tokens (down, across)."""

    grid: Pair
    window: Pair
    shift: Pair  # of every second block


class Swin(nn.Module):
    """A Swin Transformer; the defaults are those of Swin-T.

    `model.apply(variables, image, train=False) -> (logits, out)` for float images `[B, H, W, C]`; the stages
    must come out even, see `stages`. `train=True` needs the `dropout` random stream if `dropout` or
    `drop_path` is on. Parameters are named `embedding`, `embedding_norm`, `pos_embedding`,
    `stage_{s}/encoderblock_{i}`, `pooling_{s}` between stages s and s + 1, `encoder_norm` and `head`.

    Fields:
      num_classes: size of the head; None or 0 for no head (`logits` are then `pre_logits`).
      width: of the first stage; each has twice that of the one before.
      depths: number of blocks of each stage.
      num_heads: of each stage.
      window: side of the windows in tokens. Along a side of the map that is no longer than that the window is
        the whole side and nothing shifts. So it is in timm; in the official code the shorter side decides for
        both, which is the same for square images.
      patch_size: one number, or (height, width).
      mlp_ratio: width of the MLP's hidden layer, in widths of the stage.
      abs_pos: add a learned position embedding to the patches. The official networks have none; the reduced
        ones have it as released, but are without it where their paper counts parameters.
      dropout: rate after the embedding, after attention and after both layers of the MLP.
      drop_path: rate of stochastic depth in the last block of all, growing linearly from 0 in the first.
      drop_path_rescale: divide what survives by its probability.
      gelu: exact `erf` (PyTorch's), or the `tanh` approximation.
      qkv_bias: whether queries, keys and values have a bias.
      spt: shifted patch tokenization in place of the linear embedding and the norm after it: `none`, or where
        the views look: `diagonal` (the paper's four), `cardinal`, `all` eight.
      spt_ratio: by how much of a patch the views of the embedding are shifted, rounded down to pixels.
      spt_pooling: pool with patches shifted by one token in place of patch merging; the views are those of
        `spt`, without it `diagonal`.
      lsa: locality self-attention: `none`, `both` of its parts as in the paper, or `temperature` or `mask`.
      lsa_mask: what the masked diagonal of the logits is overwritten with (`layers.locality`).
      norm_epsilon: of every LayerNorm.
      initialisation: how parameters begin. `deit`: the official way, linear layers and positions normal with
        deviation 0.02, biases zero, patch embedding uniform as PyTorch has it. `torch`: linear layers as
        PyTorch has them, uniform in ±1/sqrt(inputs), biases too (the released reduced networks).
      head_bias: initial bias of the head; where it is 0, `initialisation` says.
      head_zeroinit: start the head's kernel at zero.
      remat: recompute blocks in the backward pass, keeping what this policy of jax names (`REMAT_POLICIES`).
      dtype: of matrix products. Parameters, residual stream, norms, softmax and logits are float32 always.
      precision: bits of weights and activations in all linear layers but the embedding and the head, and in
        the products of attention: `float`, `binary` (one bit each), `w1a32` or `w32a1`. All but `float` make
        another network (`layers.precision`): its linear layers have no biases (`qkv_bias` is nothing to
        them), but a norm, a shortcut and an RPReLU each, which also takes the place of `gelu`.
    """

    num_classes: int | None = None
    width: int = 96
    depths: Sequence[int] = (2, 2, 6, 2)
    num_heads: Sequence[int] = (3, 6, 12, 24)
    window: int = 7
    patch_size: int | Sequence[int] = 4
    mlp_ratio: float = 4.0
    abs_pos: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0
    drop_path_rescale: bool = True
    gelu: str = "erf"
    qkv_bias: bool = True
    spt: str = "none"
    spt_ratio: float = 0.5
    spt_pooling: bool = False
    lsa: str = "none"
    lsa_mask: float = -np.inf
    norm_epsilon: float = 1e-5
    initialisation: str = "deit"
    head_bias: float = 0.0
    head_zeroinit: bool = False
    remat: str | None = None
    dtype: str = "float32"
    precision: str = "float"

    def __post_init__(self):
        """Refuses bad values where the model is made, not inside the first trace."""
        for field, valid in _CHOICES.items():
            value = getattr(self, field)
            if value not in valid:
                hint = nearest(value.lower(), [v for v in valid if v]) if isinstance(value, str) else ""
                raise UserError(f"{field}={value!r} is none of {', '.join(map(repr, valid))}.{hint}")
        for field in ("width", "window", "depths", "num_heads"):
            value = getattr(self, field)
            numbers = [value] if isinstance(value, int) else list(value)
            if not numbers or any(not isinstance(n, int) or n < 1 for n in numbers):
                raise UserError(f"{field}={value!r} must be whole numbers of 1 or more.")
        if len(self.depths) != len(self.num_heads):
            raise UserError(
                f"depths={self.depths!r} and num_heads={self.num_heads!r} must have one entry a stage each."
            )
        for stage, heads in enumerate(self.num_heads):
            if self.width_of(stage) % heads:
                raise UserError(
                    f"num_heads={self.num_heads!r}: the width {self.width_of(stage)} of stage {stage} cannot "
                    f"be split over {heads} heads."
                )
        if not self.mlp_ratio > 0:
            raise UserError(f"mlp_ratio={self.mlp_ratio!r} must be above 0.")
        for field in ("dropout", "drop_path"):
            if not 0 <= getattr(self, field) < 1:
                raise UserError(f"{field}={getattr(self, field)!r} is not a rate: 0 <= {field} < 1.")
        patch_size = pair(self.patch_size)
        if self.spt != "none":
            shifts_of(patch_size, self.spt_ratio)
        super().__post_init__()

    @property
    def initialisers(self) -> Initialisation:
        """What `initialisation` names."""
        return INITIALISATIONS[self.initialisation]

    @property
    def stride(self) -> tuple[int, int]:
        """Pixels from one token of the first stage to the next, (down, across)."""
        return pair(self.patch_size)

    @property
    def image_unit(self) -> tuple[int, int]:
        """Pixels (down, across) of which the sides of an image may be any multiples."""
        height, width = (self.window * 2 ** (len(self.depths) - 1) * stride for stride in self.stride)
        return height, width

    def width_of(self, stage: int) -> int:
        """The width of a stage, counted from 0."""
        return self.width * 2**stage

    def stages(self, grid: Pair) -> list[Stage]:
        """The maps and windows of all stages, for a first map of `grid` tokens.

        Raises:
          UserError: windows do not divide a map, a map cannot be halved, or the window is larger than the
            first map, so that all tokens of every stage would attend to all and there were no windows.
        """
        if self.window > max(grid):
            raise UserError(
                f"window={self.window} is larger than the map of {grid[0]}x{grid[1]} tokens that the first "
                f"stage sees: take larger images, a smaller patch_size than {self.patch_size!r}, or "
                f"window={min(grid)}."
            )
        found = []
        for stage in range(len(self.depths)):
            (height, width), halves = grid, stage + 1 < len(self.depths)
            p, q = min(height, self.window), min(width, self.window)
            if height % p or width % q:
                raise UserError(f"window={self.window} does not divide {self._map(grid, stage)}")
            if halves and (height % 2 or width % 2):
                raise UserError(f"Pooling halves maps, but an odd side has {self._map(grid, stage)}")
            shift = (p // 2 if height > p else 0, q // 2 if width > q else 0)
            found.append(Stage(grid, (p, q), shift))
            grid = (height // 2, width // 2)
        return found

    def _map(self, grid: Pair, stage: int) -> str:
        """The end of a message about a map that does not fit."""
        height, width = self.image_unit
        return (
            f"the map of {grid[0]}x{grid[1]} tokens of stage {stage}. Images whose sides are multiples of "
            f"{height} and {width} pixels fit: change the crop in the preprocessing string, or window or "
            f"patch_size={self.patch_size} of the model."
        )

    @nn.compact
    def __call__(self, image, *, train: bool = False) -> tuple[Any, dict[str, Any]]:
        """Returns logits `[B, num_classes]`, float32, and the named intermediates.

        `out`: `stem` `[B, h, w, D]`, the embedded patches; `with_posemb`, what enters the first block (before
        dropout); `tokens`, the map that leaves each block of each stage, a list; `encoded`, the last of them
        after the final norm; `head_input` and `pre_logits`, its mean `[B, 8 D]` (of four stages), what the
        head sees; `logits`.
        """
        if not jnp.issubdtype(image.dtype, jnp.floating):
            raise UserError(
                f"The model takes float images, not {image.dtype}: end pp with e.g. value_range(-1, 1)."
            )
        out: dict[str, Any] = {"stem": self.embed(image)}
        x = out["stem"].astype(jnp.float32)
        stages = self.stages(x.shape[1:3])
        if self.abs_pos:
            x = x + self.position_embedding(x.shape[1] * x.shape[2]).reshape(1, *x.shape[1:])
        out["with_posemb"] = x
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        rates = linear_rates(self.drop_path, sum(self.depths))
        out["tokens"] = []
        for number, stage in enumerate(stages):
            first = sum(self.depths[:number])
            blocks = WindowBlocks(
                self.block_fields(number),
                stage,
                rates[first : first + self.depths[number]],
                self.remat,
                name=f"stage_{number}",
            )
            x, tokens = blocks(x, train=train)
            out["tokens"] += tokens
            if number + 1 < len(stages):
                x = self.pool(x, number)
        out["encoded"] = LayerNorm(self.norm_epsilon, name="encoder_norm")(x)
        out["head_input"] = out["pre_logits"] = out["encoded"].mean((1, 2))
        out["logits"] = self.head(out["pre_logits"])
        return out["logits"], out

    def embed(self, image):
        """Embeds the patches of an image `[B, H, W, C]`: `[B, h, w, D]`, normalised but for those of SPT."""
        patch_size, common = pair(self.patch_size), (self.dtype, self.initialisers)
        if self.spt != "none":
            fields = (self.width, patch_size, self.spt, self.spt_ratio, self.norm_epsilon)
            return ShiftedPatchTokenization(*fields, *common, name="embedding")(image)
        x = PatchEmbedding(self.width, patch_size, *common, name="embedding")(image)
        return LayerNorm(self.norm_epsilon, name="embedding_norm")(x)

    def position_embedding(self, tokens):
        """Returns the learned embedding `[1, N, D]`; one made for another number of tokens is a mistake."""
        made_for = self.get_variable("params", "pos_embedding")
        if made_for is not None and made_for.shape[1] != tokens:
            raise UserError(
                f"The position embedding has {made_for.shape[1]} entries, but images of this size have "
                f"{tokens} tokens: crop images everywhere to the size that the model was made with."
            )
        begin = nn.initializers.normal(self.initialisers.position_std or 0.02)
        return self.param("pos_embedding", begin, (1, tokens, self.width))

    def block_fields(self, stage: int) -> dict[str, Any]:
        """The fields of every block of a stage but for its windows."""
        return {
            "num_heads": self.num_heads[stage],
            "mlp_dim": int(self.width_of(stage) * self.mlp_ratio),
            "dropout": self.dropout,
            "drop_path_rescale": self.drop_path_rescale,
            "gelu": self.gelu,
            "qkv_bias": self.qkv_bias,
            "norm_epsilon": self.norm_epsilon,
            "dtype": self.dtype,
            "precision": self.precision,
            "initialisation": self.initialisers,
            "locality": locality(self.lsa, self.lsa_mask),
        }

    def pool(self, x, stage: int):
        """Halves the map `[B, h, w, D]` that leaves a stage and doubles its width."""
        width, name = self.width_of(stage + 1), f"pooling_{stage}"
        common = (self.norm_epsilon, self.dtype, self.initialisers, self.precision)
        if not self.spt_pooling:
            return PatchMerging(width, *common, name=name)(x)
        batch, *grid, dim = x.shape
        directions = "diagonal" if self.spt == "none" else self.spt
        pooling = ShiftedPatchPooling(width, directions, 0.5, *common, name=name)
        x = pooling(x.reshape(batch, -1, dim), tuple(grid)).astype(jnp.float32)
        return x.reshape(batch, grid[0] // 2, grid[1] // 2, width)

    def head(self, x):
        """The linear classifier; without classes, `x` as it is."""
        if not self.num_classes:
            return x
        # The head is a sliver of the work and the loss is sensitive to it: float32 whatever the dtype.
        kernel = nn.initializers.zeros if self.head_zeroinit else self.initialisers.head
        bias = nn.initializers.constant(self.head_bias)
        if not self.head_bias:
            bias = self.initialisers.bias_of(x.shape[-1], bias)
        return nn.Dense(self.num_classes, kernel_init=kernel, bias_init=bias, name="head")(x)


class WindowBlocks(nn.Module):
    """The blocks of a stage; the windows of every second one are shifted."""

    fields: Mapping[str, Any]
    stage: Stage
    drop_path: Sequence[float]  # the rate of each block
    remat: str | None = None

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        """Returns the map `[B, h, w, D]` that leaves the last block, and a list of those of all."""
        block = WindowBlock
        if self.remat:
            policy = getattr(jax.checkpoint_policies, self.remat)
            block = nn.remat(block, policy=policy, static_argnums=(3,))  # 3: train
        tokens = []
        for i, rate in enumerate(self.drop_path):
            shift = self.stage.shift if i % 2 else (0, 0)
            fields = {**self.fields, "window": self.stage.window, "shift": shift}
            x, after = block(**fields, name=f"encoderblock_{i}")(x, rate, train)
            tokens.append(after)
        return x, tokens


def names() -> tuple[str, ...]:
    """The published sizes."""
    return tuple(f"swin_{size}" for size in SIZES)


def configure(name: str) -> tuple[type[nn.Module], dict[str, Any]] | None:
    """Returns the class and the fields that `swin_{size}` stands for; None for any other name."""
    match = re.fullmatch(r"swin_([a-z]+)", name)
    if match is None or match[1] not in SIZES:
        return None
    width, depths, num_heads = SIZES[match[1]]
    return Swin, {"width": width, "depths": depths, "num_heads": num_heads}
