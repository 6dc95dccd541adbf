"""The arithmetic of color augmentations on the device: for a batch, with an argument for each example.

All work on uint8 images `[B, H, W, 3]` and give what the functions of `pillow` and `randaug` give on the
host. Most of them are tables of 256 entries, so that an image is read once however many ops there are to
choose from: the table is chosen instead. No result depends on whether the compiler fuses multiplications and
additions, which is why products are taken of whole numbers, or of factors split in two (`blend`).
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vitjax.data import pillow

_VALUES = np.arange(256, dtype=np.int32)


def look_up(image, tables):
    """Maps values by tables `[B, 3 or 1, 256]`."""
    tables = jnp.broadcast_to(tables.astype(jnp.uint8), (len(image), 3, 256))
    pixels = image.reshape(len(image), -1, 3).astype(jnp.int32)
    found = jnp.take_along_axis(tables.swapaxes(1, 2), pixels, axis=1, mode="promise_in_bounds")
    return found.reshape(image.shape)


def for_images(values):
    """Lets a value for each example, `[B]`, stand beside images."""
    return values[:, None, None, None]


def for_tables(values):
    """Lets a value for each example, `[B]`, stand beside tables."""
    return values[:, None, None]


def materialized(array):
    """Has the compiler compute an array once, and not again in every place that reads it.

    The array's first value must be above -256. On the CPU, XLA drops an optimization barrier before it fuses
    (jax 0.10), by which two ops of AutoAugment take ten times as long. There a branch stands in for it, which
    is always taken, without the compiler's knowing.
    """

    def branch(array):
        first = array.reshape(-1)[0].astype(jnp.int32)
        return jax.lax.cond(first > -256, lambda array: array, lambda array: array + 1, array)

    return jax.lax.platform_dependent(array, cpu=branch, default=jax.lax.optimization_barrier)


# ---- Blending


def _split(factor):
    """Returns two float32 numbers of 12 bits each, whose sum is `factor`."""
    bits = jax.lax.bitcast_convert_type(factor.astype(jnp.float32), jnp.uint32)
    coarse = jax.lax.bitcast_convert_type(bits & np.uint32(0xFFFFF000), jnp.float32)
    return coarse, factor - coarse


def _rounded_product(whole, factor):
    """Multiplies whole numbers below 2**12 and float32: rounded as such, even where a sum follows.

    Of the two parts' products, which are exact, only the sum is rounded.
    """
    coarse, fine = _split(factor)
    whole = whole.astype(jnp.float32)
    return whole * coarse + whole * fine


def _truncate(values):
    return jnp.clip(values, 0, 255).astype(jnp.int32)


def blend(degenerate, image, factor):
    """`randaug.blend` of whole numbers 0..255: int32."""
    degenerate, image = degenerate.astype(jnp.int32), image.astype(jnp.int32)
    moved = _rounded_product(image - degenerate, factor)
    return _truncate(moved + degenerate.astype(jnp.float32))


# ---- Tables that do not depend on the image: int32, `[B, 1, 256]`


def posterizing(bits):
    """Keeps the upper `bits` bits, `[B]`."""
    shift = for_tables(8 - bits.astype(jnp.int32))
    return _VALUES >> shift << shift


def solarizing(threshold):
    """Inverts the values from `threshold` on, `[B]`."""
    return jnp.where(for_tables(threshold) > _VALUES, _VALUES, 255 - _VALUES)


def solarize_adding(addition):
    """Adds to the values below 128."""
    added = (_VALUES + for_tables(addition.astype(jnp.int32))).clip(0, 255)
    return jnp.where(_VALUES < 128, added, _VALUES)


def inverting(_):
    """255 - x."""
    return jnp.asarray(255 - _VALUES)[None, None]


def brightening(factor):
    """Blends with black."""
    return blend(jnp.zeros(()), jnp.asarray(_VALUES), for_tables(factor))


# ---- Tables that do: int32, `[B, 1 or 3, 256]`


def histograms(image):
    """How often each value occurs: int32 `[B, 3, 256]`."""

    def count(values):
        return jnp.zeros(256, jnp.int32).at[values].add(1, mode="promise_in_bounds")

    pixels = image.reshape(len(image), -1, 3).astype(jnp.int32)
    return jax.vmap(jax.vmap(count, in_axes=1))(pixels)


def equalizing(image):
    """Evens out each channel's histogram, with PIL's table."""
    histogram = histograms(image)
    total = jnp.cumsum(histogram, axis=-1)
    highest = jnp.take_along_axis(histogram, _extremes(image)[1][..., None], axis=-1)
    step = (total[..., -1:] - highest) // 255
    table = (total - histogram + step // 2) // jnp.maximum(step, 1)
    return jnp.where(step > 0, table.clip(0, 255), _VALUES)


def _extremes(image):
    """The least and the greatest value of each channel, int32 `[B, 3]`."""
    return tuple(f(image, axis=(1, 2)).astype(jnp.int32) for f in (jnp.min, jnp.max))


def stretching_as_pillow(image):
    """Stretches each channel to 0..255, in Pillow's float64.

    That is the whole part of `255 * (value - low) / (high - low)`, except that float64 sometimes falls short
    of a whole number: where it does, a table says (`_short`).
    """
    low, high = (value[..., None] for value in _extremes(image))
    spread = jnp.maximum(high - low, 1)
    numerator = 255 * (_VALUES - low)
    whole = numerator // spread
    # Whole numbers come out at every `spread / gcd(255, spread)` values.
    nth = (whole * jnp.asarray(np.gcd(255, _VALUES))[spread] // 255).clip(0, 63)
    words = jnp.asarray(_short())[low[..., 0], high[..., 0]]
    word = jnp.take_along_axis(words, nth >> 5, axis=-1)
    short = (numerator % spread == 0) & (word >> (nth & 31).astype(jnp.uint32) & 1 == 1)
    return jnp.where(high > low, (whole - short).clip(0, 255), _VALUES)


@functools.cache
def _short() -> np.ndarray:
    """Says where `pillow.stretched` is one below the whole number that it ought to be.

    uint32 `[256 low, 256 high, 2 words]`: a bit for each value that is mapped to a whole number, in order.
    """
    words = np.zeros((256, 256, 2), np.uint32)
    for low in range(256):
        for high in range(low + 1, 256):
            apart = (high - low) // math.gcd(255, high - low)
            wholes = 255 * np.arange(0, high - low + 1, apart) // (high - low)
            short = pillow.stretched(low, high)[low : high + 1 : apart] < wholes
            for nth in np.flatnonzero(short):
                words[low, high, nth >> 5] |= np.uint32(1) << np.uint32(nth & 31)
    return words


def stretching_as_tensorflow(image):
    """Stretches each channel to 0..255, in TensorFlow's float32."""
    low, high = (value[..., None] for value in _extremes(image))
    spread = np.maximum(_VALUES, 1).astype(np.float32)
    scale = jnp.asarray(np.float32(255) / spread)[jnp.maximum(high - low, 0)]
    stretched = _rounded_product(_VALUES, scale) - _rounded_product(low, scale)
    return jnp.where(high > low, _truncate(stretched), _VALUES)


