"""Released files of ReActNet and Bi-Real Net: both layouts, both steps, and a second step from a first."""

import functools

import jax
import numpy as np
import pytest
from conftest import drawn, same

from vitjax import config, experiment, models
from vitjax.check import check
from vitjax.checkpoint import Checkpointer
from vitjax.errors import UserError
from vitjax.weights import load, save
from vitjax.weights.__main__ import abstract
from vitjax.weights.reactnet_names import MOBILENET, RESNET
from vitjax.weights.timm_names import to_timm
from vitjax.weights.tree import flatten
from vitjax.weights.variables import join, split

SMALL = {"units": (1, 2), "widths": (4, 8), "stem": "small"}
TINY = {
    "reactnet_a": {"root_width": 4, "widths": (8, 8), "strides": (1, 2)},
    "react_resnet18": SMALL,
    "bireal_resnet18": SMALL,
}
FAMILIES = {
    "reactnet_a": "liuzechun/ReActNet (MobileNet layout, step {step})",
    "react_resnet18": "liuzechun/ReActNet (ResNet layout)",
    "bireal_resnet18": "liuzechun/Bi-Real-net",
}


@functools.cache
def joined(name, **fields):
    model = models.create(name, num_classes=5, **{**TINY[name], **fields})
    made = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32))
    return join(made["params"], made)


def released(name, params, step=2, prefix=""):
    """What the released code saves of these parameters, by name."""
    state = to_timm(params, table=MOBILENET if name == "reactnet_a" else RESNET)
    found = {}
    for key, array in state.items():
        latent = ".binary_" in key
        # In MobileNet's second step, and in Bi-Real Net, binary kernels are flat.
        flat = latent and (name == "bireal_resnet18" or (name == "reactnet_a" and step == 2))
        found[f"{prefix}{key}{'s' if flat else ''}"] = array.reshape(-1, 1) if flat else array
        if key.endswith("running_var"):
            found[f"{prefix}{key.replace('running_var', 'num_batches_tracked')}"] = np.int64(7)
    return found


@pytest.mark.parametrize("prefix", ["", "state_dict/module."])
@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("name", TINY)
def test_released_files_of_both_steps(tmp_path, name, step, prefix):
    params = drawn(joined(name))
    others = {"optimizer/state/0/exp_avg": np.zeros(3, np.float32)} if prefix else {}
    np.savez(tmp_path / "a.npz", allow_pickle=False, **released(name, params, step, prefix), **others)
    loaded = load(tmp_path / "a.npz", joined(name))
    same(loaded.params, params)
    assert FAMILIES[name].format(step=step) in loaded.report


def test_names_and_layouts_are_the_released_ones():
    params = drawn(joined("reactnet_a"))
    state = released("reactnet_a", params)
    first, second = params["block1"], params["block2"]
    np.testing.assert_array_equal(
        state["feature.1.binary_3x3.weights"], first["conv3x3"]["kernel"].transpose(3, 2, 0, 1).reshape(-1, 1)
    )
    np.testing.assert_array_equal(
        state["feature.1.binary_pw_down2.weights"].reshape(4, 4), first["conv1x1_2"]["kernel"][0, 0].T
    )
    np.testing.assert_array_equal(state["feature.1.bn2_1.running_mean"], first["bn2_1"]["mean"])
    np.testing.assert_array_equal(
        state["feature.2.binary_pw.weights"].reshape(8, 8), second["conv1x1"]["kernel"][0, 0].T
    )
    moves = {"11": ("conv3x3", "move"), "12": ("rprelu1", "move1"), "13": ("rprelu1", "move2"),
             "22": ("rprelu2", "move1"), "23": ("rprelu2", "move2")}  # fmt: skip
    for number, (layer, move) in moves.items():
        bias = state[f"feature.2.move{number}.bias"]
        assert bias.shape == (1, 8, 1, 1)
        np.testing.assert_array_equal(bias[0, :, 0, 0], second[layer][move])
    np.testing.assert_array_equal(state["feature.2.move21.bias"][0, :, 0, 0], second["move2"])
    np.testing.assert_array_equal(state["feature.2.prelu2.weight"], second["rprelu2"]["slope"])
    np.testing.assert_array_equal(
        state["feature.0.conv1.weight"], params["conv_root"]["kernel"].transpose(3, 2, 0, 1)
    )


