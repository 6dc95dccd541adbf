"""Hybrids in files: every naming, there and back, and the official arrays of GroupNorm."""

import jax
import numpy as np
import pytest

from vitjax import models
from vitjax.weights import load, save
from vitjax.weights.__main__ import abstract

TINY = {"num_classes": 5, "width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 2, "root_width": 32}
STAGES = {"resnet_units": (1, 2), "resnet_widths": (32, 64)}
ROOT = {"resnet_units": (), "patch_size": 4}


def hybrid(**fields):
    """The shapes of a small hybrid, and values."""
    model = models.create("r26_s32", **TINY, **fields)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    rng = np.random.default_rng(0)
    return shapes, jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


@pytest.mark.parametrize("fields", [STAGES, {**ROOT, "scan": True}], ids=["stages", "root, scanned"])
@pytest.mark.parametrize("names", ["vitjax", "augreg", "timm"])
def test_there_and_back(tmp_path, names, fields):
    shapes, params = hybrid(**fields)
    save(tmp_path / "hybrid.safetensors", params, names=names)
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "hybrid.safetensors", shapes).params, params)


def test_the_official_files_have_norms_of_four_axes(tmp_path):
    shapes, params = hybrid(**STAGES)
    save(tmp_path / "linen.npz", params, names="augreg")
    with np.load(tmp_path / "linen.npz") as file:
        arrays = {name: file[name] for name in file.files}
    norms = [name for name in arrays if "gn" in name]
    assert "block2/unit1/gn_proj/scale" in norms
    np.savez(tmp_path / "official.npz", **arrays | {name: arrays[name][None, None, None] for name in norms})
    loaded = load(tmp_path / "official.npz", shapes)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)


@pytest.mark.parametrize(("name", "positions"), [("r_ti16", 1 + 7 * 7), ("r50_b16", 1 + 14 * 14)])
def test_the_image_size_of_a_file_is_found_by_the_stride(name, positions):
    provided = {"cls": (1, 1, 1), "pos_embedding": (1, positions, 1), "head/bias": (9,), "/query/bias": (1,)}
    assert abstract(name, provided, None, None)["pos_embedding"].shape[1] == positions
