"""RandAugment (arXiv 1909.13719) as AugReg and big_vision trained with it, faults included.

Each of the 16 ops is a pure function of a uint8 RGB image `[H, W, 3]` and its arguments. They reproduce the
TensorFlow implementation pixel by pixel, which is why real numbers are float32 and casts truncate. Three of
them do what their authors did not mean; `compat="fixed"` mends those, see `randaug`.
"""

import functools
import math
from collections.abc import Callable

import cv2
import numpy as np

from vitjax.data.pp import on_key, register
from vitjax.errors import UserError, nearest

Image = np.ndarray

FILL = 128  # what cutout and the geometric ops leave where there is no image
_COMPATS = ("augreg", "fixed")


@register("randaug")
@on_key("image")
def randaug(num_layers=2, magnitude=10, compat="augreg", full_size=None):
    """Applies `num_layers` ops of strength `magnitude`, each drawn uniformly from all 16.

    There is no identity among the ops, and each is applied whenever it is drawn. Drawn as well are the sign
    of rotation, shear and translation, and the place of cutout.

    Args:
        num_layers: how many ops, one after the other. AugReg's "medium" is 2 at magnitude 15.
        magnitude: strength, 0 to 30; 10 is what AutoAugment called its maximum.
        compat: "augreg" is what the published models were trained with. "fixed" differs in three ops.
            Solarize inverts values from `25.6 * magnitude` on, so none from magnitude 10 on; "augreg" takes
            that threshold modulo 256, so that magnitudes 10, 20 and 30 invert everything, like 0.
            Contrast scales around the rounded mean of the grey image; "augreg" scales around `H * W / 256`,
            at most 255 (196 at 224 px), whatever the image shows.
            Posterize keeps all 8 bits above magnitude 20; "augreg" falls back to 1 bit there.
        full_size: translation and cutout are stated in pixels, for images of 224. Given that size, here they
            are scaled to the shorter side of the image, so that small images keep what is in them.
    """
    for name, value in (("num_layers", num_layers), ("magnitude", magnitude)):
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise UserError(f"{name}={value!r} must be a number, 0 or more.")
    if full_size is not None and (isinstance(full_size, bool) or not full_size > 0):
        raise UserError(f"full_size={full_size!r} must be a number of pixels, such as 224, or None.")
    if not isinstance(num_layers, int):
        raise UserError(f"num_layers={num_layers!r} must be a whole number.")
    if compat not in _COMPATS:
        raise UserError(
            f"compat={compat!r} must be one of {', '.join(_COMPATS)}.{nearest(str(compat), _COMPATS)}"
        )
    names = list(OPS)

    def apply(image, rng):
        check_is_rgb(image, "randaug")
        scale = min(image.shape[:2]) / full_size if full_size else 1
        for _ in range(num_layers):
            name = names[rng.integers(len(names))]
            strength = magnitude * scale if name in IN_PIXELS else magnitude
            image = apply_op(name, image, strength, rng, compat)
        return image

    return apply


