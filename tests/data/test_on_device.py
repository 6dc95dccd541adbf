"""A set on the devices: the right examples in the right batches, wherever they lie, and what is refused."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vitjax.data import device_memory, on_device, pp
from vitjax.data.shuffle import Seed
from vitjax.data.sources import Source
from vitjax.errors import UserError


class Pictures(Source):
    """Pictures of numbered pixels; those in `broken` cannot be read, those in `wide` have another shape."""

    def __init__(self, size, broken=(), wide=()):
        self.name, self.class_names = "pictures", tuple("abcdefg")
        self._size, self._broken, self._wide = size, frozenset(broken), frozenset(wide)

    def __len__(self):
        return self._size

    def __getitem__(self, index):
        if index in self._broken:
            raise OSError("the disk says no")
        shape = (2, 4 if index in self._wide else 2, 3)
        image = np.full(shape, index % 251, np.uint8)
        image[0, 0, 0] = index // 251
        return {"image": image, "label": np.int32(index % 7)}


def mesh_of(data, model=1):
    devices = np.asarray(jax.devices()[: data * model]).reshape(data, model)
    return Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def spec(batch_size=1):
    shapes = {"image": ((batch_size, 2, 2, 3), np.uint8), "label": ((batch_size,), np.int32)}
    return {key: jax.ShapeDtypeStruct(*what) for key, what in shapes.items()}


def load(source, mesh=None, **options):
    rows = NamedSharding(mesh or mesh_of(1), PartitionSpec("data"))
    defaults = dict(on_error="raise", workers=0, num_classes=7)
    host = pp.parse("decode", on_device=True).host
    return on_device.load(source, host, spec(), rows, **defaults | options), rows


@pytest.mark.parametrize(("data", "model"), [(1, 1), (2, 1), (4, 1), (2, 4), (8, 1)])
def test_batches_are_those_of_the_order_on_any_mesh(data, model):
    """1000 examples do not divide by the devices; the batches are those that the host's arithmetic names."""
    source, mesh, seed = Pictures(1003), mesh_of(data, model), Seed.of(2**35 + 1)
    loaded, rows = load(source, mesh)
    order = on_device.Order(len(source), batch_size=64)
    there = on_device.DeviceSet(loaded.arrays, seed, order, rows)
    batch_of = jax.jit(lambda there, step: there.batch(there.indices(step)))
    for step in (0, 15, 2**20):  # the second straddles two epochs
        batch = batch_of(there, np.int32(step))
        wanted = [source[index] for index in order.indices(step, seed).tolist()]
        np.testing.assert_array_equal(batch["image"], np.stack([example["image"] for example in wanted]))
        np.testing.assert_array_equal(batch["label"], [example["label"] for example in wanted])
        assert batch["image"].dtype == np.uint8
        if data > 1:
            assert batch["image"].sharding.shard_shape(batch["image"].shape)[0] == 64 // data


