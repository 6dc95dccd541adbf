"""Single parts of Phuoc-Hoan-Le/BinaryViT and liuzechun/ReActNet, at the very edges of their thresholds.

Outputs that are binary must be exactly theirs; products and gradients, to the rounding of float32.
"""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from golden_checks import below, checks
from vitjax import losses
from vitjax.kernels import binary_conv, binary_matmul
from vitjax.layers import binary
from vitjax.layers.batch_norm import BatchNorm
from vitjax.layers.binary_shortcuts import (
    mean_along,
    mean_of_neighbours,
    mean_of_windows,
    reduce_tokens,
    repeat_tokens,
    tile_channels,
)
from vitjax.layers.pooling import max_pool

# Share of the largest entry. Seen: 4e-7 of either.
OUTPUT = 2e-6
GRADIENT = 2e-6
# No network as published has more than one bit: nothing sets the range that these would need.
MANY_BITS = ("sym_quantizer", "asym_quantizer", "ternary_quantizer")


def is_binary_units(config):
    return config.get("name") == "units" and config.get("source_repo") in (
        "Phuoc-Hoan-Le/BinaryViT",
        "liuzechun/ReActNet",
    )


@checks(is_binary_units)
def check_units(config, arrays):
    del config
    names = sorted({re.match(r"(.+?)/(in|out|upstream|grad|running_\w+)(/|$)", key)[1] for key in arrays})
    sections = {name: below(arrays, f"{name}/") for name in names if not name.startswith(MANY_BITS)}
    assert sections
    inputs = {name: ours(below(section, "in/")) for name, section in sections.items()}
    units = {name: unit(name, section, inputs[name]) for name, section in sections.items()}

    @jax.jit  # all of them at once: a program each takes five times as long to compile
    def run(inputs, upstream):
        results = {}
        for name, (function, _) in units.items():
            out, pull, after = jax.vjp(function, inputs[name], has_aux=True)
            results[name] = out, pull(upstream[name])[0], after
        return results

    upstream = ours({name: section["upstream"] for name, section in sections.items()})
    for name, results in run(inputs, upstream).items():
        compare_unit(name, sections[name], *results, exact=units[name][1])


def ours(arrays):
    return {name: jnp.asarray(array) for name, array in arrays.items()}


def compare_unit(name, arrays, out, grads, after, exact):
    if exact:
        np.testing.assert_array_equal(out, arrays["out"], err_msg=name)
    compare(f"{name}/out", out, arrays["out"], OUTPUT)
    for key, reference in below(arrays, "grad/").items():
        compare(f"{name}/grad/{key}", grads[key], reference, GRADIENT)
    for key, statistic in after.items():
        compare(f"{name}/{key}", statistic, arrays[key], OUTPUT)


def compare(name, ours, reference, within):
    """Compares by the largest entry. What is 0 everywhere must be so."""
    assert ours.shape == reference.shape, f"{name} is {ours.shape}, not {reference.shape}"
    error = np.abs(np.asarray(ours) - reference).max()
    assert error <= within * np.abs(reference).max(), f"{name} is off by {error:.1e}"


def unit(name, arrays, inputs):
    """The function `(inputs) -> (output, statistics)` of a section, and whether its output must be equal."""
    kind, *rest = name.split("/")
    of = rest[0] if rest else ""
    plain = lambda function, exact=False: (lambda given: (function(**given), {}), exact)
    match kind:
        case "binary_activation":
            return plain(binary.binary_sign, exact=True)
        case "attention_prob_binarizer":
            return plain(attention, exact=True)
        case "linear_weight_only":
            return plain(lambda x, weight: linear(x, weight, jnp.matmul))
        case "linear_w1a1":
            return plain(lambda x, weight: linear(binary.binary_sign(x), weight, binary_matmul))
        case "linear_w32a1":
            return plain(lambda x, weight: binary.binary_sign(x) @ weight.T)
        case "rprelu":
            return plain(module(binary.RPReLU()))
        case "layerscale":
            return plain(module(binary.Affine()))
        case "ffn_expand_shortcut":
            return plain(lambda x: tile_channels(x, int(of[1:]) * x.shape[-1]), exact=True)
        case "ffn_contract_shortcut":
            return plain(lambda x: mean_of_neighbours(x, x.shape[-1] // int(of[1:])))
        case "token_avgpool":
            side = int(rest[1].removeprefix("grid"))
            return plain(lambda x: mean_along(x, (side, side), "hw".index(of[0]), int(of[1:])))
        case "kv_reduce_pool":
            return plain(lambda x: reduce_tokens(x, square(x.shape[1]), int(of[1:])))
        case "kv_upsample_nearest":
            fine = square(arrays["out"].shape[1])
            return plain(lambda x: repeat_tokens(x, fine, int(of[1:])), exact=True)
        case "batchnorm":
            return batch_norm(arrays, train=of == "train"), False
        case "distillation_loss" | "distributional_loss":
            return plain(lambda student, teacher: losses.softmax_xent(student, jax.nn.softmax(teacher)))
        case "stem_maxpool_3x3_s2_p1":
            return plain(lambda x: nchw(max_pool(nhwc(x))), exact=True)
        case "shortcut_avgpool_2x2_s2":
            return plain(lambda x: nchw(mean_of_windows(nhwc(x), 2)))
    if re.fullmatch(r"conv(\d)x\1s\1_w1a1", kind):
        size = inputs["weight"].shape[-1]
        return plain(lambda x, weight: convolution(binary.binary_sign(x), weight, size, 0, binary_conv))
    if kind == "hard_binary_conv":  # the weights only, whatever the input is
        size, stride = inputs["weight"].shape[-1], inputs["x"].shape[-1] // arrays["out"].shape[-1]
        multiply = convolve_real if of.endswith("real_input") else binary_conv
        return plain(lambda x, weight: convolution(x, weight, stride, size // 2, multiply))
    pytest.fail(f"Nothing checks the section {name!r}.", pytrace=False)


def attention(p, clip):
    on, scale = binary.binarise_attention(p, clip)
    return on * scale


def linear(x, weight, multiply):
    signs, scale = binary.binarise_weights(weight.T)
    return multiply(x, signs) * scale


def convolution(x, weight, stride, padding, multiply):
    signs, scale = binary.binarise_weights(weight.transpose(2, 3, 1, 0), centred=False)
    return nchw(multiply(nhwc(x), signs, stride, padding) * scale)


def convolve_real(x, kernel, stride, padding):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride,) * 2, ((padding,) * 2,) * 2, dimension_numbers=layout
    )


def module(layer: nn.Module):
    """The function of a layer's input and its parameters by name."""
    return lambda x, **params: layer.apply({"params": params}, x)


def batch_norm(arrays, train):
    """Batch norm, channels last or of maps, and its running statistics afterwards."""
    turned = arrays["in/x"].ndim == 4
    stats = {k: jnp.asarray(arrays[f"running_{k}_before"]) for k in ("mean", "var")}

    def function(given):
        params = {"scale": given["weight"], "bias": given["bias"]}
        x = nhwc(given["x"]) if turned else given["x"]
        variables = {"params": params, "batch_stats": stats}
        y, changed = BatchNorm().apply(variables, x, train=train, mutable=["batch_stats"])
        after = {f"running_{k}_after": v for k, v in changed["batch_stats"].items()}
        return (nchw(y) if turned else y), after

    return function


def square(tokens):
    side = round(tokens**0.5)
    return side, side


def nhwc(x):
    return x.transpose(0, 2, 3, 1)


def nchw(x):
    return x.transpose(0, 3, 1, 2)
