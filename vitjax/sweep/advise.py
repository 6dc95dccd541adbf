"""What a sweep's results say, in sentences: paired comparisons with their uncertainty, and no more than that.

Every comparison is paired: two settings that agree in all axes but one make a pair, and a pair's difference
is that of their means over the seeds that both have. For n pairs with differences d_i:

  mean   d = sum_i d_i / n
  +/-    standard error, e = sqrt(sum_i (d_i - d)^2 / (n - 1)) / sqrt(n): seeds and settings together
  noise  seeds alone, s sqrt(sum_i 2 / m_i) / n, with m_i seeds on each side of pair i and s the standard
         deviation over seeds, pooled over all settings (n_g - 1 degrees of freedom each)

Two settings alone make one pair; then the pairs are their common seeds. A difference is called real if |d|
exceeds both t e (t of Student's distribution with n - 1 degrees of freedom) and t' noise (t' with those of
s), two-sided at 5 %, divided by the number of values that the axis' first one is compared with (Bonferroni),
since the best of them is picked from the same data. Having to pass both keeps false alarms below 5 %. Fewer
than 3 pairs give no conclusion.

Axes that always change together (`zip`) are one axis here.
"""

import argparse
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vitjax.errors import UserError
from vitjax.sweep.settings import (
    PRESETS,
    Setting,
    axis_of,
    best,
    collect,
    describe,
    label,
    ordered,
    pareto_front,
    seed_deviation,
    tied,
    where,
)
from vitjax.sweep.table import Table, choose_metric, is_share, lower_is_better, read_table, same

MIN_PAIRS = 3
MIN_MODELS = 5  # of fewer, not even a perfect order is unlikely enough: 2 / 4! > 5 %
LEVEL = 0.05
COSTS = (  # column, what it is, its unit
    ("training_flops", "training compute", "FLOPs"),
    ("device_hours", "device-hours", "device-hours"),
    ("num_params", "number of parameters", "parameters"),
)


