"""Durations: one length of training, told in steps, epochs, examples or percent, turned into steps.

A duration called `warmup` is any one of the keys `warmup_steps`, `warmup_epochs`, `warmup_examples` and
`warmup_percent` of a config section; the code that asks only ever sees steps.
"""

import math
from typing import Any

from vitjax import errors

UNITS = ("steps", "epochs", "examples", "percent")
REQUIRED: Any = object()  # the default of a duration that has none

# Units people reach for and that cannot be turned into steps, or that are spelt otherwise here.
_FOREIGN_UNITS = ("seconds", "minutes", "hours", "days", "iterations", "iters", "updates", "batches")
_FOREIGN_UNITS += ("images", "samples", "fraction", "ratio")


def keys(name: str) -> tuple[str, ...]:
    """Returns the four config keys that can give the duration `name`."""
    return tuple(f"{name}_{unit}" for unit in UNITS)


def steps(
    section: Any,
    name: str,
    *,
    batch_size: int | None,
    num_examples: int | None,
    total_steps: int | None,
    default: Any = REQUIRED,
) -> Any:
    """Returns the duration `name` of a config section, in steps.

    Args:
      section: a dict or ConfigDict; a key whose value is None counts as absent.
      name: the duration; the section gives at most one of the four `keys(name)`. `percent` is a share of the
        whole run between 0 and 1 (the name is big_vision's).
      batch_size: examples of one step, for `examples` and `epochs`.
      num_examples: examples of one epoch, for `epochs`.
      total_steps: length of the run in steps, for `percent`.
      default: returned as it is when the section has none of the keys.

    Returns:
      An int: the nearest whole number of steps, at least 1 unless the value is exactly 0.

    Raises:
      UserError: two units at once, a unit that does not exist, a value that is not a number, is negative or
        not finite, a percentage above 1, a needed size that is not known, or no value and no default.
    """
    _refuse_other_units(section, name)
    given = {unit: section[key] for unit, key in zip(UNITS, keys(name), strict=True) if _has(section, key)}
    if len(given) > 1:
        both = " and ".join(f"{name}_{unit}={value!r}" for unit, value in given.items())
        raise errors.UserError(f"{both} say the same thing in different units; keep one of them.")
    if not given:
        if default is REQUIRED:
            valid = [key for key in keys(name) if total_steps or not key.endswith("_percent")]
            raise errors.UserError(f"The duration {name!r} is missing: set one of {', '.join(valid)}.")
        return default
    ((unit, value),) = given.items()
    value = _checked(f"{name}_{unit}", unit, value)
    if value == 0:
        return 0
    sizes = {
        "steps": {},
        "percent": {"total_steps": total_steps},
        "examples": {"batch_size": batch_size},
        "epochs": {"num_examples": num_examples, "batch_size": batch_size},
    }[unit]
    for size, known in sizes.items():
        if not known:
            raise errors.UserError(
                f"{name}_{unit}={value} needs {size}, which is not known here; use {name}_steps."
            )
    if unit == "percent":
        value = value * sizes["total_steps"]
    elif unit == "examples":
        value = value / sizes["batch_size"]
    elif unit == "epochs":
        value = value * sizes["num_examples"] / sizes["batch_size"]
    return max(1, round(value))


def _has(section: Any, key: str) -> bool:
    return key in section and section[key] is not None


def _checked(key: str, unit: str, value: Any) -> float:
    """Returns `value` as a number in the range of its unit."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise errors.UserError(f"{key}={value!r} is not a number but a {type(value).__name__}.")
    if not math.isfinite(value) or value < 0:
        raise errors.UserError(f"{key}={value!r} must be a finite number, 0 or more.")
    if unit == "percent" and value > 1:
        raise errors.UserError(
            f"{key}={value!r} must lie between 0 and 1: it is a share of the run, 0.05 for 5 %."
        )
    return value


def _refuse_other_units(section: Any, name: str) -> None:
    """Raises for keys such as `warmup_step` or `total_hours`, which would otherwise be read by nobody."""
    for key in section:
        word = str(key).removeprefix(f"{name}_")
        if word == key or word in UNITS:
            continue
        # Only near misses and units of time: a section may well have a key `ckpt_dir` beside `ckpt_steps`.
        if word in _FOREIGN_UNITS or ("_" not in word and errors.nearest(word, UNITS)):
            hint = errors.nearest(key, keys(name))
            raise errors.UserError(
                f"{key}={section[key]!r} is not a duration: the units are {', '.join(keys(name))}.{hint}"
            )
