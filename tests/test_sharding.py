"""Mesh, placement of parameters, and batches on eight simulated devices."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vitjax import sharding
from vitjax.errors import UserError


def test_one_size_may_be_left_open():
    mesh = sharding.make_mesh((("data", -1), ("model", 2)))
    assert dict(mesh.shape) == {"data": 4, "model": 2}
    assert dict(sharding.make_mesh().shape) == {"data": 8}


@pytest.mark.parametrize(
    "axes", [(("data", 3),), (("data", -1), ("model", 3)), (("data", -1), ("model", -1))]
)
def test_a_mesh_that_does_not_fit_is_refused(axes):
    with pytest.raises(UserError, match="does not fit 8 devices"):
        sharding.make_mesh(axes)


def test_a_mesh_needs_a_data_axis():
    with pytest.raises(UserError, match="no axis 'data'"):
        sharding.make_mesh((("model", 8),))


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "says"),
    [(12, 1, "take 8 or 16"), (4, 1, "take 8,"), (24, 2, "take 16 or 32"), (0, 1, "take 8,")],
)
def test_a_batch_that_does_not_divide_is_refused_with_its_neighbours(batch_size, accumulation, says):
    mesh = sharding.make_mesh()
    with pytest.raises(UserError, match=says):
        sharding.check_batch_size(batch_size, mesh, accumulation=accumulation)


def test_optimizer_state_follows_its_parameter():
    mesh = sharding.make_mesh((("data", 4), ("model", 2)))
    leaf = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)
    params = {"block": {"Dense_0": {"kernel": leaf(6, 16), "bias": leaf(16)}}}
    state = {"params": params, "opt_state": ({"mu": params, "count": leaf()},)}
    rules = ((r".*kernel", (None, "model")),)
    placed = sharding.state_shardings(state, rules, mesh)
    assert placed["params"]["block"]["Dense_0"]["kernel"].spec == P(None, "model")
    assert placed["opt_state"][0]["mu"]["block"]["Dense_0"]["kernel"].spec == P(None, "model")
    assert placed["params"]["block"]["Dense_0"]["bias"].spec == P()
    assert placed["opt_state"][0]["count"].spec == P()


def test_fsdp_splits_the_largest_dimension_of_large_leaves():
    mesh = sharding.make_mesh()
    leaf = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)
    placed = sharding.state_shardings(
        {"large": leaf(1000, 2048), "odd": leaf(1001, 2047), "small": leaf(8, 8)}, ((".*", "fsdp"),), mesh
    )
    assert placed["large"].spec == P(None, "data")
    assert placed["odd"].spec == placed["small"].spec == P()


def test_a_placement_that_does_not_divide_is_refused():
    mesh = sharding.make_mesh((("data", 4), ("model", 2)))
    with pytest.raises(UserError, match=r"dimension 1 of kernel .* axis 'model'"):
        sharding.state_shardings(
            {"kernel": jax.ShapeDtypeStruct((4, 5), np.float32)}, ((".*", (None, "model")),), mesh
        )
    with pytest.raises(UserError, match="unknown placement 'fspd'"):
        sharding.state_shardings(
            {"kernel": jax.ShapeDtypeStruct((4, 5), np.float32)}, ((".*", "fspd"),), mesh
        )


def test_only_what_the_model_needs_travels():
    mesh = sharding.make_mesh()
    rows = {"image": np.zeros((16, 2, 2, 3), np.uint8), "_id": np.arange(16), "_mask": np.ones(16, bool)}
    host, device = next(sharding.prefetch(iter([rows]), mesh))
    assert set(device) == {"image", "_mask"} and host is rows
    assert device["image"].dtype == np.uint8 and device["image"].sharding.spec == P("data")


def test_prefetch_keeps_order_and_drops_nothing():
    mesh = sharding.make_mesh()
    batches = [{"x": np.full(8, i)} for i in range(5)]
    assert [int(b["x"][0]) for _, b in sharding.prefetch(batches, mesh)] == list(range(5))
