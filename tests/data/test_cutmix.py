"""Mixup and cutmix in turns: who is mixed with whom, how often. The arithmetic: tests/golden_checks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vitjax.data import cutmix, pp
from vitjax.errors import UserError

SIZE, SHAPE = 8, (16, 20)


@functools.cache
def compiled(arguments):
    return jax.jit(pp.parse(f"mixup_cutmix({arguments})").device)


def batch_of(size=SIZE):
    """Images that show their own number, and its one-hot label."""
    number = jnp.arange(size, dtype=jnp.float32)
    return {
        "image": jnp.broadcast_to(number[:, None, None, None], (size, *SHAPE, 3)),
        "labels": jnp.eye(size),
    }


def mixed(arguments="", key=0, size=SIZE):
    result = compiled(arguments)(batch_of(size), jax.random.key(key))
    return np.asarray(result["image"]), np.asarray(result["labels"])


MODES = ("batch", "pair", "elem")


def masks(images):
    """Which pixels are an example's own, for those examples that a box was pasted into; else None."""
    own = images == np.arange(len(images))[:, None, None, None]
    partner = images == np.arange(len(images))[::-1, None, None, None]
    return [a if (a | b).all() else None for a, b in zip(own, partner, strict=True)]


@pytest.mark.parametrize("mode", MODES)
def test_images_and_labels_agree(mode):
    """By a label's weights and the pixels' mean: each says how much there is of the partner."""
    for key in range(10):
        images, labels = mixed(f"mode={mode!r}", key)
        for i in range(SIZE):
            partner = SIZE - 1 - i
            assert set(np.flatnonzero(labels[i])) <= {i, partner}
            np.testing.assert_allclose(labels[i].sum(), 1, rtol=1e-6)
            expected = i * labels[i, i] + partner * labels[i, partner]
            np.testing.assert_allclose(images[i].mean(), expected, rtol=1e-5, atol=1e-5)


def test_how_many_draws_there_are():
    for key in range(5):
        images, labels = mixed("mode='batch'", key)
        assert len(set(np.diagonal(labels))) == 1
        assert len({None if mask is None else mask.tobytes() for mask in masks(images)}) == 1
        images, labels = mixed("mode='pair'", key)
        shares, own = np.diagonal(labels), masks(images)
        assert len(set(shares)) == SIZE // 2
        np.testing.assert_array_equal(shares, shares[::-1])
        for one, other in zip(own, own[::-1], strict=True):
            assert (one is None) == (other is None) and (one is None or (one == other).all())
        images, labels = mixed("mode='elem'", key)
        assert len(set(np.diagonal(labels))) > SIZE - 2  # areas may coincide
        boxes = [mask.tobytes() for mask in masks(images) if mask is not None]
        assert len(set(boxes)) == len(boxes)


def test_cutmix_pastes_one_box():
    found = [masks(mixed("mode='batch'", key)[0])[0] for key in range(10)]
    found = [~mask for mask in found if mask is not None]
    assert found
    for pasted in found:
        rows, columns = pasted.any(axis=(1, 2)), pasted.any(axis=(0, 2))
        assert pasted.all(axis=-1).sum() == rows.sum() * columns.sum()


@pytest.mark.parametrize("arguments", ["groups=8", "groups=2, mode='elem'"])
def test_groups_are_batches_of_their_own(arguments):
    _, labels = mixed(arguments, 5, 16)
    size = {"groups=8": 2, "groups=2, mode='elem'": 8}[arguments]
    for i in range(16):
        first = i // size * size
        partner = first + size - 1 - (i - first)
        assert set(np.flatnonzero(labels[i])) <= {i, partner}
    shares = np.diagonal(labels)
    assert len(set(shares)) == 8 if arguments == "groups=8" else len(set(shares)) > 12  # areas may coincide


@functools.cache
def drawn_often():
    """Of 8000 batches the share kept of image 0, and whether a box was pasted; half of them are not mixed."""
    op = pp.parse("mixup_cutmix(mixup=0.4, cutmix=1, prob=0.5, switch=0.25)").device
    batch = batch_of(2)
    keys = jax.random.split(jax.random.key(7), 8000)
    images, labels = jax.jit(jax.vmap(lambda key: tuple(op(batch, key).values())))(keys)
    images, share = np.asarray(images)[:, 0, ..., 0], np.asarray(labels)[:, 0, 0]
    return share, ((images == 0) | (images == 1)).all(axis=(1, 2))


QUANTILES = np.linspace(0.05, 0.95, 10)


