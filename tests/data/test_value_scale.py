"""What values mean after a preprocessing string, held against the string itself."""

import numpy as np
import pytest

from vitjax.data import pp, value_scale
from vitjax.data.value_scale import Scale

STRINGS = [
    "decode",
    "value_range(-1, 1)",
    "value_range(0, 1)|random_crop(4)",
    "value_range(-1, 1, in_min=(1, 2, 3), in_max=(200, 201, 255))",
    "vgg_value_range",
    "clip_value_range|keep('image')",
    "value_range(0, 1)|value_range(-2, 6, in_max=0.5)",
    "value_range(0, 1, clip_values=True)",
    "value_range(0, 1, in_min=255, in_max=0, clip_values=True)",
    "vgg_value_range(outkey='other')",
    "vgg_value_range(outkey='other')|copy('other', 'image')",
]


@pytest.mark.parametrize("string", STRINGS)
def test_the_scale_says_what_the_ops_do(string):
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    batch = {"image": pixels[None]}
    rng = np.random.default_rng(0)
    for op in pp.parse(string).device.ops:
        batch = op(batch, rng)
    scale = value_scale.after(pp.parse(string))
    assert scale is not None
    if "crop" not in string:
        np.testing.assert_allclose(batch["image"][0], pixels * scale.factor + scale.offset, atol=2e-6 * 255)
    else:
        assert scale == Scale(1 / 255, 0)  # the op before the crop ran on the host


def test_a_clipping_op_has_no_scale():
    assert value_scale.after(pp.parse("value_range(-1, 1, in_min=9, clip_values=True)")) is None
    assert value_scale.after(pp.parse("value_range(1, 0, clip_values=True)")) is None  # all become 0
    assert (
        value_scale.after(pp.parse("value_range(0, 1, in_max=254, clip_values=True)|vgg_value_range")) is None
    )


def test_one_scale_onto_another_and_equality():
    vgg = value_scale.after(pp.parse("vgg_value_range"))
    half = value_scale.after(pp.parse("value_range(-1, 1)"))
    assert vgg and half
    there = half.onto(vgg)
    pixels = np.arange(256.0)[:, None]
    ours, theirs = pixels * half.factor + half.offset, pixels * vgg.factor + vgg.offset
    np.testing.assert_allclose(ours * there.factor + there.offset, theirs, atol=1e-12)
    assert half.equals(Scale(1 / 127.5, -1)) and not half.equals(Scale(1 / 127.5, -0.99))
    assert not half.equals(vgg) and vgg.equals(vgg) and str(half) == "[-1, 1]"


def test_only_value_range_ops_rescale_only():
    for string, wanted in (("value_range", True), ("", False), ("vgg_value_range|keep('image')", False)):
        assert value_scale.only_rescales(pp.parse(string)) is wanted, string
    assert not value_scale.only_rescales(pp.parse("value_range(inkey='other')"))
