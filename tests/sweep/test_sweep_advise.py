"""Conclusions: the arithmetic on tables made by hand, and no conclusion where there is none."""

import argparse
import math

import numpy as np
import pytest
from made_up_sweep import RUN, finished, whole_sweep, write_sweep, write_trial

from vitjax.errors import UserError
from vitjax.sweep import advise
from vitjax.sweep.settings import collect, ordered, pareto_front, seed_deviation, tied
from vitjax.sweep.table import Table, read_table


def evidence(folder, metric="val/prec@1", value="final"):
    return advise.Evidence(read_table(folder), metric, value)


def finding(folder, title, **kwargs):
    found = {f.title: f for f in advise.findings(evidence(folder, **kwargs))}
    assert title in found, list(found)
    return found[title]


def lookup(scores):
    """score(...) for `whole_sweep` from {(values of the axes...): (score of seed 0, of seed 1)}."""
    return lambda seed, **point: scores[tuple(point.values())][seed]


# Gains of b over a: by x 0.02, 0.03, 0.04; each the mean of two seeds.
PAIRED = {
    ("a", 1): (0.50, 0.52),
    ("b", 1): (0.53, 0.53),
    ("a", 2): (0.60, 0.62),
    ("b", 2): (0.64, 0.64),
    ("a", 3): (0.70, 0.72),
    ("b", 3): (0.75, 0.75),
}


def test_a_paired_comparison_by_hand(tmp_path):
    found = evidence(whole_sweep(tmp_path, lookup(PAIRED), {"axis": ("a", "b"), "x": (1, 2, 3)}))
    gain = found.along("axis", "a", "b")
    assert gain.differences == pytest.approx([0.02, 0.03, 0.04]) and gain.unit == "pairs"
    assert gain.mean == pytest.approx(0.03)
    assert gain.error == pytest.approx(0.01 / math.sqrt(3))  # deviation 0.01 over three pairs
    # Seeds: three settings deviate by 0.01 sqrt 2, three by 0; a degree of freedom each.
    assert found.deviation == pytest.approx(0.01) and found.freedom == 6
    assert gain.noise == pytest.approx(0.01 * math.sqrt(3 * 2 / 2) / 3)
    assert found.gain(gain) == "+3.00 +/- 0.58 (n=3 pairs)"
    assert found.gain(found.along("axis", "b", "a")) == "-3.00 +/- 0.58 (n=3 pairs)"
    # t = 5.196 with 2 degrees of freedom: p = 0.0351, real alone and not as one of two comparisons.
    assert gain.verdict() == "real" and gain.verdict(2) == "mixed"


def test_sentences(tmp_path):
    folder = whole_sweep(tmp_path, lookup(PAIRED), {"axis": ("a", "b"), "x": (1, 2, 3)})
    assert finding(folder, "axis").text == "b is best on average: +3.00 +/- 0.58 (n=3 pairs) over a"
    assert finding(folder, "seeds").text == (
        "standard deviation 1.00 between seeds of a setting (6 degrees of freedom)"
    )
    x = finding(folder, "x")
    assert x.text.startswith("too few pairs (n=2, 3 are needed)")
    assert x.details == ("2 over 1: +10.50 +/- 0.50 (n=2 pairs)", "3 over 1: +21.00 +/- 1.00 (n=2 pairs)")


def test_a_loss_gains_by_falling(tmp_path):
    trials = [({"axis": a, "x": x}, 0) for a in ("a", "b") for x in (1, 2, 3)]
    for (point, _), name in zip(trials, write_sweep(tmp_path, trials), strict=True):
        loss = 1.0 + point["x"] - (0.25 if point["axis"] == "b" else 0)
        write_trial(tmp_path, name, finished(0.5, **{"val/loss": loss}))
    gain = evidence(tmp_path, "val/loss").along("axis", "a", "b")
    assert gain.differences == (0.25, 0.25, 0.25) and gain.noise != gain.noise  # one seed: NaN
    assert finding(tmp_path, "axis", metric="val/loss").text.startswith("b is best on average: +0.25 +/- 0")
    assert "one seed" in finding(tmp_path, "seeds", metric="val/loss").text
    assert evidence(tmp_path, "val/loss", "best").along("axis", "a", "b").mean == 0.25 / 3  # 2.0 at step 50


def test_noise_of_seeds_is_no_difference(tmp_path):
    scores = {("a",): (0.50, 0.60, 0.55), ("b",): (0.56, 0.58, 0.54)}
    folder = whole_sweep(tmp_path, lookup(scores), {"axis": ("a", "b")}, seeds=(0, 1, 2))
    gain = evidence(folder).along("axis", "a", "b")
    assert gain.unit == "seeds" and gain.differences == pytest.approx([0.06, -0.02, -0.01])
    text = "no difference that the seeds can show: b over a: +1.00 +/- 2.52 (n=3 seeds)"
    assert finding(folder, "axis").text == text


