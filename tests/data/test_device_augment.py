"""Augmentations on the device: given the same draws they do what the host does, and they draw as it does."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vitjax.data import autoaugment, device_augment, device_geometry, pillow, pp, randaug, timm_randaug
from vitjax.errors import UserError

RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 20, 27
IMAGES = RNG.integers(0, 256, (12, HEIGHT, WIDTH, 3)).astype(np.uint8)
IMAGES[0] = np.where(IMAGES[0] > 128, 255, 0)
IMAGES[1] = 93
IMAGES[2] = IMAGES[2] // 4 + 60
FILL = (124, 116, 104)


def op_of(string):
    return pp.parse(string, on_device=True).device


@functools.cache
def compiled(string):
    return jax.jit(op_of(string))


def on_device(string, images, key=0):
    return np.asarray(compiled(string)({"image": jnp.asarray(images)}, jax.random.key(key))["image"])


# ---- The same draws, the same images


@pytest.mark.parametrize("policy", autoaugment.POLICIES)
def test_autoaugment_does_what_the_host_does(policy):
    catalogue, numbers = device_augment.autoaugment_catalogue(policy, HEIGHT, WIDTH)
    apply = jax.jit(catalogue.apply)
    results = {}
    for pair, changes in enumerate(autoaugment.POLICIES[policy]):
        for slot, change in enumerate(changes):
            for index, sign in enumerate((1, -1)):
                number = numbers[pair, slot, index]
                if number not in results:
                    results[number] = np.asarray(apply(IMAGES, np.full(len(IMAGES), number)))
                expected = [autoaugment.apply_op(change.op, im, change.magnitude, sign) for im in IMAGES]
                difference = np.abs(results[number].astype(int) - expected)
                if change.op.startswith("Shear"):
                    # Where a sum in float64 ends at a whole number or just below. Seen: 1.4 % one apart.
                    assert difference.max() <= 1 and (difference > 0).mean() < 0.03, (change, sign)
                else:
                    assert not difference.any(), (change, sign)


class Drawn:
    """Stands in for the host's generator: the sign that is wanted."""

    def __init__(self, sign):
        self.sign = sign

    def random(self):
        return 0.25 if self.sign > 0 else 0.75


@pytest.mark.parametrize(
    ("compat", "magnitude", "scale"), [("augreg", 9, 1), ("augreg", 30, 0.2), ("fixed", 15, 0.5)]
)
def test_randaug_does_what_the_host_does(compat, magnitude, scale):
    catalogue, numbers = device_augment.randaug_catalogue(magnitude, compat, scale, HEIGHT, WIDTH)
    apply = jax.jit(catalogue.apply)
    for op, pair in zip(randaug.OPS, numbers, strict=True):
        if op == "Cutout":
            assert not pair.any()
            continue
        for sign, number in zip((1, -1), pair, strict=True):
            ours = np.asarray(apply(IMAGES, np.full(len(IMAGES), number))).astype(int)
            strength = magnitude * scale if op in randaug.IN_PIXELS else magnitude
            expected = [randaug.apply_op(op, image, strength, Drawn(sign), compat) for image in IMAGES]
            difference = np.abs(ours - expected)
            # See test_device_colors for these two; all others are the host's.
            share = {"Sharpness": 0.05, "Color": 1e-3}.get(op, 0)
            assert (difference > 0).mean() <= share and difference.max() <= 6, (op, sign)


