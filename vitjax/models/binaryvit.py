"""BinaryViT: a pyramid of Transformer blocks with one-bit weights and activations, and its ladder from DeiT.

"BinaryViT: Pushing Binary Vision Transformers Towards Convolutional Models" (arXiv 2306.16678) and
Phuoc-Hoan-Le/BinaryViT at ca16a43. Where the two differ, this is the code.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitjax.errors import UserError, nearest
from vitjax.layers.binary import ESTIMATORS, PRECISIONS
from vitjax.layers.binary_block import NORMS, BinaryBlock, Downsampling, Style
from vitjax.layers.binary_shortcuts import Grid
from vitjax.layers.encoder import REMAT_POLICIES
from vitjax.layers.initialisation import INITIALISATIONS, Initialisation
from vitjax.layers.locality import LSA, locality
from vitjax.layers.patches import PatchEmbedding, pair
from vitjax.layers.shifted_patches import SPT, ShiftedPatchTokenization, shifts_of
from vitjax.models.vit import SIZES as VIT_SIZES
from vitjax.models.vit import ViT

# Of each stage: width, depth, mlp_dim, num_heads, reduction. `s` is published. `ti` is vitjax's own, for
# small images and computers: half the width and depth, and keys that are reduced half as much.
SIZES = {
    "s": ((64, 128, 256, 512), (3, 4, 8, 4), (512, 1024, 1024, 2048), (1, 2, 4, 8), (8, 4, 1, 1)),
    "ti": ((32, 64, 128, 256), (2, 2, 4, 2), (256, 512, 512, 1024), (1, 2, 4, 8), (4, 2, 1, 1)),
}

# The rows of the ladder before the pyramid, table 1 of the paper: what each has more than the one before.
LADDER = {
    "": {"class_token": True, "branches": (), "affine": None},
    "_gap": {"branches": (), "affine": None},
    "_branches": {"affine": None},
    "_affine": {},
}

# What the teacher is besides its size.
TEACHER = {"gelu": "erf", "norm_epsilon": 1e-5, "initialisation": "torch", "head_zeroinit": False}

_CHOICES = {
    "downsampling": ("binary", "float"),
    "norm": NORMS,
    "precision": PRECISIONS,
    "estimator": tuple(ESTIMATORS),
    "spt": SPT,
    "lsa": LSA,
    "initialisation": tuple(INITIALISATIONS),
    "remat": (None, *REMAT_POLICIES),
}

_PER_STAGE = ("width", "depth", "mlp_dim", "num_heads", "reduction")


class BinaryViT(nn.Module):
    """A BinaryViT, or a row of its ladder; the defaults are those of BinaryViT-S.

    `model.apply(variables, image, train=False) -> (logits, out)` for float images `[B, H, W, C]` of any size
    that the stages divide, see `grids`. With `norm="batch"` statistics are the collection `batch_stats`:
    `train=True` normalises by the batch and moves them (`layers.batch_norm`). There is no dropout.

    Parameters are named `embedding`, `embedding_norm`, `cls`, `pos_embedding`, `encoderblock_{i}`, counted
    over all stages, `downsampling_{s}` between stages s and s + 1 and `pos_embedding_{s+1}` behind it,
    `encoder_norm` and `head`. Latent weights of what is binary are called `kernel` below a `dense` or `conv`.

    Fields:
      num_classes: size of the head; None or 0 for no head (`logits` are then `pre_logits`).
      width, depth, mlp_dim, num_heads: one number for each stage, or one if there is but one stage. Each
        width divides the next, and the `mlp_dim` of its stage.
      reduction: of each stage, by how much keys and values are fewer, down and across.
      patch_size: one number, or (height, width).
      class_token: the head sees a class token instead of the mean of all tokens; in one stage without
        branches.
      stem_norm: normalise patches before positions are added, as the pyramid does.
      branches: odd lengths of the windows that the branches of each block pool over, one of rows and one of
        columns each.
      affine: initial factor of the affine on both halves of each block; None for none. Branches have one
        always.
      downsampling: `binary`, or `float` (the starred network), which has no shortcut either.
      norm: of all norms, `batch` (published) or `layer`.
      precision: what of the binary layers has one bit: `binary` both weights and activations, `w1a32`
        weights, `w32a1` activations, `float` none. Patch embedding, head, norms and the residual stream are
        float always.
      estimator: gradient of the signs of activations: `triangle`, published; `clip`, straight through; `tanh`
        and `reste`, which are annealed with `progress`.
      attention_clip: where the number begins that attention probabilities above half of it become; others
        become 0.
      spt: shifted patch tokenization in place of the patch embedding: `none`, or where the views look:
        `diagonal` (its paper's four), `cardinal`, `all` eight. Not part of the published networks, and
        neither is `lsa`.
      spt_ratio: by how much of a patch views are shifted, rounded down to pixels.
      lsa: locality self-attention: `none`, `both` of its parts, or `temperature` or `mask`. Where keys are
        reduced nothing is masked.
      lsa_mask: what the masked diagonal of the logits is overwritten with (`layers.locality`).
      initialisation: how kernels begin. `torch`: as PyTorch has it, which is how the published networks began
        (the initialiser in their code never ran); `deit`, normal with deviation 0.02, is what that would have
        done.
      remat: recompute blocks in the backward pass, keeping what this policy of jax names (`REMAT_POLICIES`).
    """

    num_classes: int | None = None
    width: int | Sequence[int] = (64, 128, 256, 512)
    depth: int | Sequence[int] = (3, 4, 8, 4)
    mlp_dim: int | Sequence[int] = (512, 1024, 1024, 2048)
    num_heads: int | Sequence[int] = (1, 2, 4, 8)
    reduction: int | Sequence[int] = (8, 4, 1, 1)
    patch_size: int | Sequence[int] = 4
    class_token: bool = False
    stem_norm: bool = True
    branches: Sequence[int] = (3, 5)
    affine: float | None = 0.1
    downsampling: str = "binary"
    norm: str = "batch"
    precision: str = "binary"
    estimator: str = "triangle"
    attention_clip: float = 0.005
    spt: str = "none"
    spt_ratio: float = 0.5
    lsa: str = "none"
    lsa_mask: float = -np.inf
    initialisation: str = "torch"
    remat: str | None = None

    def __post_init__(self):
        """Refuses bad values where the model is made, not inside the first trace."""
        for field, valid in _CHOICES.items():
            value = getattr(self, field)
            if value not in valid:
                hint = nearest(value.lower(), [v for v in valid if v]) if isinstance(value, str) else ""
                raise UserError(f"{field}={value!r} is none of {', '.join(map(repr, valid))}.{hint}")
        self._refuse_bad_sizes()
        if self.class_token and (self.branches or len(self.per_stage("width")) > 1):
            raise UserError(
                "class_token=True: branches and stages pool the map of patches, where a class token has no "
                "place. Set class_token=False, or branches=() in a network of one stage."
            )
        if any(not isinstance(size, int) or size < 1 or size % 2 == 0 for size in self.branches):
            raise UserError(
                f"branches={tuple(self.branches)!r} must be odd numbers of tokens, such as (3, 5)."
            )
        if not self.attention_clip or not np.isfinite(self.attention_clip):
            raise UserError(f"attention_clip={self.attention_clip!r} must be a number other than 0.")
        patch_size = pair(self.patch_size)
        if self.spt != "none":
            shifts_of(patch_size, self.spt_ratio)
        super().__post_init__()

    def _refuse_bad_sizes(self) -> None:
        """Raises a `UserError` for sizes that no network has, or that shortcuts do not fit."""
        stages = len(self.per_stage("width"))
        for field in _PER_STAGE:
            numbers = self.per_stage(field)
            if len(numbers) != stages or not numbers or any(not isinstance(n, int) or n < 1 for n in numbers):
                raise UserError(
                    f"{field}={getattr(self, field)!r} must have one number, 1 or more, for each stage of "
                    f"width={self.width!r}."
                )
        for width, mlp_dim, heads in zip(
            *map(self.per_stage, ("width", "mlp_dim", "num_heads")), strict=True
        ):
            if mlp_dim % width:
                raise UserError(
                    f"mlp_dim={self.mlp_dim!r}: {mlp_dim} is no multiple of the width {width} of its stage, "
                    "but shortcuts repeat its channels and take means of as many: choose a multiple, such as "
                    f"{max(round(mlp_dim / width), 1) * width}."
                )
            if width % heads:
                raise UserError(
                    f"num_heads={self.num_heads!r}: the width {width} cannot be split over {heads} heads."
                )
        widths = self.per_stage("width")
        for before, after in itertools.pairwise(widths):
            if after % before and self.downsampling == "binary":
                raise UserError(
                    f"width={self.width!r}: {after} is no multiple of {before}, but the shortcut of a binary "
                    "downsampling repeats its channels: change width, or take downsampling='float'."
                )

    def per_stage(self, field: str) -> tuple[int, ...]:
        """The numbers of a field that has one for each stage."""
        value = getattr(self, field)
        return (value,) if isinstance(value, int) else tuple(value)

    @property
    def initialisers(self) -> Initialisation:
        """What `initialisation` names."""
        return INITIALISATIONS[self.initialisation]

    @property
    def style(self) -> Style:
        """What all binary layers have in common."""
        return Style(self.precision, self.estimator, self.norm, self.initialisers)

    @property
    def image_unit(self) -> tuple[int, int]:
        """Pixels (down, across) of which the sides of an image may be any multiples."""
        sides = (2**stage * ratio for stage, ratio in enumerate(self.per_stage("reduction")))
        height, width = (int(np.lcm.reduce(list(sides))) * np.array(pair(self.patch_size))).tolist()
        return height, width

    def grids(self, grid: Grid) -> list[Grid]:
        """The maps of all stages, for a first one of `grid` tokens.

        Raises:
          UserError: a map cannot be reduced or halved.
        """
        found = []
        for stage, ratio in enumerate(self.per_stage("reduction")):
            if stage:
                if any(side % 2 for side in grid):
                    raise UserError(
                        f"Downsampling halves maps, but an odd side has {self._map(grid, stage - 1)}"
                    )
                grid = (grid[0] // 2, grid[1] // 2)
            if any(side % ratio for side in grid):
                raise UserError(
                    f"reduction={self.reduction!r}: {ratio} does not divide {self._map(grid, stage)}"
                )
            found.append(grid)
        return found

    def _map(self, grid: Grid, stage: int) -> str:
        """The end of a message about a map that does not fit."""
        height, width = self.image_unit
        return (
            f"the map of {grid[0]}x{grid[1]} tokens of stage {stage}. Images whose sides are multiples of "
            f"{height} and {width} pixels fit: change the crop in the preprocessing string, or reduction or "
            f"patch_size={self.patch_size} of the model."
        )

    @nn.compact
    def __call__(self, image, *, train: bool = False, progress=0.0) -> tuple[Any, dict[str, Any]]:
        """Returns logits `[B, num_classes]`, float32, and the named intermediates.

        `progress`, in [0, 1], is the share of training that is done, for an estimator that is annealed.

        `out`: `stem` `[B, h, w, D]`, the embedded patches; `with_posemb` `[B, N, D]`, what enters the first
        block; `tokens`, what leaves each block of each stage, a list; `downsampled`, what enters the first
        block of each later stage, a list; `grids`, the (height, width) of the map after each block;
        `encoded`, the last tokens after the final norm; `head_input` and `pre_logits`, its class token or
        mean `[B, D]`, what the head sees; `logits`.
        """
        if not jnp.issubdtype(image.dtype, jnp.floating):
            raise UserError(
                f"The model takes float images, not {image.dtype}: end pp with e.g. value_range(-1, 1)."
            )
        out: dict[str, Any] = {"stem": self.embed(image, train)}
        grids = self.grids(out["stem"].shape[1:3])
        x = out["with_posemb"] = self.add_positions(out["stem"])
        block = BinaryBlock
        if self.remat:
            policy = getattr(jax.checkpoint_policies, self.remat)
            block = nn.remat(block, policy=policy, static_argnums=(2, 3))  # grid, train
        out |= {"tokens": [], "downsampled": [], "grids": []}
        for stage, grid in enumerate(grids):
            if stage:
                x = self.downsample(x, stage, grids[stage - 1], train, progress)
                out["downsampled"].append(x)
            for _ in range(self.per_stage("depth")[stage]):
                fields = self.block_fields(stage)
                x = block(**fields, name=f"encoderblock_{len(out['tokens'])}")(x, grid, train, progress)
                out["tokens"].append(x)
                out["grids"].append(grid)
        x = out["encoded"] = self.style.normalise(x, train, "encoder_norm")
        out["head_input"] = out["pre_logits"] = x[:, 0] if self.class_token else x.mean(1)
        out["logits"] = self.head(out["pre_logits"])
        return out["logits"], out

    def embed(self, image, train):
        """Embeds the patches of an image `[B, H, W, C]`: `[B, h, w, D]`, float32."""
        width, patch_size, begin = self.per_stage("width")[0], pair(self.patch_size), self.initialisers
        if self.spt != "none":
            embedding = ShiftedPatchTokenization(
                width, patch_size, self.spt, self.spt_ratio, 1e-5, jnp.float32, begin, name="embedding"
            )
        else:
            embedding = PatchEmbedding(width, patch_size, jnp.float32, begin, name="embedding")
        x = embedding(image)
        return self.style.normalise(x, train, "embedding_norm") if self.stem_norm else x

    def add_positions(self, x):
        """Turns the grid `[B, h, w, D]` into tokens with class token and positions: `[B, N, D]`."""
        batch, height, width, dim = x.shape
        x = x.reshape(batch, height * width, dim)
        if self.class_token:
            cls = self.param("cls", nn.initializers.normal(1e-6), (1, 1, dim))
            x = jnp.concatenate([jnp.tile(cls, (batch, 1, 1)), x], axis=1)
        return x + self.position_embedding("pos_embedding", x.shape[1:])

    def position_embedding(self, name, shape):
        """Returns the learned embedding `[1, N, D]`; one made for another number of tokens is a mistake."""
        made_for = self.get_variable("params", name)
        if made_for is not None and made_for.shape[1] != shape[0]:
            raise UserError(
                f"The position embedding has {made_for.shape[1]} entries, but images of this size have "
                f"{shape[0]} tokens: crop images everywhere to the size that the model was made with."
            )
        return self.param(name, nn.initializers.normal(0.02), (1, *shape))

    def block_fields(self, stage: int) -> dict[str, Any]:
        """The fields of every block of a stage."""
        return {
            "num_heads": self.per_stage("num_heads")[stage],
            "mlp_dim": self.per_stage("mlp_dim")[stage],
            "reduction": self.per_stage("reduction")[stage],
            "branches": tuple(self.branches),
            "affine": self.affine,
            "clip": self.attention_clip,
            "locality": locality(self.lsa, self.lsa_mask),
            "style": self.style,
        }

    def downsample(self, x, stage, grid, train, progress):
        """Halves the map on `grid` that leaves the stage before, and adds the positions of this one."""
        binary = self.downsampling == "binary"
        halve = Downsampling(
            self.per_stage("width")[stage], binary, self.style, name=f"downsampling_{stage - 1}"
        )
        x = halve(x, grid, train, progress)
        return x + self.position_embedding(f"pos_embedding_{stage}", x.shape[1:])

    def head(self, x):
        """The linear classifier; without classes, `x` as it is."""
        if not self.num_classes:
            return x
        begin = self.initialisers
        bias = begin.bias_of(x.shape[-1])
        return nn.Dense(self.num_classes, kernel_init=begin.head, bias_init=bias, name="head")(x)


def names() -> tuple[str, ...]:
    """The networks of the paper, their smaller relatives, and the teachers; see `configure`."""
    ladder = tuple(f"binary_deit_{size}16{row}" for size in ("s", "ti") for row in LADDER)
    teachers = tuple(f"binaryvit_teacher_{size}16" for size in ("s", "ti"))
    return *teachers, *ladder, *(f"binaryvit_{size}{star}" for size in SIZES for star in ("_star", ""))


def configure(name: str) -> tuple[type[nn.Module], dict[str, Any]] | None:
    """Returns the class and the fields that a name stands for; None for any other name.

    `binaryvit_{size}` is the pyramid, `_star` behind it the one whose downsampling is float. The rows of the
    ladder that lead there are `binary_deit_{size}{patch}` and the same with `_gap`, `_branches` and `_affine`
    behind it, in the sizes of a ViT; each has what those before it have. `binaryvit_teacher_{size}{patch}` is
    the `ViT` that taught them: a DeiT whose norms have epsilon 1e-5.
    """
    match = re.fullmatch(r"binaryvit_(\w+?)(_star)?", name)
    if match and match[1] in SIZES:
        fields = dict(zip(_PER_STAGE, SIZES[match[1]], strict=True))
        return BinaryViT, {**fields, "downsampling": "float" if match[2] else "binary"}
    match = re.fullmatch(r"(binaryvit_teacher|binary_deit)_(\w+?)([1-9]\d*)(_[a-z]+)?", name)
    if match is None or match[2] not in VIT_SIZES:
        return None
    width, depth, mlp_dim, num_heads = VIT_SIZES[match[2]]
    size = {
        "width": width,
        "depth": depth,
        "mlp_dim": mlp_dim,
        "num_heads": num_heads,
        "patch_size": int(match[3]),
    }
    if match[1] == "binaryvit_teacher":
        return None if match[4] else (ViT, {**size, **TEACHER})
    row = LADDER.get(match[4] or "")
    return None if row is None else (BinaryViT, {**size, "reduction": 1, "stem_norm": False, **row})
