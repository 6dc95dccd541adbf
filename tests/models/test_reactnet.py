"""ReActNet and Bi-Real Net: published sizes and arithmetic, both steps, what the fields do, bad values.

What they compute is held against the released code in tests/test_goldens.py.
"""

import functools
import math
import re

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax import models
from vitjax.errors import UserError
from vitjax.models.reactnet import halve
from vitjax.weights.tree import flatten, nest

KEY = jax.random.key(0)
IMAGE = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
MOBILE = {"root_width": 4, "widths": (8, 8), "strides": (1, 2)}
RESNET = {"units": (1, 1), "widths": (4, 8), "stem": "small"}
TINY = {"reactnet_a": MOBILE, "react_resnet18": RESNET, "bireal_resnet18": RESNET}
ONE_BLOCK = {"units": (1,), "widths": (4,)}


def tiny(name, **fields):
    return models.create(name, num_classes=5, **{**TINY[name.removesuffix("_release")], **fields})


@functools.cache
def variables(name, **fields):
    """Variables drawn far from where they begin."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(tiny(name, **fields).init, KEY, IMAGE)
    return jax.tree.map(lambda x: rng.uniform(0.5, 1.5, x.shape).astype(np.float32) - (x.ndim > 1), shapes)


def latent(flat):
    """The kernels whose signs are taken."""
    return {n: leaf for n, leaf in flat.items() if re.search(r"/conv(3x3|1x1(_[12])?)?/kernel$", n)}


def products(jaxpr, binary=False):
    """Multiply-accumulates of the convolutions and products in a program, as (through the door, others)."""
    total = np.zeros(2, np.int64)
    for equation in jaxpr.eqns:
        within = binary or equation.params.get("name") == "binary_conv"
        if equation.primitive.name == "conv_general_dilated":
            of_each = math.prod(equation.invars[1].aval.shape[:3])
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            of_each = equation.invars[0].aval.shape[contracted[0]]
        else:
            of_each = 0
        if of_each:
            total[1 - within] += of_each * math.prod(equation.outvars[0].aval.shape)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            total += products(inner, within)
    return total


@pytest.mark.parametrize(
    ("name", "learned", "binary", "bops", "macs"),
    [
        ("reactnet_a", 29_343_592, 28_253_184, 4.817e9, 0.119e8),
        ("react_resnet18", 11_704_424, 10_985_472, 1.676e9, 1.378e8),
        ("react_resnet34", 21_827_432, 21_086_208, 3.526e9, 1.378e8),
        ("bireal_resnet18", 11_689_512, 10_985_472, 1.676e9, 1.378e8),  # as large as the real ResNet-18
    ],
)
def test_published_sizes_and_arithmetic(name, learned, binary, bops, macs):
    model = models.create(name, num_classes=1000)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    program, shapes = jax.make_jaxpr(model.init, return_shape=True)(KEY, image)
    flat = flatten(shapes["params"])
    assert sum(leaf.size for leaf in flat.values()) == learned
    assert sum(leaf.size for leaf in latent(flat).values()) == binary
    through_the_door, others = products(program.jaxpr)
    assert abs(through_the_door - bops) <= 0.0005e9
    assert abs(others - macs) <= 0.0005e8


@pytest.mark.parametrize("name", TINY)
def test_all_precisions_have_the_same_parameters(name):
    shapes = [
        jax.eval_shape(tiny(name, precision=precision).init, KEY, IMAGE)
        for precision in ("binary", "w32a1", "w1a32", "float")
    ]
    assert all(found == shapes[0] for found in shapes)


def test_the_second_step_is_the_first_with_scaled_signs_for_weights():
    given = variables("reactnet_a")
    flat = flatten(given["params"])
    binarised = {n: np.sign(x) * np.abs(x).mean((0, 1, 2)) for n, x in latent(flat).items()}
    binarised = {**given, "params": nest({**flat, **binarised})}

    @jax.jit
    def run(given, binarised):
        logits = lambda precision, given: tiny("reactnet_a", precision=precision).apply(given, IMAGE)[0]
        return [logits("binary", given), logits("w32a1", binarised), logits("w32a1", given)]

    second, first_with_signs, first = run(given, binarised)
    np.testing.assert_allclose(second, first_with_signs, rtol=1e-4, atol=1e-5)
    assert np.abs(second - first).max() > 1e-2


@pytest.mark.parametrize(
    ("name", "precision", "positive"),
    [
        ("bireal_resnet18", "binary", False),
        ("bireal_resnet18_release", "binary", True),
        ("bireal_resnet18_release", "w32a1", False),  # the first step's convolutions are PyTorch's
    ],
)
def test_latent_weights_begin_as_told(name, precision, positive):
    model = tiny(name, **ONE_BLOCK, precision=precision)
    flat = flatten(jax.jit(lambda key: model.init(key, IMAGE)["params"])(KEY))  # without the forward pass
    for kernel_name in ("conv_root/kernel", "block1/unit1/conv/kernel", "head/kernel"):
        kernel = flat[kernel_name]
        if positive and kernel_name in latent(flat):
            assert kernel.min() >= 0 and 9e-4 < kernel.max() <= 1e-3
        else:
            limit = 1 / np.sqrt(math.prod(kernel.shape[:-1]))
            assert -limit <= kernel.min() < -0.7 * limit and 0.7 * limit < kernel.max() <= limit


def test_release_stands_for_the_same_network():
    assert set(models.names()) > {f"{name}_release" for name in TINY}
    ours, theirs = models.create("react_resnet34"), models.create("react_resnet34_release")
    assert ours.clone(latent_init="positive", odd_maps="drop") == theirs
    with pytest.raises(UserError, match="Did you mean 'reactnet_a_release'"):
        models.create("reactnet_a_released")


def test_halves_of_odd_maps():
    x = jnp.arange(15.0).reshape(1, 3, 5, 1)
    np.testing.assert_array_equal(halve(x, "cover")[0, ..., 0], [[3, 5, 6.5], [10.5, 12.5, 14]])
    np.testing.assert_array_equal(halve(x, "drop")[0, ..., 0], [[3, 5]])


@pytest.mark.parametrize("name", TINY)
def test_images_with_odd_maps(name):
    """The map before the stride of 2 is 5 or 9 high and 4 or 8 wide."""
    image = jax.ShapeDtypeStruct((2, 9, 8, 3), np.float32)
    shape = lambda name: jax.eval_shape(tiny(name).apply, variables(name), image)[0].shape
    assert shape(name) == (2, 5)
    with pytest.raises(UserError, match=r"multiples of 32, or odd_maps='cover'"):
        shape(f"{name}_release")


def test_borders_of_a_single_pixel():
    """Its sign is -1, and a border of ones adds the eight around it."""
    image = -np.ones((1, 1, 1, 1), np.float32)

    def features(**fields):
        model = models.create("bireal_resnet18", units=(1,), widths=(1,), stem="small", **fields)
        shapes = jax.eval_shape(model.init, KEY, image)
        ones = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)
        return jax.value_and_grad(lambda given: model.apply(given, image)[0].sum())(ones)

    # The root's convolution gives -1, its norm -1 - 1 + 1, again -1; so is the shortcut, and a norm changes
    # nothing. Norms divide by sqrt(1 + 1e-5).
    for fields, sum_of_signs in (({}, -1), ({"border": "ones"}, 7), ({"precision": "float"}, -1)):
        value, gradient = features(**fields)
        np.testing.assert_allclose(value, sum_of_signs - 1, rtol=1e-4)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_estimators_are_annealed_by_progress():
    given = variables("react_resnet18", **ONE_BLOCK)
    model = tiny("react_resnet18", **ONE_BLOCK, estimator="tanh")

    @jax.jit
    def gradient(progress):
        loss = lambda image: jnp.square(model.apply(given, image, progress=progress)[0]).sum()
        return jax.value_and_grad(loss)(IMAGE)

    (early, wide), (late, narrow) = gradient(0.0), gradient(1.0)
    assert early == late  # the forward pass is none of its business
    assert np.abs(wide - narrow).max() > 1e-3 * np.abs(wide).max()


@pytest.mark.parametrize(
    ("name", "fields"),
    [("reactnet_a", {"widths": (4,), "strides": (1,)}), ("react_resnet18", ONE_BLOCK)],
)
def test_remat_and_bfloat16(name, fields):
    given = variables(name, **fields)

    @jax.jit
    def run(params):
        def gradient(**others):
            model = tiny(name, **fields, **others)
            loss = lambda params: model.apply({**given, "params": params}, IMAGE)[0].sum()
            return jax.value_and_grad(loss)(params)

        return gradient(), gradient(remat="nothing_saveable"), gradient(dtype="bfloat16")

    (plain, gradient), (again, same), (narrow, _) = run(given["params"])
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, (plain, gradient), (again, same))
    assert narrow.dtype == jnp.float32 and 0 < abs(narrow - plain) < 0.2 * abs(plain)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("reactnet_a", {"precision": "w1a1"}, r"precision='w1a1' is none of 'binary'"),
        ("reactnet_a", {"estimator": "triangel"}, "estimator='triangel' .*Did you mean 'triangle'"),
        ("react_resnet18", {"latent_init": "zero"}, "latent_init='zero' is none of 'fan_in', 'positive'"),
        ("react_resnet18", {"border": "one"}, "border='one' .*Did you mean 'ones'"),
        ("bireal_resnet18", {"odd_maps": "keep"}, "odd_maps='keep' is none of 'cover', 'drop'"),
        ("react_resnet18", {"stem": "tiny"}, "stem='tiny'"),
        ("react_resnet18", {"widths": (4, 8, 16)}, "widths=.* one entry for each of the 2 stages"),
        ("reactnet_a", {"strides": (1,)}, r"strides=\(1,\) must have one entry for each of the 2 blocks"),
        ("reactnet_a", {"strides": (1, 3)}, r"strides=\(1, 3\) must be 1 or 2"),
        ("reactnet_a", {"widths": (8, 24)}, r"block 2 is 24 wide after 8\. .*: 8 or 16"),
        ("reactnet_a", {"root_width": 2}, "block 1 is 8 wide after 2"),
        ("reactnet_a", {"root_stride": 0}, "root_stride=0"),
        ("reactnet_a", {"drop_path": 1.0}, "drop_path"),
    ],
)
def test_bad_fields_are_refused_by_name(name, fields, message):
    with pytest.raises(UserError, match=message):
        tiny(name, **fields)


@pytest.mark.parametrize("name", ["reactnet_a", "react_resnet18"])
def test_float_images_of_the_channels_it_was_made_for(name):
    with pytest.raises(UserError, match="float images, not uint8"):
        jax.eval_shape(tiny(name).init, KEY, jnp.zeros((1, 8, 8, 3), jnp.uint8))
    with pytest.raises(UserError, match="made for images of 3 channels, but this one has 1"):
        jax.eval_shape(tiny(name).apply, variables(name), IMAGE[..., :1])
