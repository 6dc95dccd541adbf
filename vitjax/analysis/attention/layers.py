"""What the numbers of an attention stand for: which keys are patches, where they lie, which queries to ask.

An architecture joins by one line in `ARCHITECTURES`, if what its shapes say is not enough.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from vitjax.analysis.attention.capture import Attention, Pair
from vitjax.errors import UserError
from vitjax.models.cait import CaiT
from vitjax.models.vit import ViT


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows that attention stays inside of.

    Attributes:
      tokens: int [W, n], the place on the map (row by row) of each token of each window.
      region: int [W, n]; inside a window only tokens of the same region see each other. Shifted windows at
        the border hold tokens of opposite sides of the map.
    """

    tokens: np.ndarray
    region: np.ndarray


@dataclasses.dataclass(frozen=True)
class Layer:
    """An attention whose keys have places.

    Attributes:
      attention: the attention.
      grid: (height, width) of the map that its keys are.
      front: number of keys in front of those of the map: class and distillation token.
      rows: which queries are asked, see `whose`.
      whose: who asks, for the reader: `class token`, `mean over the patches`.
      stage: counts the changes of the grid; rollout stays inside the last one.
      windows: where attention stays inside windows; None where it is over all of the map.
      residual: whether what is read is added to who asks; a pooling query has nothing to keep.
    """

    attention: Attention
    grid: tuple[int, int]
    front: int
    rows: slice
    whose: str
    stage: int = 0
    windows: Windows | None = None
    residual: bool = True

    @property
    def name(self) -> str:
        """Of the block."""
        return self.attention.name

    @property
    def one_query(self) -> bool:
        """Whether it reads the tokens into one that is not theirs: class attention, attention pooling."""
        return self.attention.shape[-2] == 1 and self.attention.shape[-1] > 1

    @functools.cached_property
    def allowed(self) -> np.ndarray:
        """Bool [W or 1, N, M]: which keys a query may see, by construction."""
        n, m = self.attention.shape[-2:]
        seen = np.ones((1, n, m), bool)
        if self.windows is not None:
            seen = self.windows.region[:, :, None] == self.windows.region[:, None, :]
        return seen & ~np.eye(n, m, dtype=bool) if self.attention.masks_itself else seen


def layers(model: nn.Module, attentions: Sequence[Attention], out: Any, image: Any) -> list[Layer]:
    """Gives the keys of all attentions their places.

    Args:
      model: the module.
      attentions: those of `capture.attentions`.
      out: the shapes of the model's intermediates.
      image: the shape of the images, `[B, H, W, C]`.

    Raises:
      UserError: the model has no attention, or one whose keys are no map as far as can be told.
    """
    if not attentions:
        raise UserError(
            f"{type(model).__name__} has no attention that could be shown: name a model with attention "
            "blocks, such as a ViT."
        )
    of_model = next((own for kind, own in ARCHITECTURES if isinstance(model, kind)), by_shape)
    placed, stage = [], 0
    for attention in attentions:
        place = of_windows if attention.windows else of_model
        layer = place(model, attention, out, image.shape)
        if placed and not layer.one_query:
            stage += layer.grid != placed[-1].grid or layer.front != placed[-1].front
        placed.append(dataclasses.replace(layer, stage=stage))
    return placed


def of_vit(model: ViT, attention: Attention, out: Any, image: Sequence[int]) -> Layer:
    """A ViT, a DeiT, a hybrid, a T2T-ViT: the head says who asks; attention pooling has its own query."""
    grid = tuple(out["stem"].shape[1:3])
    queries, keys = attention.shape[-2:]
    front = keys - grid[0] * grid[1]
    if front not in range(len(model.tokens_in_front) + 1):  # between the soft splits of a T2T-ViT
        return by_shape(model, attention, out, image)
    if queries == 1 and keys > 1:
        return Layer(attention, grid, front, slice(0, 1), "pooling query", residual=False)
    if model.pool == "tok":
        return Layer(attention, grid, front, slice(0, 1), "class token")
    if model.pool == "0":
        return Layer(attention, grid, front, slice(0, 1), "class token" if front else "first patch")
    return Layer(attention, grid, front, slice(front, None), "mean over the patches")


