"""Convolution by groups of channels."""

import functools
from typing import cast

import jax
import jax.numpy as jnp
from jax import lax

Pads = tuple[tuple[int, int], tuple[int, int]]  # of height and width: zeros before and after

# Up to so many channels a group is too small for a convolution of its own: 400MF has 531 groups of 8.
_NARROW = 16


def grouped_convolve(x, kernel, stride: int, pads: Pads, groups: int) -> jax.Array:
    """Convolves `[B, H, W, C]` with `[k, k, C / groups, D]`: `[B, h, w, D]` in the dtype of `x`.

    On a CPU, where XLA has no fast convolution by groups (over RegNetY's shapes its gradient takes 10 to
    200 times as long, jax 0.10, 2 cores), each group is a convolution of its own, or, where groups are narrow
    and many, all of them are one batch of matrix products, which also compiles in a tenth of the time.
    Elsewhere it is XLA's own.
    """
    return cast(jax.Array, _grouped(x, kernel, stride, pads, groups))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _grouped(x, kernel, stride, pads, groups):
    by_xla, on_cpu = _ways(x, stride, pads, groups)
    # Decided when the program is compiled, so that what is traced, and counted, is the same everywhere.
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=by_xla)


def _forward(x, kernel, stride, pads, groups):
    return _grouped(x, kernel, stride, pads, groups), (x, kernel)


def _backward(stride, pads, groups, saved, grad):
    by_xla, on_cpu = _ways(saved[0], stride, pads, groups)
    gradient = lambda way: lambda x, kernel, grad: jax.vjp(way, x, kernel)[1](grad)
    return lax.platform_dependent(*saved, grad, cpu=gradient(on_cpu), default=gradient(by_xla))


_grouped.defvjp(_forward, _backward)


def _ways(x, stride, pads, groups):
    """XLA's own convolution by groups, and what is faster on a CPU."""
    narrow = x.shape[-1] // groups <= _NARROW
    own = functools.partial(_convolve, stride=stride, pads=pads)
    by_xla = functools.partial(own, groups=groups)
    on_cpu = functools.partial(_products, stride=stride, pads=pads, groups=groups)
    return by_xla, on_cpu if narrow else functools.partial(_one_by_one, convolve=own, groups=groups)


def _convolve(x, kernel, stride, pads, groups=1):
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=layout, feature_group_count=groups
    )


def _one_by_one(x, kernel, convolve, groups):
    parts = zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True)
    return jnp.concatenate([convolve(*part) for part in parts], -1)


def _products(x, kernel, stride, pads, groups):
    """For each group the matrix of all k * k neighbourhoods, times its kernel as a matrix."""
    size, _, channels, features = kernel.shape
    batch, *places = x.shape[:-1]
    height, width = ((n + sum(pad) - size) // stride + 1 for n, pad in zip(places, pads, strict=True))
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    taps = [
        padded[:, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride]
        for i in range(size)
        for j in range(size)
    ]
    taps = jnp.stack([tap.reshape(-1, groups, channels) for tap in taps], axis=2)
    kernel = kernel.reshape(size * size, channels, groups, features // groups)
    y = jnp.einsum("ngtc,tcgf->ngf", taps, kernel, preferred_element_type=x.dtype)
    return y.reshape(batch, height, width, features)
