"""Models by name: what is offered, what is refused, what comes from outside."""

import re
import sys
import types

import flax.linen as nn
import pytest

from vitjax import models
from vitjax.errors import UserError


def test_every_name_makes_a_model():
    assert "vit_s32" in models.names()
    for name in models.names():
        assert models.create(name, num_classes=3).num_classes == 3


def test_g_and_G_are_two_models():
    assert models.create("vit_g14").width == 1408
    assert models.create("vit_G14").width == 1664
    assert (models.create("vit_g_opt14").depth, models.create("vit_G_opt14").depth) == (40, 48)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("vit_x16", "vit_"),
        ("vit_S16", "'vit_s16'"),
        ("ViT-S/16", "'vit_s16'"),
        ("R26+S/32", "'r26_s32'"),
        ("R+Ti/16", "'r_ti16'"),
        ("r50_l16", "'r50_"),
        ("vit_small16", "'vit_"),
        ("vit_s", "'vit_s"),
        ("vit_s016", "'vit_s16'"),
    ],
)
def test_unknown_name(name, nearest):
    with pytest.raises(
        UserError, match=f"model.name='{re.escape(name)}' names no model. Did you mean .*{nearest}"
    ):
        models.create(name, num_classes=3)


def test_unknown_override_names_the_nearest_and_all_valid():
    with pytest.raises(
        UserError, match=r"model\.drop_out .*Did you mean 'dropout'.*Valid are: .*patch_size.*width"
    ):
        models.create("vit_s16", num_classes=3, drop_out=0.1)
    with pytest.raises(UserError, match=r"model\.parent"):
        models.create("vit_s16", num_classes=3, parent=None)


class Outside(nn.Module):
    num_classes: int | None = None
    width: int = 4


def make(num_classes, width=4):
    return Outside(num_classes, width)


@pytest.mark.parametrize("attribute", ["Outside", "make"])
def test_a_dotted_path_imports(monkeypatch, attribute):
    module = types.ModuleType("elsewhere")
    module.Outside, module.make = Outside, make
    monkeypatch.setitem(sys.modules, "elsewhere", module)
    model = models.create(f"elsewhere.{attribute}", num_classes=3, width=8)
    assert (model.num_classes, model.width) == (3, 8)
    with pytest.raises(UserError, match="Did you mean 'width'"):
        models.create(f"elsewhere.{attribute}", num_classes=3, witdh=8)


@pytest.mark.parametrize("path", ["no_such_package.Model", "vitjax.models.vit.NoSuchModel", "vitjax."])
def test_a_dotted_path_that_leads_nowhere(path):
    with pytest.raises(UserError, match="cannot be imported"):
        models.create(path, num_classes=3)


def test_a_dotted_path_to_something_else():
    with pytest.raises(UserError, match="neither a linen module"):
        models.create("vitjax.models.vit.SIZES", num_classes=3)
    with pytest.raises(UserError, match="num_classes is not a field"):
        models.create("vitjax.layers.norm.LayerNorm", num_classes=3)
