"""AutoAugment: each op against Pillow's own as the release calls it, the policies, and what is drawn."""

import collections

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from vitjax.data import autoaugment, pp
from vitjax.errors import UserError

RNG = np.random.default_rng(0)
GREY = (128, 128, 128)


def images():
    """Noise, two values (which overshoot), little contrast, a ramp; square and not, down to one pixel."""
    for height, width in [(1, 1), (2, 3), (32, 32), (33, 47)]:
        noise = RNG.integers(0, 256, (height, width, 3), np.uint8)
        yield noise
        yield np.where(noise > 128, np.uint8(255), np.uint8(0))
        yield noise // 4 + np.uint8(60)
        yield (np.indices((height, width, 3)).sum(axis=0) * 2).astype(np.uint8)


IMAGES = list(images())


def affine(image, matrix, **kwargs):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=GREY, **kwargs)


def rotated(image, degrees):
    turned = image.convert("RGBA").rotate(degrees)
    return Image.composite(turned, Image.new("RGBA", turned.size, (128,) * 4), turned).convert("RGB")


def enhanced(name):
    return lambda image, i, sign: getattr(ImageEnhance, name)(image).enhance(
        1 + np.linspace(0, 0.9, 10)[i] * sign
    )


BICUBIC = Image.Resampling.BICUBIC
SHEARS, SHIFTS = np.linspace(0, 0.3, 10), np.linspace(0, 150 / 331, 10)
PILLOWS = {
    "ShearX": lambda im, i, s: affine(im, (1, SHEARS[i] * s, 0, 0, 1, 0), resample=BICUBIC),
    "ShearY": lambda im, i, s: affine(im, (1, 0, 0, SHEARS[i] * s, 1, 0), resample=BICUBIC),
    "TranslateX": lambda im, i, s: affine(im, (1, 0, SHIFTS[i] * im.size[0] * s, 0, 1, 0)),
    "TranslateY": lambda im, i, s: affine(im, (1, 0, 0, 0, 1, SHIFTS[i] * im.size[1] * s)),
    "Rotate": lambda im, i, s: rotated(im, np.linspace(0, 30, 10)[i]),
    **{name: enhanced(name) for name in ("Color", "Contrast", "Sharpness", "Brightness")},
    "Posterize": lambda im, i, s: ImageOps.posterize(im, int(np.round(np.linspace(8, 4, 10), 0)[i])),
    "Solarize": lambda im, i, s: ImageOps.solarize(im, np.linspace(256, 0, 10)[i]),
    "AutoContrast": lambda im, i, s: ImageOps.autocontrast(im),
    "Equalize": lambda im, i, s: ImageOps.equalize(im),
    "Invert": lambda im, i, s: ImageOps.invert(im),
}


@pytest.mark.parametrize("name", PILLOWS)
def test_equals_pillow_bit_for_bit(name):
    for image in IMAGES:
        before = image.copy()
        for magnitude in range(10):
            for sign in (1, -1):
                ours = autoaugment.apply_op(name, image, magnitude, sign)
                theirs = np.asarray(PILLOWS[name](Image.fromarray(image), magnitude, sign))
                np.testing.assert_array_equal(ours, theirs, err_msg=f"{image.shape} {magnitude} {sign}")
        np.testing.assert_array_equal(image, before)


def test_every_op_is_checked():
    assert set(PILLOWS) == set(autoaugment.OPS)


def test_the_policies():
    """Sums of the published tables' probabilities and magnitudes, and a line of each."""
    sums = {}
    for name, policy in autoaugment.POLICIES.items():
        assert len(policy) == 25
        changes = [change for pair in policy for change in pair]
        assert {change.op for change in changes} <= set(autoaugment.OPS)
        sums[name] = (
            round(sum(change.probability for change in changes), 6),
            sum(change.magnitude for change in changes),
        )
    assert sums == {"cifar": (26.5, 187), "svhn": (32.9, 143), "imagenet": (31.0, 159)}
    assert autoaugment.POLICIES["cifar"][6] == (("Color", 0.4, 3), ("Brightness", 0.6, 7))
    assert autoaugment.POLICIES["svhn"][15] == (("Invert", 0.8, 0), ("TranslateY", 0.0, 2))
    assert autoaugment.POLICIES["imagenet"][24] == (("Equalize", 0.8, 0), ("Equalize", 0.6, 0))


def test_draws_sub_policies_ops_and_signs(monkeypatch):
    drawn = []
    monkeypatch.setattr(autoaugment, "apply_op", lambda *args: drawn.append(args) or args[1])
    host, rng, times = pp.parse("autoaugment('svhn')").host, np.random.default_rng(0), 5000
    for _ in range(times):
        host({"image": IMAGES[0]}, rng)
    expected = collections.Counter()
    for pair in autoaugment.POLICIES["svhn"]:
        for change in pair:
            expected[change.op, change.magnitude] += change.probability / 25
    counts = collections.Counter((name, magnitude) for name, _, magnitude, _ in drawn)
    assert set(counts) == {key for key, share in expected.items() if share}
    for key, share in expected.items():
        # A sum of at most three Bernoulli variables: its variance is below times * share.
        assert abs(counts[key] - times * share) <= 5 * (times * share) ** 0.5, key
    positive = np.mean([sign > 0 for *_, sign in drawn])
    assert abs(positive - 0.5) < 5 * 0.5 / len(drawn) ** 0.5


def test_is_a_pure_function_of_the_generator():
    host = pp.parse("autoaugment('cifar')").host
    for seed in range(5):
        first, again = (host({"image": IMAGES[8]}, np.random.default_rng(seed))["image"] for _ in range(2))
        np.testing.assert_array_equal(first, again)


def test_what_is_refused():
    with pytest.raises(UserError, match="Did you mean 'cifar'"):
        pp.parse("autoaugment('cifar10')")
    with pytest.raises(UserError, match="autoaugment takes uint8 RGB"):
        pp.parse("autoaugment").host({"image": np.zeros((4, 4, 3), np.float32)}, np.random.default_rng(0))