def check_is_rgb(image: Image, op: str) -> None:
    """Raises UserError unless the image is uint8 `[H, W, 3]`."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise UserError(
            f"{op} takes uint8 RGB images [height, width, 3], not {image.dtype} {list(image.shape)}. "
            "Put it after the crop and before value_range."
        )


def apply_op(name: str, image: Image, magnitude: float, rng: np.random.Generator, compat="augreg") -> Image:
    """Applies one op of `OPS` at the given magnitude, drawing its sign or place where it has one."""
    return OPS[name](image, magnitude / 10, rng, compat)


# ---- Ops on values: tables of 256 entries


def look_up(image: Image, table: np.ndarray) -> Image:
    """Maps values by a table `[256]`, or `[256, 3]` with one column a channel."""
    return cv2.LUT(image, table.astype(np.uint8)[None])


_VALUES = np.arange(256)


def autocontrast(image: Image) -> Image:
    """Stretches each channel to 0..255."""
    low = image.min(axis=0).min(axis=0).astype(np.float32)
    high = image.max(axis=0).max(axis=0).astype(np.float32)
    flat = high <= low
    scale = np.float32(255) / np.where(flat, np.float32(1), high - low)
    stretched = _VALUES.astype(np.float32)[:, None] * scale + -low * scale
    return look_up(image, np.where(flat, _VALUES[:, None], stretched.clip(0, 255)))


def equalize(image: Image) -> Image:
    """Evens out each channel's histogram, with PIL's table."""
    tables = []
    for channel in range(3):
        histogram = cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
        last = histogram[np.flatnonzero(histogram)[-1]]
        step = (histogram.sum() - last) // 255
        if step:
            table = (np.cumsum(histogram) + step // 2) // step
            tables.append(np.concatenate([[0], table[:-1]]).clip(0, 255))
        else:
            tables.append(_VALUES)
    return look_up(image, np.stack(tables, axis=-1))


def invert(image: Image) -> Image:
    """255 - x."""
    return cv2.bitwise_not(image)


def posterize(image: Image, bits: int, compat="augreg") -> Image:
    """Keeps the upper `bits` bits, at least 1."""
    # TensorFlow shifts by the uint8 8 - bits, which wraps around above 8 bits, and by no more than 7.
    shift = min((8 - bits) % 256, 7) if compat == "augreg" else min(max(8 - bits, 0), 7)
    return look_up(image, _VALUES >> shift << shift)


def solarize(image: Image, threshold: int, compat="augreg") -> Image:
    """Inverts the values from `threshold` on."""
    threshold = threshold % 256 if compat == "augreg" else threshold
    return look_up(image, np.where(threshold > _VALUES, _VALUES, 255 - _VALUES))


def solarize_add(image: Image, addition: int) -> Image:
    """Adds to the values below 128."""
    return look_up(image, np.where(_VALUES < 128, (_VALUES + addition).clip(0, 255), _VALUES))


# ---- Enhancements: away from (factor > 1) or towards (factor < 1) a degenerate image


def color(image: Image, factor: float) -> Image:
    """Blends with the grey image."""
    return blend(cv2.cvtColor(_grey(image), cv2.COLOR_GRAY2RGB), image, factor)


def contrast(image: Image, factor: float, compat="augreg") -> Image:
    """Blends with a constant: meant to be the mean, but see `randaug`."""
    if compat == "augreg":  # the mean of the histogram's counts, where that of the values was meant
        target = min(image.shape[0] * image.shape[1] / 256, 255)
    else:
        target = cv2.mean(_grey(image))[0] + 0.5
    return blend_with_constant(int(target), image, factor)


def brightness(image: Image, factor: float) -> Image:
    """Blends with black."""
    return blend_with_constant(0, image, factor)


def sharpness(image: Image, factor: float) -> Image:
    """Blends with the image smoothed 3x3; the outermost pixels stay as they are."""
    kernel = np.asarray([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / np.float32(13)
    smooth = _truncate(cv2.filter2D(image.astype(np.float32), -1, kernel))
    smooth[[0, -1]] = image[[0, -1]]
    smooth[:, [0, -1]] = image[:, [0, -1]]
    return blend(smooth, image, factor)


def _grey(image: Image) -> Image:
    """TensorFlow's grey `[H, W]`: its weights, scaled by 255.5 / 255, truncated.

    One pixel in 100,000 comes out one apart, where rounding in float32 crosses a whole number.
    """
    weights = np.asarray([0.2989, 0.5870, 0.1140]) * (255.5 / 255)
    return cv2.transform(
        image, np.append(weights, -0.5)[None].astype(np.float32)
    )  # it rounds: hence the -0.5


_STRIP = 32  # rows at a time: floats that stay in the cache take a third of the time


def blend(degenerate: Image, image: Image, factor: float) -> Image:
    """degenerate + factor * (image - degenerate), in float32, clipped and truncated."""
    if factor in (0, 1):
        return image if factor else degenerate
    result = np.empty_like(image)
    for start in range(0, len(image), _STRIP):
        strip = slice(start, start + _STRIP)
        mixed = cv2.subtract(image[strip], degenerate[strip], dtype=cv2.CV_32F)
        mixed *= np.float32(factor)
        result[strip] = _truncate(cv2.add(mixed, degenerate[strip], dtype=cv2.CV_32F))
    return result


def blend_with_constant(value: int, image: Image, factor: float) -> Image:
    """`blend` with a degenerate image of one value throughout."""
    table = np.float32(factor) * (_VALUES - value).astype(np.float32) + np.float32(value)
    return look_up(image, table.clip(0, 255))


def _truncate(image: np.ndarray) -> Image:
    """Clips float32 to 0..255, in place, and truncates to uint8."""
    return np.clip(image, 0, 255, out=image).astype(np.uint8)


# ---- Geometric ops: nearest neighbour, 128 where the source lies outside


def rotate(image: Image, degrees: float) -> Image:
    """Rotates about the middle, ((W - 1) / 2, (H - 1) / 2)."""
    angle = np.float32(degrees * (math.pi / 180))
    cos, sin = np.cos(angle), np.sin(angle)
    last_y, last_x = np.float32(image.shape[0] - 1), np.float32(image.shape[1] - 1)
    x0 = (last_x - (cos * last_x - sin * last_y)) / np.float32(2)
    y0 = (last_y - (sin * last_x + cos * last_y)) / np.float32(2)
    return _transform(image, cos, -sin, x0, sin, cos, y0)


def shear_x(image: Image, level: float) -> Image:
    """Takes pixel (x, y) from (x + level * y, y)."""
    return _transform(image, 1, level, 0, 0, 1, 0)


def shear_y(image: Image, level: float) -> Image:
    """Takes pixel (x, y) from (x, y + level * x)."""
    return _transform(image, 1, 0, 0, level, 1, 0)


def translate_x(image: Image, pixels: float) -> Image:
    """Takes pixel (x, y) from (x + pixels, y)."""
    return _transform(image, 1, 0, pixels, 0, 1, 0)


def translate_y(image: Image, pixels: float) -> Image:
    """Takes pixel (x, y) from (x, y + pixels)."""
    return _transform(image, 1, 0, 0, 0, 1, pixels)


def cutout(image: Image, half: int, y: int, x: int) -> Image:
    """Fills the square of side `2 * half` around (x, y), as far as it lies in the image."""
    image = image.copy()
    image[max(0, y - half) : y + half, max(0, x - half) : x + half] = FILL
    return image


def _transform(image: Image, *matrix: float) -> Image:
    source = _source_pixels(*image.shape[:2], *(float(np.float32(m)) for m in matrix))
    border = {"borderMode": cv2.BORDER_CONSTANT, "borderValue": (FILL,) * 3}
    return cv2.remap(image, source, np.empty(0, np.uint16), cv2.INTER_NEAREST, **border)


# A magnitude has ten transforms in all. For images of one size, as after a crop, none is computed twice.
@functools.lru_cache(maxsize=32)
def _source_pixels(height: int, width: int, *matrix: float) -> np.ndarray:
    """Returns where each pixel comes from, int16 `[height, width, (x, y)]`.

    Source x is `m0 * x + m1 * y + m2`, source y likewise with m3 to m5: in float32, in this order, and
    rounded with halves away from zero, as TensorFlow's `ImageProjectiveTransformV3` does.
    """
    m = np.asarray(matrix, np.float32).reshape(2, 1, 1, 3)
    x = np.arange(width, dtype=np.float32)[None]
    y = np.arange(height, dtype=np.float32)[:, None]
    source = m[..., 0] * x + m[..., 1] * y + m[..., 2]
    source = source.astype(np.float64)  # in float32 the half would carry 0.49999997 to 1
    rounded = np.trunc(source + np.copysign(0.5, source))
    return np.ascontiguousarray(np.moveaxis(rounded, 0, -1).clip(-1, 2**15 - 1).astype(np.int16))


# ---- The table of ops: t = magnitude / 10


def _sign(rng: np.random.Generator) -> float:
    return 1.0 if rng.random() < 0.5 else -1.0


def _random_cutout(image, t, rng, compat):
    y, x = (int(rng.integers(n)) for n in image.shape[:2])
    return cutout(image, int(40 * t), y, x)


OPS: dict[str, Callable[[Image, float, np.random.Generator, str], Image]] = {
    "AutoContrast": lambda image, t, rng, compat: autocontrast(image),
    "Equalize": lambda image, t, rng, compat: equalize(image),
    "Invert": lambda image, t, rng, compat: invert(image),
    "Rotate": lambda image, t, rng, compat: rotate(image, _sign(rng) * (t * 30)),
    "Posterize": lambda image, t, rng, compat: posterize(image, int(t * 4), compat),
    "Solarize": lambda image, t, rng, compat: solarize(image, int(t * 256), compat),
    "Color": lambda image, t, rng, compat: color(image, t * 1.8 + 0.1),
    "Contrast": lambda image, t, rng, compat: contrast(image, t * 1.8 + 0.1, compat),
    "Brightness": lambda image, t, rng, compat: brightness(image, t * 1.8 + 0.1),
    "Sharpness": lambda image, t, rng, compat: sharpness(image, t * 1.8 + 0.1),
    "ShearX": lambda image, t, rng, compat: shear_x(image, _sign(rng) * (t * 0.3)),
    "ShearY": lambda image, t, rng, compat: shear_y(image, _sign(rng) * (t * 0.3)),
    "TranslateX": lambda image, t, rng, compat: translate_x(image, _sign(rng) * (t * 100)),
    "TranslateY": lambda image, t, rng, compat: translate_y(image, _sign(rng) * (t * 100)),
    "Cutout": _random_cutout,
    "SolarizeAdd": lambda image, t, rng, compat: solarize_add(image, int(t * 110)),
}
IN_PIXELS = ("TranslateX", "TranslateY", "Cutout")
