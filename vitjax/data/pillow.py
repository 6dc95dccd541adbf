"""Pillow's image operations, pixel by pixel: what torchvision's and timm's augmentations are made of.

Each is a pure function of a uint8 RGB image `[H, W, 3]`. All equal Pillow's, except that `transform` and
what is made of it are computed in float32, by which one value in some thousands comes out one apart, and in
rare cases `gaussian_blur`. Where TensorFlow and Pillow agree, the function stands in `randaug`.
"""

import functools
import math

import cv2
import numpy as np

from vitjax.data.randaug import blend, blend_with_constant, look_up

Image = np.ndarray
Matrix = tuple[float, float, float, float, float, float]
_VALUES = np.arange(256)


# ---- Values


def autocontrast(image: Image) -> Image:
    """Stretches each channel to 0..255."""
    low, high = image.min(axis=0).min(axis=0).tolist(), image.max(axis=0).max(axis=0).tolist()
    tables = [stretched(*limits) for limits in zip(low, high, strict=True)]
    return look_up(image, np.stack(tables, axis=-1))


def stretched(low: int, high: int) -> np.ndarray:
    """The table of `autocontrast`, `[256]`, for a channel whose values reach from `low` to `high`."""
    if high <= low:
        return _VALUES
    scale = 255 / (high - low)
    return (_VALUES * scale - low * scale).clip(0, 255).astype(np.uint8)


def posterize(image: Image, bits: int) -> Image:
    """Keeps the upper `bits` bits; with none, the image is black."""
    return look_up(image, _VALUES >> (8 - bits) << (8 - bits))


def grey(image: Image) -> Image:
    """Luminance `[H, W]` (ITU-R 601)."""
    # All whole numbers below 2**24, which float32 represents.
    weights = np.asarray([[19595, 38470, 7471, 1 << 15]], np.float32)
    luminance = cv2.transform(image.astype(np.float32), weights)
    luminance *= np.float32(2**-16)
    return luminance.astype(np.uint8)


def grayscale(image: Image) -> Image:
    """Luminance in all three channels."""
    return cv2.cvtColor(grey(image), cv2.COLOR_GRAY2RGB)


# ---- Enhancements: away from (factor > 1) or towards (factor < 1) a degenerate image


def color(image: Image, factor: float) -> Image:
    """Blends with the grey image."""
    return blend(grayscale(image), image, factor)


def contrast(image: Image, factor: float) -> Image:
    """Blends with the rounded mean of the grey image."""
    return blend_with_constant(int(cv2.mean(grey(image))[0] + 0.5), image, factor)


def brightness(image: Image, factor: float) -> Image:
    """Blends with black."""
    return blend_with_constant(0, image, factor)


