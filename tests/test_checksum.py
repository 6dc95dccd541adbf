"""A checksum is the same wherever the array lies, and another one when a bit of it changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from vitjax.checksum import checksums


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int32", "bfloat16", "float16", "float32"])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (8, 4, 6)])
def test_host_and_device_agree(dtype, shape):
    x = jnp.asarray(np.random.default_rng(0).uniform(-9, 9, shape), dtype)
    assert checksums([x]) == checksums([np.asarray(x)])


def test_eight_byte_types_and_keys():
    x = np.random.default_rng(0).normal(size=(3, 5))
    with jax.enable_x64(True):
        assert checksums([jnp.asarray(x)]) == checksums([x])
    key = jax.random.split(jax.random.key(1), 4)
    assert checksums([key]) == checksums([np.asarray(jax.random.key_data(key))])


def test_sharding_does_not_matter_and_nothing_is_gathered():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    x = jax.random.normal(jax.random.key(0), (8, 12, 4))
    want = checksums([x])
    from vitjax import checksum

    for spec in (
        P(),
        P("data"),
        P("model", None, "data"),
        P(None, ("data", "model")[1]),
        P(("data", "model")),
    ):
        y = jax.device_put(x, NamedSharding(mesh, spec))
        assert checksums([y]) == want
        assert "all-gather" not in checksum._on_device.lower(y).compile().as_text()


def test_any_bit_any_place_shows():
    x = np.random.default_rng(0).normal(size=64).astype(np.float32)
    seen = {checksums([x])[0]}
    for place in range(64):
        for bit in (0, 7, 15, 31):
            y = x.copy()
            y.view(np.uint32)[place] ^= np.uint32(1) << np.uint32(bit)
            seen.add(checksums([y])[0])
    assert len(seen) > 64 * 4 - 2  # distinct but for chance
    assert checksums([x[::-1]]) != checksums([x])
