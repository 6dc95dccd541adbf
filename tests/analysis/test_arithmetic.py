"""Operations and binary weights of small modules, against numbers by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from vitjax import models
from vitjax.analysis.arithmetic import Network, Operations, read
from vitjax.analysis.costs import multiply_accumulates
from vitjax.kernels import binary_conv, binary_matmul
from vitjax.layers.batch_norm import BatchNorm
from vitjax.layers.binary import Affine, BinaryConv, BinaryDense, RPReLU, binarise_weights, binary_sign
from vitjax.layers.norm import LayerNorm

C = 6  # channels of the images that modules are called with
IMAGES = jax.ShapeDtypeStruct((1, 4, 4, C), jnp.float32)
NUMBERS = 4 * 4 * C  # in an image


def network(module) -> Network:
    variables = jax.eval_shape(module.init, jax.random.key(0), IMAGES)
    return read(module, variables, IMAGES)


def of(function) -> Network:
    """Reads a function of the images; given a module as well, it may make parameters and layers."""

    class Module(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return function(self, x), {}

    return network(Module())


def vector(module, name="gamma", size=C):
    return module.param(name, nn.initializers.ones, (size,))


@pytest.mark.parametrize(
    ("precision", "binary", "binary_weights"),
    [("binary", True, True), ("w1a32", False, True), ("w32a1", False, False), ("float", False, False)],
)
def test_precisions_of_a_linear_layer(precision, binary, binary_weights):
    found = of(lambda module, x: BinaryDense(5, precision=precision, name="linear")(x))
    macs = 16 * C * 5
    assert found.operations == (Operations(binary=macs) if binary else Operations(real=macs))
    assert found.binary == ({"linear/kernel": C * 5} if binary_weights else {})
    assert found.scales == (5 if binary_weights else 0)


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding", "places"), [(3, 1, 1, 16), (3, 2, 1, 4), (2, 2, 0, 4), (1, 1, 0, 16)]
)
def test_convolutions(kernel_size, stride, padding, places):
    found = of(lambda module, x: BinaryConv(5, kernel_size, stride, padding, name="conv")(x))
    weights = kernel_size**2 * C * 5
    assert found == Network(Operations(binary=places * weights), {"conv/kernel": weights}, 5)


def test_products_of_activations_go_through_the_same_door():
    def attention(module, x):
        heads = binary_sign(x.reshape(1, 16, 2, C // 2).swapaxes(1, 2))
        scores = binary_matmul(heads, heads.swapaxes(-1, -2))
        return binary_matmul((scores > 0).astype(jnp.float32), heads, a_values="01")

    assert of(attention) == Network(Operations(binary=2 * 16 * 16 * C), {}, 0)


def test_the_door_counts_by_shapes_whatever_is_behind_it():
    """A kernel of any kind: here one that multiplies nothing."""

    @jax.jit
    def binary_matmul(a, b):
        return jnp.zeros((*a.shape[:-1], b.shape[-1]))

    @jax.jit
    def binary_conv(x, signs):
        return jnp.zeros((1, 2, 2, signs.shape[-1])) + x[..., :1, :1, :1]

    function = lambda x: (binary_matmul(x, x.swapaxes(-1, -2)), binary_conv(x, jnp.ones((2, 2, C, 5))))
    assert multiply_accumulates(function, IMAGES) == 16 * 4 * C + 4 * 5 * 4 * C


def test_scans_and_recomputation_count_each_layer():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return Affine()(RPReLU()(BinaryDense(C)(x))), None

    def layers(module, x):
        scanned = nn.scan(nn.remat(Layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return scanned(name="layers")(x, None)[0]

    found = of(layers)
    assert found.operations == Operations(binary=3 * 16 * C * C, scaled=3 * NUMBERS)
    assert found.binary == {"layers/BinaryDense_0/kernel": 3 * C * C} and found.scales == 3 * C


def test_what_a_scan_carries_may_become_activations():
    def recurrent(module, x):
        gamma = vector(module)
        return jax.lax.scan(lambda y, _: (y * gamma + x, None), jnp.zeros(x.shape), length=3)[0]

    assert of(recurrent).operations == Operations(scaled=3 * NUMBERS)


def kernel(module, name="kernel", features=C):
    return module.param(name, nn.initializers.lecun_normal(), (C, features))


def test_a_shared_weight_is_stored_once():
    def twice(module, x):
        latent = kernel(module)
        signs, scale = binarise_weights(latent)
        again, _ = binarise_weights(latent)
        return binary_matmul(x, signs) * scale + binary_matmul(x, again)

    assert of(twice) == Network(Operations(binary=2 * 16 * C * C), {"kernel": C * C}, C)


def test_a_weight_that_is_used_as_it_is_as_well_is_not_binary():
    def both(module, x):
        latent = kernel(module)
        signs, scale = binarise_weights(latent)
        return binary_matmul(x, signs) * scale + x @ latent

    assert of(both) == Network(Operations(binary=16 * C * C, real=16 * C * C), {}, 0)


def test_weights_are_followed_through_rearrangement_and_lost_in_arithmetic():
    def joined(module, x):
        query, key = kernel(module, "query"), kernel(module, "key", 2 * C)
        both = jnp.concatenate([query, key.astype(jnp.float32)[:, ::-1]], axis=1).reshape(C, 3, C)
        signs, scale = binarise_weights(both, axes=0)
        return binary_matmul(x, signs.reshape(C, 3 * C)) * scale.reshape(3 * C)

    assert of(joined) == Network(Operations(binary=16 * 3 * C * C), {"query": C * C, "key": 2 * C * C}, 3 * C)

    def computed(module, x):
        signs, scale = binarise_weights(kernel(module) * vector(module)[:, None])
        return binary_matmul(x, signs) * scale

    assert of(computed) == Network(Operations(binary=16 * C * C), {}, 0)


@pytest.mark.parametrize(
    "scale",
    [
        lambda module, x: Affine()(x),
        lambda module, x: x + vector(module) * (x**2),
        lambda module, x: x + jnp.broadcast_to(vector(module), x.shape) * (x**2),
        lambda module, x: x - (x**2 * vector(module).astype(jnp.bfloat16)).astype(jnp.float32),
        lambda module, x: Affine()(nn.relu(x)),
        lambda module, x: jax.checkpoint(lambda x, gamma: x + x * gamma)(x, vector(module)),
        lambda module, x: jax.lax.cond(
            x.sum() > 0, lambda x, by: x, lambda x, by: x + x * by, x, vector(module)
        ),
    ],
    ids=[
        "affine",
        "layer scale",
        "as large as the image",
        "subtracted",
        "behind a ReLU",
        "recomputed",
        "of a branch",
    ],
)
def test_learned_scales_of_channels_count_one_multiplication_an_element(scale):
    assert of(scale).operations == Operations(scaled=NUMBERS)


@pytest.mark.parametrize(
    "other",
    [
        lambda module, x: RPReLU()(x),
        lambda module, x: jnp.maximum(x, 0) + vector(module) * jnp.minimum(x, 0),
        lambda module, x: LayerNorm()(x),
        lambda module, x: nn.LayerNorm()(x),
        lambda module, x: nn.RMSNorm()(x) + x,
        lambda module, x: nn.GroupNorm(2)(x),
        lambda module, x: BatchNorm()(x),
        lambda module, x: nn.BatchNorm(use_running_average=True)(x),
        lambda module, x: x + x * module.param("clip", nn.initializers.ones, ()),
        lambda module, x: x + x * vector(module, size=4)[:, None],
        lambda module, x: x + x * module.param("gain", nn.initializers.ones, (1, 1, 1)),
        lambda module, x: x + vector(module),
        lambda module, x: x + 0.5 * x,
        lambda module, x: x + jax.nn.sigmoid(x) * x,
        lambda module, x: x + vector(module)[None] * vector(module, "other")[None],
        lambda module, x: x + x * jnp.broadcast_to(vector(module, size=4)[:, None], x.shape),
        lambda module, x: nn.avg_pool(x, (2, 2), (2, 2)),
    ],
)
def test_nothing_else_of_element_wise_arithmetic_counts(other):
    assert of(other) == Network(Operations(), {}, 0)


def test_the_dearest_branch_counts():
    branches = [lambda x: x, lambda x: x @ jnp.ones((C, 2 * C)), lambda x: x @ jnp.ones((C, 3))]
    branches = [lambda x, branch=branch: branch(x).sum() for branch in branches]
    found = of(lambda module, x: jax.lax.switch(jnp.int32(x.sum()), branches, x))
    assert found.operations == Operations(real=16 * C * 2 * C)


def test_a_loop_of_unknown_length_is_refused():
    def halve(module, x):
        return jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: x @ jnp.ones((C, C)), x)

    with pytest.raises(ValueError, match="'while'"):
        of(halve)


def test_inference_is_counted_and_what_no_logit_needs_is_not():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            extra = nn.Dense(7, name="extra")(x)
            x = nn.Dense(5, name="more")(x) if train else x
            return x @ jnp.ones((C, 2)), {"extra": extra}

    assert network(Model()).operations == Operations(real=16 * C * 2)


def test_layer_scales_of_known_models():
    for name, elements in (("deit3_s16", 2 * 197 * 384), ("vit_ti16", 0)):
        model = models.create(name, num_classes=10, depth=3)
        images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        assert read(model, variables, images).operations.scaled == 3 * elements


def test_the_conv_door_is_named_like_this():
    """The contract: calls of the door keep their names in the traced program."""
    for door, arguments in ((binary_matmul, (jnp.ones((2, 3)), jnp.ones((3, 4)))),
                            (binary_conv, (jnp.ones((1, 2, 2, 3)), jnp.ones((1, 1, 3, 4))))):  # fmt: skip
        (eqn,) = jax.make_jaxpr(door)(*arguments).jaxpr.eqns
        assert eqn.params["name"] == door.__name__
