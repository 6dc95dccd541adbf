"""What is saved comes back bit for bit, or a sentence says why not."""

import json
import os
import shutil
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from vitjax import checkpoint, checkpoint_files
from vitjax.checkpoint import Checkpointer
from vitjax.checksum import checksums
from vitjax.errors import UserError

FINGERPRINT = {"model": {"name": "vit_s32", "patches": (32, 32)}, "seed": 0}


class OptState(NamedTuple):
    count: jax.Array
    mu: dict


def make_state(seed=0):
    params = {
        "head": {
            "kernel": jax.random.normal(jax.random.key(seed), (24, 16)),
            "bias": jnp.full(16, seed, jnp.bfloat16),
        },
        "cls": jnp.arange(8.0) + seed,
    }
    return {
        "params": params,
        "opt_state": (OptState(jnp.int32(seed), {"head": None, "cls": jnp.ones(8)}), ()),
        "rng": jax.random.split(jax.random.key(seed), 3),
        "flags": jnp.array([True, False]),
        "ema": None,
        "epoch": seed + 2**40,
        "scale": 0.1,
        "ids": np.arange(4) + 2**40,
    }


def abstract(tree, sharding=None):
    def one(x):
        if not isinstance(x, jax.Array):
            return x
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding)

    return jax.tree.map(one, tree)


def bits(x):
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    x = np.asarray(x)
    return x.dtype, x.shape, x.tobytes()


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        assert type(x) is type(y) and bits(x) == bits(y), jax.tree_util.keystr(path)


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def opened(tmp_path, warnings):
    """A function that opens the checkpointer of this test's directory; all are closed afterwards."""
    made = []

    def open_it(**kw):
        made.append(
            Checkpointer(tmp_path / "ckpt", **{"fingerprint": FINGERPRINT, "warn": warnings.append, **kw})
        )
        return made[-1]

    yield open_it
    for c in made:
        c.close()


@pytest.fixture(scope="session")
def two_saved(tmp_path_factory):
    """A directory with whole checkpoints of steps 1 and 2, to be copied and damaged."""
    path = tmp_path_factory.mktemp("two") / "ckpt"
    with Checkpointer(path, fingerprint=FINGERPRINT, keep_last=2) as c:
        c.save(1, make_state(1))
        c.save(2, make_state(2))
    return path


def test_everything_comes_back_bit_for_bit(opened):
    c = opened()
    assert c.restore(abstract(make_state())) is None and c.latest_step() is None
    c.save(3, make_state(3), metrics={"val/prec@1": np.float32(0.5)})
    step, state = c.restore(abstract(make_state()))
    assert step == 3 and c.steps() == [3]
    assert_same(state, make_state(3))
    record = json.loads((c.directory / "3/_CHECKPOINT_METADATA").read_text())["custom_metadata"]
    assert record["metrics"] == {"val/prec@1": 0.5}
    assert record["leaves"]["opt_state/0/count"] == ["int32", [], checksums([np.int32(3)])[0]]


def test_a_relative_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Checkpointer("runs/a", fingerprint={}) as c:
        c.save(1, {"params": {"x": jnp.ones(2)}})
    assert checkpoint.load_params("runs/a")["x"].tolist() == [1, 1]


def test_a_mistake_of_ours_is_not_told_as_one_of_the_disk(opened):
    with pytest.raises(TypeError):
        opened().save(1, {"x": "text"})


def test_python_numbers_fit_scalar_arrays(opened):
    c = opened()
    c.save(1, {"step": 7, "scale": 0.5})
    wanted = {"step": jax.ShapeDtypeStruct((), jnp.int32), "scale": jax.ShapeDtypeStruct((), jnp.float32)}
    state = c.restore(wanted)[1]
    assert_same(state, {"step": jnp.int32(7), "scale": jnp.float32(0.5)})
    with pytest.raises(UserError, match=r"step \(int64\[\] there, float32\[\] now\)"):
        c.restore({**wanted, "step": jax.ShapeDtypeStruct((), jnp.float32)})


