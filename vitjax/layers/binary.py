"""Quantisers to one bit with their published gradients, and the layers made of them.

Every quantiser returns plain numbers, -1, 0, 1 or 0, 1, and its scale beside them, so that a product is
`binary_matmul(x, signs) * scale`: integers, times one number an output. Gradients are those of the scaled
numbers.

The sign of 0, and of -0, is 0, as in the published code: a third value, which a bit cannot hold.

"BinaryViT" (arXiv 2306.16678), Phuoc-Hoan-Le/BinaryViT at ca16a43; "ReActNet" (arXiv 2003.03488).
"""

import functools
from collections.abc import Sequence
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vitjax.errors import UserError, nearest
from vitjax.kernels import Padding, binary_conv, binary_matmul
from vitjax.layers.dense import affine
from vitjax.layers.initialisation import Initializer


def _triangle(x, progress):
    """Derivative of the piecewise polynomial of "Bi-Real Net" (arXiv 1808.00278)."""
    del progress
    return jnp.maximum(2 - 2 * jnp.abs(x), 0)


def _clip(x, progress):
    """Straight through where `|x| <= 1`: "Binarized Neural Networks" (arXiv 1602.02830)."""
    del progress
    return (jnp.abs(x) <= 1).astype(x.dtype)


def _tanh(x, progress):
    """Derivative of k tanh(t x), t from 0.1 to 10 and k = max(1/t, 1): "IR-Net" (arXiv 1909.10788)."""
    t = 10.0 ** (2 * progress - 1)
    return jnp.maximum(t, 1) * (1 - jnp.square(jnp.tanh(t * x)))


def _reste(x, progress):
    """Derivative of sign(x) |x|^(1/o), o from 1 to 3 as a cosine rises: "ReSTE" (arXiv 2308.06689).

    It is 0 where |x| > 1.5, and within 0.1 of 0, where it would grow without bound, the slope of the chord.
    """
    o = 1 + 2 * (1 - jnp.cos(progress * jnp.pi / 2))
    size = jnp.abs(x)
    steep = 0.1 ** (1 / o - 1)
    slope = jnp.maximum(size, 0.1) ** (1 / o - 1) / o
    return jnp.where(size > 1.5, 0, jnp.where(size <= 0.1, steep, slope)).astype(x.dtype)


# By what the gradient of a sign is multiplied. The last two are annealed: with `progress` from 0 to 1 they
# come closer to the sign itself.
ESTIMATORS = {"triangle": _triangle, "clip": _clip, "tanh": _tanh, "reste": _reste}


def binary_sign(x, estimator: str = "triangle", progress=0.0):
    """Returns -1, 0 or 1 for each number of `x`; the gradient is multiplied by ESTIMATORS[estimator].

    `progress`, a number or traced scalar in [0, 1], is the share of training that is done. It has no
    gradient.

    Raises:
      UserError: no such estimator.
    """
    if estimator not in ESTIMATORS:
        raise UserError(
            f"estimator={estimator!r} is none of {', '.join(map(repr, ESTIMATORS))}."
            f"{nearest(estimator, ESTIMATORS)}"
        )
    return _sign(x, jnp.asarray(progress, jnp.result_type(x)), estimator)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _sign(x, progress, estimator):
    return jnp.sign(x)


def _sign_forward(x, progress, estimator):
    return jnp.sign(x), (x, progress)


def _sign_backward(estimator, saved, grad):
    x, progress = saved
    return grad * ESTIMATORS[estimator](x, progress), jnp.zeros_like(progress)


_sign.defvjp(_sign_forward, _sign_backward)


