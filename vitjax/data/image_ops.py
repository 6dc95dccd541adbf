"""Image ops of the host: decode, crop, resize, flip. Images are uint8 `[H, W, C]`, RGB.

What they compute is what the published recipes computed with TensorFlow: where that differs from the usual
image libraries (crop sampler, kernels without antialiasing, casts that truncate), TensorFlow's is default.
"""

import functools
import math
from typing import Any

import cv2
import numpy as np
import simplejpeg

from vitjax.data.pp import on_key, register
from vitjax.errors import UserError, nearest

# One example is the work of one core: processes are what run in parallel, and OpenCV's own threads would only
# get in their way.
cv2.setNumThreads(1)

_JPEG_SIGNATURE = b"\xff\xd8\xff"


# ---- Decoding


@register("decode")
@on_key("image")
def decode(channels=3, precise=True):
    """Decodes an image file to uint8 `[H, W, channels]`; an image that is decoded already passes.

    Takes JPEG, PNG, WebP and what else OpenCV reads. Grey becomes three equal channels, CMYK becomes RGB,
    transparency is dropped, of 16 bits the upper 8 are kept, EXIF orientation is ignored (all as in ImageNet
    practice).

    Args:
        channels: 3 for RGB, 1 for grey.
        precise: JPEG with the accurate integer DCT, bit for bit what Pillow gives. Otherwise the fast DCT,
            bit for bit what TensorFlow gives, and big_vision by default: 3 % faster, and on photos 1.1 of 255
            away on average, 24 at most.
    """
    _check_channels(channels)
    return lambda data, rng: decode_image(data, channels, precise)


def decode_image(data: Any, channels: int = 3, precise: bool = True) -> np.ndarray:
    """Returns the image in `data` (bytes of a file, or a uint8 array) as uint8 `[H, W, channels]`."""
    if isinstance(data, np.ndarray):
        return _to_channels(data, channels)
    if not isinstance(data, bytes | bytearray | memoryview):
        raise UserError(f"An image must be the bytes of a file or a uint8 array, not {type(data).__name__}.")
    data = bytes(data)
    if data.startswith(_JPEG_SIGNATURE):
        return _decode_jpeg(data, channels, precise)
    return _decode_other(data, channels)


def _check_channels(channels) -> None:
    if channels not in (1, 3):
        raise UserError(f"channels={channels!r} must be 3 (RGB) or 1 (grey).")