def test_the_order_covers_every_epoch_though_batches_straddle():
    order = on_device.Order(100, batch_size=32)
    stream = np.concatenate([order.indices(step, Seed.of(4)) for step in range(25)])
    epochs = stream.reshape(8, 100)
    assert all(len(set(epoch)) == 100 for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 8


def test_repeated_views_stand_in_a_row_and_epochs_are_as_long_as_on_the_host():
    """600 examples, 3 views: epochs of 512 rows (2 * 256), of batches of 64, so 171 different examples."""
    order = on_device.Order(600, batch_size=64, repeats=3)
    epochs = np.stack([order.indices(step, Seed.of(4)) for step in range(16)]).reshape(2, 512)
    for epoch in epochs:
        views = epoch[:510].reshape(170, 3)
        assert (views == views[:, :1]).all() and len(set(epoch.tolist())) == 171
    assert set(epochs[0].tolist()) != set(epochs[1].tolist())


@pytest.mark.parametrize("repeats", [1, 3])
def test_an_epoch_of_passes_is_fresh_orders_in_whole_batches(repeats):
    order, seed = on_device.Order(100, batch_size=32, repeats=repeats, passes=3), Seed.of(4)
    rows = np.concatenate([order.indices(step, seed) for step in range(18)]).reshape(2, 9 * 32)
    traced = jax.jit(order.indices)
    np.testing.assert_array_equal(rows[1, :32], traced(np.int32(9), seed))
    passes = []
    for epoch in rows:  # 300 rows less those that fill no batch
        drawn = epoch[::repeats]
        np.testing.assert_array_equal(epoch, np.repeat(drawn, repeats)[: 9 * 32])
        passes += [drawn[start : start + 100] for start in range(0, len(drawn), 100)]
    assert [len(set(each.tolist())) for each in passes] == [len(each) for each in passes]
    assert len({tuple(each[:88]) for each in passes}) == 6 // repeats


def test_booleans_and_floats_travel_whole():
    mesh = mesh_of(4)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    arrays = {"yes": np.arange(8) % 3 == 0, "real": np.linspace(-1, 1, 8, dtype=np.float32)}
    there = {key: jax.device_put(value, rows) for key, value in arrays.items()}
    indices = np.asarray([7, 0, 3, 3], np.uint32)
    found = jax.jit(functools.partial(on_device.take, rows=rows))(there, indices)
    for key, array in arrays.items():
        np.testing.assert_array_equal(found[key], array[indices])
        assert found[key].dtype == array.dtype


def test_a_broken_example_is_named_or_replaced_and_counted():
    with pytest.raises(UserError, match=r"example 300 of pictures.*disk says no.*on_error='skip'"):
        load(Pictures(600, broken={300}))
    loaded, _ = load(Pictures(600, broken={300, 599}), on_error="skip")
    assert loaded.skipped == 2 and len(loaded.ids) == 600
    changed = np.flatnonzero(loaded.ids != np.arange(600))
    np.testing.assert_array_equal(changed, [300, 599])
    for row in changed:
        np.testing.assert_array_equal(loaded.arrays["image"][row], Pictures(600)[loaded.ids[row]]["image"])


def test_examples_of_two_sizes_are_refused_with_the_remedy():
    # Within what is read at once, and between two such parts.
    for wide in ({3}, set(range(256, 600))):
        with pytest.raises(UserError, match=r"'image'.*resize\("):
            load(Pictures(600, wide=wide))


def test_a_label_out_of_range_is_refused():
    with pytest.raises(UserError, match=r"label of example 6 of pictures is 6, but there are 6 classes"):
        load(Pictures(20), num_classes=6)


def check(size, steps=10, devices=2, batch_size=64):
    rows = NamedSharding(mesh_of(devices), PartitionSpec("data"))
    on_device.check(Pictures(size), spec(batch_size), rows, steps=steps)


def test_a_set_too_large_for_a_device_is_refused_before_it_is_read(monkeypatch):
    """2**20 pictures of 16 bytes on two devices: 8 MiB each."""
    monkeypatch.setattr(device_memory, "free_bytes", lambda device: 8 * 2**20)
    check(2**20)
    monkeypatch.setattr(device_memory, "free_bytes", lambda device: 8 * 2**20 - 1)
    says = r"pictures, 1,048,576 examples, takes 8.0 MiB on each device.*8.0 MiB are free.*on_device=False"
    with pytest.raises(UserError, match=says):
        check(2**20)


def test_a_run_too_long_to_count_is_refused():
    check(100, steps=2**26 - 1)
    with pytest.raises(UserError, match=r"32 bits.*67,108,864 steps.*on_device=False"):
        check(100, steps=2**26)


def test_what_is_free_is_known_here():
    """A CPU's devices share the memory of the machine: more than 1 MiB and less than 64 TiB each."""
    device = jax.devices()[0]
    assert 2**20 < device_memory.free_bytes(device) < 2**46

    class Card:
        platform = "gpu"

        def memory_stats(self):
            return {"bytes_limit": 100, "bytes_in_use": 40}

    assert device_memory.free_bytes(Card()) == 60
