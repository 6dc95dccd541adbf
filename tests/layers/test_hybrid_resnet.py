"""Weight-standardised convolutions and the ResNet of the hybrids against plain formulas in float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax.errors import UserError
from vitjax.layers.group_norm import group_norm
from vitjax.layers.hybrid_resnet import HybridResNet, ResidualUnit
from vitjax.layers.weight_standardization import StdConv, weight_standardize

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def standardized(kernel, numerics):
    """By the book, float64."""
    kernel = np.asarray(kernel, np.float64)
    variance = kernel.var((0, 1, 2))
    deviation = {"jax": np.sqrt(variance) + 1e-5, "timm": np.sqrt(variance + 1e-8)}[numerics]
    return (kernel - kernel.mean((0, 1, 2))) / deviation


def windows(x, size, stride):
    """`[B, h, w, C, size, size]`, padded as JAX defines SAME: an odd row or column stands last."""
    padding = []
    for n in x.shape[1:3]:
        total = max((-(-n // stride) - 1) * stride + size - n, 0)
        padding.append((total // 2, total - total // 2))
    x = np.pad(np.asarray(x, np.float64), ((0, 0), *padding, (0, 0)))
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]


def convolved(x, kernel, stride):
    return np.einsum("bhwcpq,pqcd->bhwd", windows(x, len(kernel), stride), kernel, optimize=True)


def group_normalized(x, epsilon):
    groups = np.asarray(x, np.float64).reshape(*x.shape[:3], 32, -1)
    mean, variance = groups.mean((1, 2, 4), keepdims=True), groups.var((1, 2, 4), keepdims=True)
    return ((groups - mean) / np.sqrt(variance + epsilon)).reshape(x.shape)


def by_the_book(params, image, units, numerics):
    """The feature maps of the whole network, float64."""
    relu = lambda x: np.maximum(x, 0)

    def convolve(params, x, suffix, stride=1):
        x = convolved(x, standardized(params[f"conv{suffix}"]["kernel"], numerics), stride)
        norm = params[f"gn{suffix}"]
        return group_normalized(x, {"jax": 1e-6, "timm": 1e-5}[numerics]) * norm["scale"] + norm["bias"]

    x = relu(convolve(params, image, "_root", 2))
    maps = {"root": windows(x, 3, 2).max((-2, -1))}  # what is pooled is not negative, so zeros are no harm
    for stage, count in enumerate(units):
        x = list(maps.values())[-1]
        for unit in range(count):
            p = params[f"block{stage + 1}"][f"unit{unit + 1}"]
            stride = 2 if stage and not unit else 1
            y = relu(convolve(p, relu(convolve(p, x, "1")), "2", stride))
            shortcut = convolve(p, x, "_proj", stride) if unit == 0 else x
            x = relu(shortcut + convolve(p, y, "3"))
        maps[f"block{stage + 1}"] = x
    return maps


@pytest.mark.parametrize("numerics", ["jax", "timm"])
def test_standardisation_down_to_the_epsilon(numerics):
    # Filters with deviations from 1 down to 1e-6, where the epsilon is all there is.
    kernel = normal(3, 3, 4, 7) * np.float32(10) ** -np.arange(7, dtype=np.float32)
    np.testing.assert_allclose(
        weight_standardize(kernel, numerics), standardized(kernel, numerics), rtol=2e-4, atol=2e-6
    )
    other = {"jax": "timm", "timm": "jax"}[numerics]
    assert np.abs(standardized(kernel, numerics) - standardized(kernel, other)).max() > 0.1


@pytest.mark.parametrize("numerics", ["jax", "timm"])
def test_a_constant_filter_gives_zero_and_a_finite_gradient(numerics):
    kernel, g = np.full((3, 3, 4, 2), 0.25, np.float32), normal(3, 3, 4, 2)
    value, vjp = jax.vjp(lambda k: weight_standardize(k, numerics), kernel)
    assert not np.any(value)
    assert np.all(np.isfinite(vjp(jnp.asarray(g))[0]))


@pytest.mark.parametrize("numerics", ["jax", "timm"])
@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
def test_convolution_with_same_padding(kernel_size, stride, size, numerics):
    x = normal(2, *size, 4)
    module = StdConv(6, kernel_size, stride, numerics)
    kernel = normal(*module.init(KEY, x)["params"]["kernel"].shape)
    assert kernel.shape == (kernel_size, kernel_size, 4, 6)
    y = module.apply({"params": {"kernel": kernel}}, x)
    expected = convolved(x, standardized(kernel, numerics), stride)
    assert y.shape == expected.shape == (2, -(-size[0] // stride), -(-size[1] // stride), 6)
    np.testing.assert_allclose(y, expected, atol=1e-5 * np.abs(expected).max())


def test_convolution_keeps_no_copy_of_its_kernel_for_the_backward_pass():
    x, kernel = normal(1, 4, 4, 8), normal(3, 3, 8, 64)
    module = StdConv(64, 3, dtype=jnp.bfloat16)
    vjp = lambda kernel, x: jax.vjp(lambda k, x: module.apply({"params": {"kernel": k}}, x), kernel, x)[1]
    kept = [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(vjp, kernel, x))]
    assert sorted(kept) == sorted([kernel.shape, x.shape])  # both there anyway


def test_convolution_for_images_of_other_channels():
    params = StdConv(32, 7, 2).init(KEY, normal(1, 8, 8, 3))
    with pytest.raises(UserError, match="made for images of 3 channels, but this one has 1"):
        StdConv(32, 7, 2).apply(params, normal(1, 8, 8, 1))


@pytest.mark.parametrize(("numerics", "epsilon"), [("jax", 1e-6), ("timm", 1e-5)])
def test_group_norm(numerics, epsilon):
    # Variances around the epsilon in the first example; far from zero in the second.
    x = normal(2, 5, 3, 64) * np.float32([1e-3, 1]).reshape(2, 1, 1, 1)
    x[1] += 300
    module = group_norm(numerics, "norm")
    params = {"scale": normal(64), "bias": normal(64)}
    expected = group_normalized(x, epsilon)
    y = module.apply({"params": params}, x)
    # 300 is known to 3e-5 in float32.
    np.testing.assert_allclose(y, expected * params["scale"] + params["bias"], atol=3e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_new_unit_passes_on_its_shortcut(stride):
    x = np.abs(normal(2, 6, 6, 128))  # what comes out of a relu
    params = ResidualUnit(32, stride).init(KEY, x)["params"]
    assert not np.any(params["gn3"]["scale"])
    assert ("conv_proj" in params) == (stride == 2)
    y = ResidualUnit(32, stride).apply({"params": params}, x)
    if stride == 1:
        np.testing.assert_array_equal(y, x)
    else:
        assert y.shape == (2, 3, 3, 128)
        assert np.all(y >= 0) and np.any(y > 0)


def drawn(module, image):
    """Parameters with which every epsilon counts: every second filter is tiny, and so are the norms."""
    shapes = jax.eval_shape(module.init, KEY, image)["params"]
    tiny = lambda n: np.where(np.arange(n) % 2, 1, 1e-4).astype(np.float32)
    draw = lambda x: normal(*x.shape) * (tiny(x.shape[-1]) if x.ndim == 4 else np.float32(3e-3))
    return jax.tree.map(draw, shapes)


@pytest.mark.parametrize("numerics", ["jax", "timm"])
def test_the_whole_network(numerics):
    units, image = (1, 2), normal(2, 35, 25, 3) * np.float32(1e-3)
    resnet = HybridResNet(64, units, (64, 64), numerics)
    params = drawn(resnet, image)
    last, maps = jax.jit(resnet.apply)({"params": params}, image)
    assert {name: leaf.shape[1:] for name, leaf in maps.items()} == {
        "root": (9, 7, 64),
        "block1": (9, 7, 256),
        "block2": (5, 4, 256),
    }
    np.testing.assert_array_equal(last, maps["block2"])
    expected = by_the_book(params, image, units, numerics)
    other = by_the_book(params, image, units, {"jax": "timm", "timm": "jax"}[numerics])
    for name, reference in expected.items():
        scale = np.abs(reference).max()
        np.testing.assert_allclose(maps[name], reference, atol=2e-5 * scale, err_msg=name)
        assert np.abs(other[name] - reference).max() > 0.1 * scale  # so that a wrong epsilon would be seen


def test_bfloat16_is_of_the_products_only():
    image = normal(1, 16, 16, 3)
    resnet = HybridResNet(32, (1, 2), (32, 64), dtype=jnp.bfloat16)
    params = drawn(resnet, image)
    maps = jax.eval_shape(resnet.apply, {"params": params}, image)[1]
    assert {leaf.dtype for leaf in maps.values()} == {np.dtype("float32")}
    jaxpr = str(jax.make_jaxpr(resnet.apply)({"params": params}, image))
    products = re.findall(r":(\w+)\[[\d,]*\] = (?:conv_general_dilated|dot_general)", jaxpr)
    assert len(products) == 1 + 4 + 4 + 3 and set(products) == {"bf16"}
    roots = re.findall(r":(\w+)\[[\d,]*\] = r?sqrt", jaxpr)
    assert len(roots) == 2 * len(products) and set(roots) == {"f32"}  # of kernels and of norms
