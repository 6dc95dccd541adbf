"""Axes and how they combine: products, pairs, draws, filters, and what is refused."""

import pytest

from vitjax.sweep import grid

MODEL = grid.args(model=("s", "b"))
WD = grid.keys({"wd": (0.1, 0.03, 0.0)})


def values(points):
    return [tuple(point.axes.values()) for point in points]


def test_product_combines_all_and_the_last_varies_fastest():
    points = grid.product(MODEL, WD)
    assert values(points) == [("s", 0.1), ("s", 0.03), ("s", 0.0), ("b", 0.1), ("b", 0.03), ("b", 0.0)]
    assert points[1].args == {"model": "s"} and points[1].keys == {"wd": 0.03}


def test_axes_of_one_call_and_added_axes_are_a_product_too():
    assert values(grid.points(MODEL + WD)) == values(grid.product(MODEL, WD))
    assert len(grid.points(grid.args(model=("s", "b"), aug=("x", "y"), reg=(0, 1)))) == 8


def test_zip_pairs_axes_of_any_origin():
    lr = grid.keys({"lr": (1.0, 2.0), "optax.b2": (0.9, 0.95)})
    assert values(grid.zip(MODEL, lr)) == [("s", 1.0, 0.9), ("b", 2.0, 0.95)]
    with_aug = grid.product(grid.zip(MODEL, lr), grid.args(aug=("x",)))
    assert values(with_aug) == [("s", "x", 1.0, 0.9), ("b", "x", 2.0, 0.95)]  # arguments come first


def test_zip_of_unequal_lengths_names_them():
    with pytest.raises(ValueError, match="model: 2, wd: 3"):
        grid.zip(MODEL, WD)


def test_filters_see_values_by_name():
    points = grid.product(MODEL, WD, where=lambda model, wd, **_: model == "b" or wd > 0.05)
    assert values(points) == [("s", 0.1), ("b", 0.1), ("b", 0.03), ("b", 0.0)]


def test_sample_is_reproducible_and_keeps_its_beginning():
    axes = grid.args(lr=grid.log_uniform(1e-4, 1e-2), drop=grid.uniform(0, 0.5), aug=("x", "y"))
    few, many = grid.sample(3, axes, seed=7), grid.sample(9, axes, seed=7)
    assert values(many)[:3] == values(few) != values(grid.sample(3, axes, seed=8))
    assert len(set(values(many))) == 9
    assert all(1e-4 <= lr <= 1e-2 and 0 <= drop <= 0.5 for lr, drop, _ in values(many))
    assert all(float(f"{lr:.3g}") == lr for lr, _, _ in values(many))
    # Uniform in the logarithm: about half lies below the geometric mean, which is a tenth of the range.
    below = sum(lr < 1e-3 for lr, _, _ in values(grid.sample(200, axes)))
    assert 70 < below < 130


def test_sample_draws_every_point_of_a_small_grid_once():
    assert sorted(values(grid.sample(6, MODEL, WD))) == sorted(values(grid.product(MODEL, WD)))
    with pytest.raises(ValueError, match="6 different points only"):
        grid.sample(7, MODEL, WD)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: grid.product(MODEL, grid.args(model=("b",))), "'model' is given twice"),
        (lambda: grid.product(grid.args(lr=(1,)), grid.keys({"lr": (1,)})), "'lr' is given twice"),
        (lambda: grid.args(model="vit_s16"), r"must be a tuple of values: \('vit_s16',\)"),
        (lambda: grid.keys({"lr": 0.1}), "must be a tuple of values"),
        (lambda: grid.args(model=()), "'model' has no values"),
        (lambda: grid.product(grid.args(lr=grid.uniform(0, 1))), "only sample"),
        (lambda: grid.uniform(1, 0), "low < high"),
        (lambda: grid.log_uniform(0, 1), "0 < low < high"),
        (lambda: grid.product([{"model": "s"}]), "neither an axis nor a point"),
    ],
)
def test_mistakes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