@pytest.mark.parametrize("string", ["rand-m9-mstd0.5-inc1", "rand-m9-mstd0.5"])
def test_timm_randaug_does_what_the_host_does(string):
    settings = timm_randaug.parse(string)
    layer = jax.jit(
        lambda images, op, argument: device_augment.timm_layer(images, settings, op, argument, FILL)
    )
    for magnitude, sign in ((8.83, 1), (9.4, -1), (3.3, -1)):
        wanted = [timm_randaug.OPS[name].argument(magnitude, sign) for name in settings.names]
        for index, (name, argument) in enumerate(zip(settings.names, wanted, strict=True)):
            each = np.full(len(IMAGES), argument or 0, np.float32)
            ours = np.asarray(layer(IMAGES, np.full(len(IMAGES), index), each)).astype(int)
            expected = [timm_randaug.apply_op(name, image, argument, FILL) for image in IMAGES]
            difference = np.abs(ours - expected)
            moves = name in ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
            # Both round sums of float32. Seen: 0.15 %.
            assert difference.max() <= moves and (difference > 0).mean() <= 0.005 * moves, (name, argument)


@pytest.mark.parametrize("string", ["rand-m9-mstd0.5-inc1", "rand-m9-mstd0.5"])
def test_timm_arguments(string):
    """At all whole magnitudes, to which they are clipped, where truncation may go either way."""
    settings = timm_randaug.parse(string)
    for sign in (1, -1):
        magnitudes = np.arange(0, 10.5, 0.5)
        ours = device_augment.timm_arguments(settings, jnp.asarray(magnitudes, jnp.float32), sign)
        for name, row in zip(settings.names, np.asarray(ours), strict=True):
            expected = [timm_randaug.OPS[name].argument(float(m), sign) or 0 for m in magnitudes]
            np.testing.assert_allclose(row, expected, rtol=1e-6, err_msg=name)


def test_shears_keep_flat_regions_and_fill():
    for axis in "xy":
        maps = device_geometry.stack([device_geometry.shear(HEIGHT, WIDTH, 0.23, axis)])
        for value in (0, 1, 77, 255):
            flat = np.full((1, HEIGHT, WIDTH, 3), value, np.uint8)
            moved = device_geometry.move(jnp.asarray(flat), maps, np.zeros(1, int), (value, value, 9))
            np.testing.assert_array_equal(moved[..., :2], flat[..., :2])
        outside = pillow.shear_x(np.full((HEIGHT, WIDTH, 3), 200, np.uint8), 0.23, (9, 9, 9))[..., 0] == 9
        if axis == "x":
            np.testing.assert_array_equal(moved[0, ..., 2] == 9, outside)


# ---- What is drawn


TIMES = 4000


def assert_drawn(counts, shares, times=TIMES):
    """Counts against expected shares: within five standard deviations of a binomial distribution."""
    assert sum(shares.values()) == pytest.approx(1)
    for key in {*counts, *shares}:
        share = shares.get(key, 0)
        assert abs(counts[key] - times * share) <= 5 * (times * share * (1 - share)) ** 0.5, key


def numbers_drawn(string, monkeypatch, size=8):
    """The numbers that are passed to the catalogue, for each layer `[TIMES]`."""
    drawn = []
    monkeypatch.setattr(
        device_augment._Catalogue,
        "apply",
        lambda self, image, number: drawn.append(np.asarray(number)) or image,
    )
    images = jnp.zeros((TIMES, size, size, 3), jnp.uint8)
    op_of(string)({"image": images}, jax.random.key(0))
    return drawn


def test_autoaugment_draws_sub_policies_ops_and_signs(monkeypatch):
    policy = "cifar"
    _, numbers = device_augment.autoaugment_catalogue(policy, 8, 8)
    drawn = numbers_drawn(f"autoaugment({policy!r})", monkeypatch)
    assert len(drawn) == 2
    joint = collections.Counter()
    for pair, changes in enumerate(autoaugment.POLICIES[policy]):
        first, second = (
            [(0, 1 - change.probability)]
            + [(number, change.probability / 2) for number in numbers[pair, slot]]
            for slot, change in enumerate(changes)
        )
        for a, p in first:
            for b, q in second:
                joint[int(a), int(b)] += p * q / 25
    counts = collections.Counter(zip(*(row.tolist() for row in drawn), strict=True))
    assert_drawn(counts, joint)