def test_another_mesh(opened):
    one = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    other = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    state = {"w": jnp.arange(8 * 12, dtype=jnp.float32).reshape(8, 12), "b": jnp.arange(16.0)}
    c = opened()
    c.save(1, jax.device_put(state, NamedSharding(one, P("data"))))
    target = {"w": NamedSharding(other, P("model", "data")), "b": NamedSharding(other, P())}
    wanted = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, target)
    found = c.restore(wanted)[1]
    assert jax.tree.map(lambda x: x.sharding, found) == target
    assert_same(found, state)


def test_state_may_be_donated_as_soon_as_save_returns(opened):
    c = opened()
    make = jax.jit(lambda v: {str(i): jnp.full((256, 512), v + i) for i in range(40)})
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0.5 - 7, s), donate_argnums=0)
    overwrite(make(0.0))
    for step in (1, 2, 3):
        state = make(float(step))
        c.save(step, state)
        state = overwrite(state)
        assert_same(c.restore(abstract(state))[1], make(float(step)))


# Which ones are kept.


def test_last_best_and_permanent_ones_are_kept_across_a_restart(opened):
    tiny = {"x": jnp.ones(2)}
    values = {1: 0.1, 2: 0.9, 3: float("nan"), 4: 0.8, 5: 0.2, 6: 0.9, 7: 0.3}
    kw = {"keep_last": 2, "keep_best": 2, "best_metric": "val/prec@1", "keep_every": 5}
    for steps in ((1, 2, 3, 4), (5, 6, 7)):
        c = opened(**kw)
        c.restore(tiny)
        for step in steps:
            c.save(step, tiny, metrics={"val/prec@1": values[step]})
        c.close()
    assert c.steps() == [2, 5, 6, 7]  # 2 and 6 the best, 5 permanent, 6 and 7 the last


def test_the_lowest_is_best_with_min_and_the_newer_of_equals(opened):
    c = opened(best_metric="min:loss")
    for step, loss in ((1, 3.0), (2, 1.0), (3, 1.0), (4, 2.0)):
        c.save(step, {"x": jnp.ones(2)}, metrics={"loss": loss})
    c.wait()
    assert c.steps() == [3, 4]


def test_keep_last_must_keep_one(opened):
    with pytest.raises(UserError, match="keep_last=0"):
        opened(keep_last=0)


def test_a_step_is_saved_once_and_only_after_what_is_there_was_restored(opened):
    c = opened()
    c.save(5, {"x": jnp.ones(2)})
    c.save(5, {"x": jnp.zeros(2)})
    assert c.restore({"x": jnp.ones(2)})[1]["x"].tolist() == [1, 1]
    c = opened()
    for step in (4, 5):
        with pytest.raises(UserError, match=r"checkpoint of step 5.* has not restored"):
            c.save(step, {"x": jnp.ones(2)})
    c.restore({"x": jnp.ones(2)})
    c.save(5, {"x": jnp.ones(2)})
    c.save(6, {"x": jnp.ones(2)})
    c.wait()
    assert c.steps() == [6]


# Damage.


def remove(file):
    file.unlink()


def truncate(file):
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def flip(file):
    data = bytearray(file.read_bytes())
    if data:
        data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [remove, truncate, flip])
def test_no_damage_to_any_file_passes_for_a_whole_checkpoint(two_saved, tmp_path, damage):
    files = sorted(p.relative_to(two_saved) for p in (two_saved / "2").rglob("*") if p.is_file())
    assert len(files) > 6
    fell_back = set()
    for n, file in enumerate(files):
        told = []
        shutil.copytree(two_saved, tmp_path / str(n))
        damage(tmp_path / str(n) / file)
        with Checkpointer(tmp_path / str(n), fingerprint=FINGERPRINT, warn=told.append) as c:
            step, state = c.restore(abstract(make_state()))
        assert_same(state, make_state(step))  # a file that nothing is read from may be damaged
        if step == 1:
            fell_back.add(file.name)
            assert len(told) == 1 and "step 2 is damaged" in told[0] and "damaged-2" in told[0]
            assert c.steps() == [1] and (tmp_path / str(n) / "damaged-2").is_dir()
    assert "_CHECKPOINT_METADATA" in fell_back and "manifest.ocdbt" in fell_back
    assert any(len(name) == 32 for name in fell_back)  # the arrays themselves