def test_a_gain_that_depends_on_the_setting_is_no_winner(tmp_path):
    gains = {1: 0.10, 2: -0.09, 3: 0.08, 4: -0.08}
    score = lambda seed, axis, x: 0.5 + gains[x] * (axis == "b") + 0.001 * seed
    folder = whole_sweep(tmp_path, score, {"axis": ("a", "b"), "x": tuple(gains)}, seeds=(0, 1))
    text = finding(folder, "axis").text
    assert text.startswith("no clear winner: b over a: +0.25 +/-") and text.endswith("better in 2 of 4")


def test_the_first_value_may_be_the_best_and_rivals_are_named(tmp_path):
    worth = {0.0: 0.0, 0.1: -0.05, 0.2: -0.06}
    score = lambda seed, axis, x: 0.5 + x / 10 + worth[axis] + 0.0001 * (seed + x)
    folder = whole_sweep(tmp_path, score, {"axis": (0.2, 0.0, 0.1), "x": (1, 2, 3)})
    assert finding(folder, "axis").text == "0 is best: 0.1, the nearest, gives -5.00 +/- 0.00 (n=3 pairs)"
    worth.update({0.1: 0.0500, 0.2: 0.0501})
    folder = whole_sweep(tmp_path / "2", score, {"axis": (0.2, 0.0, 0.1), "x": (1, 2, 3)})
    text = finding(folder, "axis").text
    assert text == "0.2 is best on average: +5.01 +/- 0.00 (n=3 pairs) over 0; not told apart from 0.1"


def test_partners_share_seeds_where_they_can(tmp_path):
    trials = [({"axis": a}, seed) for a, seed in (("a", 0), ("a", 1), ("b", 1), ("b", 2))]
    scores = (0.1, 0.5, 0.6, 0.9)
    for score, name in zip(scores, write_sweep(tmp_path, trials), strict=True):
        write_trial(tmp_path, name, finished(score))
    assert evidence(tmp_path).along("axis", "a", "b").differences == pytest.approx([0.1])
    assert "too few pairs (n=1" in finding(tmp_path, "axis").text


def test_unfinished_trials_do_not_count(tmp_path):
    trials = [({"axis": a}, 0) for a in ("a", "b", "c")]
    names = write_sweep(tmp_path, trials)
    for name, status in zip(names, ("done", "running", "failed"), strict=True):
        write_trial(tmp_path, name, finished(0.5), status=status)
    assert [s.name for s in collect(read_table(tmp_path), "val/prec@1")] == ["axis_a"]
    assert "fewer than two of its values" in finding(tmp_path, "axis").text


def test_axes_that_change_together_are_one(tmp_path):
    pairs = ((0.0, 0.0), (0.1, 0.2))
    trials = [({"dropout": d, "drop_path": p, "x": x}, 0) for d, p in pairs for x in (1, 2, 3)]
    for (point, _), name in zip(trials, write_sweep(tmp_path, trials), strict=True):
        write_trial(tmp_path, name, finished(0.5 + point["dropout"]))
    assert tied(read_table(tmp_path), "dropout") == ["dropout", "drop_path"]
    assert "0.1 is best on average: +10.00" in finding(tmp_path, "dropout and drop_path").text
    assert "drop_path" not in [f.title for f in advise.findings(evidence(tmp_path))]


# Augmentation alone gains 0.04 and 0.02 (mean 0.03), regularisation alone 0.01, whatever x; then by x.
def augmented(seed, aug, reg, x):
    gain = {"none": 0.0, "light1": 0.04, "light2": 0.02}[aug] + (0.01 if reg and aug == "none" else 0)
    return 0.5 + 0.1 * x + gain * (1 + 0.1 * x) + 0.0001 * seed


def test_augmentation_before_regularisation(tmp_path):
    axes = {"aug": ("light2", "none", "light1"), "reg": (0.0, 0.1), "x": (0, 1, 2)}
    folder = whole_sweep(tmp_path, augmented, axes)
    found = finding(folder, "augmentation before regularisation at this data size")
    assert found.text == "yes, +2.20 +/- 0.12 (n=3 pairs)"  # 2.0, 2.2 and 2.4
    assert found.details == (
        "augmentation alone, mean over its presets: +3.30 +/- 0.17 (n=3 pairs)",
        "regularisation alone: +1.10 +/- 0.06 (n=3 pairs)",
    )
    few = whole_sweep(tmp_path / "few", augmented, axes | {"x": (0, 1)})
    found = finding(few, "augmentation before regularisation at this data size")
    assert found.text == "too few pairs (n=2, 3 are needed) for a conclusion"