_SMOOTH = np.asarray([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def sharpness(image: Image, factor: float) -> Image:
    """Blends with the image smoothed 3x3; the outermost pixels stay as they are."""
    smooth = cv2.filter2D(image, -1, _SMOOTH)
    smooth[[0, -1]] = image[[0, -1]]
    smooth[:, [0, -1]] = image[:, [0, -1]]
    return blend(smooth, image, factor)


# ---- Geometry: bicubic


def rotate(image: Image, degrees: float, fill: tuple[int, int, int]) -> Image:
    """Rotates counter-clockwise about the middle."""
    return transform(image, rotation(image.shape, degrees), fill)


def rotation(shape: tuple[int, ...], degrees: float) -> Matrix:
    """The matrix by which an image of `shape` `[H, W, ...]` is rotated counter-clockwise about the middle."""
    angle = -math.radians(degrees % 360)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    y, x = shape[0] / 2, shape[1] / 2
    return cos, sin, -cos * x - sin * y + x, -sin, cos, sin * x - cos * y + y


def shear_x(image: Image, level: float, fill: tuple[int, int, int]) -> Image:
    """Takes pixel (x, y) from (x + level * y, y)."""
    return transform(image, (1, level, 0, 0, 1, 0), fill)


def shear_y(image: Image, level: float, fill: tuple[int, int, int]) -> Image:
    """Takes pixel (x, y) from (x, y + level * x)."""
    return transform(image, (1, 0, 0, level, 1, 0), fill)


def translate_x(image: Image, pixels: float, fill: tuple[int, int, int]) -> Image:
    """Takes pixel (x, y) from (x + pixels, y)."""
    return transform(image, (1, 0, pixels, 0, 1, 0), fill)


def translate_y(image: Image, pixels: float, fill: tuple[int, int, int]) -> Image:
    """Takes pixel (x, y) from (x, y + pixels)."""
    return transform(image, (1, 0, 0, 0, 1, pixels), fill)


# Added before the cast truncates: float32 weights do not quite add up to 1, and a flat region of value v
# would come out as v - 1.
ROUNDING = 1e-4
_STRIP = 6000  # pixels computed at a time: with all their neighbours they stay in the cache


def transform(image: Image, matrix: Matrix, fill: tuple[int, int, int]) -> Image:
    """Pillow's `Image.transform` by an affine matrix, bicubic (a = -1), edges repeated, `fill` outside.

    The middle of a pixel (x, y) shows the source at `(m0 * x + m1 * y + m2, m3 * x + m4 * y + m5)`.
    """
    height, width = image.shape[:2]
    padded = cv2.copyMakeBorder(image, 2, 3, 2, 3, cv2.BORDER_REPLICATE)
    if matrix[:2] == (1, 0) and matrix[3:5] == (0, 1):
        return _translate(padded, matrix[5], matrix[2], fill)
    x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    windows = _windows(padded)
    result = np.empty_like(image)
    rows = max(1, _STRIP // width)
    scratch = np.empty(
        (2, 12, rows * width), np.float32
    )  # new memory for each strip takes longer than the sums
    for start in range(0, height, rows):
        strip = slice(start, start + rows)
        source_x = matrix[0] * x + matrix[1] * y[strip] + matrix[2]
        source_y = matrix[3] * x + matrix[4] * y[strip] + matrix[5]
        result[strip] = _interpolate(padded, windows, source_x, source_y, scratch)
        outside = (source_x < 0) | (source_x >= width) | (source_y < 0) | (source_y >= height)
        result[strip][outside] = fill
    return result


def _translate(padded: Image, down: float, right: float, fill: tuple[int, int, int]) -> Image:
    """Where all pixels are moved alike, the same kernel does for all of them."""
    result = np.empty((padded.shape[0] - 5, padded.shape[1] - 5, 3), np.uint8)
    result[:] = fill
    rows, top, kernel_y = _shift(result.shape[0], down)
    columns, left, kernel_x = _shift(result.shape[1], right)
    inside = result[rows, columns]
    if inside.size:
        source = padded[top : top + len(inside) + 3, left : left + inside.shape[1] + 3]
        moved = cv2.filter2D(source, cv2.CV_32F, np.outer(kernel_y, kernel_x), anchor=(0, 0), delta=ROUNDING)
        moved = moved[: inside.shape[0], : inside.shape[1]]
        inside[:] = np.clip(moved, 0, 255, out=moved)
    return result


def _shift(size: int, by: float) -> tuple[slice, int, np.ndarray]:
    """Returns which pixels of an axis show the image, where the first one's kernel begins, and the kernel."""
    source = np.arange(size) + 0.5 + by
    shown = np.flatnonzero((source >= 0) & (source < size))
    if not shown.size:
        return slice(0), 0, np.ones(1, np.float32)
    first, fraction = _corner(source[shown[:1]], size)
    kernel = np.ones(1, np.float32) if fraction is None else _cubic(fraction)[:, 0]
    return slice(shown[0], shown[-1] + 1), int(first[0]), kernel


def _windows(padded: Image) -> np.ndarray:
    """Returns each pixel with the three to its right as one of three int32, which OpenCV moves at once."""
    height, width = padded.shape[0], padded.shape[1] - 3
    windows = np.ndarray((height, width), "V12", padded, strides=padded.strides[:2])
    return windows.copy().view(np.int32).reshape(height, width, 3)


def _interpolate(padded: Image, windows, source_x: np.ndarray, source_y: np.ndarray, scratch) -> Image:
    """Returns the image at places `[h, w]` given in its own coordinates, where it was not padded yet."""
    left, fraction_x = _corner(source_x, padded.shape[1] - 5)
    top, fraction_y = _corner(source_y, padded.shape[0] - 5)
    corner = cv2.merge([left, top]).astype(np.int16)
    source = padded if fraction_x is None else windows
    planes, part = scratch[:, : 3 if fraction_x is None else 12, : source_x.size]
    if fraction_y is None:
        planes[:] = _take(source, corner)
    else:
        weights = _cubic(fraction_y)
        np.multiply(_take(source, corner), weights[0], out=planes)
        for row in range(1, 4):
            np.multiply(_take(source[row:], corner), weights[row], out=part)
            planes += part
    if fraction_x is not None:
        taps = planes.reshape(4, 3, -1)
        taps *= _cubic(fraction_x)[:, None]
        planes = taps[0]
        for tap in taps[1:]:
            planes += tap
    planes += ROUNDING
    np.clip(planes, 0, 255, out=planes)
    return cv2.transpose(planes.astype(np.uint8)).reshape(*source_x.shape, 3)


def _corner(source: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns where in the padded image the kernel begins, and the fractions its weights follow from.

    Without fractions (None) there is no kernel, only the pixel itself.
    """
    source = source.clip(0, size) - 0.5  # what lies outside is filled afterwards
    whole = np.floor(source)
    fraction = (source - whole).astype(np.float32)
    return (whole + 1, fraction) if fraction.any() else (whole + 2, None)


def _cubic(fraction: np.ndarray) -> np.ndarray:
    """Returns the weights of the four pixels around, `[4, pixels]` (Keys' kernel with a = -1)."""
    d = fraction.ravel()
    square = d * d
    weights = np.empty((4, d.size), np.float32)
    last = square - square * d
    np.subtract(last, d - square, out=weights[0])
    np.subtract(1 - square, last, out=weights[1])
    np.add(last, d, out=weights[2])
    np.negative(last, out=weights[3])
    return weights


def _take(source: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Gathers pixels or windows at int16 `[h, w, (x, y)]`: uint8 `[3 or 12, h * w]`."""
    taken = cv2.remap(source, corner, np.empty(0, np.uint16), cv2.INTER_NEAREST)
    return cv2.transpose(taken.view(np.uint8).reshape(corner.shape[0] * corner.shape[1], -1))


# ---- Geometry: bicubic along one axis, in float64 as Pillow computes


def shear_x_exactly(image: Image, level: float, fill: tuple[int, int, int]) -> Image:
    """`shear_x` bit for bit; it takes about three times as long."""
    left, fraction, outside = shear_source(*image.shape[:2], level)
    rows, last, d = np.arange(image.shape[0])[:, None], image.shape[1] - 1, fraction[..., None]
    a, b, c, e = (image[rows, (left + tap).clip(0, last)].astype(np.int32) for tap in range(4))
    value = b + d * ((c - a) + d * ((2 * (a - b) + c - e) + d * (b - a - c + e)))
    result = value.clip(0, 255).astype(np.uint8)
    result[outside] = fill
    return result


def shear_y_exactly(image: Image, level: float, fill: tuple[int, int, int]) -> Image:
    """`shear_y` bit for bit."""
    return np.ascontiguousarray(shear_x_exactly(image.swapaxes(0, 1), level, fill).swapaxes(0, 1))


@functools.lru_cache(maxsize=32)
def shear_source(height: int, width: int, level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns where `shear_x` takes each pixel from, each `[height, width]`.

    The first of four columns (int64; those beyond the edges mean the edges), the fraction that their weights
    follow from (float64), and what comes from outside (bool).
    """
    source = np.arange(width) + 0.5 + level * (np.arange(height)[:, None] + 0.5)
    outside = (source < 0) | (source >= width)
    source -= 0.5
    whole = np.floor(source)
    return whole.astype(int) - 1, source - whole, outside


# ---- Geometry: nearest neighbour


def transform_nearest(image: Image, matrix: Matrix, fill: tuple[int, int, int]) -> Image:
    """Pillow's `Image.transform` by an affine matrix, nearest pixel, `fill` outside. See `transform`."""
    source = nearest_source(*image.shape[:2], matrix)
    border = {"borderMode": cv2.BORDER_CONSTANT, "borderValue": fill}
    return cv2.remap(image, source, np.empty(0, np.uint16), cv2.INTER_NEAREST, **border)


# A policy has some ten transforms in all. For images of one size, none is computed twice.
@functools.lru_cache(maxsize=32)
def nearest_source(height: int, width: int, matrix: Matrix) -> np.ndarray:
    """Returns where each pixel comes from, int16 `[height, width, (x, y)]`; -1 means from outside.

    Pillow steps through the source in whole 65536ths of a pixel, but not if nothing is rotated or sheared.
    """
    x, y = np.arange(width), np.arange(height)[:, None]
    if matrix[1] == matrix[3] == 0:
        source = np.broadcast_arrays(
            np.floor(matrix[0] * (x + 0.5) + matrix[2]), np.floor(matrix[4] * (y + 0.5) + matrix[5])
        )
    else:
        middle = [matrix[n] * 0.5 + matrix[n + 1] * 0.5 + matrix[n + 2] for n in (0, 3)]
        fixed = [math.floor(n * 65536 + 0.5) for n in (*matrix[:2], middle[0], *matrix[3:5], middle[1])]
        source = [(a * x + b * y + c) >> 16 for a, b, c in (fixed[:3], fixed[3:])]
    sides = zip(source, (width, height), strict=True)
    inside = np.logical_and(*((side >= 0) & (side < size) for side, size in sides))
    return np.where(inside[..., None], np.stack(source, axis=-1), -1).astype(np.int16)


# ---- Blur

_BLUR_BITS = 24  # of the fraction of Pillow's weights


def gaussian_blur(image: Image, radius: float) -> Image:
    """Pillow's `GaussianBlur`: three box blurs, each rounded, along the rows, then along the columns."""
    box = _box_radius(radius)
    for _ in range(2):
        image = cv2.transpose(image)
        rows = image.reshape(len(image), -1)
        width = max(1, _STRIP * 3 // len(rows))
        for start in range(0, rows.shape[1], width):
            strip = rows[:, start : start + width]
            for _ in range(3):
                strip = _box_blur(strip, box)
            rows[:, start : start + width] = strip
    return image


def _box_radius(radius: float) -> np.float32:
    """Returns the radius of a box that, three times, has a Gaussian's variance; rounded as Pillow does."""
    variance = float(np.float32(np.float32(radius) ** 2 / 3))
    whole = math.floor((np.float32(math.sqrt(12 * variance + 1)) - 1.0) / 2)
    part = np.float32((2 * whole + 1) * (whole * (whole + 1) - 3 * variance))
    return np.float32(whole) + np.float32(float(part) / (6 * (variance - (whole + 1) ** 2)))


def _box_blur(rows: np.ndarray, radius: np.float32) -> np.ndarray:
    """Blurs uint8 `[length, n]` along its length; the outermost pixels count by the radius's fraction."""
    whole, length = int(radius), len(rows)
    inner = int(np.float32(1 << _BLUR_BITS) / (radius * 2 + 1))
    outer = ((1 << _BLUR_BITS) - (2 * whole + 1) * inner) // 2
    reach = whole + 1
    padded = cv2.copyMakeBorder(rows, reach, reach, 0, 0, cv2.BORDER_REPLICATE).astype(np.uint32)
    total = padded[1 : length + 1].copy()
    for shift in range(2, 2 * reach):
        total += padded[shift : shift + length]
    total *= np.uint32(inner)
    ends = padded[:length]
    ends += padded[2 * reach :]
    ends *= np.uint32(outer)
    total += ends
    total += np.uint32(1 << (_BLUR_BITS - 1))
    total >>= np.uint32(_BLUR_BITS)
    return total.astype(np.uint8)