# ---- Degenerate images


def grey_as_pillow(image):
    """Luminance, int32 `[B, H, W, 1]` (ITU-R 601)."""
    return _luminance(image, (19595, 38470, 7471), 1 << 15, 16)


def grey_as_tensorflow(image):
    """TensorFlow's grey, int32 `[B, H, W, 1]`; one pixel in some 100,000 comes out one apart."""
    weights = np.rint(np.asarray([0.2989, 0.5870, 0.1140]) * (255.5 / 255) * 2**22).astype(int).tolist()
    return _luminance(image, weights, 0, 22)


def _luminance(image, weights, rounding, bits):
    image = image.astype(jnp.int32)
    weighted = (image[..., channel, None] * weight for channel, weight in enumerate(weights))
    return (sum(weighted) + rounding) >> bits


def smooth_as_pillow(image):
    """Smoothed 3x3 and rounded, int32; the outermost pixels stay as they are."""
    return _smooth(image, 6)


def smooth_as_tensorflow(image):
    """Smoothed 3x3 and truncated, int32; the outermost pixels stay as they are."""
    return _smooth(image, 0)


def _smooth(image, rounding):
    image = image.astype(jnp.int32)
    height, width = image.shape[1:3]
    if height < 3 or width < 3:
        return image
    rows = image[:, :-2] + image[:, 1:-1] + image[:, 2:]
    around = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    inner = (around + 4 * image[:, 1:-1, 1:-1] + rounding) // 13
    edges = np.ones((height, width, 1), bool)
    edges[1:-1, 1:-1] = False
    return jnp.where(edges, image, jnp.pad(inner, ((0, 0), (1, 1), (1, 1), (0, 0))))


