"""Ops that may run on the device: value ranges, one-hot labels, the choice of keys, mixup.

Each takes a batch (arrays with the example axis first) of numpy or of jax arrays. None imports jax before it
is traced, so that processes which only load data never do.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from vitjax.data.pp import KeyOp, on_key, register, value_of
from vitjax.data.value_scale import Rescaling, Scale
from vitjax.errors import UserError


@register("value_range", device=True, deterministic=True)
@on_key("image")
def value_range(vmin=-1, vmax=1, in_min=0, in_max=255.0, clip_values=False):
    """Maps `[in_min, in_max]` affinely to `[vmin, vmax]`, in float32.

    Args:
        vmin: output minimum.
        vmax: output maximum.
        in_min: input minimum, a number or one a channel.
        in_max: input maximum, a number or one a channel.
        clip_values: whether to clip the result to `[vmin, vmax]`.
    """
    low, high = np.asarray(in_min, np.float32), np.asarray(in_max, np.float32)
    if (high == low).any():
        raise UserError(f"in_min={in_min!r} and in_max={in_max!r} must differ.")
    spread = vmax - vmin

    def apply(image, rng):
        image = vmin + (image.astype(np.float32) - low) / (high - low) * spread
        return image.clip(vmin, vmax) if clip_values else image

    factor = spread / (np.float64(high) - low)
    # Pixels of 0..255 are clipped only where they reach beyond [in_min, in_max].
    within = (np.minimum(low, high) <= 0).all() and (np.maximum(low, high) >= 255).all() and vmin <= vmax
    return Rescaling(apply, Scale(factor, vmin - low * factor) if within or not clip_values else None)


def _standardize(mean, std):
    mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    return Rescaling(
        lambda image, rng: (image.astype(np.float32) - mean) / std,
        Scale(1 / np.float64(std), -mean / np.float64(std)),
    )


@register("vgg_value_range", device=True, deterministic=True)
@on_key("image")
def vgg_value_range(
    mean=(0.485 * 255, 0.456 * 255, 0.406 * 255), std=(0.229 * 255, 0.224 * 255, 0.225 * 255)
):
    """Subtracts the mean of ImageNet and divides by its deviation, by channel, on the scale 0..255."""
    return _standardize(mean, std)


@register("clip_value_range", device=True, deterministic=True)
@on_key("image")
def clip_value_range():
    """Like `vgg_value_range`, with the constants that CLIP models were trained with."""
    mean = (0.48145466 * 255, 0.4578275 * 255, 0.40821073 * 255)
    return _standardize(mean, (0.26862954 * 255, 0.26130258 * 255, 0.27577711 * 255))


@register("onehot", device=True, deterministic=True)
def onehot(depth, key="labels", key_result=None, multi=True, on=1.0, off=0.0):
    """One-hot encodes integer labels, in float32.

    A label outside of `[0, depth)`, such as -1, gives a row of `off`.

    Args:
        depth: number of classes, the length of the vector.
        key: where the labels are, `[B]` or `[B, N]`.
        key_result: where the result goes, `[B, depth]`; `key` unless told.
        multi: whether several labels of one example become one multi-hot vector (`[B, depth]`); otherwise
            they stay apart (`[B, N, depth]`).
        on: value at the label.
        off: value elsewhere. With label smoothing s over K classes: `on=1 - s + s / K, off=s / K`.
    """
    if not isinstance(depth, int) or depth < 1:
        raise UserError(f"depth={depth!r} must be a positive whole number, the number of classes.")

    spread, least = np.float32(on - off), np.float32(off)

    def op(batch, rng):
        labels = value_of(batch, key)
        hot = labels[..., None] == np.arange(depth)
        if labels.ndim > 1 and multi:
            hot = hot.any(axis=1)
        return {**batch, key_result or key: hot.astype(np.float32) * spread + least}

    return op


@register("keep", device=True, deterministic=True)
def keep(*keys):
    """Keeps only the given keys, and those that begin with an underscore, which are the pipeline's."""

    def op(batch, rng):
        for key in keys:
            if not key.startswith("_"):
                value_of(batch, key)
        return {key: value for key, value in batch.items() if key in keys or key.startswith("_")}

    return op


@register("drop", device=True, deterministic=True)
def drop(*keys):
    """Drops the given keys. Keys that begin with an underscore, which are the pipeline's, stay."""
    return lambda batch, rng: {k: v for k, v in batch.items() if k not in keys or k.startswith("_")}


@register("copy", device=True, deterministic=True)
def copy(inkey, outkey):
    """Makes the value of `inkey` the value of `outkey` as well."""
    return KeyOp(lambda value, rng: value, inkey, outkey)


@register("token_weights", device=True, whole_batch=True, deterministic=True)
def token_weights(segments="targets_segments", outkey="weights"):
    """Weights of tokens, float32 `[B, L]`: 1 over the share of real tokens in the batch, 0 for padding.

    The mean of `weights * loss` over all places, padding and all, then is the mean loss of a real token, and
    the mean of such means over equal slices of the batch is, too, however unequal their numbers of tokens.

    Args:
        segments: which tokens are real: where this is above 0.
        outkey: where the weights go.
    """

    def op(batch, rng):
        import jax.numpy as jnp

        real = (value_of(batch, segments) > 0).astype(np.float32)
        return {**batch, outkey: real / jnp.maximum(jnp.mean(real), 1 / real.size)}

    return op


@register("mixup", device=True, whole_batch=True)
def mixup(p, keys=("image", "labels")):
    """Mixup (arXiv 1710.09412) as in AugReg: one coefficient a batch, each example with its predecessor.

    With a ~ Beta(p, p) and a := max(a, 1 - a), each of `keys` becomes `a * x + (1 - a) * roll(x, 1)`. In
    big_vision the roll wraps around within each device's share of the batch. Here it wraps around the global
    batch, so that the result does not depend on the number of devices.

    Args:
        p: both parameters of the Beta distribution; 0 means no mixup.
        keys: what is mixed, floats. So `value_range` and `onehot` come before.
    """
    if isinstance(p, bool) or not isinstance(p, int | float) or p < 0:
        raise UserError(f"p={p!r} must be a number, 0 or more: the parameter of Beta(p, p).")
    keys = (keys,) if isinstance(keys, str) else tuple(keys)
    if p == 0:
        return lambda batch, rng: batch

    def op(batch, rng):
        import jax
        import jax.numpy as jnp

        a = jax.random.beta(rng, p, p)
        a = jnp.maximum(a, 1 - a)
        mixed = {}
        for key in keys:
            x = floats_of(batch, key, f"mixup({p})")
            rolled = on_any_mesh(lambda x: jnp.roll(x, 1, axis=0), x)
            mixed[key] = a.astype(x.dtype) * x + (1 - a).astype(x.dtype) * rolled(x)
        return {**batch, **mixed}

    return op


def floats_of(batch, key: str, op: str) -> Any:
    """Returns `batch[key]`, or says what has to come before an op that mixes floats."""
    import jax.numpy as jnp

    x = value_of(batch, key)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise UserError(
            f"{op} works on floats, but {key!r} is {x.dtype}. Put value_range (for images) and onehot (for "
            "labels) before it."
        )
    return x


def on_any_mesh(function: Callable, like) -> Callable:
    """Lets the compiler choose how to divide what `function` does; its result is divided as `like` is.

    Without it, jax neither slices nor reverses an axis that an explicit mesh divides.
    """
    import jax

    sharding = jax.typeof(like).sharding
    if jax.sharding.AxisType.Explicit not in sharding.mesh.axis_types:
        return function
    return jax.sharding.auto_axes(function, out_sharding=sharding)
