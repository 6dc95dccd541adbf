"""Where the pixels of an image come from, on the device: for a batch, with a transform for each example.

Transforms of which there are only a few, such as AutoAugment's, are tables made on the host, by the host's
ops (`Maps`): the device only looks up. Any others are affine matrices (`transform`).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vitjax.data import pillow
from vitjax.data.device_colors import materialized

_FRACTION_BITS = 22  # of the weights: four of them times 255 still fit into an int32
_WHOLE = 1 << _FRACTION_BITS


class Map(NamedTuple):
    """A transform of images of one size, for flat indices of pixels; `H * W` means the color of the fill."""

    source: np.ndarray
    """int32 `[taps, H * W]`: 1 tap, or the 4 of bicubic interpolation along one axis."""
    weight: np.ndarray
    """int32 `[taps, H * W]`, in units of 2**-22; each pixel's add up to 2**22."""


def nearest(op: Callable[[np.ndarray], np.ndarray], height: int, width: int) -> Map:
    """Asks an op of the host that moves pixels, or fills with grey, where it takes them from."""
    number = np.arange(height * width)
    image = np.stack([number & 255, number >> 8 & 255, number >> 16], axis=-1).astype(np.uint8)
    moved = op(image.reshape(height, width, 3)).astype(np.int32).reshape(-1, 3)
    source = (moved << np.asarray([0, 8, 16])).sum(axis=-1)
    source = np.minimum(source, height * width)  # grey is a number beyond all pixels
    return Map(source[None].astype(np.int32), np.full((1, height * width), _WHOLE, np.int32))


def shear(height: int, width: int, level: float, axis: str) -> Map:
    """`pillow.shear_x_exactly` or, for axis "y", `pillow.shear_y_exactly`."""
    size = (height, width) if axis == "x" else (width, height)
    left, d, outside = pillow.shear_source(*size, level)
    columns = np.stack([(left + tap).clip(0, size[1] - 1) for tap in range(4)])
    rows = np.arange(size[0])[:, None]
    source = rows * width + columns if axis == "x" else columns * width + rows
    source = np.where(outside, height * width, source)
    weights = [-d + 2 * d**2 - d**3, 1 - 2 * d**2 + d**3, d + d**2 - d**3, -(d**2) + d**3]
    weight = np.rint(np.stack(weights) * _WHOLE).astype(np.int64)
    weight[1] += _WHOLE - weight.sum(axis=0)  # flat regions stay as they are
    if axis == "y":
        source, weight = source.swapaxes(1, 2), weight.swapaxes(1, 2)
    return Map(*(a.reshape(4, height * width).astype(np.int32) for a in (source, weight)))


class Maps(NamedTuple):
    """Transforms to choose from, `[transforms, taps, H * W]`; the weights are None if all have one tap."""

    source: np.ndarray
    weight: np.ndarray | None


def stack(maps: Sequence[Map]) -> Maps:
    """Makes a table of them."""
    taps = max(len(one.source) for one in maps)
    if taps == 1:
        return Maps(np.stack([one.source for one in maps]), None)

    def widened(one: Map) -> Map:
        if len(one.source) == taps:
            return one
        nothing = np.zeros_like(one.weight)
        return Map(np.repeat(one.source, taps, axis=0), np.concatenate([one.weight, *[nothing] * (taps - 1)]))

    wide = [widened(one) for one in maps]
    return Maps(np.stack([one.source for one in wide]), np.stack([one.weight for one in wide]))