def overwrite_leaf(directory, name, value):
    """Changes one leaf in a checkpoint and leaves the record of its checksum as it was."""
    file = directory / "_CHECKPOINT_METADATA"
    record = file.read_bytes()
    saved = json.loads(record)["custom_metadata"]["leaves"]
    from orbax.checkpoint import v1 as ocp

    leaves = {n: np.zeros(shape, jnp.dtype(dtype)) for n, (dtype, shape, _) in saved.items()}
    leaves = checkpoint_files._load_orbax(directory, saved, leaves)
    leaves[name] = value(leaves[name])
    ocp.save_checkpointables(directory, {"state": checkpoint_files.nest(leaves)}, overwrite=True)
    file.write_bytes(record)


def test_the_damaged_leaf_is_named_and_its_step_can_be_saved_again(opened, warnings):
    def one_bit(x):
        x = x.copy()
        x.view(np.uint16)[3] ^= 1
        return x

    state = jax.tree.map(lambda x: x, make_state(2))
    del state["rng"]
    c = opened(keep_last=3)
    for step in (1, 2, 3):
        c.save(step, state)
    c.wait()
    for step, good in ((3, 2), (3, 2)):
        overwrite_leaf(c.directory / str(step), "params/head/bias", one_bit)
        assert c.restore(abstract(state))[0] == good
        assert "step 3 is damaged: leaf params/head/bias does not match its checksum" in warnings[-1]
        assert "Going on from step 2" in warnings[-1]
        c.save(3, state)
        c.wait()
        assert c.steps() == [1, 2, 3]
    assert {p.name for p in c.directory.iterdir()} == {"1", "2", "3", "damaged-3", "damaged-3-2"}
    assert c.restore(abstract(state))[0] == 3


def test_the_first_leaf_that_cannot_be_read_is_named(opened, warnings):
    state = {f"leaf{i}": np.random.default_rng(i).random(5000) for i in range(6)}
    c = opened(keep_last=2)
    c.save(1, state)
    c.save(2, state)
    c.wait()
    for file in (c.directory / "2/state/ocdbt.process_0/d").iterdir():
        truncate(file)
    saved = checkpoint_files.read_record(c.directory / "2")["leaves"]
    assert c.restore(state)[0] == 1
    assert "cannot be read (" in warnings[0] and len(warnings[0]) < 800
    named = warnings[0].split("leaf ")[1].split()[0]
    for name in state:  # they lie in the file in no certain order
        if name == named:
            break
        checkpoint_files.read(c.directory / "damaged-2", saved, {name: state[name]})
    with pytest.raises(checkpoint_files.DamagedError, match=f"leaf {name} "):
        checkpoint_files.read(c.directory / "damaged-2", saved, {name: state[name]})


def test_none_whole(two_saved, tmp_path, warnings):
    shutil.copytree(two_saved, tmp_path / "ckpt")
    (tmp_path / "ckpt/1/_CHECKPOINT_METADATA").unlink()
    flip(tmp_path / "ckpt/2/_CHECKPOINT_METADATA")
    with Checkpointer(tmp_path / "ckpt", fingerprint=FINGERPRINT, warn=warnings.append) as c:
        with pytest.raises(UserError) as e:
            c.restore(abstract(make_state()))
        assert (
            "No checkpoint in" in str(e.value) and "step 2: " in str(e.value) and "step 1: " in str(e.value)
        )
        assert c.steps() == [1, 2] and not warnings
        with pytest.raises(UserError, match="checkpoint of step 2"):
            c.save(3 - 1, make_state())


def test_a_checkpoint_that_is_not_understood_is_not_deleted(opened):
    c = opened()
    c.save(1, {"x": jnp.ones(2)})
    c.wait()
    (c.directory / "1/_CHECKPOINT_METADATA").unlink()
    c.save(2, {"x": jnp.ones(2)})
    c.save(3, {"x": jnp.ones(2)})
    c.wait()
    assert c.steps() == [1, 3]