# ---- One op for each example


class Arithmetic(NamedTuple):
    """Whose results the ops give that depend on the image."""

    grey: Callable
    smooth: Callable
    stretching: Callable
    contrast_around: Callable
    """Of the images, the constant `[B]` that contrast blends with."""


def mean_of_grey(grey):
    """Contrast scales around the mean of the grey image, rounded."""

    def around(image):
        pixels = math.prod(image.shape[1:3])
        return (2 * grey(image).sum(axis=(1, 2, 3)) + pixels) // (2 * pixels)

    return around


PILLOW = Arithmetic(grey_as_pillow, smooth_as_pillow, stretching_as_pillow, mean_of_grey(grey_as_pillow))
TENSORFLOW = Arithmetic(
    grey_as_tensorflow, smooth_as_tensorflow, stretching_as_tensorflow, mean_of_grey(grey_as_tensorflow)
)

OPS = (
    "AutoContrast",
    "Brightness",
    "Color",
    "Contrast",
    "Equalize",
    "Invert",
    "Posterize",
    "Sharpness",
    "Solarize",
    "SolarizeAdd",
)


def change_colors(image, is_op: dict, argument, arithmetic: Arithmetic = PILLOW):
    """Applies to each image the one op, if any, that is chosen for it.

    Args:
        image: uint8 `[B, H, W, 3]`.
        is_op: for ops of `OPS`, for which examples they are chosen, bool `[B]`. Ops that are not there cost
            nothing.
        argument: float32 `[B]`, the argument of the chosen op as the host takes it: the factor of an
            enhancement, bits, threshold, addition.
        arithmetic: `PILLOW` or `TENSORFLOW`.
    """
    image = materialized(image)
    degenerates = {"Color": arithmetic.grey, "Sharpness": arithmetic.smooth}
    tables = {
        "AutoContrast": lambda: arithmetic.stretching(image),
        "Brightness": lambda: brightening(argument),
        "Contrast": lambda: blend(
            for_tables(arithmetic.contrast_around(image)), jnp.asarray(_VALUES), for_tables(argument)
        ),
        "Equalize": lambda: equalizing(image),
        "Invert": lambda: inverting(argument),
        "Posterize": lambda: posterizing(argument),
        "Solarize": lambda: solarizing(argument),
        "SolarizeAdd": lambda: solarize_adding(argument),
    }
    table = jnp.asarray(_VALUES)[None, None]
    for name in tables:
        if name in is_op:
            table = jnp.where(for_tables(is_op[name]), tables[name](), table)
    result = look_up(image, materialized(table.astype(jnp.uint8)))
    for name in degenerates:
        if name in is_op:
            blended = blend(degenerates[name](image), image, for_images(argument)).astype(jnp.uint8)
            result = jnp.where(for_images(is_op[name]), blended, result)
    return materialized(result)
