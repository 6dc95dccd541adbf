"""Random erasing (arXiv 1708.04896) on the device, with timm's distribution or the paper's own."""

import math

import numpy as np

from vitjax.data.device_ops import floats_of, on_any_mesh
from vitjax.data.pp import register
from vitjax.data.resize_ops import check_choice
from vitjax.errors import UserError

_MODES = ("pixel", "rand", "const")
_ASPECTS = ("log", "uniform")


@register("random_erasing", device=True, whole_batch=True)
def random_erasing(
    p=0.25,
    mode="pixel",
    area=(0.02, 1 / 3),
    ratio=(0.3, 1 / 0.3),
    count=1,
    aspect="log",
    tries=10,
    key="image",
):
    """Replaces a random box in some of the images.

    The area is uniform, and so is the place. A box has to be lower and narrower than the image; after `tries`
    failures there is none. Put it after the values are standardized (`vgg_value_range`): the noise has mean 0
    and deviation 1.

    The paper's code, and "Vision Transformer for Small-Size Datasets" with it, has `mode=(r, g, b)`,
    `area=(0.02, 0.4)`, `aspect="uniform"` and `tries=100`. There the color is the mean of the data set on the
    scale 0 to 1, although the values are standardized already, so that the boxes are not of the mean color.

    Args:
        p: how probably an image is erased at all.
        mode: "pixel" fills with normal noise of its own for each value, "rand" with one random normal color a
            box, "const" with 0, and a color, one number a channel, with that.
        area: the least and greatest part of the image, that all boxes of an image share.
        ratio: the least and greatest ratio of height to width.
        count: how many boxes; they may overlap.
        aspect: whether the "log" of the ratio is uniform, as in timm, or the ratio itself ("uniform").
        tries: how many boxes are drawn before there is none.
        key: the images, floats `[B, H, W, C]`.
    """
    color = _color(mode)
    if color is None:
        check_choice("mode", mode, _MODES)
    check_choice("aspect", aspect, _ASPECTS)
    for name, (low, high), limit in (
        ("area", _pair("area", area), 1),
        ("ratio", _pair("ratio", ratio), math.inf),
    ):
        if not 0 < low <= high <= limit:
            raise UserError(f"{name}={(low, high)!r} must be two positive numbers, least and greatest.")
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:
        raise UserError(f"p={p!r} must be a probability, 0 to 1.")
    for name, value in (("count", count), ("tries", tries)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name}={value!r} must be a whole number of boxes, 1 or more.")

    def op(batch, rng):
        import jax

        image = floats_of(batch, key, "random_erasing")
        if color is not None and len(color) != image.shape[-1]:
            raise UserError(
                f"random_erasing(mode={mode!r}) fills {len(color)} channels, but {key!r} has "
                f"{image.shape[-1]}."
            )
        coin, *boxes = jax.random.split(rng, 1 + count)
        chosen = jax.random.bernoulli(coin, float(p), (len(image),))
        for box in boxes:
            image = _erase(image, chosen, box)
        return {**batch, key: image}

    def _erase(image, chosen, rng):
        import jax
        import jax.numpy as jnp

        draw, noise = jax.random.split(rng)
        uniform = jax.random.uniform(draw, (len(image), 2 * tries + 2))

        def fill(image):
            top, left, height, width = boxes(uniform, image.shape[1:3], np.divide(area, count), ratio, aspect)
            inside = within(top, top + height * chosen, image.shape[1])[:, :, None]
            inside &= within(left, left + width, image.shape[2])[:, None, :]
            shape = {"pixel": image.shape, "rand": (len(image), 1, 1, image.shape[3])}.get(mode)
            constant = jnp.asarray(0 if color is None else color, image.dtype)
            filled = jax.random.normal(noise, shape, image.dtype) if shape else constant
            return jnp.where(inside[..., None], filled, image)

        return on_any_mesh(fill, image)(image)

    return op


def _color(mode) -> tuple[float, ...] | None:
    """The color that `mode` is, if it is one."""
    if not isinstance(mode, list | tuple):
        return None
    if not mode or not all(isinstance(n, int | float) and math.isfinite(n) for n in mode):
        raise UserError(f"mode={mode!r} must be one number a channel, or one of {', '.join(_MODES)}.")
    return tuple(mode)


def _pair(name, value):
    if (
        not isinstance(value, list | tuple)
        or len(value) != 2
        or not all(isinstance(n, int | float) for n in value)
    ):
        raise UserError(f"{name}={value!r} must be two numbers, least and greatest.")
    return value


def boxes(uniform, size: tuple[int, int], area, ratio, aspect="log") -> tuple:
    """Makes boxes of numbers drawn uniformly from [0, 1).

    Args:
        uniform: `[B, 2 * attempts + 2]`: area and ratio of each attempt, then top and left of what fits.
        size: height and width of the images.
        area: least and greatest part of the image.
        ratio: least and greatest ratio of height to width.
        aspect: what is uniform, the "log" of the ratio or the ratio ("uniform").

    Returns:
        top, left, height, width, each int32 `[B]`; height and width are 0 where no attempt fits.
    """
    import jax.numpy as jnp

    height, width = size
    attempts = uniform[:, :-2].reshape(len(uniform), -1, 2)
    pixels = (area[0] + (area[1] - area[0]) * attempts[..., 0]) * (height * width)
    if aspect == "log":
        ratios = jnp.exp(math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * attempts[..., 1])
    else:
        ratios = ratio[0] + (ratio[1] - ratio[0]) * attempts[..., 1]
    h, w = jnp.round(jnp.sqrt(pixels * ratios)), jnp.round(jnp.sqrt(pixels / ratios))
    fits = (h < height) & (w < width)
    first = fits & (fits.cumsum(axis=1) == 1)
    h, w = (h * first).sum(axis=1), (w * first).sum(axis=1)
    top = jnp.minimum(jnp.floor(uniform[:, -2] * (height - h + 1)), height - h)
    left = jnp.minimum(jnp.floor(uniform[:, -1] * (width - w + 1)), width - w)
    return tuple(n.astype(jnp.int32) for n in (top, left, h, w))


def within(start, end, size: int):
    """Says which of `size` pixels lie in `[start, end)`: bool `[B, size]` for `start` and `end` `[B]`."""
    pixel = np.arange(size)
    return (pixel >= start[:, None]) & (pixel < end[:, None])