# Somebody else's checkpoints.


def test_another_config_is_refused_with_both_values(two_saved):
    other = {"model": {"name": "vit_b32", "patches": [32, 32]}, "seed": 0, "mixup": 0.2}
    with pytest.raises(UserError) as e:
        Checkpointer(two_saved, fingerprint=other)
    assert "mixup is 0.2 now, (absent) there" in str(e.value)
    assert "model.name is 'vit_b32' now, 'vit_s32' there" in str(e.value)
    assert "--workdir" in str(e.value) and "seed" not in str(e.value) and "patches" not in str(e.value)


def test_another_tree_is_refused_by_leaf(two_saved):
    wanted = abstract(make_state())
    wanted["params"]["new"] = jax.ShapeDtypeStruct((3,), jnp.float32)
    wanted["params"]["head"]["kernel"] = jax.ShapeDtypeStruct((24, 10), jnp.float32)
    del wanted["rng"]
    with (
        Checkpointer(two_saved, fingerprint=FINGERPRINT, remedy="Use --fresh.") as c,
        pytest.raises(UserError) as e,
    ):
        c.restore(wanted)
    text = str(e.value)
    assert "missing there: params/new" in text and "only there: rng" in text and text.endswith("Use --fresh.")
    assert "params/head/kernel (float32[24,16] there, float32[24,10] now)" in text and "\n" not in text
    assert c.steps() == [1, 2]


def test_a_checkpoint_of_the_future(two_saved, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_files, "FORMAT", 0)
    with pytest.raises(UserError, match="newer vitjax"):
        Checkpointer(two_saved, fingerprint=FINGERPRINT)


def test_load_params(two_saved, tmp_path):
    for path in (two_saved, two_saved / "2", str(two_saved)):
        params = checkpoint.load_params(path)
        assert_same(params, jax.tree.map(np.asarray, make_state(2)["params"]))
    assert checkpoint.load_params(two_saved / "1")["cls"][0] == 1
    with pytest.raises(UserError, match=r"has no 'ema_params' in it, but epoch, flags, .*params"):
        checkpoint.load_params(two_saved, "ema_params")
    with pytest.raises(UserError, match="There is no checkpoint at"):
        checkpoint.load_params(tmp_path / "nowhere")
    shutil.copytree(two_saved, tmp_path / "ckpt")
    (tmp_path / "ckpt/2/state/manifest.ocdbt").unlink()
    with pytest.raises(UserError, match=r"2 is damaged: leaf params/"):
        checkpoint.load_params(tmp_path / "ckpt")


# A directory that does not do what it should. Disk full and kill -9 have a file of their own.


@pytest.mark.parametrize("where", ["in_the_way", "in_the_way/ckpt", "/proc/no/such"])
def test_a_directory_that_cannot_be_written(tmp_path, where):
    (tmp_path / "in_the_way").write_text("a file")
    with pytest.raises(UserError, match=r"Cannot write checkpoints to .* --workdir"):
        Checkpointer(tmp_path / where, fingerprint={})


def test_a_directory_without_write_permission(tmp_path):
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("root writes where it likes")
    with pytest.raises(UserError, match="Permission denied"):
        Checkpointer(tmp_path, fingerprint={})


def test_the_error_on_its_way_out_is_not_hidden(opened, warnings, monkeypatch):
    def full(step, response):
        response.result()
        raise UserError("the disk is full")

    c = opened()
    monkeypatch.setattr(c, "_finish", full)
    with pytest.raises(KeyError), c:
        c.save(1, {"x": jnp.ones(2)})
        raise KeyError("bug")
    assert warnings == ["the disk is full"]


def test_what_is_being_saved_when_an_error_comes_by_is_saved(opened, warnings):
    c = opened()
    with pytest.raises(KeyError), c:
        c.save(1, {"x": jnp.ones(2)})
        raise KeyError("bug")
    assert c.steps() == [1] and not warnings


def test_orbax_is_imported_lazily():
    code = "import sys, vitjax.checkpoint; sys.exit(any(m.startswith('orbax') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