def test_lam_has_its_beta_distribution():
    share, pasted = drawn_often()
    expected = np.random.default_rng(0).beta(0.4, 0.4, 200_000)
    np.testing.assert_allclose(
        np.quantile(share[~pasted], QUANTILES), np.quantile(expected, QUANTILES), atol=0.05
    )


def test_cutmix_boxes_have_timms_distribution():
    """timm's draws by numpy: lam uniform, centre uniform, box cut at the edges."""
    share, pasted = drawn_often()
    rng = np.random.default_rng(0)
    drawn = cutmix.Draws(
        rng.random(50_000), np.ones(50_000, bool), *(rng.integers(0, n, 50_000) for n in SHAPE)
    )
    expected = cutmix.box_of(drawn, SHAPE)[-1]
    expected = expected[expected < 1]  # an empty box looks like no mixing
    np.testing.assert_allclose(
        np.quantile(share[pasted & (share < 1)], QUANTILES), np.quantile(expected, QUANTILES), atol=0.06
    )


def test_how_often_anything_is_mixed():
    share, pasted = drawn_often()
    changed = share < 1
    assert abs(changed.mean() - 0.5) < 5 * 0.5 / 8000**0.5
    assert abs(pasted[changed].mean() - 0.25) < 5 * (0.19 / changed.sum()) ** 0.5


def test_without_either_it_is_the_identity():
    batch = batch_of()
    assert pp.parse("mixup_cutmix(mixup=0, cutmix=0.0)").device(batch, jax.random.key(0)) == batch


def test_one_of_the_two():
    """Ops are compared by what they draw, so that nothing has to be compiled."""
    for arguments, share in (("mixup=0, switch=0.1", 1.0), ("cutmix=0, switch=0.9", 0.0)):
        jaxpr = str(
            jax.make_jaxpr(pp.parse(f"mixup_cutmix({arguments})").device)(batch_of(), jax.random.key(0))
        )
        assert f"{share}:f32[]" in jaxpr, jaxpr


@functools.cache
def recipe():
    """3000 batches of `cutmix_or_mixup`: the images' first channel `[3000, B, H, W]` and the labels."""
    op = pp.parse("cutmix_or_mixup").device
    images, labels = jax.jit(jax.vmap(lambda key: tuple(op(batch_of(), key).values())))(
        jax.random.split(jax.random.key(3), 3000)
    )
    return np.asarray(images)[..., 0], np.asarray(labels)