def binarise_weights(kernel, centred: bool = True, axes: int | Sequence[int] | None = None):
    """Returns `(signs, scale)` of weights: `kernel`'s shape, and one number for each output.

    The mean over `axes`, by default all but the last, of `|kernel|` is the scale. Signs are those of the
    kernel, with `centred` those of the kernel minus its mean over `axes`; a constant column, centred, has
    signs of 0.

    Let `scale * signs` have the gradient G. The kernel's is G where the (centred) number lies in [-1, 1],
    ends included, and 0 elsewhere; with `centred`, the mean of that over `axes` is subtracted. The scale
    passes none.
    """
    axes = range(kernel.ndim - 1) if axes is None else (axes,) if isinstance(axes, int) else axes
    return cast(tuple[jax.Array, jax.Array], _weights(kernel, centred, tuple(axes)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _weights(kernel, centred, axes):
    return _weights_forward(kernel, centred, axes)[0]


def _weights_forward(kernel, centred, axes):
    scale = jnp.abs(kernel).mean(axes, keepdims=True)
    # Weights that are all 0 have signs of 0: any scale gives their product, and 1 gives their gradient.
    scale = jnp.where(scale == 0, 1, scale)
    rest = kernel - kernel.mean(axes, keepdims=True) if centred else kernel
    return (jnp.sign(rest), scale.squeeze(axes)), (jnp.abs(rest) <= 1, scale)


def _weights_backward(centred, axes, saved, grads):
    inside, scale = saved
    grad = jnp.where(inside, grads[0] / scale, 0)  # of signs; what multiplies them multiplies their gradient
    return (grad - grad.mean(axes, keepdims=True) if centred else grad,)


_weights.defvjp(_weights_forward, _weights_backward)


@jax.custom_vjp
def binarise_attention(probabilities, clip):
    """Returns `(on, clip)` of attention probabilities: 1 where p / clip > 1/2, else 0, and their scale.

    `clip` is one learned number. Let `on * clip` have the gradient G, and q be p / clip: the gradient of p
    is G where q lies in [0, 1], ends included. That of `clip` is the sum of G * (on - q) there, and of G
    where q > 1. (BiT, arXiv 2205.13016.)
    """
    return jnp.clip(jnp.round(probabilities / clip), 0, 1), clip


def _attention_forward(probabilities, clip):
    return binarise_attention(probabilities, clip), (probabilities, clip)


def _attention_backward(saved, grads):
    probabilities, clip = saved
    of_on, of_clip = grads
    ratio = probabilities / clip
    grad = jnp.where((ratio >= 0) & (ratio <= 1), of_on / clip, 0)
    return grad, of_clip - (grad * ratio).sum()  # of_clip is the sum of G * on already


binarise_attention.defvjp(_attention_forward, _attention_backward)


@jax.custom_vjp
def scaled_sign(x, scale):
    """Returns `(signs, scale)` of `x`, where `scale`, one number, is learned (BiT, arXiv 2205.13016).

    It is kept above 1e-5. Let `scale * signs` have the gradient G: the gradient of x is G where |x| <=
    scale, ends included, that of `scale` the sum of G * signs over the square root of how many numbers `x`
    has.
    """
    return jnp.sign(x), jnp.maximum(scale, 1e-5)


def _scaled_forward(x, scale):
    signs, scale = scaled_sign(x, scale)
    return (signs, scale), (x, scale)


def _scaled_backward(saved, grads):
    x, scale = saved
    of_signs, of_scale = grads
    return jnp.where(jnp.abs(x) <= scale, of_signs / scale, 0), of_scale / x.size**0.5


scaled_sign.defvjp(_scaled_forward, _scaled_backward)

PRECISIONS = ("binary", "w1a32", "w32a1", "float")  # w1: weights of one bit, a1: activations


def binarises(precision: str) -> tuple[bool, bool]:
    """Whether weights, and whether activations have one bit.

    Raises:
      UserError: no such precision.
    """
    if precision not in PRECISIONS:
        raise UserError(
            f"precision={precision!r} is none of {', '.join(map(repr, PRECISIONS))}."
            f"{nearest(precision, PRECISIONS)}"
        )
    return precision in ("binary", "w1a32"), precision in ("binary", "w32a1")


class BinaryDense(nn.Module):
    """A linear layer without a bias whose inputs and weights have one bit: `[..., D] -> [..., features]`.

    Inputs are shifted by the parameter `move` `[D]` before their sign is taken. `precision` says what is
    binary: weights (w1) and activations (a1), or one of them, or nothing; the shift is there in any case.
    """

    features: int
    precision: str = "binary"
    estimator: str = "triangle"
    centred: bool = True
    move: bool = True
    learned_scale: bool = False  # of the inputs' signs, `scaled_sign` instead of `estimator`
    kernel_init: Initializer = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's
    dtype: DTypeLike = jnp.float32  # of the product of real numbers

    @nn.compact
    def __call__(self, x, progress=0.0):
        """Maps `[..., D]`; `progress` is that of an annealed estimator."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        return _product(self, x, kernel, progress, affine, binary_matmul)


class BinaryConv(nn.Module):
    """A convolution without a bias, inputs and weights of one bit: `[B, H, W, C] -> [B, h, w, features]`.

    As `BinaryDense`; weights are not centred unless told. `padding` are zeros on every side, put around the
    signs.
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: Padding = 0
    precision: str = "binary"
    estimator: str = "triangle"
    centred: bool = False
    move: bool = True
    learned_scale: bool = False
    kernel_init: Initializer = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x, progress=0.0):
        """Convolves `x`; `progress` is that of an annealed estimator."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        real = functools.partial(_convolve, stride=self.stride, padding=self.padding)
        binary = functools.partial(binary_conv, stride=self.stride, padding=self.padding)
        return _product(self, x, kernel, progress, real, binary)


def _convolve(x, kernel, stride, padding):
    """The convolution of real numbers, with `padding` as of `binary_conv`."""
    pads = ((padding, padding),) * 2 if isinstance(padding, int) else padding
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel.astype(x.dtype), (stride,) * 2, pads, dimension_numbers=layout
    )


def _product(layer, x, kernel, progress, real, binary):
    """Multiplies `x` by `kernel`, each as `layer.precision` says, in `layer`'s module."""
    binary_weights, binary_inputs = binarises(layer.precision)
    if layer.move:
        x = x + layer.param("move", nn.initializers.zeros, (x.shape[-1],)).astype(x.dtype)
    input_scale = None
    if binary_inputs and layer.learned_scale:
        begin = layer.param("input_scale", nn.initializers.ones, ())
        x, input_scale = scaled_sign(x, begin)
    elif binary_inputs:
        x = binary_sign(x, layer.estimator, progress)
    multiply = binary if binary_weights and binary_inputs else real
    x = x.astype(layer.dtype)
    if binary_weights:
        signs, scale = binarise_weights(kernel, layer.centred)
        y = multiply(x, signs.astype(layer.dtype)) * scale
    else:
        y = multiply(x, kernel.astype(layer.dtype))
    return y if input_scale is None else y * input_scale


class RPReLU(nn.Module):
    """A leaky ReLU with learned slopes between learned shifts, one of each a channel ("ReActNet").

    prelu(x - move1) + move2, where prelu(x) is `slope * x` for x <= 0. BinaryViT subtracts the first shift;
    ReActNet adds it (`subtract=False`). All parameters are `[C]`.
    """

    subtract: bool = True

    @nn.compact
    def __call__(self, x):
        """Maps `[..., C]`."""
        channels = (x.shape[-1],)
        zeros, quarter = nn.initializers.zeros, nn.initializers.constant(0.25)
        first = self.param("move1", zeros, channels)
        slope = self.param("slope", quarter, channels)
        second = self.param("move2", zeros, channels)
        x = x - first if self.subtract else x + first
        return jnp.where(x > 0, x, slope * x) + second


class Affine(nn.Module):
    """LayerScale with a shift, BinaryViT's "affine": `x * alpha + move`, both `[C]`."""

    initial: float = 0.1  # of alpha; 0 on branches that pool

    @nn.compact
    def __call__(self, x):
        """Maps `[..., C]`."""
        channels = (x.shape[-1],)
        alpha = self.param("alpha", nn.initializers.constant(self.initial), channels)
        return x * alpha + self.param("move", nn.initializers.zeros, channels)
