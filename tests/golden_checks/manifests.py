"""Full-size models by shape only: our variables under timm's names against timm's own list of them."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest

from vitjax import models
from vitjax.analysis.costs import multiply_accumulates
from vitjax.layers.encoder import scan_to_loop
from vitjax.weights import pit_names, swin_names
from vitjax.weights.timm_cait_names import CAIT
from vitjax.weights.timm_cnn_names import table_of
from vitjax.weights.timm_names import to_timm
from vitjax.weights.tree import flatten
from vitjax.weights.variables import join

_SIZES = {"tiny": "ti", "small": "s", "base": "b", "large": "l", "huge": "h"}
_HYBRIDS = {
    "vit_tiny_r_s16_p8": "r_ti16",
    "vit_small_r26_s32": "r26_s32",
    "vit_base_r50_s16": "r50_b16",
    "vit_large_r50_s32": "r50_l32",
}


def ours(name):
    """The name and the fields of our model for one of timm's; None if there is none."""
    family, _, _ = name.rpartition("_")  # the last piece is the image size
    if family in _HYBRIDS:
        return _HYBRIDS[family], {}
    if match := re.fullmatch(r"(vit|deit|deit3)_([a-z]+)(_distilled)?_patch(\d+)", family):
        return f"{match[1]}_{_SIZES[match[2]]}{match[4]}{match[3] or ''}", {}
    if family.startswith("cait_"):
        return family, {}
    return None


def convnet(name):
    """The name of our ResNet, RegNet, BiT or EfficientNet for one of timm's; None if it is none of these."""
    if match := re.fullmatch(r"resnetv2_(\d+x\d+)_bit", name):
        return f"bit_r{match[1]}"
    if match := re.fullmatch(r"regnety_(\d+)", name):
        hundreds = int(match[1])  # of MFLOPs
        whole, tenth = divmod(hundreds, 10)
        return f"regnety_{whole}{f'_{tenth}' if tenth else ''}gf" if whole else f"regnety_{tenth}00mf"
    return name if re.fullmatch(r"resnet\d+|(tf_)?efficientnet_b\d", name) else None


def pyramid(name):
    """Name, fields and table of names of our Swin or PiT for one of timm's; None if it is neither."""
    if match := re.fullmatch(r"swin_(tiny|small|base|large)_patch(\d+)_window(\d+)_\d+", name):
        fields = {"patch_size": int(match[2]), "window": int(match[3])}
        return f"swin_{match[1][0]}", fields, swin_names.TIMM
    if match := re.fullmatch(r"(pit_[a-z]+(_distilled)?)_\d+", name):
        return match[1], {}, pit_names.TIMM_DISTILLED if match[2] else pit_names.TIMM
    return None


def check_pyramid(name, fields, table, manifest):
    """Names, shapes and counts of parameters, and the arithmetic."""
    model = models.create(name, num_classes=1000, **fields)
    channels, height, width = manifest["input_size"]
    image = jax.ShapeDtypeStruct((1, height, width, channels), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    views = jax.tree.map(lambda leaf: np.broadcast_to(np.int8(0), leaf.shape), shapes["params"])
    state = to_timm(views, table=table)
    assert {name: list(array.shape) for name, array in state.items()} == manifest["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == manifest["num_params"]
    macs = multiply_accumulates(lambda variables, image: model.apply(variables, image)[0], shapes, image)
    assert round(macs / 1e9, 4) == manifest["gmacs"]


def check_convnet(name, manifest):
    """Names, shapes and counts of parameters and statistics, and the arithmetic."""
    model = models.create(name, num_classes=1000)
    channels, height, width = manifest["input_size"]
    image = jax.ShapeDtypeStruct((1, height, width, channels), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    joined = join(shapes["params"], shapes)
    views = jax.tree.map(lambda leaf: np.broadcast_to(np.int8(0), leaf.shape), joined)
    state = {n: list(array.shape) for n, array in to_timm(views, table=table_of(flatten(joined))).items()}
    counters = {
        n: [] for n in manifest["buffers"] if n.endswith(".num_batches_tracked")
    }  # have no place here
    assert state | counters == manifest["params"] | {
        n: shape for n, (shape, _) in manifest["buffers"].items()
    }
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == manifest["num_params"]
    macs = multiply_accumulates(lambda variables, image: model.apply(variables, image)[0], shapes, image)
    assert round(macs / 1e9, 4) == manifest["gmacs"]


def check(path: pathlib.Path) -> None:
    """Checks one manifest. One of a model that is not here fails, like a golden that nothing checks."""
    manifest = json.loads(path.read_text())
    if (name := convnet(manifest["model"])) is not None:
        return check_convnet(name, manifest)
    if (found := pyramid(manifest["model"])) is not None:
        return check_pyramid(*found, manifest)
    found = ours(manifest["model"])
    if found is None:
        pytest.fail(f"Nothing checks {path.name}: no model of vitjax is said to be it.", pytrace=False)
    name, fields = found
    # Scanned, so that the block is traced once; as views of one zero, because only shapes count.
    model = models.create(name, num_classes=1000, scan=True, **fields)
    channels, height, width = manifest["input_size"]
    image = jax.ShapeDtypeStruct((1, height, width, channels), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    params = jax.tree.map(lambda leaf: np.broadcast_to(np.int8(0), leaf.shape), shapes)
    state = to_timm(scan_to_loop(params), table=CAIT if name.startswith("cait_") else None)
    assert {name: list(array.shape) for name, array in state.items()} == manifest["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == manifest["num_params"]