def test_cutmix_or_mixup_permutes_the_batch():
    images, labels = recipe()
    np.testing.assert_allclose(labels.sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(  # labels and pixels say the same of who is there
        images.mean(axis=(2, 3)), labels @ np.arange(SIZE), rtol=1e-4, atol=1e-4
    )
    partners = labels * (1 - np.eye(SIZE))
    assert ((partners > 0).sum(axis=-1) <= 1).all() and ((partners > 0).sum(axis=-2) <= 1).all()
    changed = (partners > 0).any(axis=(1, 2))
    # In half of the batches, but for boxes without pixels: below sqrt(1 - lam) = 2 / 16, 1/64 of the boxes.
    assert 0.5 - 0.25 / 64 - 5 * 0.5 / 3000**0.5 < changed.mean() < 0.5 + 5 * 0.5 / 3000**0.5
    pairs = (partners > 0).sum(axis=0)[~np.eye(SIZE, dtype=bool)]
    expected = changed.sum() / SIZE
    assert np.abs(pairs - expected).max() < 5 * expected**0.5
    shares = partners[changed].max(axis=-1)
    for row in shares:
        assert np.ptp(row[row > 0]) < 1e-6  # one lam a batch


def test_cutmix_or_mixup_takes_either_with_a_uniform_lam():
    images, labels = recipe()
    partners = labels * (1 - np.eye(SIZE))
    changed = (partners > 0).any(axis=(1, 2))
    share = partners.max(axis=(1, 2))[changed]
    pasted = (np.abs(images[changed] - np.round(images[changed])) < 1e-6).all(axis=(1, 2, 3))
    assert abs(pasted.mean() - 0.5) < 5 * 0.5 / len(pasted) ** 0.5
    np.testing.assert_allclose(np.quantile(share[~pasted], QUANTILES), QUANTILES, atol=0.06)
    rng = np.random.default_rng(0)
    drawn = cutmix.Draws(
        rng.random(50_000), np.ones(50_000, bool), *(rng.integers(0, n, 50_000) for n in SHAPE)
    )
    expected = 1 - cutmix.box_of(drawn, SHAPE)[-1]
    expected = expected[expected > 0]
    np.testing.assert_allclose(
        np.quantile(share[pasted], QUANTILES), np.quantile(expected, QUANTILES), atol=0.06
    )


def test_mixed_labels_give_the_loss_of_the_release():
    """lam * L(y) + (1 - lam) * L(y of the partner), L with label smoothing, which is in the labels here."""
    rng = np.random.default_rng(0)
    logits, y, permutation = rng.normal(size=(6, 5)), rng.integers(0, 5, 6), rng.permutation(6)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    def smoothed_loss(y):
        return -(0.9 * log_p[np.arange(6), y] + 0.1 * log_p.mean(axis=-1))

    labels = pp.parse("onehot(5, on=0.92, off=0.02)").device({"labels": jnp.asarray(y)}, jax.random.key(0))
    each = (np.full(6, 0.3), np.zeros(6, bool), np.zeros(6, int), np.zeros(6, int))
    drawn = cutmix.Draws(*map(jnp.asarray, each))
    _, mixed = cutmix.mix(jnp.zeros((6, 4, 4, 3)), labels["labels"], drawn, permutation=permutation)
    expected = 0.3 * smoothed_loss(y) + 0.7 * smoothed_loss(y[permutation])
    np.testing.assert_allclose(-(np.asarray(mixed) * log_p).sum(axis=-1), expected, rtol=1e-6)


def test_permutations_stay_within_groups_and_take_odd_batches():
    _, labels = mixed("groups=2, mixup=1, partner='permuted'", 1, 14)
    assert not labels[:7, 7:].any() and not labels[7:, :7].any()
    assert (np.diagonal(labels) < 1).any()
    assert mixed("mixup=1, partner='permuted'", 0, 7)[0].shape[0] == 7


def test_odd_boxes():
    drawn = cutmix.Draws(*(np.asarray([n]) for n in (0.75, True, 8, 9)))  # cut: half of 15 x 19, 7 x 9
    classic, whole = (
        [int(side[0]) for side in cutmix.box_of(drawn, (15, 19), box)[:4]] for box in ("classic", "ceil_odd")
    )
    assert classic == [5, 11, 5, 13] and whole == [5, 12, 5, 14]


def test_keeps_dtypes_and_other_keys():
    batch = {key: value.astype(jnp.bfloat16) for key, value in batch_of(2).items()} | {"_id": jnp.arange(2)}
    result = jax.eval_shape(pp.parse("mixup_cutmix").device, batch, jax.random.key(0))
    assert {key: (value.shape, value.dtype) for key, value in result.items()} == {
        key: (value.shape, value.dtype) for key, value in batch.items()
    }


@pytest.mark.parametrize(
    ("axis_type", "arguments"),
    [
        (AxisType.Explicit, "groups=8"),
        (AxisType.Explicit, "mixup=1, partner='permuted'"),
        (AxisType.Explicit, "groups=2, mode='elem'"),
        (AxisType.Auto, "groups=2, mode='elem'"),
    ],
)
def test_does_not_depend_on_the_number_of_devices(axis_type, arguments):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    batch = jax.device_put(batch_of(16), sharding)
    for key in range(2):
        images, labels = mixed(arguments, key, 16)
        result = compiled(arguments)(batch, jax.random.key(key))
        assert result["image"].sharding.is_equivalent_to(sharding, 4)
        np.testing.assert_allclose(result["image"], images, rtol=1e-6)
        np.testing.assert_allclose(result["labels"], labels, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("mixup=-1", "mixup=-1"),
        ("cutmix='1'", "cutmix='1'"),
        ("prob=2", "prob=2 must be a probability"),
        ("switch=-0.1", "switch=-0.1 must be a probability"),
        ("mode='half'", "mode='half' must be one of batch, pair, elem"),
        ("box='odd'", "box='odd'"),
        ("groups=0", "groups=0"),
        ("partner='random'", "partner='random' must be one of reversed, permuted"),
        ("mode='pair', partner='permuted'", "needs partner"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        pp.parse(f"mixup_cutmix({arguments})")


def test_cutmix_or_mixup_wants_a_probability():
    with pytest.raises(UserError, match=r"p=1\.5 must be a probability"):
        pp.parse("cutmix_or_mixup(1.5)")


def test_batches_that_are_refused():
    for size, groups in ((7, 1), (12, 4)):
        with pytest.raises(UserError, match=f"divisible by {2 * groups}, but it is {size}"):
            compiled(f"groups={groups}")(batch_of(size), jax.random.key(0))
    with pytest.raises(UserError, match="'labels' is int32"):
        compiled("")({**batch_of(), "labels": jnp.arange(SIZE)}, jax.random.key(0))
