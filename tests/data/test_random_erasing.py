"""Random erasing: its distribution against timm's algorithm, what it fills with, and what it refuses."""

import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vitjax.data import pp
from vitjax.data.random_erasing import boxes
from vitjax.errors import UserError

SIZE = (24, 40)
AREA, RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)


def erased(string, batch=256, key=0):
    """A batch of 100s after erasing; 100 is beyond what the noise reaches."""
    images = jnp.full((batch, *SIZE, 3), 100.0)
    return np.asarray(jax.jit(pp.parse(string).device)({"image": images}, jax.random.key(key))["image"])


def box_by_timm(generator):
    """One box, as timm draws it."""
    for _ in range(10):
        area = generator.uniform(*AREA) * SIZE[0] * SIZE[1]
        ratio = math.exp(generator.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if h < SIZE[0] and w < SIZE[1]:
            return generator.randint(0, SIZE[0] - h), generator.randint(0, SIZE[1] - w), h, w
    return 0, 0, 0, 0


def test_boxes_have_timms_distribution():
    generator = random.Random(0)
    theirs = np.asarray([box_by_timm(generator) for _ in range(20_000)])
    uniform = jax.random.uniform(jax.random.key(0), (20_000, 22))
    ours = np.stack(jax.jit(lambda u: boxes(u, SIZE, AREA, RATIO))(uniform), axis=-1)
    for column in range(4):
        values = np.unique(theirs[:, column])
        shares = [(drawn[:, column, None] <= values).mean(axis=0) for drawn in (ours, theirs)]
        # Kolmogorov-Smirnov: 0.0195 is p < 0.001 for 20,000 against 20,000.
        assert np.abs(shares[0] - shares[1]).max() < 0.0195
    assert (ours[:, :2] + ours[:, 2:] <= SIZE).all() and (ours[:, :2] >= 0).all()


def box_by_the_paper(generator):
    """One box, as the code of the paper and of the small-dataset release draws it."""
    for _ in range(100):
        area, ratio = generator.uniform(0.02, 0.4) * SIZE[0] * SIZE[1], generator.uniform(0.3, 1 / 0.3)
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if h < SIZE[0] and w < SIZE[1]:
            return generator.randint(0, SIZE[0] - h), generator.randint(0, SIZE[1] - w), h, w
    return 0, 0, 0, 0


def test_boxes_have_the_papers_distribution():
    generator = random.Random(0)
    theirs = np.asarray([box_by_the_paper(generator) for _ in range(20_000)])
    uniform = jax.random.uniform(jax.random.key(0), (20_000, 202))
    ours = np.stack(jax.jit(lambda u: boxes(u, SIZE, (0.02, 0.4), RATIO, "uniform"))(uniform), axis=-1)
    assert (ours[:, 2] > 0).all()
    for column in range(4):
        values = np.unique(theirs[:, column])
        shares = [(drawn[:, column, None] <= values).mean(axis=0) for drawn in (ours, theirs)]
        # Kolmogorov-Smirnov: 0.0195 is p < 0.001 for 20,000 against 20,000.
        assert np.abs(shares[0] - shares[1]).max() < 0.0195


def test_the_recipe_of_small_data_sets():
    """Boxes of the mean color on the scale 0 to 1, in images that are standardized; hardly ever none."""
    color = (0.4914, 0.4822, 0.4465)
    result = erased(
        f"random_erasing(0.25, mode={color}, area=(0.02, 0.4), aspect='uniform', tries=100)", 2000
    )
    hit = (result != 100).any(axis=(1, 2, 3))
    assert abs(hit.mean() - 0.25) < 5 * (0.25 * 0.75 / 2000) ** 0.5
    filled = result[(result != 100).any(axis=-1)]
    np.testing.assert_array_equal(np.unique(filled, axis=0), np.asarray([color], np.float32))
    parts = (result != 100).all(axis=-1).mean(axis=(1, 2))[hit]
    # Uniform in 0.02 to 0.4, but the lowest and the widest of the large boxes do not fit.
    assert 0.37 < parts.max() < 0.42 and 0.015 < parts.min() < 0.025


def test_more_tries_leave_fewer_images_whole():
    """A box of 60 % of 24 x 40 pixels fits at some of the ratios only."""
    rng = np.random.default_rng(0)
    shares = []
    for tries in (1, 10):
        uniform = jnp.asarray(rng.random((500, 2 * tries + 2), np.float32))
        shares.append((boxes(uniform, SIZE, (0.6, 0.6), RATIO)[2] > 0).mean())
    assert 0.05 < shares[0] < 0.6 and shares[1] > 2 * shares[0]


def test_boxes_reach_the_last_row_and_column():
    uniform = np.full((1, 22), 0.5, np.float32)
    uniform[0, -2:] = np.nextafter(np.float32(1), np.float32(0))
    top, left, height, width = (int(n[0]) for n in boxes(jnp.asarray(uniform), SIZE, AREA, RATIO))
    assert (top + height, left + width) == SIZE


def test_takes_the_first_attempt_that_fits():
    uniform = np.full((1, 22), 0.5, np.float32)
    uniform[0, :4] = 0.999, 0.999, 0.2, 0.3  # the first is higher than the image
    first = [int(n[0]) for n in boxes(jnp.asarray(uniform), SIZE, AREA, RATIO)]
    uniform[0, :2] = uniform[0, 2:4]
    assert first == [int(n[0]) for n in boxes(jnp.asarray(uniform), SIZE, AREA, RATIO)]
    uniform[0, :-2] = 0.999
    assert [int(n[0]) for n in boxes(jnp.asarray(uniform), SIZE, AREA, RATIO)][2:] == [0, 0]


def test_one_box_of_noise_in_a_part_of_the_images():
    result = erased("random_erasing(0.25)", 2000)
    changed = (result != 100).any(axis=-1)
    hit = changed.any(axis=(1, 2))
    assert abs(hit.mean() - 0.25) < 5 * (0.25 * 0.75 / 2000) ** 0.5
    rows, columns = changed.any(axis=2).sum(axis=1), changed.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(changed.sum(axis=(1, 2)), rows * columns)  # boxes, whole ones
    noise = result[changed]
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert abs(np.corrcoef(noise[:, 0], noise[:, 1])[0, 1]) < 0.03
    assert not np.array_equal(result, erased("random_erasing(0.25)", 2000, key=1))


def test_other_fillings_and_counts():
    colors = erased("random_erasing(1.0, mode='rand')")
    for image in colors[:20]:
        found = np.unique(image[(image != 100).any(axis=-1)], axis=0)
        assert len(found) == 1 and len(set(found[0])) == 3
    two = erased("random_erasing(1, mode='const', count=2, area=[0.2, 0.2], ratio=[1, 1])")
    assert set(np.unique(two)) == {0.0, 100.0}
    parts = (two == 0).all(axis=-1).mean(axis=(1, 2))
    # Two boxes of 10 % each, 10 x 10 of 24 x 40 pixels, which may overlap.
    assert abs(parts.max() - 200 / 960) < 1e-6 and parts.min() < 200 / 960


def test_does_not_depend_on_the_number_of_devices():
    alone = erased("random_erasing(0.5)", 16)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    batch = jax.device_put({"image": jnp.full((16, *SIZE, 3), 100.0)}, sharding)
    result = jax.jit(pp.parse("random_erasing(0.5)").device)(batch, jax.random.key(0))["image"]
    assert result.sharding.is_equivalent_to(sharding, 4)
    np.testing.assert_allclose(result, alone, rtol=1e-6)


@pytest.mark.parametrize(
    ("string", "message"),
    [
        ("random_erasing(1.5)", "p=1.5"),
        ("random_erasing(mode='pixels')", "Did you mean 'pixel'"),
        ("random_erasing(area=(0.5, 0.2))", "area="),
        ("random_erasing(area=0.2)", "area=0.2 must be two numbers"),
        ("random_erasing(ratio=(0, 2))", "ratio="),
        ("random_erasing(count=0)", "count=0"),
        ("random_erasing(tries=0.5)", "tries=0.5"),
        ("random_erasing(aspect='linear')", "aspect='linear' must be one of log, uniform"),
        ("random_erasing(mode=(0.5, 'a', 1))", "must be one number a channel, or one of pixel, rand, const"),
        ("random_erasing|flip_lr", "Move 'random_erasing' to the end"),
    ],
)
def test_what_is_refused(string, message):
    with pytest.raises(UserError, match=message):
        pp.parse(string)


def test_wants_a_color_of_as_many_channels():
    with pytest.raises(UserError, match="fills 2 channels, but 'image' has 3"):
        erased("random_erasing(mode=(0.5, 0.5))", 2)


def test_wants_floats():
    with pytest.raises(UserError, match=r"random_erasing works on floats, but 'image' is uint8"):
        pp.parse("random_erasing").device({"image": np.zeros((2, 4, 4, 3), np.uint8)}, jax.random.key(0))