SIZES = {"m1": 1e6, "m2": 2e6, "m3": 3e6, "m4": 4e6, "m5": 5e6}


def test_augmentation_that_lowers_a_loss_is_a_gain(tmp_path):
    points = [({"model": model, "aug": aug}, 0) for model in SIZES for aug in ("none", "light1", "light2")]
    for i, ((point, _), name) in enumerate(zip(points, write_sweep(tmp_path, points), strict=True)):
        run = RUN | {"num_params": int(SIZES[point["model"]])}
        write_trial(
            tmp_path, name, finished(0.5, **{"val/loss": 9.0 - i % 3 * SIZES[point["model"]] / 1e6}), run=run
        )
    found = finding(tmp_path, "larger models want more augmentation", metric="val/loss")
    assert found.text.startswith("yes: Kendall's tau +1.00") and found.details[0].endswith(": +1 a step")


def models(folder, score, sizes=SIZES, augs=("none", "light1", "light2")):
    points = [({"model": model, "aug": aug}, 0) for model in sizes for aug in augs]
    for (point, _), name in zip(points, write_sweep(folder, points), strict=True):
        size = int(sizes[point["model"]])
        run = RUN | {"num_params": size, "macs_per_image": size * 100}
        write_trial(folder, name, finished(score(**point)), run=run)
    return folder


def test_larger_models_want_more_augmentation(tmp_path):
    rank = {"none": 0, "light1": 1, "light2": 2}
    score = lambda model, aug: 0.5 + 0.01 * (int(model[1]) - 3) * rank[aug]
    found = finding(models(tmp_path, score), "larger models want more augmentation")
    # A perfect order of five: tau 1, two of 120 orders are as extreme.
    assert found.text == "yes: Kendall's tau +1.00 between size and gain a step (n=5 models, p=0.017)"
    assert found.details[0] == "m1, 1,000,000 parameters: -2.00 a step"
    four = {name: SIZES[name] for name in list(SIZES)[:4]}
    found = finding(models(tmp_path / "4", score, four), "larger models want more augmentation")
    assert found.text.startswith("too few models with known size (n=4, 5 are needed)")


def test_models_on_the_front_and_what_beats_the_others(tmp_path):
    scores = {"m1": 0.5, "m2": 0.6, "m3": 0.55, "m4": 0.7, "m5": 0.7}
    score = lambda model, aug: scores[model] - (0.1 if aug == "none" else 0.0)
    found = finding(models(tmp_path, score), "models, each at its best setting")
    assert found.text == (
        "on the Pareto front of val/prec@1 against training compute: m1, m2, m4; beaten at their cost: m3, m5"
    )
    assert found.details[0] == "m1: 50.00%, 3.84e+12 FLOPs (aug light1)"  # 6 x 1e8 x 6400
    assert found.details[2].endswith("; m2 gives +5.00 at 0.67x the cost")
    assert found.details[4].endswith("; m4 gives +0.00 at 0.8x the cost")


def test_a_beaten_model_may_be_beaten_by_chance(tmp_path):
    scores = {"m1": (0.50, 0.52), "m2": (0.50, 0.51), "m3": (0.30, 0.31)}
    trials = [({"model": model}, seed) for model in scores for seed in (0, 1)]
    for (point, seed), name in zip(trials, write_sweep(tmp_path, trials), strict=True):
        run = RUN | {"macs_per_image": int(SIZES[point["model"]])}
        write_trial(tmp_path, name, finished(scores[point["model"]][seed]), run=run)
    details = finding(tmp_path, "models, each at its best setting").details
    assert details[1].endswith("; m1 gives +0.50 at 0.5x the cost (within seed noise)")
    assert details[2].endswith("; m1 gives +20.50 at 0.33x the cost")


def test_the_noise_between_two_settings(tmp_path):
    # Deviation 0.02 with 3 degrees of freedom (t = 3.1824), four seeds against one: within 0.07116.
    low, high = 0.5 - 0.02 * math.sqrt(0.75), 0.5 + 0.02 * math.sqrt(0.75)
    trials = [({"axis": "a"}, seed) for seed in range(4)] + [({"axis": x}, 0) for x in ("near", "far")]
    for score, name in zip((low, low, high, high, 0.571, 0.572), write_sweep(tmp_path, trials), strict=True):
        write_trial(tmp_path, name, finished(score))
    found = evidence(tmp_path)
    several, near, far = found.settings
    assert found.deviation == pytest.approx(0.02) and found.freedom == 3
    assert found.within_noise(several, near) and not found.within_noise(several, far)


