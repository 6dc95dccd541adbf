"""Value ranges, one-hot labels and mixup, traced on batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vitjax.data import pp
from vitjax.errors import UserError


@functools.cache
def compiled(string):
    return jax.jit(pp.parse(string).device)


def device(string, batch, key=0):
    return compiled(string)(batch, jax.random.key(key))


IMAGES = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), np.uint8)


def test_value_range():
    result = device("value_range(-1, 1)", {"image": IMAGES})["image"]
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, IMAGES / 127.5 - 1, atol=1e-6)
    low, high = [0, 10, 20], [255, 200, 100]
    clipped = device(f"value_range(0, 2, {low}, {high}, clip_values=True)", {"image": IMAGES})["image"]
    expected = ((IMAGES - np.asarray(low, float)) / np.subtract(high, low) * 2).clip(0, 2)
    np.testing.assert_allclose(clipped, expected, atol=1e-5)


def test_value_range_is_the_same_on_host_and_device():
    on_host = pp.parse("value_range(-1, 1)|central_crop(4)").host
    expected = on_host({"image": IMAGES[0]}, np.random.default_rng(0))["image"]
    np.testing.assert_allclose(
        device("value_range(-1, 1)", {"image": IMAGES})["image"][0], expected, atol=2e-7
    )


def test_standardized():
    vgg = device("vgg_value_range", {"image": IMAGES})["image"]
    np.testing.assert_allclose(
        vgg, (IMAGES / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225], rtol=1e-5, atol=1e-5
    )
    clip = device("clip_value_range", {"image": IMAGES})["image"]
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    np.testing.assert_allclose(clip, (IMAGES / 255 - mean) / std, rtol=1e-5, atol=1e-5)


def test_onehot():
    labels = np.asarray([0, 2, -1, 3], np.int32)
    result = device("onehot(3, key='label', key_result='labels', on=0.9, off=0.05)", {"label": labels})
    expected = np.full((4, 3), 0.05)
    expected[0, 0] = expected[1, 2] = 0.9
    np.testing.assert_allclose(result["labels"], expected, rtol=1e-6)
    np.testing.assert_array_equal(result["label"], labels)
    many = np.asarray([[0, 2, 2], [1, -1, -1]])
    np.testing.assert_array_equal(device("onehot(3)", {"labels": many})["labels"], [[1, 0, 1], [0, 1, 0]])
    assert device("onehot(3, multi=False)", {"labels": many})["labels"].shape == (2, 3, 3)


def mixed(p=0.5, key=0, batch=8, dtype=jnp.float32):
    x = jnp.arange(batch, dtype=dtype)[:, None, None, None] * jnp.ones((1, 2, 2, 3), dtype)
    return x, device(f"mixup({p})", {"image": x, "labels": jnp.eye(batch, dtype=dtype)}, key)


def test_mixup_mixes_each_example_with_its_predecessor():
    x, result = mixed()
    a = float(result["labels"][0, 0])
    assert 0.5 <= a < 1
    np.testing.assert_allclose(result["image"], a * x + (1 - a) * np.roll(x, 1, axis=0), rtol=1e-6)
    eye = np.eye(8)
    np.testing.assert_allclose(result["labels"], a * eye + (1 - a) * np.roll(eye, 1, axis=0), rtol=1e-6)
    assert len({float(mixed(key=key)[1]["labels"][0, 0]) for key in range(5)}) == 5


def test_mixup_coefficient_has_the_folded_beta_distribution():
    op = pp.parse("mixup(0.2, keys='labels')").device
    keys = jax.random.split(jax.random.key(1), 4000)
    a = jax.jit(jax.vmap(lambda key: op({"labels": jnp.eye(2)}, key)["labels"][0, 0]))(keys)
    beta = np.random.default_rng(0).beta(0.2, 0.2, 200_000)
    expected = np.quantile(np.maximum(beta, 1 - beta), [0.1, 0.25, 0.5, 0.75])
    np.testing.assert_allclose(np.quantile(a, [0.1, 0.25, 0.5, 0.75]), expected, atol=0.02)


def test_mixup_keeps_bfloat16_and_other_keys():
    x, result = mixed(dtype=jnp.bfloat16)
    assert result["image"].dtype == result["labels"].dtype == jnp.bfloat16
    batch = {"image": x, "labels": jnp.eye(8), "_mask": jnp.ones(8, bool)}
    assert device("mixup(0.5)", batch)["_mask"].dtype == bool


def test_mixup_zero_is_the_identity():
    batch = {"image": IMAGES, "label": np.arange(8)}
    np.testing.assert_array_equal(device("mixup(0.0)", batch)["image"], IMAGES)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_mixup_does_not_depend_on_the_number_of_devices(axis_type):
    x, alone = mixed()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    batch = jax.device_put({"image": x, "labels": jnp.eye(8)}, sharding)
    sharded = device("mixup(0.5)", batch)
    np.testing.assert_allclose(sharded["image"], alone["image"], rtol=1e-6)


def test_mixup_wants_floats():
    with pytest.raises(UserError, match=r"'image' is uint8.*value_range"):
        device("mixup(0.5)", {"image": IMAGES, "labels": np.eye(8, dtype=np.float32)})
    with pytest.raises(UserError, match="'labels'"):
        device("value_range|mixup(0.5)", {"image": IMAGES})


def test_ops_have_random_streams_of_their_own():
    batch = {"a": jnp.eye(2), "b": jnp.eye(2)}
    result = device("mixup(0.5, keys='a')|mixup(0.5, keys='b')", batch)
    assert result["a"][0, 0] != result["b"][0, 0]


def test_weights_of_tokens_average_over_the_real_ones():
    rng = np.random.default_rng(0)
    lengths = np.array([5, 1, 8, 0, 3, 8, 2, 7])
    segments = (np.arange(8) < lengths[:, None]).astype(np.int32) * rng.integers(1, 4, (8, 8))
    batch = {"targets_segments": segments.astype(np.int32)}
    weights = device("token_weights", batch)["weights"]
    assert weights.dtype == jnp.float32 and ((weights > 0) == (segments > 0)).all()
    losses = rng.random((8, 8))
    mean = losses[segments > 0].mean()
    np.testing.assert_allclose((weights * losses).mean(), mean, rtol=1e-6)
    halves = [(weights[i::2] * losses[i::2]).mean() for i in range(2)]
    np.testing.assert_allclose(np.mean(halves), mean, rtol=1e-6)
    assert (device("token_weights", {"targets_segments": np.zeros((2, 3), np.int32)})["weights"] == 0).all()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    divided = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_array_equal(device("token_weights", divided)["weights"], weights)