@pytest.mark.parametrize(
    ("name", "key"), [("reactnet_a", "feature.2.bn1"), ("bireal_resnet18", "layer2.1.bn1")]
)
def test_flat_kernels_of_which_the_file_does_not_tell_the_shape(tmp_path, name, key):
    state = released(name, drawn(joined(name)))
    del state[f"{key}.weight"]
    np.savez(tmp_path / "a.npz", **state)
    with pytest.raises(
        UserError, match=r"1 missing in the file: .*/scale \[8\].*kernel is \[576, 1\] there, \[3, 3, 8, 8\]"
    ):
        load(tmp_path / "a.npz", joined(name))
    state = released(name, drawn(joined(name)))
    kernel = next(k for k in state if k.startswith(key[:-3]) and k.endswith("weights"))
    np.savez(tmp_path / "a.npz", **(state | {kernel: state[kernel][:-1]}))
    with pytest.raises(UserError, match=r"1 different: .*kernel is \[575, 1\] there"):
        load(tmp_path / "a.npz", joined(name))


@pytest.mark.parametrize(
    ("there", "here", "fields", "message"),
    [
        (
            "reactnet_a",
            "react_resnet18",
            {},
            "MobileNet layout, 2 blocks, and the model is a ReActNet in the ResNet",
        ),
        (
            "react_resnet18",
            "reactnet_a",
            {},
            r"ResNet layout, 1 \+ 2 blocks, and the model .* MobileNet layout, 2 b",
        ),
        (
            "react_resnet18",
            "bireal_resnet18",
            {},
            r"ResNet layout, 1 \+ 2 blocks, .* a Bi-Real Net, 1 \+ 2 blocks",
        ),
        (
            "react_resnet18",
            "react_resnet18",
            {"units": (1, 1)},
            r"1 \+ 2 blocks, and the model .* 1 \+ 1 blocks",
        ),
    ],
)
@pytest.mark.parametrize("ours", [False, True])
def test_a_first_step_of_another_layout_is_refused_by_name(tmp_path, there, here, fields, message, ours):
    params = drawn(joined(there))
    if ours:
        save(tmp_path / "a.npz", params)
    else:
        np.savez(tmp_path / "a.npz", **released(there, params, step=1))
    with pytest.raises(UserError, match=message):
        load(tmp_path / "a.npz", joined(here, **fields))


def test_what_is_left_out_on_purpose_is_not_refused(tmp_path):
    """A ReActNet from a Bi-Real Net, which lacks shifts and RPReLUs."""
    params = drawn(joined("bireal_resnet18"))
    np.savez(tmp_path / "a.npz", **released("bireal_resnet18", params))
    wanted = joined("react_resnet18")
    loaded = load(tmp_path / "a.npz", wanted, dont_load=(".*/conv/move", ".*/rprelu/.*"))
    assert flatten(loaded.params).keys() == flatten(params).keys()


def test_files_are_written_by_our_names_only(tmp_path):
    for name in TINY:
        params = drawn(joined(name))
        save(tmp_path / "a.safetensors", params)
        same(load(tmp_path / "a.safetensors", joined(name)).params, params)
        with pytest.raises(UserError, match=r"names='timm' has none for a .*: names='vitjax' has"):
            save(tmp_path / "b.safetensors", params, names="timm")


@pytest.mark.parametrize("name", ["reactnet_a", "react_resnet18"])
def test_the_command_line_knows_the_roots(name):
    model = models.create(name, num_classes=7)
    made = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32))
    shapes = {name: leaf.shape for name, leaf in flatten(join(made["params"], made)).items()}
    read = abstract(name, shapes, None, None)
    assert {name: leaf.shape for name, leaf in flatten(read).items()} == shapes


def settings(model, **overrides):
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


def test_the_second_step_starts_from_all_of_the_first(tmp_path):
    model = {"name": "reactnet_a", "root_width": 4, "root_stride": 1, "widths": (4,), "strides": (1,)}
    run = experiment.build(settings({**model, "precision": "binary"}, model_init=str(tmp_path)))
    abstract_params, abstract_state = run.abstract_state.params, run.abstract_state.model_state
    first = drawn(join(abstract_params, abstract_state))
    params, model_state = split(first, abstract_state)
    with Checkpointer(tmp_path / "checkpoints", fingerprint={}) as checkpointer:
        checkpointer.save(1, {"params": params, "model_state": model_state})
        checkpointer.wait()
    started = run.init_state()
    same(jax.tree.map(np.asarray, join(started.params, started.model_state)), first)
    # The released code's second step knows its own binary kernels only.
    released = load(tmp_path, first, dont_load=r".*/conv(3x3|1x1)(_[12])?/kernel")
    left = flatten(first).keys() - flatten(released.params).keys()
    assert left == {"block1/conv3x3/kernel", "block1/conv1x1/kernel"}
    with pytest.raises(
        UserError, match="MobileNet layout, 1 blocks, and the model is a ReActNet in the ResNet"
    ):
        check(settings({"name": "react_resnet18", **SMALL}, model_init=str(tmp_path)))
