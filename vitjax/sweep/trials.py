"""From a sweep file to its trials: names, configs, and every mistake found before anything runs."""

import dataclasses
import hashlib
import inspect
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from vitjax import config as config_lib
from vitjax.errors import UserError
from vitjax.sweep import grid

# File names may have 255 bytes; longer ones keep their beginning and end in a digest.
LONGEST_NAME = 160
# Axes that a name has by their value alone: the model, and the bare word at the start of a `config_arg`.
MODEL, BARE = "model", "config_arg"


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
      name: `vit_s16-aug_light1-seed_0`: the folder of the trial. Every axis is in it, so that names stay when
        an axis gets more values; the axis `model` by its value alone.
      config: `FILE.py:ARG`.
      overrides: config keys set on top, with plain JSON values.
      axes: values of all axes but the seed, by name.
      seed: seed of the run.
      group: the name without the seed; trials of a group differ in nothing else.
      fingerprint: digest of what determines the trained parameters.
    """

    name: str
    config: str
    overrides: Mapping[str, Any]
    axes: Mapping[str, Any]
    seed: int
    group: str
    fingerprint: str = ""

    def load(self) -> ml_collections.ConfigDict:
        """The trial's config. Raises UserError where it cannot be built."""
        return config_lib.load(self.config, {key: repr(value) for key, value in self.overrides.items()})

    def to_json(self) -> dict[str, Any]:
        """As it stands in sweep.json, under its name."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "name"}


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sweep file, read: its spec `FILE.py[:ARG]`, a title, and the trials by name in order."""

    sweep: str
    name: str
    trials: Mapping[str, Trial]


def read(spec: str) -> Plan:
    """Reads `FILE.py[:ARG]` and loads the config of every trial.

    FILE has `get_sweep(arg=None)`, which returns a `grid.Sweep`, or it is a config file with big_vision's
    `sweep(add, arg=None)` beside its `get_config`. Loads nothing heavy.

    Raises:
      UserError: the file or a config is wrong, an axis names nothing, no trials, or two with one name.
    """
    path, _, arg = spec.partition(":")
    module = config_lib.load_module(pathlib.Path(path))
    if hasattr(module, "get_sweep"):
        drafts, name = _of_get_sweep(module, path, arg or None)
    elif hasattr(module, "sweep"):
        drafts, name = _of_add(module, path, arg or None)
    else:
        raise UserError(
            f"sweep file {path!r} has neither get_sweep(arg=None) nor big_vision's sweep(add, arg=None)."
        )
    if not drafts:
        raise UserError(
            f"sweep file {path!r} gives no trials: its filters leave nothing, or its axes are empty."
        )
    _refuse_collisions(drafts, path)
    return Plan(spec, name or pathlib.Path(path).stem, {t.name: t for t in map(_checked, drafts)})


def _of_get_sweep(module: Any, path: str, arg: str | None) -> tuple[list[Trial], str | None]:
    if arg is not None and not inspect.signature(module.get_sweep).parameters:
        raise UserError(f"sweep file {path!r} takes no argument, but was given {arg!r} after the colon.")
    with config_lib.blaming(pathlib.Path(path)):
        sweep = module.get_sweep() if arg is None else module.get_sweep(arg)
        if not isinstance(sweep, grid.Sweep):
            raise TypeError(f"get_sweep() must return a grid.Sweep, not {type(sweep).__name__}.")
        points = grid.select(grid.points(sweep.points), sweep.where)
        seeds = grid.points(grid.keys({"seed": sweep.seeds}))
        # Seeds vary slowest: after the first round every setting has been seen once.
        points = [point + seed for seed in seeds for point in points]
        overrides = {"report": False, **sweep.overrides}
        config = locate(sweep.config, path)
        return [_draft(_with_arguments(config, p.args), p, overrides) for p in points], sweep.name


def _of_add(module: Any, path: str, arg: str | None) -> tuple[list[Trial], str | None]:
    """Trials of `sweep(add)`, one a call of `add`: dotted keys, and `config_arg`, what follows the colon.

    big_vision's `arg(res=448)` gives `config_arg="res=448"` and `res=448` beside it: that is no key.
    """
    drafts: list[Trial] = []

    def add(**values: Any) -> None:
        text = values.pop("config_arg", None) or ""
        args = {}
        for position, piece in enumerate(piece.strip() for piece in text.split(",") if piece.strip()):
            key, equals, value = piece.partition("=")
            key, value = (key, value) if equals else (BARE, piece) if position == 0 else (piece, "True")
            repeated = key in values and str(values[key]) == value
            args[key] = values.pop(key) if repeated else value
        config = f"{path}:{text}" if text else path
        drafts.append(_draft(config, grid.Point(args, values), {"report": False}))

    with config_lib.blaming(pathlib.Path(path)):
        if arg is None:
            module.sweep(add)
        else:
            module.sweep(add, arg)
    return drafts, None


