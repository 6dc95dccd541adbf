"""RandAugment's ops against big_vision's, pixel by pixel, and what `compat="fixed"` changes."""

import pathlib

import numpy as np
import pytest

from vitjax.data import pp, randaug
from vitjax.errors import UserError

with np.load(pathlib.Path(__file__).parent / "goldens/randaug.npz") as file:
    GOLDENS = dict(file)
CASES = [name for name in GOLDENS if name.count("/") >= 3 and not name.startswith("gradient")]


class Drawn:
    """Stands in for the generator: draws the sign, or the place, that the golden was made with."""

    def __init__(self, sign, place):
        self.sign, self.place = int(sign), [int(n) for n in place]

    def random(self):
        return 0.25 if self.sign > 0 else 0.75

    def integers(self, n):
        return self.place.pop(0)


@pytest.mark.parametrize("op", list(randaug.OPS))
def test_equals_big_vision(op):
    cases = [case for case in CASES if case.split("/")[1] == op]
    assert cases
    for case in cases:
        image, _, magnitude, sign, *place = case.split("/")
        before = GOLDENS[image].copy()
        result = randaug.apply_op(op, GOLDENS[image], float(magnitude), Drawn(sign, place))
        if op == "Sharpness":
            # Its blur is a float convolution. Where the processor has no fused multiply-add, a sum may
            # truncate to the grey level beside it in 0.3 % of places; the blend multiplies that by up to 3.
            off = np.abs(result.astype(int) - GOLDENS[case].astype(int))
            assert (off > 0).mean() < 0.01 and off.max() <= 3, case
        else:
            np.testing.assert_array_equal(result, GOLDENS[case], err_msg=case)
        np.testing.assert_array_equal(GOLDENS[image], before)


def test_contrast_at_224_scales_around_196():
    image = np.broadcast_to(np.arange(224, dtype=np.uint8)[None, :, None], (224, 224, 3)).copy()
    result = randaug.contrast(image, 2.8)
    np.testing.assert_array_equal(result[:1], GOLDENS["gradient/Contrast/15/1"])
    assert (result[:, 196] == 196).all()


def test_every_golden_is_checked():
    assert {case.split("/")[1] for case in CASES} == set(randaug.OPS)


IMAGE = GOLDENS["photo"]


@pytest.mark.parametrize(("magnitude", "threshold"), [(0, 0), (5, 128), (10, 256), (15, 384)])
def test_fixed_solarize(magnitude, threshold):
    result = randaug.apply_op("Solarize", IMAGE, magnitude, np.random.default_rng(0), "fixed")
    expected = np.where(threshold > IMAGE.astype(int), IMAGE, 255 - IMAGE)
    np.testing.assert_array_equal(result, expected)


def test_fixed_contrast_scales_around_the_mean():
    image = np.full((8, 8, 3), 77, np.uint8)
    np.testing.assert_array_equal(randaug.contrast(image, 3.7, "fixed"), image)
    assert (randaug.contrast(image, 3.7) != image).any()


@pytest.mark.parametrize(("bits", "values"), [(0, 2), (1, 2), (4, 16), (8, 256), (12, 256)])
def test_fixed_posterize(bits, values):
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=-1)
    assert len(np.unique(randaug.posterize(ramp, bits, "fixed"))) == values


def test_fixed_is_otherwise_the_same():
    for op in set(randaug.OPS) - {"Solarize", "Contrast", "Posterize"}:
        results = [
            randaug.apply_op(op, IMAGE, 12, np.random.default_rng(0), compat)
            for compat in ("augreg", "fixed")
        ]
        np.testing.assert_array_equal(*results)


def test_ops_and_signs_are_drawn_uniformly(monkeypatch):
    drawn = []
    monkeypatch.setattr(randaug, "apply_op", lambda name, image, *rest: drawn.append(name) or image)
    host = pp.parse("randaug(2, 15)").host
    rng = np.random.default_rng(0)
    for _ in range(4000):
        host({"image": IMAGE}, rng)
    counts = np.asarray([drawn.count(name) for name in randaug.OPS])
    assert counts.sum() == 8000
    # 500 each; the standard deviation is 21.7.
    assert abs(counts - 500).max() < 5 * 21.7
    signs = [randaug._sign(rng) for _ in range(1000)]
    assert abs(sum(signs)) < 5 * 1000**0.5


def test_is_a_pure_function_of_the_generator():
    host = pp.parse("randaug(3, 10)").host
    first, again = (host({"image": IMAGE}, np.random.default_rng(5))["image"] for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_wants_uint8_rgb():
    for image in (IMAGE.astype(np.float32), IMAGE[..., :1]):
        with pytest.raises(UserError, match="uint8 RGB"):
            pp.parse("randaug(1, 10)").host({"image": image}, np.random.default_rng(0))


def test_pixel_amounts_scale_with_the_image_when_asked(monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        randaug, "apply_op", lambda name, image, strength, *rest: drawn.setdefault(name, strength) and image
    )
    apply = pp.parse("randaug(200, 16, full_size=224)").host
    apply({"image": np.zeros((28, 56, 3), np.uint8)}, np.random.default_rng(0))
    in_pixels = {"TranslateX", "TranslateY", "Cutout"}
    assert drawn == {name: 2 if name in in_pixels else 16 for name in randaug.OPS}
    with pytest.raises(UserError, match="full_size"):
        pp.parse("randaug(full_size=0)")
