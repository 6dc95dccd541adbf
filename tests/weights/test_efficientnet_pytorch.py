"""The names of efficientnet-pytorch, the container being safetensors: the family is told by names alone."""

import jax
import numpy as np
import pytest
import safetensors.numpy

from vitjax import models
from vitjax.errors import UserError
from vitjax.weights import load
from vitjax.weights.tree import flatten
from vitjax.weights.variables import join

MODULES = {
    "conv_pw": "_expand_conv",
    "bn1": "_bn0",
    "conv_dw": "_depthwise_conv",
    "bn2": "_bn1",
    "se/reduce": "_se_reduce",
    "se/expand": "_se_expand",
    "conv_pwl": "_project_conv",
    "bn3": "_bn2",
}
SEPARABLE = {**MODULES, "conv_pw": "_project_conv", "bn1": "_bn1", "bn2": "_bn2"}
OUTSIDE = {
    "conv_root": "_conv_stem",
    "bn_root": "_bn0",
    "conv_top": "_conv_head",
    "bn_top": "_bn1",
    "head": "_fc",
}
ENDS = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var", "bias": "bias"}


def values(name):
    """Parameters and statistics of a small network, drawn, in one flat dict; and their shapes, nested."""
    model = models.create(name, num_classes=3, width_mult=0.5)  # all stages of different widths
    made = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32))
    shapes = join(made["params"], made)
    rng = np.random.default_rng(0)
    return {n: rng.normal(size=leaf.shape).astype(np.float32) for n, leaf in flatten(shapes).items()}, shapes


def in_a_row(ours):
    """The state dict that the package would write."""
    units = sorted({tuple(name.split("/")[:2]) for name in ours if name.startswith("block")})
    state = {"_bn0.num_batches_tracked": np.array(3)}
    for name, array in ours.items():
        module, _, end = name.rpartition("/")
        if name.startswith("block"):
            block, unit, module = module.split("/", 2)
            names = SEPARABLE if block == "block1" else MODULES
            theirs = f"_blocks.{units.index((block, unit))}.{names[module]}"
        else:
            theirs = OUTSIDE[module]
        if array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
        state[f"{theirs}.{ENDS[end]}"] = np.ascontiguousarray(array.T if name == "head/kernel" else array)
    return state


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_b1"])
def test_blocks_in_a_row_find_their_stages(tmp_path, name):
    ours, shapes = values(name)
    state = in_a_row(ours)
    assert "_blocks.15._project_conv.weight" in state
    safetensors.numpy.save_file(state, tmp_path / "a.safetensors")
    loaded = load(tmp_path / "a.safetensors", shapes)
    assert "efficientnet-pytorch" in loaded.report and "1 buffers" in loaded.report
    found = flatten(loaded.params)
    assert found.keys() == ours.keys()
    for key, array in ours.items():
        np.testing.assert_array_equal(found[key], array)


def test_what_does_not_fit_is_told_by_name(tmp_path):
    ours, shapes = values("tf_efficientnet_lite0")
    state = in_a_row(ours)

    def refused(state, told, shapes=shapes):
        safetensors.numpy.save_file(state, tmp_path / "b.safetensors")
        with pytest.raises(UserError, match=told):
            load(tmp_path / "b.safetensors", shapes)

    refused({n: a for n, a in state.items() if n != "_fc.bias"}, r"1 missing in the file: head/bias \[3\]")
    refused(state | {"_blocks.3._gate.weight": np.zeros(2, np.float32)}, "'_blocks.3._gate.weight' ")
    refused(state | {"_swish.weight": np.zeros(2, np.float32)}, "'_swish.weight' ")
    more = {"_blocks.16._bn1.weight": np.zeros((), np.float32)}
    refused(state | more, "only in the file: block7/unit2/bn1/scale")
    without = {n: a for n, a in state.items() if n != "_blocks.15._project_conv.weight"}
    refused(without, "block7/unit1/conv_pwl/kernel")
    refused(state, "does not fit", values("tf_efficientnet_b1")[1])