def of_cait(model: CaiT, attention: Attention, out: Any, image: Sequence[int]) -> Layer:
    """A CaiT: the class token asks in the second stage, and is not there in the first."""
    if not model.class_depth:
        return of_vit(model, attention, out, image)
    grid = tuple(out["stem"].shape[1:3])
    keys = attention.shape[-1]
    if attention.path[0].startswith("class_attention"):
        return Layer(attention, grid, keys - grid[0] * grid[1], slice(0, 1), "class token")
    return Layer(attention, grid, 0, slice(None), "mean over the patches")


def of_windows(model: nn.Module, attention: Attention, out: Any, image: Sequence[int]) -> Layer:
    """Attention inside windows of a map, as in Swin."""
    assert attention.windows is not None
    window, shift, grid = attention.windows
    windows = Windows(*(_cut(places, window, shift) for places in _places(grid, shift)))
    return Layer(attention, grid, 0, slice(None), "mean over the window", windows=windows)


def _places(grid: Pair, shift: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Of each token of a map: its number, and whether a shift takes it round the border, down or across."""
    rows, columns = np.mgrid[: grid[0], : grid[1]]
    return rows * grid[1] + columns, 2 * (rows < shift[0]) + (columns < shift[1])


def _cut(values: np.ndarray, window: Pair, shift: Pair) -> np.ndarray:
    """A map rolled up and to the left, in windows row by row: `[h, w]` to `[W, n]`."""
    (height, width), (p, q) = values.shape, window
    rolled = np.roll(values, (-shift[0], -shift[1]), (0, 1))
    return rolled.reshape(height // p, p, width // q, q).transpose(0, 2, 1, 3).reshape(-1, p * q)


def by_shape(model: nn.Module, attention: Attention, out: Any, image: Sequence[int]) -> Layer:
    """Any other model: as many tokens in front as leave a map of the image's proportions.

    The first token in front is taken for a class token. (Two numbers that differ by one or two are never both
    maps of the same proportions.)
    """
    queries, keys = attention.shape[-2:]
    for front in (0, 1, 2):
        grid = grid_of(keys - front, image[1:3])
        if grid:
            break
    else:
        raise UserError(
            f"{attention.name} of {type(model).__name__} has {keys} keys, which are no map of the "
            f"proportions of {image[1]}x{image[2]} pixels: show square images."
        )
    if queries == 1 and keys > 1:
        return Layer(attention, grid, front, slice(0, 1), "single query")
    if front:
        return Layer(attention, grid, front, slice(0, 1), "class token")
    return Layer(attention, grid, front, slice(None), "mean over the patches")


def grid_of(tokens: int, image: Sequence[int]) -> tuple[int, int] | None:
    """(height, width) of that many tokens in the proportions of an image; None if there is no such grid."""
    height = round((tokens * image[0] / image[1]) ** 0.5) if tokens > 0 else 0
    grid = height, round(height * image[1] / image[0])
    return grid if height and grid[0] * grid[1] == tokens else None


# The first that a model is an instance of.
ARCHITECTURES: tuple[tuple[type[nn.Module], Callable[..., Layer]], ...] = ((CaiT, of_cait), (ViT, of_vit))


def choose(layers: Sequence[Layer], number: int, whose: str) -> int:
    """The position of layer `number`, counted from 0, or from the end if negative.

    Raises:
      UserError: there is no such layer.
    """
    if not -len(layers) <= number < len(layers):
        raise UserError(
            f"--layer {number}: {whose} has {len(layers)} attention layers, 0 to {len(layers) - 1}, or -1 "
            f"for the last to -{len(layers)}."
        )
    return number % len(layers)