@dataclasses.dataclass(frozen=True)
class Finding:
    """A conclusion: what about, in a sentence, and the numbers behind it."""

    title: str
    text: str
    details: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Paired differences, as gains: positive is better whatever the metric.

    Attributes:
      differences: one a pair.
      unit: what a pair is, `pairs` of settings or `seeds`.
      noise: standard error of the mean from seeds alone; NaN where there is one seed.
      freedom: degrees of freedom of `noise`.
    """

    differences: tuple[float, ...]
    unit: str
    noise: float
    freedom: int

    @property
    def n(self) -> int:
        """Number of pairs."""
        return len(self.differences)

    @property
    def mean(self) -> float:
        """Mean gain; NaN without pairs."""
        return float(np.mean(self.differences)) if self.differences else math.nan

    @property
    def error(self) -> float:
        """Standard error over pairs; NaN for one."""
        return float(np.std(self.differences, ddof=1)) / math.sqrt(self.n) if self.n > 1 else math.nan

    def verdict(self, comparisons: int = 1) -> str:
        """`real`, `few`, `noise` (the seeds alone explain it) or `mixed` (it changes from pair to pair)."""
        from scipy import stats

        if self.n < MIN_PAIRS:
            return "few"
        tail = 1 - LEVEL / comparisons / 2
        if self.freedom and abs(self.mean) <= stats.t.ppf(tail, self.freedom) * self.noise:
            return "noise"
        return "real" if abs(self.mean) > stats.t.ppf(tail, self.n - 1) * self.error else "mixed"


class Evidence:
    """The finished settings of a sweep, and comparisons between them."""

    def __init__(self, table: Table, metric: str, value: str = "final"):
        """Gathers `value` (final or best) of `metric`."""
        self.table, self.metric, self.value = table, metric, value
        self.lower, self.percent = lower_is_better(metric), is_share(metric)
        self.settings = collect(table, metric, value)
        self.deviation, self.freedom = seed_deviation(self.settings)

    def compare(self, pairs: Sequence[tuple[Setting, Setting]]) -> Comparison:
        """Gains of the second of each pair over the first."""
        differences, seeds = [], []
        for first, second in pairs:
            gains = self._by_seed(first, second)
            differences.append(float(np.mean(gains)) if gains else self._sign * (second.mean - first.mean))
            seeds.append(len(gains) or min(len(first.scores), len(second.scores)))
        unit = "pairs"
        if len(pairs) == 1 and len(gains := self._by_seed(*pairs[0])) > 1:
            differences, unit = gains, "seeds"
        count = len(pairs)
        noise = self.deviation * math.sqrt(sum(2 / m for m in seeds)) / count if count else math.nan
        return Comparison(tuple(differences), unit, noise, self.freedom)

    def along(
        self, axis: str, first: Any, second: Any, settings: Sequence[Setting] | None = None
    ) -> Comparison:
        """Gains of one value of an axis over another, all else equal."""
        return self.compare(self.pairs(axis, first, second, settings))

    def pairs(
        self, axis: str, first: Any, second: Any, settings: Sequence[Setting] | None = None
    ) -> list[tuple[Setting, Setting]]:
        """Settings that agree in all axes but this one and those tied to it."""
        settings = self.settings if settings is None else settings
        together = tied(self.table, axis)
        partners = {rest(s, *together): s for s in where(settings, axis, second)}
        found = [(s, rest(s, *together)) for s in where(settings, axis, first)]
        return [(s, partners[others]) for s, others in found if others in partners]

    def within_noise(self, first: Setting, second: Setting) -> bool:
        """Whether the seeds alone may explain the difference of two settings; False with one seed each."""
        from scipy import stats

        error = self.deviation * math.sqrt(1 / len(first.scores) + 1 / len(second.scores))
        return bool(abs(first.mean - second.mean) <= stats.t.ppf(1 - LEVEL / 2, self.freedom) * error)

    def gain(self, comparison: Comparison) -> str:
        """As text: `+2.1 +/- 0.4 (n=12 pairs)`."""
        if not comparison.n:
            return "no pairs"
        count = f"n={comparison.n} {comparison.unit if comparison.n > 1 else comparison.unit[:-1]}"
        mean, error = comparison.mean, comparison.error
        return (
            f"{self.signed(mean)} ({count})"
            if comparison.n == 1
            else (f"{self.signed(mean)} +/- {self.signed(error)[1:]} ({count})")
        )

    def signed(self, value: float) -> str:
        """A difference with its sign, in percentage points for shares."""
        return f"{100 * value:+.2f}" if self.percent else f"{value:+.3g}"

    def plain(self, value: float) -> str:
        """A value of the metric, in percent for shares."""
        return f"{value:.2%}" if self.percent else f"{value:.4g}"

    @property
    def _sign(self) -> float:
        return -1.0 if self.lower else 1.0

    def _by_seed(self, first: Setting, second: Setting) -> list[float]:
        scores = dict(second.scores)
        return [self._sign * (scores[seed] - score) for seed, score in first.scores if seed in scores]


def rest(setting: Setting, *axes: str) -> str:
    """The other axes of a setting, to find its partner by."""
    others = {name: value for name, value in setting.axes.items() if name not in axes}
    return json.dumps(others, sort_keys=True)


def findings(evidence: Evidence) -> list[Finding]:
    """All conclusions that the finished trials allow, and where they allow none, why."""
    found = [seeds_finding(evidence)]
    model = axis_of(evidence.table, "model")
    seen = tied(evidence.table, model) if model else []
    for axis in evidence.table.varying:
        if axis not in seen:
            found.append(axis_finding(evidence, axis))
            seen = [*seen, *tied(evidence.table, axis)]
    if first := augmentation_first(evidence):
        found.append(first)
    if model:
        found += model_findings(evidence, model)
    return found


def seeds_finding(evidence: Evidence) -> Finding:
    """How much the seeds scatter."""
    if not evidence.freedom:
        return Finding("seeds", "one seed a setting: what chance does cannot be told from it")
    text = (
        f"standard deviation {evidence.signed(evidence.deviation)[1:]} between seeds of a setting "
        f"({evidence.freedom} degrees of freedom)"
    )
    return Finding("seeds", text)


def axis_finding(evidence: Evidence, axis: str) -> Finding:
    """The best value of an axis, and its gain over the first one."""
    title = " and ".join(tied(evidence.table, axis))
    values = [v for v in ordered(evidence.table.axes[axis]) if where(evidence.settings, axis, v)]
    if len(values) < 2:
        return Finding(title, "fewer than two of its values have finished trials: no conclusion")
    base, others = values[0], values[1:]
    gains = [evidence.along(axis, base, value) for value in others]
    details = [
        f"{label(v)} over {label(base)}: {evidence.gain(g)}" for v, g in zip(others, gains, strict=True)
    ]
    enough = [i for i, gain in enumerate(gains) if gain.n >= MIN_PAIRS]
    if not enough:
        few = f"too few pairs (n={max(gain.n for gain in gains)}, {MIN_PAIRS} are needed) for a conclusion"
        return Finding(title, few, tuple(details))
    if len({gain.n for gain in gains}) > 1:
        details.insert(0, "the values have different pairs so far: compare their gains with care")
    top = max(enough, key=lambda i: gains[i].mean)
    value, gain = others[top], gains[top]
    details += _by_model(evidence, axis, base, value)
    return Finding(title, _verdict(evidence, axis, values, value, gain), tuple(details))


def _verdict(evidence: Evidence, axis: str, values: Sequence[Any], value: Any, gain: Comparison) -> str:
    base, numbers = values[0], evidence.gain(gain)
    verdict = gain.verdict(len(values) - 1)
    if verdict == "noise":
        text = f"no difference that the seeds can show: {label(value)} over {label(base)}: {numbers}"
        return text if len(values) == 2 else f"{text}, and it is the best of the others"
    if verdict == "mixed":
        better = sum(d > 0 for d in gain.differences)
        return (
            f"no clear winner: {label(value)} over {label(base)}: {numbers}, better in {better} of {gain.n}"
        )
    if gain.mean <= 0:
        nearest = "" if len(values) == 2 else ", the nearest,"
        return f"{label(base)} is best: {label(value)}{nearest} gives {numbers}"
    text = f"{label(value)} is best on average: {numbers} over {label(base)}"
    rivals = [
        label(other)
        for other in values[1:]
        if not same(other, value) and evidence.along(axis, other, value).verdict(len(values) - 1) != "real"
    ]
    return text + (f"; not told apart from {', '.join(rivals)}" if rivals else "")


def _by_model(evidence: Evidence, axis: str, base: Any, value: Any) -> Iterator[str]:
    """The same gain for each model alone: most of what there is to learn of an axis depends on it."""
    model = axis_of(evidence.table, "model")
    if model in (None, axis):
        return
    for name in evidence.table.axes[model]:
        gain = evidence.along(axis, base, value, where(evidence.settings, model, name))
        if gain.n:
            yield f"of {label(name)}, {label(value)} over {label(base)}: {evidence.gain(gain)}"


def augmentation_first(evidence: Evidence) -> Finding | None:
    """Whether augmentation alone beats regularisation alone; None if the grid has not both.

    Compared are, in each setting of the other axes, the mean over all presets but `none` without
    regularisation and the mean over all regularised settings without augmentation: no preset is picked.
    """
    aug, reg = axis_of(evidence.table, "augmentation"), axis_of(evidence.table, "regularisation")
    if not aug or not reg:
        return None
    title = "augmentation before regularisation at this data size"
    groups: dict[str, dict[str, list[Setting]]] = {}
    for setting in evidence.settings:
        augmented, regularised = not _off(setting.axes[aug]), not _off(setting.axes[reg])
        kind = {(True, False): "aug", (False, True): "reg", (False, False): "plain"}.get(
            (augmented, regularised)
        )
        if kind:
            others = rest(setting, *tied(evidence.table, aug), *tied(evidence.table, reg))
            groups.setdefault(others, {}).setdefault(kind, []).append(setting)
    gains, noise = {"first": [], "aug": [], "reg": []}, []
    sign = -1.0 if evidence.lower else 1.0
    for group in groups.values():
        if len(group) == 3:
            means = {kind: float(np.mean([s.mean for s in found])) for kind, found in group.items()}
            gains["first"].append(sign * (means["aug"] - means["reg"]))
            gains["aug"].append(sign * (means["aug"] - means["plain"]))
            gains["reg"].append(sign * (means["reg"] - means["plain"]))
            noise.append(_variance(group["aug"]) + _variance(group["reg"]))
    count = len(noise)
    error = evidence.deviation * math.sqrt(sum(noise)) / count if count else math.nan
    first, alone, regularised = (
        Comparison(tuple(gains[kind]), "pairs", error, evidence.freedom) for kind in ("first", "aug", "reg")
    )
    details = (
        f"augmentation alone, mean over its presets: {evidence.gain(alone)}",
        f"regularisation alone: {evidence.gain(regularised)}",
    )
    verdict = first.verdict()
    text = {
        "few": f"too few pairs (n={count}, {MIN_PAIRS} are needed) for a conclusion",
        "noise": f"no difference that the seeds can show: {evidence.gain(first)}",
        "mixed": f"it depends on the setting: {evidence.gain(first)}",
        "real": f"{'yes' if first.mean > 0 else 'no'}, {evidence.gain(first)}",
    }[verdict]
    return Finding(title, text, details if count else ())


def _off(value: Any) -> bool:
    return value in (None, False, 0, "none", "")


def _variance(settings: Sequence[Setting]) -> float:
    """Variance of the mean over settings of means over seeds, in units of the variance of one seed."""
    return sum(1 / len(s.scores) for s in settings) / len(settings) ** 2


def model_findings(evidence: Evidence, model: str) -> Iterator[Finding]:
    """Which models are worth their cost, and whether larger ones want more augmentation."""
    names = [name for name in evidence.table.axes[model] if where(evidence.settings, model, name)]
    if len(names) < 2:
        yield Finding("models", "fewer than two models have finished trials: no conclusion")
        return
    tops = [best(where(evidence.settings, model, name), evidence.lower) for name in names]
    for column, title, unit in COSTS:
        costs = [top.cost(column) for top in tops]
        if not any(map(math.isnan, costs)):
            yield _front_finding(evidence, model, tops, costs, title, unit)
            break
    else:
        yield Finding("models", "what the models cost is not known for all of them: no conclusion")
    aug = axis_of(evidence.table, "augmentation")
    if aug and sum(value in PRESETS for value in evidence.table.axes[aug]) > 2:
        yield larger_models_more_augmentation(evidence, model, aug, names)


def _front_finding(
    evidence: Evidence, model: str, tops: Sequence[Setting], costs: Sequence[float], title: str, unit: str
) -> Finding:
    scores = [top.mean * (-1 if evidence.lower else 1) for top in tops]
    front = pareto_front(costs, scores)
    others = [axis for axis in evidence.table.varying if axis != model]
    details = []
    for i, top in enumerate(tops):
        line = f"{label(top.axes[model])}: {evidence.plain(top.mean)}, {costs[i]:.3g} {unit}"
        line += f" ({describe(top, others)})" if others else ""
        if i not in front:
            better = [j for j in front if costs[j] <= costs[i] and scores[j] >= scores[i]]
            winner = max(better, key=lambda j: scores[j])
            share, more = costs[winner] / costs[i], evidence.signed(scores[winner] - scores[i])
            line += f"; {label(tops[winner].axes[model])} gives {more} at {share:.2g}x the cost"
            line += " (within seed noise)" * evidence.within_noise(top, tops[winner])
        details.append(line)
    on, off = (
        ", ".join(label(tops[i].axes[model]) for i in chosen)
        for chosen in (front, [i for i in range(len(tops)) if i not in front])
    )
    text = f"on the Pareto front of {evidence.metric} against {title}: {on}"
    text += f"; beaten at their cost: {off}" if off else ""
    return Finding("models, each at its best setting", text, tuple(details))


def larger_models_more_augmentation(
    evidence: Evidence, model: str, aug: str, names: Sequence[Any]
) -> Finding:
    """Kendall's tau between the size of a model and its gain a step of augmentation.

    The gain a step is the slope of least squares over the presets' ranks (none 0, light1 1, ... strong2 6),
    averaged over the other axes. The test is exact, two-sided.
    """
    from scipy import stats

    title = "larger models want more augmentation"
    slopes, sizes, details = [], [], []
    for name in names:
        slope, size = _slope(evidence, where(evidence.settings, model, name), aug)
        if not math.isnan(slope) and not math.isnan(size):
            slopes.append(slope)
            sizes.append(size)
            details.append(f"{label(name)}, {size:,.0f} parameters: {evidence.signed(slope)} a step")
    if len(sizes) < MIN_MODELS:
        few = f"too few models with known size (n={len(sizes)}, {MIN_MODELS} are needed) for a conclusion"
        return Finding(title, few, tuple(details))
    tau, chance = map(float, stats.kendalltau(sizes, slopes))
    numbers = f"Kendall's tau {tau:+.2f} between size and gain a step (n={len(sizes)} models, p={chance:.2g})"
    verdict = "not shown" if not chance <= LEVEL else "yes" if tau > 0 else "no, the contrary"
    return Finding(title, f"{verdict}: {numbers}", tuple(details))


def _slope(evidence: Evidence, settings: Sequence[Setting], aug: str) -> tuple[float, float]:
    """Gain a step of augmentation and number of parameters of one model; NaN where they cannot be told."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for setting in settings:
        if setting.axes[aug] in PRESETS:
            at = PRESETS.index(setting.axes[aug])
            others = rest(setting, *tied(evidence.table, aug))
            lines.setdefault(others, []).append((at, setting.mean))
    slopes = [_fit(line) for line in lines.values() if len(line) > 2]
    sizes = [size for s in settings if not math.isnan(size := s.cost("num_params"))]
    sign = -1.0 if evidence.lower else 1.0
    return (
        sign * float(np.mean(slopes)) if slopes else math.nan,
        float(np.median(sizes)) if sizes else math.nan,
    )


