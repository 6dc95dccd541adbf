"""Resizing images `[H, W, C]` with TensorFlow's kernels or Pillow's, since recipes were trained with them.

What differs in TensorFlow's from the usual image libraries: no antialiasing unless told, half-pixel centres,
and casts back to uint8 that truncate. Pillow's, with which torchvision and timm train, always antialias and
round to uint8 twice: after the width, then after the height.
"""

import functools
import math

import cv2
import numpy as np
import scipy.sparse

from vitjax.data.pp import on_key, register
from vitjax.errors import UserError, nearest


@register("resize", deterministic=True)
@on_key("image")
def resize(size, method="bilinear", antialias=False):
    """Resizes to `size`, a side or `[height, width]`, whatever the aspect ratio.

    The result is clipped and cast to the input's dtype, which for uint8 truncates, as in big_vision.

    Args:
        size: the side of a square, or `[height, width]`, in pixels.
        method: bilinear, nearest, area, bicubic, lanczos3, lanczos5, mitchellcubic or gaussian; or as Pillow
            does it, uint8 only: pillow_bilinear, pillow_bicubic or pillow_lanczos3.
        antialias: whether to widen the kernel when shrinking. `area`, `nearest` and Pillow's have no such
            choice.
    """
    height, width = parse_size(size)
    check_method(method)
    return lambda image, rng: resize_image(image, height, width, method, antialias)