def test_axes_are_tied_value_for_value(tmp_path):
    trials = [({"size": size, "kind": kind}, 0) for size, kind in ((1, "a"), (2, "a"), (3, "b"))]
    write_sweep(tmp_path, trials)
    assert tied(read_table(tmp_path), "size") == ["size"] and tied(read_table(tmp_path), "kind") == ["kind"]


def test_chance_alone_is_rarely_called_real():
    """Null axes with noise in settings and seeds: at most the promised 5 % (fixed random numbers)."""
    rng, real, tries = np.random.default_rng(0), 0, 200
    for _ in range(tries):
        base, rows = rng.normal(0, 0.05, 5), []
        for x, a in np.ndindex(5, 3):
            own = base[x] + rng.normal(0, 0.01)
            for seed in (0, 1):
                row = {"group": f"{x} {a}", "status": "done", "axis": a, "x": x, "seed": seed}
                rows.append(row | {"final m": own + rng.normal(0, 0.005)})
        table = Table("t", {"axis": [0, 1, 2], "x": [0, 1, 2, 3, 4]}, [], rows, ["m"], None)
        real += " is best" in advise.axis_finding(advise.Evidence(table, "m"), "axis").text
    assert real <= 0.05 * tries


def test_pareto_front():
    # Equal points are on it together; one that is as good at a higher cost, or worse at the same, is not.
    costs, values = (
        [3.0, 1.0, 2.0, 1.0, 2.0, 1.0, math.nan, 0.5],
        [5.0, 1.0, 2.0, 1.0, 1.0, 0.5, 9.0, math.nan],
    )
    assert pareto_front(costs, values) == [1, 3, 2, 0]
    assert pareto_front([1.0, 2.0], [1.0, 1.0]) == [0]
    assert pareto_front([], []) == []
    assert pareto_front([-5.0, -9.0], [0.8, 0.7]) == [1, 0]  # speeds, as negative costs


def test_as_many_right_answers_are_as_good(tmp_path):
    # 34 + 37 and 35 + 36 of 360 right: the means of these floats are one bit apart.
    counts = {("a",): (34 / 360, 37 / 360), ("b",): (35 / 360, 36 / 360)}
    assert np.mean(counts[("a",)]) != np.mean(counts[("b",)])
    a, b = evidence(whole_sweep(tmp_path, lookup(counts), {"axis": ("a", "b")})).settings
    assert a.mean == b.mean


def test_order_of_values():
    assert ordered(["strong1", "none", "medium2", "light1"]) == ["none", "light1", "medium2", "strong1"]
    assert ordered([0.1, 0, 0.03]) == [0, 0.03, 0.1]
    assert ordered(["b16", "a32"]) == ["b16", "a32"] and ordered([True, False]) == [True, False]


def test_pooled_deviation_weighs_by_degrees_of_freedom(tmp_path):
    trials = [({"axis": "a"}, 0), ({"axis": "a"}, 1), ({"axis": "b"}, 0), ({"axis": "b"}, 1)]
    trials += [({"axis": "b"}, 2), ({"axis": "c"}, 0)]
    scores = (0.1, 0.3, 0.5, 0.6, 0.7, 0.9)
    for score, name in zip(scores, write_sweep(tmp_path, trials), strict=True):
        write_trial(tmp_path, name, finished(score))
    deviation, freedom = seed_deviation(collect(read_table(tmp_path), "val/prec@1"))
    assert freedom == 3 and deviation == pytest.approx(math.sqrt((1 * 0.02 + 2 * 0.01) / 3))


def run_advise(folder, *argv):
    parser = argparse.ArgumentParser()
    advise.add_arguments(parser)
    args = parser.parse_args(argv)
    args.workdir = folder
    return advise.run(args)


def test_the_command(tmp_path, capsys):
    folder = whole_sweep(tmp_path, lookup(PAIRED), {"axis": ("a", "b"), "x": (1, 2, 3)})
    assert run_advise(folder) == 0
    printed = capsys.readouterr().out
    assert "made up: 12 of 12 trials done, 6 settings\n" in printed
    assert "\naxis: b is best on average: +3.00 +/- 0.58 (n=3 pairs) over a\n  b over a: +3.00" in printed
    with pytest.raises(UserError, match="Did you mean 'val/loss'"):
        run_advise(folder, "--metric=val/los")
    empty = tmp_path / "empty"
    write_sweep(empty, [({"axis": "a"}, 0)])
    with pytest.raises(UserError, match="nothing to advise"):
        run_advise(empty)