def _fit(line: Sequence[tuple[int, float]]) -> float:
    x, y = np.transpose(line)
    return float(np.polyfit(x, y, 1)[0])


def headline(evidence: Evidence) -> str:
    """What the gains are measured in."""
    unit = "percentage points" if evidence.percent else "its own units"
    return (
        f"gains in {evidence.metric} ({evidence.value}), {unit}, + is better; +/- is one standard error over "
        f"pairs that differ in the named axis alone"
    )


CAUTION = (
    "Each axis is tested alone at the 5 % level: of 20 that do nothing, one may look real. Best settings are "
    "picked from the same data that they are shown with."
)


# Command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `python -m vitjax.sweep advise`."""
    parser.add_argument(
        "--metric", metavar="NAME", help="such as val/prec@1; default: the trials' best_metric"
    )
    parser.add_argument(
        "--value", choices=("final", "best"), default="final", help="the last evaluation, or the best"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the conclusions of a sweep; returns 0.

    Raises:
      UserError: there is no sweep, or no trial has measured the metric.
    """
    table = read_table(args.workdir)
    metric = choose_metric(table, args.metric)
    if metric is None:
        raise UserError(
            f"--workdir {args.workdir}: no trial has an evaluation metric so far; there is nothing to advise."
        )
    evidence = Evidence(table, metric, args.value)
    count = len(evidence.settings)
    settings = f"{count} setting{'s' * (count != 1)}"
    print(f"{table.name}: {len(table.done)} of {len(table.rows)} trials done, {settings}")
    print(headline(evidence))
    found = findings(evidence)
    for finding in found:
        print(f"\n{finding.title}: {finding.text}")
        for line in finding.details:
            print(f"  {line}")
    print(f"\n{CAUTION}")
    return 0