def _to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Brings a uint8 image of 1 to 4 channels (or none) to 1 or 3 channels."""
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise UserError(
            f"A decoded image must be uint8 [height, width] or [height, width, channels], "
            f"not {image.dtype} {list(image.shape)}."
        )
    if image.ndim == 2:
        image = image[..., None]
    found = image.shape[-1]
    if found == channels:
        return image
    if found in (1, 2):
        return np.repeat(image[..., :1], channels, axis=-1)
    if found not in (3, 4):
        raise UserError(
            f"A decoded image must have 1 to 4 channels, not {found} (shape {list(image.shape)})."
        )
    image = image[..., :3]
    return (
        np.ascontiguousarray(image) if channels == 3 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    )


def _decode_jpeg(data: bytes, channels: int, precise: bool, **options) -> np.ndarray:
    """Decodes a JPEG with libjpeg-turbo; `options` go to `simplejpeg.decode_jpeg`."""
    try:
        colorspace = simplejpeg.decode_jpeg_header(data)[2]
    except ValueError:  # a header that is cut short, or chroma subsampling which only OpenCV knows
        return _decode_other(data, channels)
    if colorspace in ("CMYK", "YCCK"):
        return _to_channels(_cmyk_to_rgb(_call_simplejpeg(data, "CMYK", precise, **options)), channels)
    return _call_simplejpeg(data, "RGB" if channels == 3 else "GRAY", precise, **options)


def _call_simplejpeg(data: bytes, colorspace: str, precise: bool, **options) -> np.ndarray:
    """Decodes, refusing what is cut short but not what libjpeg only warns of (ImageNet has such files)."""
    try:
        return simplejpeg.decode_jpeg(data, colorspace, fastdct=not precise, **options)
    except ValueError as err:
        if str(err).startswith("Corrupt JPEG data"):
            return simplejpeg.decode_jpeg(data, colorspace, fastdct=not precise, strict=False, **options)
        raise UserError(f"This JPEG cannot be decoded: {err} ({len(data)} bytes).") from None


def _cmyk_to_rgb(image: np.ndarray) -> np.ndarray:
    """Adobe's inverted CMYK to RGB, with Pillow's rounding."""
    ink, black = image[..., :3].astype(np.uint16), image[..., 3:].astype(np.uint16)
    return ((ink * black + 127) // 255).astype(np.uint8)


def _decode_other(data: bytes, channels: int) -> np.ndarray:
    """PNG, WebP and the rest, by OpenCV."""
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    except cv2.error as err:
        raise UserError(f"This image cannot be decoded: {err.err} ({len(data)} bytes).") from None
    if image is None:
        start = bytes(data[:8])
        raise UserError(
            "This is not a whole image in a format that can be read (JPEG, PNG, WebP, ...): "
            f"{len(data)} bytes{f', beginning with {start!r}' if data else ''}."
        )
    if image.dtype == np.uint16:
        image = np.right_shift(image, 8).astype(np.uint8)
    if image.ndim == 3:
        image = cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2RGB)
    return _to_channels(image, channels)


# ---- Resizing


@register("resize")
@on_key("image")
def resize(size, method="bilinear", antialias=False):
    """Resizes to `size`, a side or `[height, width]`, whatever the aspect ratio.

    The result is clipped and cast to the input's dtype, which for uint8 truncates, as in big_vision.

    Args:
        size: the side of a square, or `[height, width]`, in pixels.
        method: bilinear, nearest, area, bicubic, lanczos3, lanczos5, mitchellcubic or gaussian.
        antialias: whether to widen the kernel when shrinking. `area` and `nearest` have no such choice.
    """
    height, width = _size(size)
    _check_method(method)
    return lambda image, rng: resize_image(image, height, width, method, antialias)


@register("resize_small")
@on_key("image")
def resize_small(smaller_size, method="area", antialias=False):
    """Resizes so that the short side is `smaller_size` pixels, keeping the aspect ratio. See `resize`."""
    side, _ = _size(smaller_size)
    _check_method(method)
    return lambda image, rng: _resize_by(image, np.float32(side) / min(image.shape[:2]), method, antialias)


@register("resize_long")
@on_key("image")
def resize_long(longer_size, method="area", antialias=True):
    """Resizes so that the long side is `longer_size` pixels, keeping the aspect ratio. See `resize`."""
    side, _ = _size(longer_size)
    _check_method(method)
    return lambda image, rng: _resize_by(image, np.float32(side) / max(image.shape[:2]), method, antialias)


def _resize_by(image, factor, method, antialias):
    height, width = (max(1, int(np.round(np.float32(n) * np.float32(factor)))) for n in image.shape[:2])
    return resize_image(image, height, width, method, antialias)


def resize_image(image, height: int, width: int, method: str = "bilinear", antialias: bool = False):
    """Resizes `[H, W, C]` to `[height, width, C]` in the input's dtype, with TensorFlow's kernels."""
    if image.shape[:2] == (height, width):
        return image
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
_METHODS = (*_KERNELS, "area", "nearest")


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


def _size(size) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list | tuple) else ()
    if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise UserError(f"size={size!r} must be a positive whole number of pixels, or [height, width].")
    return pair


def _check_method(method) -> None:
    if method not in _METHODS:
        raise UserError(
            f"method={method!r} is not a way to resize.{nearest(str(method), _METHODS)} "
            f"Known: {', '.join(_METHODS)}."
        )


# ---- Cropping and flipping


@register("inception_crop")
@on_key("image")
def inception_crop(
    size=None, area_min=5, area_max=100, ratio_min=0.75, ratio_max=1.33, method="bilinear", antialias=False
):
    """Crops a random part of random area and aspect ratio, then resizes it to a square. See `sample_crop`.

    Args:
        size: the side of the result, or `[height, width]`; the crop is not resized unless told.
        area_min: the smallest part of the image, in percent of its area.
        area_max: the largest part of the image, in percent of its area.
        ratio_min: the smallest ratio of width to height.
        ratio_max: the largest ratio of width to height.
        method: see `resize`.
        antialias: see `resize`.
    """
    sample = _crop_sampler(area_min, area_max, ratio_min, ratio_max)
    finish = _resizer(size, method, antialias)

    def apply(image, rng):
        y, x, height, width = sample(image.shape[0], image.shape[1], rng)
        return finish(image[y : y + height, x : x + width])

    return apply


@register("decode_jpeg_and_inception_crop")
@on_key("image")
def decode_jpeg_and_inception_crop(
    size=None,
    area_min=5,
    area_max=100,
    ratio_min=0.75,
    ratio_max=1.33,
    method="bilinear",
    antialias=False,
    precise=False,
    scaled=False,
):
    """Decodes and crops in one: `decode(precise=False)|inception_crop(...)`, pixel by pixel.

    Images that are not JPEG files, or are decoded already, are taken as well. Arguments as in
    `inception_crop`, and:

    Args:
        precise: see `decode`. Here the fast DCT is the default, as it is in big_vision.
        scaled: whether to decode a JPEG at a half, a quarter or an eighth of its size where the crop would
            still have to shrink to `size`. Quicker for big photos (2.4 times at 2000x1500, nothing at
            500x375), but smoother than the recipe's crops, which are resized without antialiasing.
    """
    sample = _crop_sampler(area_min, area_max, ratio_min, ratio_max)
    finish = _resizer(size, method, antialias)
    if scaled and size is None:
        raise UserError("scaled=True needs a size: how small the crop may be decoded.")
    target = _size(size) if scaled else None

    def apply(data, rng):
        full = _jpeg_size(data) if target else None
        if full:
            return finish(_decode_scaled_crop(data, full, sample, target, precise, rng))
        image = decode_image(data, 3, precise)
        y, x, height, width = sample(image.shape[0], image.shape[1], rng)
        return finish(image[y : y + height, x : x + width])

    return apply


def _jpeg_size(data) -> tuple[int, int] | None:
    """Returns height and width of a JPEG; None for what is not a JPEG that simplejpeg reads."""
    if not isinstance(data, bytes) or not data.startswith(_JPEG_SIGNATURE):
        return None
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return int(height), int(width)


def _decode_scaled_crop(data, full, sample, target, precise, rng):
    """Draws the crop at full size, then decodes at the smallest scale at which it is not below `target`."""
    crop = np.reshape(sample(*full, rng), (2, 2))
    scale = min(1.0, max(target / crop[1]))
    least = [math.ceil(n * scale) for n in full]
    image = _decode_jpeg(data, 3, precise, min_height=least[0], min_width=least[1], min_factor=2)
    # Corners, not sizes, are rounded, so that the crop ends where the image ends.
    corners = np.cumsum(crop, axis=0) * np.divide(image.shape[:2], full)
    (top, left), (bottom, right) = np.rint(corners).astype(int).tolist()
    return image[top : max(bottom, top + 1), left : max(right, left + 1)]


def _resizer(size, method, antialias):
    _check_method(method)
    if size is None:
        return lambda image: image
    height, width = _size(size)
    return lambda image: resize_image(image, height, width, method, antialias)


def _crop_sampler(area_min, area_max, ratio_min, ratio_max):
    if not 0 < area_min <= area_max <= 100:
        raise UserError(
            f"area_min={area_min!r} and area_max={area_max!r} must be percentages with "
            "0 < area_min <= area_max <= 100."
        )
    if not 0 < ratio_min <= ratio_max:
        raise UserError(f"It must be 0 < ratio_min={ratio_min!r} <= ratio_max={ratio_max!r}.")
    areas, ratios = (area_min / 100, area_max / 100), (ratio_min, ratio_max)
    return lambda height, width, rng: sample_crop(height, width, rng, areas, ratios)


def sample_crop(
    height: int,
    width: int,
    rng: np.random.Generator,
    areas: tuple[float, float] = (0.05, 1.0),
    ratios: tuple[float, float] = (0.75, 1.33),
    attempts: int = 100,
) -> tuple[int, int, int, int]:
    """Draws a crop as TensorFlow's `sample_distorted_bounding_box` does without boxes (Inception's crop).

    The aspect ratio (width over height) is uniform; given it, the height is uniform over the whole numbers
    that keep the area in range and the crop in the image. So small crops come more often than in
    torchvision's `RandomResizedCrop`, which draws area uniformly and ratio log-uniformly. After `attempts`
    failures the crop is the whole image. Like TensorFlow's, the offset never takes its last possible value,
    and real numbers are float32.

    Returns:
        top, left, height, width, in pixels.
    """
    low, high = np.float32(ratios[0]), np.float32(ratios[1])
    area_low = np.float32(areas[0]) * np.float32(width) * np.float32(height)
    area_high = np.float32(areas[1]) * np.float32(width) * np.float32(height)
    for _ in range(attempts):
        ratio = rng.random(dtype=np.float32) * (high - low) + low
        size = _crop_size(height, width, ratio, area_low, area_high, rng)
        if size is not None:
            h, w = size
            top = int(rng.integers(height - h)) if h < height else 0
            left = int(rng.integers(width - w)) if w < width else 0
            return top, left, h, w
    return 0, 0, height, width


def _crop_size(height, width, ratio, area_low, area_high, rng) -> tuple[int, int] | None:
    """Draws the height of a crop of the given ratio; None where rounding takes its area out of range."""
    h_low = round(float(np.sqrt(area_low / ratio)))
    h_high = round(float(np.sqrt(area_high / ratio)))
    if _times(h_high, ratio) > width:
        h_high = int((width + 0.5 - 1e-7) / float(ratio))
        h_high -= _times(h_high, ratio) > width
    h_high = min(h_high, height)
    h = min(h_low, h_high)
    if h < h_high:
        h += int(rng.integers(h_high - h + 1))
    w = _times(h, ratio)
    if w * h < area_low:
        h += 1
        w = _times(h, ratio)
    if w * h > area_high:
        h -= 1
        w = _times(h, ratio)
    fits = area_low <= w * h <= area_high and 0 < w <= width and 0 < h <= height
    return (h, w) if fits else None


def _times(h: int, ratio: np.float32) -> int:
    return round(float(np.float32(h) * ratio))


@register("central_crop")
@on_key("image")
def central_crop(crop_size=None):
    """Crops `crop_size` (a side, or `[height, width]`) from the middle; the largest square unless told."""
    wanted = None if crop_size is None else _size(crop_size)

    def apply(image, rng):
        height, width = wanted or (min(image.shape[:2]),) * 2
        _check_fits(image, height, width, "central_crop")
        y, x = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        return image[y : y + height, x : x + width]

    return apply


@register("random_crop")
@on_key("image")
def random_crop(crop_size):
    """Crops `crop_size` (a side, or `[height, width]`) from a place drawn uniformly."""
    height, width = _size(crop_size)

    def apply(image, rng):
        _check_fits(image, height, width, "random_crop")
        y = int(rng.integers(image.shape[0] - height + 1))
        x = int(rng.integers(image.shape[1] - width + 1))
        return image[y : y + height, x : x + width]

    return apply


def _check_fits(image, height, width, op) -> None:
    if image.shape[0] < height or image.shape[1] < width:
        raise UserError(
            f"{op} wants {height}x{width} pixels (height x width), but the image has "
            f"{image.shape[0]}x{image.shape[1]}. Put resize or resize_small before it."
        )


@register("flip_lr")
@on_key("image")
def flip_lr():
    """Mirrors the image left to right with probability 0.5."""

    def apply(image, rng):
        if rng.random() < 0.5:
            return image
        if image.dtype == np.uint8:  # 30 times faster than numpy; OpenCV drops an axis of one channel
            return cv2.flip(image, 1).reshape(image.shape)
        return np.ascontiguousarray(image[:, ::-1])

    return apply
