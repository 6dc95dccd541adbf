"""timm's RandAugment: its string, what it draws and refuses. The ops' results: tests/golden_checks."""

import numpy as np
import pytest

from vitjax.data import pp, timm_randaug
from vitjax.errors import UserError

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("rand", {}),
        ("rand-m9-mstd0.5-inc1", {"magnitude": 9, "deviation": 0.5, "increasing": True}),
        ("rand-n3-m7-mmax9-p0.3-inc0", {"num_layers": 3, "magnitude": 7, "greatest": 9, "probability": 0.3}),
    ],
)
def test_string(config, expected):
    assert timm_randaug.parse(config) == timm_randaug.Settings(**expected)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("augmix-m5", "begin with 'rand'"),
        ("rand-m9-w0", "cannot read 'w0'"),
        ("rand-tweights", "cannot read 'tweights'"),
        ("rand-m9.5", "cannot read 'm9.5'"),
        ("rand-m", "cannot read 'm'"),
        ("rand-inc2", "cannot read 'inc2'"),
        ("rand--m9", "cannot read ''"),
        ("rand-m9-m8", "two parts 'm'"),
        ("rand-p1.5", "probability"),
        ("rand-m15", "at most 10"),
        ("rand-mmax30", "at most 10"),
        (9, "begin with 'rand'"),
    ],
)
def test_strings_that_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        pp.parse(f"timm_randaug({config!r})")


def test_fill_and_images_that_are_refused():
    for fill in (128, (1, 2), (0, 0, 256), (0.5, 0, 0)):
        with pytest.raises(UserError, match="fill="):
            pp.parse(f"timm_randaug(fill={fill!r})")
    for image in (IMAGE.astype(np.float32), IMAGE[..., :1]):
        with pytest.raises(UserError, match="timm_randaug takes uint8 RGB"):
            pp.parse("timm_randaug").host({"image": image}, np.random.default_rng(0))


def test_arguments_without_inc():
    """The increasing ones are in the goldens; these were printed by timm 1.0.31."""
    for name, arguments in {
        "Posterize": [0, 1, 2, 3, 4],
        "Solarize": [0, 84, 128, 230, 256],
        "Color": [0.1, 0.694, 1.0, 1.72, 1.9],
        "SolarizeAdd": [0, 36, 55, 99, 110],
        "PosterizeIncreasing": [4, 3, 2, 1, 0],
        "SolarizeIncreasing": [256, 172, 128, 26, 0],
    }.items():
        ours = [timm_randaug.OPS[name].argument(m, -1) for m in (0.0, 3.3, 5.0, 9.0, 10.0)]
        np.testing.assert_allclose(ours, arguments, rtol=1e-12, err_msg=name)
    assert len(timm_randaug.PLAIN) == len(timm_randaug.INCREASING) == 15
    increasing = {name.removesuffix("Increasing") for name in timm_randaug.INCREASING}
    assert increasing == set(timm_randaug.PLAIN)
    for name in timm_randaug.PLAIN:  # each can be applied
        argument = timm_randaug.OPS[name].argument(5.0, 1)
        assert timm_randaug.apply_op(name, IMAGE, argument).shape == IMAGE.shape


def drawn_by(config, monkeypatch, times=4000):
    drawn = []
    monkeypatch.setattr(
        timm_randaug, "apply_op", lambda name, image, argument, fill: drawn.append((name, argument)) or image
    )
    host, rng = pp.parse(f"timm_randaug({config!r})").host, np.random.default_rng(0)
    for _ in range(times):
        host({"image": IMAGE}, rng)
    return drawn


def test_draws_as_timm_does(monkeypatch):
    drawn = drawn_by("rand-m9-mstd0.5-inc1", monkeypatch)
    # 8000 draws, half of them applied, 15 ops: within five standard deviations.
    assert abs(len(drawn) - 4000) < 5 * 2000**0.5
    counts = [sum(name == op for name, _ in drawn) for op in timm_randaug.INCREASING]
    assert sum(counts) == len(drawn) and max(abs(n - len(drawn) / 15) for n in counts) < 5 * 250**0.5
    degrees = np.asarray([argument for name, argument in drawn if name == "Rotate"])
    assert abs((degrees > 0).mean() - 0.5) < 5 * 0.5 / len(degrees) ** 0.5
    magnitudes = np.abs(degrees) / 3
    assert magnitudes.max() == 10 and magnitudes.min() > 9 - 5 * 0.5
    assert abs(np.median(magnitudes) - 9) < 0.15 and abs(magnitudes.std() - 0.49) < 0.06


def test_uniform_and_fixed_magnitudes(monkeypatch):
    uniform = [abs(a) / 3 for name, a in drawn_by("rand-m8-mstd101-p1", monkeypatch) if name == "Rotate"]
    np.testing.assert_allclose(np.quantile(uniform, [0, 0.25, 0.5, 0.75, 1]), [0, 2, 4, 6, 8], atol=0.5)
    fixed = [a for name, a in drawn_by("rand-m6-n1-p1", monkeypatch, 500) if name == "Rotate"]
    np.testing.assert_allclose(np.unique(fixed), [-18, 18])


def test_is_a_pure_function_of_the_generator():
    host, before = pp.parse("timm_randaug('rand-n5-m9-mstd0.5-p1-inc1')").host, IMAGE.copy()
    first, again = (host({"image": IMAGE}, np.random.default_rng(5))["image"] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(IMAGE, before)
    assert (first != IMAGE).any()
