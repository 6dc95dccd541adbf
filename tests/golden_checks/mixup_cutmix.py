"""timm's mixup and cutmix: images, boxes, targets and lambdas by given draws, and draws of seeded runs."""

import jax
import jax.numpy as jnp
import numpy as np

from golden_checks import below, checks
from vitjax.data import cutmix, pp

# One float32 multiplication and addition of values up to 4. Seen: 2.4e-7.
ERROR = 1e-6


@checks(lambda config: "cases" in config and "seeded" in config)
def check_mixing(config, arrays):
    images = jnp.asarray(np.moveaxis(arrays["x"], 1, -1))
    for i, case in enumerate(config["cases"]):
        drawn = draws(case, len(images))
        for box in ("classic", "ceil_odd"):
            prefix = f"{i}/{box}"
            check_boxes(drawn, config["hw"], box, arrays, prefix)
            expected = np.moveaxis(arrays[f"{prefix}/x"], 1, -1)
            for smoothing, expected_targets in below(arrays, f"{prefix}/target_s").items():
                targets = onehot(arrays["labels"], config["num_classes"], float(smoothing))
                mixed, mixed_targets = cutmix.mix(images, targets, drawn, box)
                np.testing.assert_allclose(mixed, expected, rtol=0, atol=ERROR, err_msg=prefix)
                np.testing.assert_allclose(
                    mixed_targets, expected_targets, rtol=0, atol=ERROR, err_msg=prefix
                )
    for seed in config["seeded"]:
        for box in ("classic", "ceil_odd"):
            check_seeded(seed, config["hw"], box, arrays[f"seeded/{seed}/{box}"])


def onehot(labels, classes, smoothing):
    string = f"onehot({classes}, on={1 - smoothing + smoothing / classes}, off={smoothing / classes})"
    return pp.parse(string).device({"labels": jnp.asarray(labels)}, jax.random.key(0))["labels"]


def draws(case, size):
    """The draws of a case for each example. Centres are listed for those that get a box."""
    lam, is_cutmix = (np.atleast_1d(case[key]) for key in ("lam", "cutmix"))
    is_cutmix = np.broadcast_to(is_cutmix, lam.shape)
    centres = np.zeros((len(lam), 2), int)
    centres[is_cutmix & (lam < 1)] = np.reshape(case["centers"], (-1, 2))
    each = (lam, is_cutmix, *centres.T)
    return cutmix.Draws(*(cutmix.for_each_example(value, size, case["mode"]) for value in each))


def check_boxes(drawn, size, box, arrays, prefix):
    *sides, lam = cutmix.box_of(drawn, size, box)
    reference = arrays[f"{prefix}/lam"]
    np.testing.assert_allclose(lam[: len(reference)], reference, rtol=0, atol=ERROR, err_msg=prefix)
    sides = np.stack(sides, axis=-1)[drawn.cutmix & (drawn.lam < 1)]
    reference = arrays[f"{prefix}/boxes"]
    np.testing.assert_array_equal(sides[: len(reference)], reference, err_msg=prefix)


def check_seeded(seed, size, box, rows):
    """Draws as timm does in batch mode, at mixup 0.8, cutmix 1.0, switch 0.5."""
    generator = np.random.RandomState(seed)
    drawn = []
    for _ in rows:
        generator.rand()  # whether to mix at all
        is_cutmix = generator.rand() < 0.5
        lam = generator.beta(1.0, 1.0) if is_cutmix else generator.beta(0.8, 0.8)
        centre = [generator.randint(0, n) if is_cutmix else 0 for n in size]
        drawn.append((lam, is_cutmix, *centre))
    columns = cutmix.Draws(*(np.asarray(column) for column in zip(*drawn, strict=True)))
    *sides, lam = cutmix.box_of(columns, size, box)
    np.testing.assert_array_equal(columns.cutmix, rows[:, 1])
    np.testing.assert_allclose(lam, rows[:, 0], rtol=1e-12)
    np.testing.assert_array_equal(np.stack(sides, axis=-1)[columns.cutmix], rows[columns.cutmix, 2:])
