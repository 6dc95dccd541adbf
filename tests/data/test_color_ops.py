"""DeiT-III's 3-Augment and color jitter: what they draw from, by Pillow's operations."""

import itertools

import numpy as np
import pytest

from vitjax.data import pillow, pp
from vitjax.errors import UserError

IMAGE = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)


def test_three_augment_takes_each_a_third_of_the_time(monkeypatch):
    radii = []
    monkeypatch.setattr(pillow, "gaussian_blur", lambda image, radius: radii.append(radius) or image)
    host, rng = pp.parse("three_augment").host, np.random.default_rng(0)
    known = [pillow.grayscale(IMAGE), np.where(IMAGE < 128, IMAGE, 255 - IMAGE), IMAGE]
    counts = np.zeros(3, int)
    for _ in range(1500):
        result = host({"image": IMAGE}, rng)["image"]
        counts += [np.array_equal(result, image) for image in known]
    assert counts.sum() == 1500 and abs(counts - 500).max() < 5 * (1500 * 2 / 9) ** 0.5
    assert 0.1 <= min(radii) < 0.13 and 1.97 < max(radii) <= 2 and abs(np.mean(radii) - 1.05) < 0.13


def test_color_jitter_changes_all_in_any_order(monkeypatch):
    drawn = []

    def record(name):
        return lambda image, factor: drawn.append((name, factor)) or image

    for name in ("brightness", "contrast", "color"):
        monkeypatch.setattr(pillow, name, record(name))
    host, rng = pp.parse("color_jitter(0.3, 1.5, 0.2)").host, np.random.default_rng(0)
    for _ in range(1200):
        host({"image": IMAGE}, rng)
    orders = [tuple(name for name, _ in drawn[i : i + 3]) for i in range(0, len(drawn), 3)]
    for order in itertools.permutations(("brightness", "contrast", "color")):
        assert abs(orders.count(order) - 200) < 5 * (200 * 5 / 6) ** 0.5
    for name, low, high in (("brightness", 0.7, 1.3), ("contrast", 0, 2.5), ("color", 0.8, 1.2)):
        factors = [factor for drawn_name, factor in drawn if drawn_name == name]
        np.testing.assert_allclose([min(factors), max(factors)], [low, high], atol=0.02)


def test_color_jitter_leaves_out_what_is_zero():
    image = pp.parse("color_jitter(0, 0, 0)").host({"image": IMAGE}, np.random.default_rng(0))["image"]
    np.testing.assert_array_equal(image, IMAGE)


@pytest.mark.parametrize(
    "op", ["three_augment(radius=0)", "three_augment((2, 1))", "color_jitter(-1)", "color_jitter(hue=0.1)"]
)
def test_what_is_refused(op):
    with pytest.raises(UserError, match=r"radius|brightness|hue"):
        pp.parse(op)
    with pytest.raises(UserError, match="uint8 RGB"):
        pp.parse(op.split("(")[0]).host({"image": IMAGE / 255}, np.random.default_rng(0))