def test_randaug_draws_ops_and_signs(monkeypatch):
    _, numbers = device_augment.randaug_catalogue(10, "augreg", 1, 8, 8)
    drawn = numbers_drawn("randaug(3, 10)", monkeypatch)
    assert len(drawn) == 3
    shares = collections.Counter()
    for number in numbers.ravel().tolist():
        shares[number] += 1 / 32
    for row in drawn:
        assert_drawn(collections.Counter(row.tolist()), shares)
    assert abs((drawn[0] == drawn[1]).mean() - sum(p**2 for p in shares.values())) < 0.03


def test_randaug_cuts_out_squares(monkeypatch):
    """With all other ops switched off: one image in 16 gets a grey square around a place drawn uniformly."""
    monkeypatch.setattr(device_augment._Catalogue, "apply", lambda self, image, number: image)
    images = jnp.zeros((TIMES, 9, 12, 3), jnp.uint8)
    cut = np.asarray(op_of("randaug(1, 10, full_size=90)")({"image": images}, jax.random.key(0))["image"])
    half = 4  # 40 pixels of 90, on 9
    found = collections.Counter(image.tobytes() for image in cut)
    shares = collections.Counter({np.zeros((9, 12, 3), np.uint8).tobytes(): 15 / 16})
    for y in range(9):
        for x in range(12):
            expected = randaug.cutout(np.zeros((9, 12, 3), np.uint8), half, y, x)
            shares[expected.tobytes()] += 1 / 16 / 9 / 12
    assert set(found) <= set(shares)
    assert_drawn(found, shares)


def timm_drawn(string, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        device_augment,
        "timm_layer",
        lambda image, settings, op, argument, fill: (
            drawn.append((np.asarray(op), np.asarray(argument))) or image
        ),
    )
    images = jnp.zeros((TIMES, 4, 4, 3), jnp.uint8)
    op_of(f"timm_randaug({string!r})")({"image": images}, jax.random.key(1))
    return drawn


def test_timm_draws_ops_magnitudes_and_signs(monkeypatch):
    drawn = timm_drawn("rand-n3-m9-mstd0.5-inc1-p0.7", monkeypatch)
    assert len(drawn) == 3
    shares = {-1: 0.3} | dict.fromkeys(range(15), 0.7 / 15)
    for op, _ in drawn:
        assert_drawn(collections.Counter(op.tolist()), shares)
    op, argument = (np.concatenate(column) for column in zip(*drawn, strict=True))
    degrees = argument[op == timm_randaug.INCREASING.index("Rotate")]
    assert abs((degrees > 0).mean() - 0.5) < 5 * 0.5 / len(degrees) ** 0.5
    magnitudes = np.abs(degrees) / 3
    clipped = np.random.default_rng(0).normal(9, 0.5, 100_000).clip(0, 10)
    np.testing.assert_allclose(
        np.quantile(magnitudes, [0.1, 0.3, 0.5, 0.7, 0.9]),
        np.quantile(clipped, [0.1, 0.3, 0.5, 0.7, 0.9]),
        atol=0.15,
    )


def test_timm_draws_uniform_and_fixed_magnitudes(monkeypatch):
    rotate = timm_randaug.PLAIN.index("Rotate")
    ((op, argument),) = timm_drawn("rand-m8-mstd101-p1-n1", monkeypatch)
    uniform = np.abs(argument[op == rotate]) / 3
    np.testing.assert_allclose(np.quantile(uniform, [0, 0.25, 0.5, 0.75, 1]), [0, 2, 4, 6, 8], atol=0.8)
    ((op, argument),) = timm_drawn("rand-m6-n1-p1", monkeypatch)
    np.testing.assert_allclose(np.unique(argument[op == rotate]), [-18, 18], rtol=1e-6)


def test_flips_half_of_the_images():
    images = np.broadcast_to(IMAGES[3], (2000, HEIGHT, WIDTH, 3))
    result = on_device("flip_lr", images)
    flipped = (result == IMAGES[3][:, ::-1]).all(axis=(1, 2, 3))
    assert (flipped | (result == IMAGES[3]).all(axis=(1, 2, 3))).all()
    assert abs(flipped.mean() - 0.5) < 5 * 0.5 / 2000**0.5


