"""Learning-rate schedules, relative to the peak (1.0), with warmup and cooldown.

t is the number of updates already done: the first update sees t = 0 and, under a warmup, does nothing.
With w = warmup steps, T = total steps and p = clip((t - w) / (T - w), 0, 1):

    constant               mult
    cosine                 end + (mult - end) (1 + cos(pi p)) / 2
    linear, polynomial     end + (mult - end) (1 - p)^power
    rsqrt                  mult / sqrt(1 + (max(t, w) - w + shift) / timescale)
    stair                  mult * mults[i] from t = steps[i] on

times min(1, t / w) times min(1, (T - t) / cooldown). This is big_vision's `create_learning_rate_schedule`;
`end` of the cosine is ours and 0 by default.

"Attention Is All You Need" (arXiv 1706.03762, section 5.3) counts its steps s from 1, so that the first
update already moves something. With s = t + ahead:

    inverse_sqrt           mult * sqrt(w / s), and for s < w: warmup_lr + (peak - warmup_lr) s / w

`ahead` is 1 and `warmup_lr` 0, as published; the peak, at s = w, is (d_model * w)^-0.5 there. fairseq's
`inverse_sqrt` has ahead=0 and begins at warmup_lr=1e-7. `rsqrt` with timescale = warmup is the same with
ahead=0 and warmup_lr=0.

DeiT and CaiT train by the schedules of timm 0.3.2 (`timm/scheduler`). Their clock e counts whole epochs and
is one epoch late (it is set to e after epoch e), so the first two epochs both see e = 0. Below the peak they
are told by learning rates, not by shares of it. With E = epochs of the run and w = epochs of the warmup:

    timm_cosine            min_lr + (peak - min_lr) (1 + cos(pi e / E)) / 2
    timm_step              peak * rate^(e // every)
    both, for e < w        warmup_lr + (peak - warmup_lr) e / w

The clock does not start anew after the warmup. `per="step"` counts steps in place of epochs, and is on time.
With `warmup_prefix` (timm's name) the cosine has what the warmup leaves to itself, and with p as above is
min_lr + (peak - min_lr) (1 + cos(pi p)) / 2: by steps, the schedule of "Vision Transformer for Small-Size
Datasets" (arXiv 2112.13492).

Bi-Real Net and ReActNet (official code) lower the rate once an epoch, before it. With e whole epochs done:

    epoch_linear           mult * (1 - (e + ahead) / E)

`ahead` is 1 as published, so that the first epoch has 1 - 1/E of the peak and the last one a rate of 0: it
moves batch statistics alone. `ahead=0` makes use of every epoch.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitjax import durations, errors


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """schedule(t) -> float32 factor: NumPy for numbers and NumPy arrays, JAX for JAX arrays.

    `numbers` are its lengths and its peak: `total_steps`, `warmup`, `cooldown`, `mult`, and those of timm's
    schedules and of `inverse_sqrt`. A compiled step takes them as arguments, `schedule(t, numbers)`, so that
    runs of other lengths share the program. `own_warmup`: the decay does not want to be multiplied by
    min(1, t / warmup).
    """

    numbers: Mapping[str, float]
    decay: Callable[..., Any]
    own_warmup: bool = False

    def __call__(self, t: Any, numbers: Mapping[str, Any] | None = None) -> Any:
        """Returns the factor after `t` updates; other `numbers` take the place of its own."""
        # On the host in NumPy: for a line in the log nothing should queue behind the steps on the device.
        xp = jnp if isinstance(t, jax.Array) else np
        n = self.numbers if numbers is None else numbers
        after_warmup = xp.maximum(t - n["warmup"], 0)
        progress = xp.minimum(after_warmup / xp.maximum(n["total_steps"] - n["warmup"], 1), 1.0)
        factor = self.decay(
            xp=xp, mult=n["mult"], t=t, progress=progress, after_warmup=after_warmup, numbers=n
        )
        if self.numbers["warmup"] and not self.own_warmup:
            factor = factor * xp.minimum(1.0, t / n["warmup"])
        if self.numbers["cooldown"]:
            factor = factor * xp.clip((n["total_steps"] - t) / n["cooldown"], 0.0, 1.0)
        return xp.asarray(factor, np.float32)


def create(
    *,
    total_steps: int,
    batch_size: int | None = None,
    num_examples: int | None = None,
    lr: float | None = None,
    decay_type: str = "constant",
    mult: float = 1.0,
    scale_with_batchsize: bool = False,
    **options: Any,
) -> Schedule:
    """Returns the schedule of the learning rate and of the weight decay that the options describe.

    Args:
      total_steps: length of the run.
      batch_size: for durations given in examples or epochs, and for `scale_with_batchsize`.
      num_examples: examples of one epoch, for durations given in epochs.
      lr: the learning rate that the factor will be multiplied by, for learning rates among the options.
      decay_type: one of the names above.
      mult: the peak; other than 1 for one group of parameters among several.
      scale_with_batchsize: multiply `mult` by batch_size / 256, the linear scaling rule of arXiv 1706.02677.
      **options: the durations `warmup_*` and `cooldown_*`, and what the decay has of its own: `end` (cosine),
        `end` and `power` (linear, polynomial), `timescale` and `shift` in steps or as durations (rsqrt),
        `steps` and `mults` (stair), `warmup_lr`, `min_lr` and `warmup_prefix` (timm_cosine), `warmup_lr`,
        `rate` and the duration `every_*` (timm_step), `per` and `lag` (both), `ahead` (epoch_linear),
        `ahead` and `warmup_lr` (inverse_sqrt).
    """
    to_steps = lambda name, default: durations.steps(
        options,
        name,
        batch_size=batch_size,
        num_examples=num_examples,
        total_steps=total_steps,
        default=default,
    )
    warmup, cooldown = to_steps("warmup", 0), to_steps("cooldown", 0)
    # Runs of 0 or 1 steps exist to evaluate or to debug; they may keep the recipe's warmup.
    if total_steps > 1:
        for name, length, most in (("warmup", warmup, total_steps - 1), ("cooldown", cooldown, total_steps)):
            if length > most:
                raise errors.UserError(
                    f"config.schedule: a {name} of {length} steps is too long for {total_steps} steps."
                )
    own = {k: v for k, v in options.items() if k not in durations.keys("warmup") + durations.keys("cooldown")}
    if decay_type == "rsqrt":
        for name in ("timescale", "shift"):
            if (length := to_steps(name, None)) is not None and name not in own:
                own = {k: v for k, v in own.items() if k not in durations.keys(name)} | {name: length}
    if decay_type == "timm_step":
        every = to_steps("every", durations.REQUIRED)
        own = {k: v for k, v in own.items() if k not in durations.keys("every")} | {"every": every}
    _check_numbers({"mult": mult})
    decay = _decay(decay_type, own)
    if scale_with_batchsize:
        mult = mult * _known(batch_size, "batch_size") / 256

    numbers = {"total_steps": total_steps, "warmup": warmup, "cooldown": cooldown, "mult": mult}
    if decay_type == "epoch_linear":
        numbers["unit"] = _epoch(batch_size, num_examples)
    if decay_type in _TIMM:
        numbers |= _timm_numbers(decay_type, own, lr, batch_size, num_examples)
    if decay_type == "inverse_sqrt":
        # Without a warmup there is nothing that begins at the low rate, and lr may be anything.
        low = own.get("warmup_lr", 0.0) if warmup else 0.0
        numbers["warmup_lr"] = low / _peak(lr, decay_type) if low else 0.0
    return Schedule(numbers, decay, own_warmup=decay_type in (*_TIMM, "inverse_sqrt"))


def _timm_numbers(
    name: str, own: dict[str, Any], lr: float | None, batch_size: int | None, num_examples: int | None
) -> dict[str, float]:
    """What timm's schedules have to know beside the lengths in steps: the clock's unit and the low rates.

    `unit` is the length of a tick in steps, an int; `every` is in steps, too; the rates are shares of `lr`.
    """
    given = {key: p.default for key, p in inspect.signature(_DECAYS[name]).parameters.items()} | own
    peak = _peak(lr, name)
    unit = 1 if given["per"] == "step" else _epoch(batch_size, num_examples)
    rates = {key: given[key] / peak for key in ("warmup_lr", "min_lr") if key in given}
    lengths = {key: given[key] for key in ("every",) if key in given}
    return {"unit": unit, **rates, **lengths}


def _peak(lr: float | None, name: str) -> float:
    """The learning rate that rates among the options are shares of."""
    peak = _known(lr, "lr")
    if not peak > 0:
        raise errors.UserError(
            f"config.schedule: config.lr={peak!r} must be more than 0 for {name!r}, whose options are rates."
        )
    return peak


def _epoch(batch_size: int | None, num_examples: int | None) -> int:
    """Steps of an epoch: whole batches count. DeiT's loader drops the rest, and nothing is left to round."""
    return max(1, _known(num_examples, "num_examples") // _known(batch_size, "batch_size"))


def _constant() -> Callable[..., Any]:
    return lambda mult, **_: mult


def _cosine(*, end: float = 0.0) -> Callable[..., Any]:
    return lambda xp, mult, progress, **_: end + (mult - end) * 0.5 * (1.0 + xp.cos(np.pi * progress))


def _polynomial(*, end: float = 0.0, power: float = 1.0) -> Callable[..., Any]:
    return lambda mult, progress, **_: end + (mult - end) * (1.0 - progress) ** power


def _epoch_linear(*, ahead: int = 1) -> Callable[..., Any]:
    if ahead not in (0, 1):
        raise errors.UserError(f"config.schedule: ahead={ahead!r} must be 1, as published, or 0.")

    def factor(xp: Any, mult: Any, t: Any, numbers: Mapping[str, Any], **_: Any) -> Any:
        epochs = xp.maximum(xp.round(numbers["total_steps"] / numbers["unit"]), 1)
        return mult * xp.maximum(1.0 - (t // numbers["unit"] + ahead) / epochs, 0.0)

    return factor


def _rsqrt(*, timescale: int = 10_000, shift: int = 0) -> Callable[..., Any]:
    if not timescale > 0:
        raise errors.UserError(f"config.schedule: timescale={timescale!r} must be more than 0.")
    return lambda xp, mult, after_warmup, **_: mult / xp.sqrt(1.0 + (after_warmup + shift) / timescale)


def _inverse_sqrt(*, ahead: int = 1, warmup_lr: float = 0.0) -> Callable[..., Any]:
    del warmup_lr  # this is among the numbers
    if ahead not in (0, 1):
        raise errors.UserError(f"config.schedule: ahead={ahead!r} must be 1, as published, or 0 (fairseq).")

    def factor(xp: Any, mult: Any, t: Any, numbers: Mapping[str, Any], **_: Any) -> Any:
        clock, warmup = xp.maximum(t + ahead, 1), xp.maximum(numbers["warmup"], 1)
        rising = numbers["warmup_lr"] + (mult - numbers["warmup_lr"]) * (t + ahead) / warmup
        return xp.where(t + ahead < warmup, rising, mult * xp.sqrt(warmup / clock))

    return factor


def _stair(*, steps: Sequence[int] = (), mults: Sequence[float] = ()) -> Callable[..., Any]:
    if len(steps) != len(mults) or list(steps) != sorted(steps):
        raise errors.UserError(
            f"config.schedule: steps={tuple(steps)} must rise, and have one of mults={tuple(mults)} for each."
        )
    bounds, levels = np.asarray(steps, np.int32), np.asarray([1.0, *mults], np.float32)
    return lambda xp, mult, t, **_: mult * xp.asarray(levels)[xp.searchsorted(xp.asarray(bounds), t, "right")]


def _timm_cosine(
    *,
    warmup_lr: float = 1e-6,
    min_lr: float = 1e-5,
    per: str = "epoch",
    lag: int | None = None,
    warmup_prefix: bool = False,
) -> Callable[..., Any]:
    del warmup_lr, min_lr  # these are among the numbers

    def shape(xp: Any, clock: Any, length: Callable[[str], Any], numbers: Mapping[str, Any]) -> Any:
        before = length("warmup") if warmup_prefix else 0
        share = xp.clip((clock - before) / xp.maximum(length("total_steps") - before, 1), 0.0, 1.0)
        low = numbers["min_lr"]
        return low + (numbers["mult"] - low) * 0.5 * (1.0 + xp.cos(np.pi * share))

    return _timm(shape, per, lag)


def _timm_step(
    *, every: int, rate: float = 0.5, warmup_lr: float = 1e-6, per: str = "epoch", lag: int | None = None
) -> Callable[..., Any]:
    del warmup_lr, every

    def shape(xp: Any, clock: Any, length: Callable[[str], Any], numbers: Mapping[str, Any]) -> Any:
        # Half an epoch is added so that rounding cannot move the beginning of a turn.
        return numbers["mult"] * rate ** xp.floor((clock + 0.5) / xp.maximum(length("every"), 1))

    return _timm(shape, per, lag)


def _timm(shape: Callable[..., Any], per: str, lag: int | None) -> Callable[..., Any]:
    """A schedule over timm's clock: whole epochs, `lag` late, or steps."""
    if per not in ("epoch", "step"):
        raise errors.UserError(f"config.schedule: per={per!r} must be 'epoch' or 'step'.")
    late = int(per == "epoch") if lag is None else lag

    def factor(xp: Any, t: Any, numbers: Mapping[str, Any], **_: Any) -> Any:
        length = lambda name: xp.round(numbers[name] / numbers["unit"])
        clock = xp.maximum(t // numbers["unit"] - late, 0)
        warmup, start = length("warmup"), numbers["warmup_lr"]
        rising = start + (numbers["mult"] - start) * clock / xp.maximum(warmup, 1)
        return xp.where(clock < warmup, rising, shape(xp, clock, length, numbers))

    return factor


_DECAYS = {
    "constant": _constant,
    "cosine": _cosine,
    "epoch_linear": _epoch_linear,
    "inverse_sqrt": _inverse_sqrt,
    "linear": _polynomial,
    "polynomial": _polynomial,
    "rsqrt": _rsqrt,
    "stair": _stair,
    "timm_cosine": _timm_cosine,
    "timm_step": _timm_step,
}
_TIMM = ("timm_cosine", "timm_step")


def _decay(name: str, options: dict[str, Any]) -> Callable[..., Any]:
    """Returns the decay called `name`, its options checked against its signature."""
    if name not in _DECAYS:
        hint = errors.nearest(str(name), _DECAYS)
        raise errors.UserError(
            f"config.schedule: decay_type={name!r} is unknown; there are {', '.join(_DECAYS)}.{hint}"
        )
    own = tuple(inspect.signature(_DECAYS[name]).parameters)
    common = (
        "decay_type",
        "mult",
        "scale_with_batchsize",
        *durations.keys("warmup"),
        *durations.keys("cooldown"),
    )
    for key in options:
        if key not in own:
            hint = errors.nearest(key, own + common)
            raise errors.UserError(
                f"config.schedule: the decay {name!r} has no {key!r}; its options are {own or 'none'}.{hint}"
            )
    if not isinstance(prefix := options.get("warmup_prefix", False), bool):
        raise errors.UserError(f"config.schedule: warmup_prefix={prefix!r} must be True or False.")
    _check_numbers({key: value for key, value in options.items() if key not in ("per", "warmup_prefix")})
    return _DECAYS[name](**options)


def _check_numbers(options: dict[str, Any]) -> None:
    for key, value in options.items():
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise errors.UserError(f"config.schedule: {key}={value!r} must be made of numbers.")


def _known(value: Any, name: str) -> Any:
    if value is None:
        raise errors.UserError(f"config.schedule: {name} is not known here.")
    return value
