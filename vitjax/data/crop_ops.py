"""Cropping and flipping images `[H, W, C]`; random crops as TensorFlow and as timm draw them."""

import math

import cv2
import numpy as np
import simplejpeg

from vitjax.data.decode_ops import JPEG_SIGNATURE, decode_image, decode_jpeg
from vitjax.data.pp import on_key, register
from vitjax.data.resize_ops import check_choice, check_method, parse_size, resize_image
from vitjax.errors import UserError


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
    target = parse_size(size) if scaled else None

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
    if not isinstance(data, bytes) or not data.startswith(JPEG_SIGNATURE):
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
    image = decode_jpeg(data, 3, precise, min_height=least[0], min_width=least[1], min_factor=2)
    # Corners, not sizes, are rounded, so that the crop ends where the image ends.
    corners = np.cumsum(crop, axis=0) * np.divide(image.shape[:2], full)
    (top, left), (bottom, right) = np.rint(corners).astype(int).tolist()
    return image[top : max(bottom, top + 1), left : max(right, left + 1)]


def _resizer(size, method, antialias):
    check_method(method)
    if size is None:
        return lambda image: image
    height, width = parse_size(size)
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


@register("random_resized_crop")
@on_key("image")
def random_resized_crop(
    size=None, area=(0.08, 1.0), ratio=(3 / 4, 4 / 3), method="pillow_bicubic", antialias=False
):
    """Crops a random part as torchvision and timm do, then resizes it. See `sample_resized_crop`.

    Args:
        size: the side of the result, or `[height, width]`; the crop is not resized unless told.
        area: the smallest and the largest part of the image, of its area.
        ratio: the smallest and the largest ratio of width to height.
        method: see `resize`. The default is what DeiT was trained with.
        antialias: see `resize`.
    """
    for name, limits, largest in (("area", area, 1), ("ratio", ratio, math.inf)):
        pair = isinstance(limits, list | tuple) and len(limits) == 2
        if not pair or not 0 < limits[0] <= limits[1] <= largest:
            raise UserError(f"{name}={limits!r} must be two positive numbers, the smallest and the largest.")
    finish = _resizer(size, method, antialias)

    def apply(image, rng):
        y, x, height, width = sample_resized_crop(image.shape[0], image.shape[1], rng, area, ratio)
        return finish(image[y : y + height, x : x + width])

    return apply


def sample_resized_crop(
    height: int,
    width: int,
    rng: np.random.Generator,
    areas: tuple[float, float] = (0.08, 1.0),
    ratios: tuple[float, float] = (3 / 4, 4 / 3),
    attempts: int = 10,
) -> tuple[int, int, int, int]:
    """Draws a crop as torchvision's `RandomResizedCrop` and timm's do.

    The area is uniform, the logarithm of the aspect ratio (width over height) as well, and so is the place.
    After `attempts` crops that do not fit into the image it is the largest central one of a ratio in range.

    Returns:
        top, left, height, width, in pixels.
    """
    for _ in range(attempts):
        area = rng.uniform(*areas) * (height * width)
        ratio = math.exp(rng.uniform(math.log(ratios[0]), math.log(ratios[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w = min(width, max(1, round(height * ratios[1])))
    h = min(height, max(1, round(width / ratios[0])))
    return (height - h) // 2, (width - w) // 2, h, w


@register("central_crop", deterministic=True)
@on_key("image")
def central_crop(crop_size=None, rounding="down"):
    """Crops `crop_size` (a side, or `[height, width]`) from the middle; the largest square unless told.

    Args:
        crop_size: the size of the result, in pixels.
        rounding: where an odd number of pixels is cut off, whether the smaller half is always before ("down",
            as in big_vision), or the even one of both ("even"), as in torchvision's `CenterCrop`.
    """
    wanted = None if crop_size is None else parse_size(crop_size)
    check_choice("rounding", rounding, ("down", "even"))
    half = {"down": lambda n: n // 2, "even": lambda n: round(n / 2)}[rounding]

    def apply(image, rng):
        height, width = wanted or (min(image.shape[:2]),) * 2
        check_fits(image, height, width, "central_crop")
        y, x = half(image.shape[0] - height), half(image.shape[1] - width)
        return image[y : y + height, x : x + width]

    return apply


@register("random_crop")
@on_key("image")
def random_crop(crop_size, padding=0):
    """Crops `crop_size` (a side, or `[height, width]`) from a place drawn uniformly.

    Args:
        crop_size: the size of the result, in pixels.
        padding: how many pixels of 0 are put on each side first; 4 for CIFAR's 32 pixels.
    """
    height, width = parse_size(crop_size)
    if isinstance(padding, bool) or not isinstance(padding, int) or padding < 0:
        raise UserError(f"padding={padding!r} must be a whole number of pixels, 0 or more.")

    def apply(image, rng):
        image = np.pad(image, [(padding,) * 2] * 2 + [(0, 0)]) if padding else image
        check_fits(image, height, width, "random_crop")
        y = int(rng.integers(image.shape[0] - height + 1))
        x = int(rng.integers(image.shape[1] - width + 1))
        return image[y : y + height, x : x + width]

    return apply


def check_fits(image, height, width, op) -> None:
    """Raises UserError unless the image has at least the size of the crop that `op` takes."""
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