@register("resize_small", deterministic=True)
@on_key("image")
def resize_small(smaller_size, method="area", antialias=False, rounding="nearest"):
    """Resizes so that the short side is `smaller_size` pixels, keeping the aspect ratio. See `resize`.

    Args:
        smaller_size: the short side of the result, in pixels.
        method: see `resize`.
        antialias: see `resize`.
        rounding: how the long side becomes a whole number: to the "nearest", as in big_vision, or "down", as
            in torchvision's `Resize`.
    """
    side, _ = parse_size(smaller_size)
    check_method(method)
    check_choice("rounding", rounding, ("nearest", "down"))

    def apply(image, rng):
        if rounding == "nearest":
            return _resize_by(image, np.float32(side) / min(image.shape[:2]), method, antialias)
        height, width = (side * n // min(image.shape[:2]) for n in image.shape[:2])
        return resize_image(image, height, width, method, antialias)

    return apply


@register("resize_long", deterministic=True)
@on_key("image")
def resize_long(longer_size, method="area", antialias=True):
    """Resizes so that the long side is `longer_size` pixels, keeping the aspect ratio. See `resize`."""
    side, _ = parse_size(longer_size)
    check_method(method)
    return lambda image, rng: _resize_by(image, np.float32(side) / max(image.shape[:2]), method, antialias)


def _resize_by(image, factor, method, antialias):
    height, width = (max(1, int(np.round(np.float32(n) * np.float32(factor)))) for n in image.shape[:2])
    return resize_image(image, height, width, method, antialias)


def resize_image(image, height: int, width: int, method: str = "bilinear", antialias: bool = False):
    """Resizes `[H, W, C]` to `[height, width, C]` in the input's dtype. `method` as in `resize`."""
    if image.shape[:2] == (height, width):
        return image
    if method in _PILLOW_METHODS:
        return _resize_as_pillow(image, height, width, method.removeprefix("pillow_"))
    if method == "nearest":
        rows, cols = (_nearest_indices(n, out) for n, out in zip(image.shape, (height, width), strict=False))
        return image[rows][:, cols]
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    if (method == "bilinear" and not antialias) or (method == "area" and shrinks):
        kind = cv2.INTER_LINEAR if method == "bilinear" else cv2.INTER_AREA
        resized = cv2.resize(image.astype(np.float32), (width, height), interpolation=kind)
    else:
        rows = _resize_rows(image.astype(np.float32), height, method, antialias)
        columns = _resize_rows(_transpose(rows), width, method, antialias)
        resized = _transpose(columns)
    return _cast_back(resized.reshape(height, width, -1), image.dtype)


# What float32 loses between two ways to order the same interpolation. Added before the cast truncates, since
# else a flat region of value v would come out as v - 1 wherever its weights add up to a little less than 1.
_ROUNDING = np.float32(1e-4)


def _cast_back(image: np.ndarray, dtype) -> np.ndarray:
    """Clips to the range of `dtype` and casts, which truncates; a float dtype has no range."""
    if np.issubdtype(dtype, np.integer):
        image += _ROUNDING
        limits = np.iinfo(dtype)
        np.clip(image, limits.min, limits.max, out=image)
    return image.astype(dtype)


def _nearest_indices(size: int, out: int) -> np.ndarray:
    scale = np.float32(size) / np.float32(out)
    centres = (np.arange(out, dtype=np.float32) + np.float32(0.5)) * scale
    return np.minimum(np.floor(centres).astype(np.int64), size - 1)


def _lanczos(x, radius):
    x = np.abs(x)
    with np.errstate(divide="ignore", invalid="ignore"):
        y = radius * np.sin(np.pi * x) * np.sin(np.pi * x / radius) / (np.pi * x) ** 2
    return np.where(x > radius, 0, np.where(x <= 1e-3, 1, y))


def _cubic(x, b, c):
    """The family of Mitchell and Netravali: (0, 0.5) is Catmull-Rom, also known as Keys with a = -0.5."""
    x = np.abs(x)
    near = ((12 - 9 * b - 6 * c) * x**3 + (-18 + 12 * b + 6 * c) * x**2 + (6 - 2 * b)) / 6
    far = ((-b - 6 * c) * x**3 + (6 * b + 30 * c) * x**2 + (-12 * b - 48 * c) * x + (8 * b + 24 * c)) / 6
    return np.where(x < 1, near, np.where(x < 2, far, 0))


_KERNELS = {  # method: (kernel, radius)
    "bilinear": (lambda x: np.maximum(0, 1 - np.abs(x)), 1.0),
    "bicubic": (lambda x: _cubic(x, 0, 0.5), 2.0),
    "mitchellcubic": (lambda x: _cubic(x, 1 / 3, 1 / 3), 2.0),
    "lanczos3": (lambda x: _lanczos(x, 3), 3.0),
    "lanczos5": (lambda x: _lanczos(x, 5), 5.0),
    "gaussian": (lambda x: np.where(np.abs(x) >= 1.5, 0, np.exp(-(x**2) / (2 * 0.5**2))), 1.5),
}
_PILLOW_METHODS = ("pillow_bilinear", "pillow_bicubic", "pillow_lanczos3")
_METHODS = (*_KERNELS, "area", "nearest", *_PILLOW_METHODS)


def _transpose(image: np.ndarray) -> np.ndarray:
    """`[H, W, C]` to `[W, H, C]`; several times quicker than numpy's."""
    return cv2.transpose(image).reshape(image.shape[1], image.shape[0], -1)


def _resize_rows(image: np.ndarray, out: int, method: str, antialias: bool) -> np.ndarray:
    """Resizes the first axis of float32 `[H, W, C]` to length `out`."""
    source, weights = _taps(image.shape[0], out, method, antialias)
    rows = image.reshape(image.shape[0], -1)
    result = np.zeros((out, rows.shape[1]), np.float32)
    part = np.empty_like(result)  # new memory for each tap would take longer than the sums
    for tap in range(source.shape[1]):
        np.take(rows, source[:, tap], axis=0, out=part, mode="clip")
        part *= weights[:, tap, None]
        result += part
    return result.reshape(out, *image.shape[1:])


@functools.lru_cache(maxsize=256)
def _taps(size: int, out: int, method: str, antialias: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns which source pixels each output pixel is a mean of and their weights, both `[out, taps]`."""
    scale = size / out
    position = np.arange(out)[:, None]
    if method == "area":  # how much of each source pixel the output pixel covers
        source = np.floor(position * scale) + np.arange(math.ceil(scale) + 1)
        end = np.minimum(source + 1, (position + 1) * scale)
        weights = np.maximum(end - np.maximum(source, position * scale), 0)
    else:
        kernel, radius = _KERNELS[method]
        widen = max(scale, 1.0) if antialias else 1.0
        centre = (position + 0.5) * scale - 0.5
        source = np.ceil(centre - radius * widen) + np.arange(math.floor(2 * radius * widen) + 1)
        weights = kernel((source - centre) / widen)
    weights = np.where((source >= 0) & (source < size), weights, 0)
    weights /= weights.sum(axis=1, keepdims=True)
    return source.clip(0, size - 1).astype(np.intp), weights.astype(np.float32)


_PILLOW_BITS = 22  # of the fraction of Pillow's weights


def _resize_as_pillow(image: np.ndarray, height: int, width: int, kernel: str) -> np.ndarray:
    """Pillow's `Image.resize`, bit for bit, with the width first.

    So did all versions up to 12. Pillow 13 takes the height first where it shrinks much more than the width.
    """
    if image.dtype != np.uint8:
        raise UserError(
            f"method='pillow_{kernel}' resizes uint8 images, as Pillow does, not {image.dtype}. Put it "
            "before value_range, or name a method without 'pillow_'."
        )
    if image.shape[1] != width:
        image = _transpose(_resize_rows_as_pillow(_transpose(image), width, kernel))
    return _resize_rows_as_pillow(image, height, kernel) if image.shape[0] != height else image


def _resize_rows_as_pillow(image: np.ndarray, out: int, kernel: str) -> np.ndarray:
    """Resizes the first axis of uint8 `[H, W, C]` to length `out`."""
    weights = _pillow_weights(image.shape[0], out, kernel)
    rows = weights @ image.reshape(image.shape[0], -1).astype(np.int32)
    rows += 1 << (_PILLOW_BITS - 1)
    rows >>= _PILLOW_BITS
    np.clip(rows, 0, 255, out=rows)
    return rows.astype(np.uint8).reshape(out, *image.shape[1:])


# Random crops have as many sizes as the images; each takes as long to make as a tenth of the resizing.
@functools.lru_cache(maxsize=1024)
def _pillow_weights(size: int, out: int, kernel: str) -> scipy.sparse.csr_array:
    """Returns what each output pixel takes of each source pixel, int32 `[out, size]` in units of 2**-22."""
    function, radius = _KERNELS[kernel]
    scale = size / out
    widen = max(scale, 1.0)
    centre = (np.arange(out)[:, None] + 0.5) * scale
    first = np.maximum((centre - radius * widen + 0.5).astype(int), 0)
    end = np.minimum((centre + radius * widen + 0.5).astype(int), size)
    source = first + np.arange((end - first).max())
    weights = np.where(source < end, function((source - centre + 0.5) / widen), 0)
    weights /= weights.sum(axis=1, keepdims=True)
    rounded = np.trunc(weights * (1 << _PILLOW_BITS) + np.copysign(0.5, weights)).astype(np.int32)
    used = rounded != 0
    ends = np.concatenate([[0], used.sum(axis=1).cumsum()])
    return scipy.sparse.csr_array((rounded[used], source[used], ends), shape=(out, size))


def parse_size(size) -> tuple[int, int]:
    """Returns `(height, width)` in pixels for one side or a pair, or raises UserError."""
    pair = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list | tuple) else ()
    if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise UserError(f"size={size!r} must be a positive whole number of pixels, or [height, width].")
    return pair


def check_method(method) -> None:
    """Raises UserError unless `method` names a way to resize."""
    if method not in _METHODS:
        raise UserError(
            f"method={method!r} is not a way to resize.{nearest(str(method), _METHODS)} "
            f"Known: {', '.join(_METHODS)}."
        )


def check_choice(name: str, value, choices) -> None:
    """Raises UserError unless the argument `name` is one of `choices`."""
    if value not in choices:
        raise UserError(
            f"{name}={value!r} must be one of {', '.join(choices)}.{nearest(str(value), choices)}"
        )