def move(image, maps: Maps, which, fill: tuple[int, int, int]):
    """Moves the pixels of each image by the one of the maps that is chosen for it.

    Args:
        image: uint8 `[B, H, W, 3]`.
        maps: for images of this size.
        which: int `[B]`, indices into the maps.
        fill: RGB where there is no image.

    Returns:
        uint8 `[B, H, W, 3]`: to one tap exactly what the host gives. Bicubic shears differ from float64 by
        one, where a value lies within 2**-12 of a whole number.
    """
    batch, height, width, _ = image.shape
    pixels = jnp.concatenate([_pack(image).reshape(batch, -1), jnp.full((batch, 1), _packed(fill))], axis=1)
    pixels = materialized(pixels)
    taps = maps.source.shape[1]
    source = jnp.asarray(maps.source)[which].reshape(batch, -1)
    found = _unpack(jnp.take_along_axis(pixels, source, axis=1, mode="promise_in_bounds"))
    if maps.weight is None:
        return found.astype(jnp.uint8).reshape(image.shape)
    found = found.reshape(batch, taps, height * width, 3).astype(jnp.int32)
    weight = jnp.asarray(maps.weight)[which][..., None]
    half_a_step = _WHOLE >> 12  # what is whole must not fall short of it, for its weights are rounded
    value = ((found * weight).sum(axis=1) + half_a_step) >> _FRACTION_BITS
    return value.clip(0, 255).astype(jnp.uint8).reshape(image.shape)


def _pack(image):
    """Makes one uint32 of a pixel's three bytes, so that it is gathered at once."""
    image = image.astype(jnp.uint32)
    return image[..., 0] | image[..., 1] << 8 | image[..., 2] << 16


def _unpack(pixels):
    return jnp.stack([pixels & 255, pixels >> 8 & 255, pixels >> 16], axis=-1)


def _packed(color: tuple[int, int, int]) -> np.uint32:
    return np.uint32(color[0] | color[1] << 8 | color[2] << 16)


# ---- Any affine transform


def transform(image, matrix, fill: tuple[int, int, int]):
    """`pillow.transform`, bicubic, by a matrix for each example.

    Args:
        image: uint8 `[B, H, W, 3]`.
        matrix: six arrays `[B]` of float32. In float32, places may be some 1e-5 pixels off: values differ by
            one or two in a few of 1000 places, and at the border of the image a pixel may be filled.
        fill: RGB where there is no image.
    """
    batch, height, width, _ = image.shape
    m = [jnp.asarray(value, jnp.float32)[:, None, None] for value in matrix]
    x, y = np.arange(width, dtype=np.float32) + 0.5, np.arange(height, dtype=np.float32)[:, None] + 0.5
    source_x, source_y = m[0] * x + m[1] * y + m[2], m[3] * x + m[4] * y + m[5]
    outside = (source_x < 0) | (source_x >= width) | (source_y < 0) | (source_y >= height)
    left, weight_x = map(materialized, _corner(source_x, width))
    top, weight_y = map(materialized, _corner(source_y, height))
    pixels = materialized(_pack(image).reshape(batch, -1))
    columns = (left[:, None] + np.arange(4)[:, None, None]).clip(0, width - 1)
    total = jnp.zeros(image.shape, jnp.float32)
    for row in range(4):
        place = (top + row).clip(0, height - 1)[:, None] * width + columns
        found = jnp.take_along_axis(pixels, place.reshape(batch, -1), axis=1, mode="promise_in_bounds")
        found = _unpack(materialized(found).reshape(batch, 4, height, width)).astype(jnp.float32)
        line = sum(found[:, column] * weight_x[column, ..., None] for column in range(4))
        total += line * weight_y[row, ..., None]
    value = jnp.clip(total + pillow.ROUNDING, 0, 255).astype(jnp.uint8)
    return jnp.where(outside[..., None], np.asarray(fill, np.uint8), value)


def _corner(source, size: int):
    """The first of four pixels around, which may lie beyond an edge, and the weights of all: `[4, ...]`."""
    source = source.clip(0, size) - 0.5
    whole = jnp.floor(source)
    d = source - whole
    square = d * d
    last = square - square * d
    weights = (last - (d - square), 1 - square - last, last + d, -last)
    return whole.astype(jnp.int32) - 1, jnp.stack(weights)


# ---- Windows


def crop(image, top, left, height: int, width: int):
    """Takes the window at `top` and `left`, int `[B]`, from each image: `[B, height, width, C]`."""

    def one(image, top, left):
        return jax.lax.dynamic_slice(image, (top, left, 0), (height, width, image.shape[-1]))

    return jax.vmap(one)(image, top, left)