@pytest.mark.parametrize(("size", "padding"), [((20, 27), 2), ((17, 25), 0), ((20, 27), 0)])
def test_crops_from_everywhere(size, padding):
    result = on_device(f"random_crop({list(size)}, padding={padding})", np.stack([IMAGES[3]] * TIMES))
    padded = np.pad(IMAGES[3], [(padding, padding)] * 2 + [(0, 0)])
    windows = [
        padded[y : y + size[0], x : x + size[1]].tobytes()
        for y in range(padded.shape[0] - size[0] + 1)
        for x in range(padded.shape[1] - size[1] + 1)
    ]
    counts = collections.Counter(image.tobytes() for image in result)
    assert_drawn(counts, dict.fromkeys(windows, 1 / len(windows)))


# ---- In the pipeline

RECIPE = (
    "decode|flip_lr|random_crop(32, padding=4)|autoaugment('cifar')|vgg_value_range((125, 123, 114), "
    "(63, 62, 67))|random_erasing(0.25, mode=(0.4914, 0.4822, 0.4465), area=(0.02, 0.4), aspect='uniform', "
    "tries=100)|onehot(10, key='label', key_result='labels')|cutmix_or_mixup(0.5)"
)


def test_the_recipe_runs_on_the_device():
    preprocess = pp.parse(RECIPE, on_device=True)
    assert len(preprocess.host.ops) == 1
    batch = {
        "image": jax.ShapeDtypeStruct((8, 32, 32, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((8,), np.int32),
    }
    result = jax.eval_shape(preprocess.device, batch, jax.random.key(0))
    assert (result["image"].shape, result["image"].dtype) == ((8, 32, 32, 3), np.float32)
    assert len(pp.parse(RECIPE).host.ops) == 4


def test_statistics_are_on_the_scale_of_pixels():
    """What torchvision's ToTensor and Normalize make of CIFAR-10."""
    mean, std = np.asarray([0.4914, 0.4822, 0.4465]), np.asarray([0.2470, 0.2435, 0.2616])
    string = f"vgg_value_range({(255 * mean).tolist()}, {(255 * std).tolist()})"
    np.testing.assert_allclose(on_device(string, IMAGES), (IMAGES / 255 - mean) / std, rtol=1e-5, atol=1e-5)


def test_does_not_depend_on_the_number_of_devices():
    string = "flip_lr|random_crop(20, padding=2)|autoaugment('imagenet')"
    alone = on_device(string, IMAGES)
    assert alone.dtype == np.uint8
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:4])
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    batch = {"image": jax.device_put(IMAGES, sharding)}
    result = compiled(string)(batch, jax.random.key(0))["image"]
    assert result.sharding.is_equivalent_to(sharding, 4)
    np.testing.assert_array_equal(result, alone)


@pytest.mark.parametrize(
    ("string", "message"),
    [
        ("autoaugment('cifar10')", "Did you mean 'cifar'"),
        ("randaug(-1)", "num_layers=-1"),
        ("timm_randaug('rand-x')", "cannot read 'x'"),
        ("random_crop(8, padding=-1)", "padding=-1"),
    ],
)
def test_what_is_refused(string, message):
    with pytest.raises(UserError, match=message):
        pp.parse(string, on_device=True)


def test_images_that_are_refused():
    for string in ("autoaugment", "randaug", "timm_randaug"):
        for batch in (np.zeros((2, 4, 4, 3), np.float32), np.zeros((2, 4, 4, 1), np.uint8)):
            with pytest.raises(UserError, match=f"{string} takes uint8 RGB images"):
                op_of(string)({"image": jnp.asarray(batch)}, jax.random.key(0))
    with pytest.raises(UserError, match="random_crop wants 21x20 pixels"):
        on_device("random_crop([21, 20])", IMAGES)
