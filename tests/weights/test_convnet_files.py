"""Convolutional networks in files: parameters and batch statistics, there and back, and from peers."""

import jax
import numpy as np
import pytest
import safetensors.numpy

from vitjax import config, experiment, models
from vitjax.check import check
from vitjax.errors import UserError
from vitjax.preemption import Preempted
from vitjax.train import train
from vitjax.weights import load, save
from vitjax.weights.__main__ import main
from vitjax.weights.tree import flatten
from vitjax.weights.variables import join, split

TINY = {
    "resnet18": {"units": (1, 2), "widths": (4, 8)},
    "resnet50": {"units": (1, 2), "widths": (4, 8), "stem": "small"},
    "regnety_400mf": {"depth": 5, "w0": 16, "wa": 8.2, "wm": 1.5, "root_width": 12},
    "bit_r50x1": {"units": (1, 2), "widths": (32, 32), "root_width": 32},
    "efficientnet_b0": {"width_mult": 0.16, "depth_mult": 0.4},
}


def shapes(name, num_classes=5):
    """The shapes of a small network's variables, and those of parameters and statistics in one tree."""
    model = models.create(name, num_classes=num_classes, **TINY.get(name, {}))
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    made = jax.eval_shape(model.init, jax.random.key(0), image)
    return made, join(made["params"], made)


def drawn(abstract, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.uniform(0.5, 1.5, x.shape).astype(np.float32), abstract)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("names", ["vitjax", "timm"])
@pytest.mark.parametrize("name", TINY)
def test_there_and_back(tmp_path, name, names):
    _, abstract = shapes(name)
    values = drawn(abstract)
    save(tmp_path / "a.safetensors", values, names=names)
    loaded = load(tmp_path / "a.safetensors", abstract)
    same(loaded.params, values)
    assert ("timm" if names == "timm" else "JAX") in loaded.report


def test_the_names_and_layouts_are_timms(tmp_path):
    files = {}
    for name in TINY:
        values = drawn(shapes(name)[1])
        save(tmp_path / "a.safetensors", values, names="timm")
        files[name] = values, safetensors.numpy.load_file(tmp_path / "a.safetensors")
    ours, theirs = files["resnet50"]
    unit = ours["block2"]["unit2"]
    np.testing.assert_array_equal(theirs["layer2.1.bn3.running_var"], unit["bn3"]["var"])
    np.testing.assert_array_equal(
        theirs["layer2.1.conv2.weight"], unit["conv2"]["kernel"].transpose(3, 2, 0, 1)
    )
    np.testing.assert_array_equal(
        theirs["layer1.0.downsample.1.running_mean"], ours["block1"]["unit1"]["bn_proj"]["mean"]
    )
    np.testing.assert_array_equal(theirs["fc.weight"], ours["head"]["kernel"].T)
    ours, theirs = files["regnety_400mf"]
    np.testing.assert_array_equal(theirs["stem.bn.running_mean"], ours["bn_root"]["mean"])
    np.testing.assert_array_equal(
        theirs["s1.b1.se.fc1.weight"][:, :, 0, 0], ours["block1"]["unit1"]["se"]["reduce"]["kernel"][0, 0].T
    )
    ours, theirs = files["bit_r50x1"]
    assert theirs["head.fc.weight"].shape == (5, 128, 1, 1)
    np.testing.assert_array_equal(
        theirs["stages.1.blocks.1.norm3.weight"], ours["block2"]["unit2"]["gn3"]["scale"]
    )


def test_statistics_are_asked_for_by_name_and_counters_are_left_out(tmp_path):
    made, abstract = shapes("resnet18")
    save(tmp_path / "a.safetensors", drawn(abstract), names="timm")
    state = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    safetensors.numpy.save_file(
        state | {"bn1.num_batches_tracked": np.int64([7])}, tmp_path / "b.safetensors"
    )
    assert "1 buffers" in load(tmp_path / "b.safetensors", abstract).report
    with pytest.raises(UserError, match=r"only in the file: .*block1/unit1/bn1/mean"):
        load(tmp_path / "a.safetensors", made["params"])
    del state["layer2.0.bn2.running_var"]
    safetensors.numpy.save_file(state, tmp_path / "c.safetensors")
    with pytest.raises(UserError, match=r"1 missing in the file: block2/unit1/bn2/var \[8\]"):
        load(tmp_path / "c.safetensors", abstract)
    with pytest.raises(UserError, match="augreg"):
        save(tmp_path / "a.npz", drawn(abstract), names="augreg")


def settings(**overrides):
    model = {"name": "resnet18", "stem": "small", "units": (1, 1), "widths": (4, 8)}
    given = {
        "model": model,
        "input.batch_size": 16,
        "total_steps": 1,
        "report": False,
        "evals": {},
        **overrides,
    }
    made = config.load("configs/quickstart.py", {key: str(value) for key, value in given.items()})
    made.best_metric = None
    return made


def test_a_run_starts_from_weights_and_statistics(tmp_path, capsys):
    run = experiment.build(settings())
    abstract = join(run.abstract_state.params, run.abstract_state.model_state)
    values = drawn(abstract)
    save(tmp_path / "a.safetensors", values, names="timm")
    started = experiment.build(settings(model_init=str(tmp_path / "a.safetensors"))).init_state()
    params, statistics = split(values, run.abstract_state.model_state)
    same(jax.tree.map(np.asarray, started.params), params)
    same(jax.tree.map(np.asarray, started.model_state), statistics)

    # A run of one's own is as good a start, statistics included.
    train(settings(), tmp_path / "first", Preempted())
    capsys.readouterr()
    check(settings(model_init=str(tmp_path / "first")))
    assert f"{len(flatten(abstract))} of {len(flatten(abstract))} entries" in capsys.readouterr().out
    loaded = load(tmp_path / "first", abstract).params
    assert np.any(loaded["bn_root"]["mean"] != 0)
    # Another head: the rest is the file's.
    section = dict(weights=str(tmp_path / "first"), dont_load=("head/.*", "bn_root/mean"))
    other = experiment.build(settings(model_init=section, num_classes=12)).init_state()
    np.testing.assert_array_equal(
        other.model_state["batch_stats"]["bn_root"]["var"], loaded["bn_root"]["var"]
    )
    np.testing.assert_array_equal(other.model_state["batch_stats"]["bn_root"]["mean"], 0)


@pytest.mark.parametrize("name", ["resnet18", "bit_r50x1"])
def test_the_command_line_converts(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr(models, "create", lambda name, create=models.create, **fields: create(
        name, **{**TINY[name], **fields}
    ))  # fmt: skip
    values = drawn(shapes(name, num_classes=3)[1])
    timm, ours = tmp_path / "timm.safetensors", tmp_path / "ours.npz"
    save(timm, values, names="timm")
    assert main(["convert", str(timm), str(ours), "--model", name]) == 0
    assert (
        main(["convert", str(ours), str(tmp_path / "back.safetensors"), "--model", name, "--names", "timm"])
        == 0
    )
    assert (tmp_path / "back.safetensors").read_bytes() == timm.read_bytes()
    capsys.readouterr()
    assert main(["show", str(timm)]) == 0
    assert "timm (BiT ResNet)" if name == "bit_r50x1" else "timm (ResNet)" in capsys.readouterr().out