def locate(config: str, sweep_path: str) -> str:
    """`FILE.py[:ARG]` with FILE as seen from here: as written, else from a folder above the sweep file."""
    file, colon, arg = config.partition(":")
    if not os.path.exists(file):
        above = [folder / file for folder in pathlib.Path(sweep_path).resolve().parents]
        file = next((str(found) for found in above if found.is_file()), file)
    return f"{file}{colon}{arg}"


def _draft(config: str, point: grid.Point, overrides: Mapping[str, Any]) -> Trial:
    """The trial of a point; its seed and fingerprint are filled in when its config has been loaded."""
    axes = {name: value for name, value in point.axes.items() if name != "seed"}
    group = label(axes) or "all"
    name = f"{group}-seed_{point.axes['seed']}" if "seed" in point.axes else group
    overrides, axes = json.loads(json.dumps([{**overrides, **point.keys}, axes]))
    return Trial(name, config, overrides, axes, 0, group)


def _with_arguments(config: str, args: Mapping[str, Any]) -> str:
    file, _, own = config.partition(":")
    texts = {name: value if isinstance(value, str) else repr(value) for name, value in args.items()}
    for name, text in texts.items():
        if "," in text:
            raise ValueError(f"argument {name}={text}: an argument of a config file cannot hold a comma.")
    arguments = ",".join(filter(None, (own, *(f"{name}={text}" for name, text in texts.items()))))
    return f"{file}:{arguments}" if arguments else file


def label(axes: Mapping[str, Any]) -> str:
    """`vit_s16-aug_light1-reg_0.1` for the values of axes: a file name on every system."""
    parts = (f"{value}" if name in (MODEL, BARE) else f"{name}_{value}" for name, value in axes.items())
    text = re.sub(r"[^A-Za-z0-9._+=-]+", "_", "-".join(parts)).lstrip("._-")
    if len(text) > LONGEST_NAME:
        text = f"{text[:LONGEST_NAME]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return text


def _refuse_collisions(trials: Iterable[Trial], path: str) -> None:
    """Refuses two trials of one name; names that differ in case only are one folder on some file systems."""
    seen: dict[str, Trial] = {}
    for trial in trials:
        other = seen.setdefault(trial.name.casefold(), trial)
        if other is trial:
            continue
        if (other.config, other.overrides) == (trial.config, trial.overrides):
            raise UserError(f"sweep file {path!r} gives trial {trial.name!r} twice: drop the repeated point.")
        raise UserError(
            f"sweep file {path!r}: two trials would share the folder {trial.name!r}: "
            f"{_differing(other, trial)}. Give the axis values that differ in letters or digits."
        )


def _differing(one: Trial, two: Trial) -> str:
    flat = [{"config": t.config, **t.overrides} for t in (one, two)]
    key = next(key for key in {**flat[0], **flat[1]} if flat[0].get(key) != flat[1].get(key))
    return f"{key} is {flat[0].get(key)!r} in one and {flat[1].get(key)!r} in the other"


def _checked(trial: Trial) -> Trial:
    """The trial with its fingerprint, after its config has been found to load."""
    try:
        config = trial.load()
        config_lib.settings(config)
    except UserError as error:
        raise UserError(f"trial {trial.name!r}: {error}") from error
    return dataclasses.replace(trial, seed=config.get("seed", 0), fingerprint=fingerprint(config))


def fingerprint(config: ml_collections.ConfigDict) -> str:
    """Digest of the part of a config that determines the trained parameters."""
    text = json.dumps(config_lib.fingerprint(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_unset_keys(trials: Iterable[Trial]) -> None:
    """Refuses axes over keys that no config sets and that nothing reads, such as `optax.b3`.

    A nested key that the config leaves at its default is only known to who reads it. So one trial for each
    set of such keys is built by shape (`vitjax.main --check`, on the CPU, in a process of its own). What else
    keeps it from being built, such as data that only the workers see, is left to the trials.
    """
    unset: dict[tuple[str, ...], Trial] = {}
    for trial in trials:
        if any("." in key for key in trial.overrides):
            config = config_lib.load(trial.config)
            missing = tuple(sorted(key for key in trial.overrides if "." in key and not _has(config, key)))
            if missing:
                unset.setdefault(missing, trial)
    for missing, trial in unset.items():
        options = [f"--config.{key}={value!r}" for key, value in trial.overrides.items()]
        command = [sys.executable, "-m", "vitjax.main", "--check", "--config", trial.config, *options]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        message = done.stderr.strip().removeprefix("error: ")
        if done.returncode == 2 and any(key.rpartition(".")[2] in message for key in missing):
            raise UserError(f"trial {trial.name!r}: {message}")


def _has(config: Any, dotted: str) -> bool:
    for part in dotted.split("."):
        if not isinstance(config, ml_collections.ConfigDict | Mapping) or part not in config:
            return False
        config = config[part]
    return True


def difference(old: Mapping[str, Trial], new: Mapping[str, Trial]) -> dict[str, list[str]]:
    """Names of trials that were added, removed or changed."""
    return {
        "added": [name for name in new if name not in old],
        "removed": [name for name in old if name not in new],
        "changed": [n for n in new if n in old and new[n].fingerprint != old[n].fingerprint],
    }
