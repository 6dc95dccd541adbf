"""Random erasing (arXiv 1708.04896) on the device, with timm's distribution."""

import math

import numpy as np

from vitjax.data.device_ops import floats_of, on_any_mesh
from vitjax.data.pp import register
from vitjax.data.resize_ops import check_choice
from vitjax.errors import UserError

_ATTEMPTS = 10
_MODES = ("pixel", "rand", "const")


@register("random_erasing", device=True, whole_batch=True)
def random_erasing(p=0.25, mode="pixel", area=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3), count=1, key="image"):
    """Replaces a random box in some of the images.

    The area is uniform, the logarithm of the ratio of height to width as well, and so is the place. A box has
    to be lower and narrower than the image; after ten failures there is none. Put it after the values are
    standardized (`vgg_value_range`): the noise has mean 0 and deviation 1.

    Args:
        p: how probably an image is erased at all.
        mode: "pixel" fills with normal noise of its own for each value, "rand" with one random normal color a
            box, "const" with 0.
        area: the least and greatest part of the image, that all boxes of an image share.
        ratio: the least and greatest ratio of height to width.
        count: how many boxes; they may overlap.
        key: the images, floats `[B, H, W, C]`.
    """
    check_choice("mode", mode, _MODES)
    for name, (low, high), limit in (
        ("area", _pair("area", area), 1),
        ("ratio", _pair("ratio", ratio), math.inf),
    ):
        if not 0 < low <= high <= limit:
            raise UserError(f"{name}={(low, high)!r} must be two positive numbers, least and greatest.")
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:
        raise UserError(f"p={p!r} must be a probability, 0 to 1.")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UserError(f"count={count!r} must be a whole number of boxes, 1 or more.")

    def op(batch, rng):
        import jax

        image = floats_of(batch, key, "random_erasing")
        coin, *boxes = jax.random.split(rng, 1 + count)
        chosen = jax.random.bernoulli(coin, float(p), (len(image),))
        for box in boxes:
            image = _erase(image, chosen, box)
        return {**batch, key: image}

    def _erase(image, chosen, rng):
        import jax
        import jax.numpy as jnp

        draw, noise = jax.random.split(rng)
        uniform = jax.random.uniform(draw, (len(image), 2 * _ATTEMPTS + 2))

        def fill(image):
            top, left, height, width = boxes(uniform, image.shape[1:3], np.divide(area, count), ratio)
            inside = within(top, top + height * chosen, image.shape[1])[:, :, None]
            inside &= within(left, left + width, image.shape[2])[:, None, :]
            shape = {"pixel": image.shape, "rand": (len(image), 1, 1, image.shape[3]), "const": ()}[mode]
            filled = jax.random.normal(noise, shape, image.dtype) if shape else jnp.zeros((), image.dtype)
            return jnp.where(inside[..., None], filled, image)

        return on_any_mesh(fill, image)(image)

    return op


def _pair(name, value):
    if (
        not isinstance(value, list | tuple)
        or len(value) != 2
        or not all(isinstance(n, int | float) for n in value)
    ):
        raise UserError(f"{name}={value!r} must be two numbers, least and greatest.")
    return value


def boxes(uniform, size: tuple[int, int], area, ratio) -> tuple:
    """Makes boxes of numbers drawn uniformly from [0, 1).

    Args:
        uniform: `[B, 2 * attempts + 2]`: area and ratio of each attempt, then top and left of what fits.
        size: height and width of the images.
        area: least and greatest part of the image.
        ratio: least and greatest ratio of height to width.

    Returns:
        top, left, height, width, each int32 `[B]`; height and width are 0 where no attempt fits.
    """
    import jax.numpy as jnp

    height, width = size
    attempts = uniform[:, :-2].reshape(len(uniform), -1, 2)
    pixels = (area[0] + (area[1] - area[0]) * attempts[..., 0]) * (height * width)
    aspect = jnp.exp(math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * attempts[..., 1])
    h, w = jnp.round(jnp.sqrt(pixels * aspect)), jnp.round(jnp.sqrt(pixels / aspect))
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
