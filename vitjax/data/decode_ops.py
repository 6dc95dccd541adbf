"""Decoding image files to uint8 `[H, W, C]`, RGB."""

from typing import Any

import cv2
import numpy as np
import simplejpeg

from vitjax.data.pp import on_key, register
from vitjax.errors import UserError

# One example is the work of one core: processes are what run in parallel, and OpenCV's own threads would only
# get in their way.
cv2.setNumThreads(1)

JPEG_SIGNATURE = b"\xff\xd8\xff"


@register("decode", deterministic=True)
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
    if data.startswith(JPEG_SIGNATURE):
        return decode_jpeg(data, channels, precise)
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


def decode_jpeg(data: bytes, channels: int, precise: bool, **options) -> np.ndarray:
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
