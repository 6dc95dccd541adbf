"""Reading a config file, applying command-line overrides, and refusing keys that nobody reads.

A config file is plain Python with `get_config(arg=None) -> ConfigDict`. `FILE.py:ARG` hands `ARG` to it.
The top level is read by the loop, and `KEYS` says what each key means. Every section below it is a set of
keyword arguments, so the signature of the function that is called with it is its schema (`bind`).
"""

import ast
import contextlib
import dataclasses
import importlib.util
import inspect
import pathlib
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from vitjax.durations import UNITS
from vitjax.errors import UserError, nearest

DURATIONS = {
    "total": "length of training",
    "log_training": "interval of training metrics",
    "ckpt": "interval of checkpoints",
    "keep_ckpt": "interval of checkpoints that are never deleted",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The top level of a config, with the durations of `DURATIONS` beside it.

    Attributes:
      input: training data: data, split, pp, batch_size, workers, on_error, repeats, split_views, passes,
        on_device, steps_per_dispatch.
      text: languages, vocabulary and length of rows; with it, the training data are sentence pairs.
      model: name and options of the architecture.
      model_init: parameters to start from: weights, dont_load, posemb.
      task: name and options of what is learnt.
      evals: evaluators by name.
      seed: with the config it determines the run.
      num_classes: number of labels, or of pieces of text; left out: as many as the training source has.
      optax_name: optimizer, by its name in optax or ours.
      optax: options of the optimizer.
      lr: peak learning rate.
      lr_base_batch: the batch that lr and wd are for; they grow linearly with the one trained with.
      lr_mults: (regex, factor) pairs.
      layer_decay: factor of lr and wd from each layer to the one before, such as 0.75.
      wd: weight decay, multiplied by the schedule but not by lr.
      wd_mults: (regex, factor) pairs.
      schedule: learning-rate schedule, or (regex, schedule or None) pairs; None freezes.
      grad_clip_norm: largest global gradient norm.
      weight_clips: (regex, limit) pairs; these parameters are clipped to [-limit, limit] after each update.
      grad_accum: number of slices in which a batch goes through the model.
      ema: exponential moving average of parameters and batch statistics: decay, warmup.
      mesh: (axis, size) pairs; one size may be -1.
      sharding: (regex, placement) pairs over parameter names.
      matmul_precision: jax_default_matmul_precision of the run.
      diagnostics: what is measured inside a binary network while it trains: layers, histograms.
      keep_last: how many of the newest checkpoints stay; with 2 there is one to go back to.
      best_metric: metric by which the best checkpoint is kept, such as val/prec@1.
      report: write report.html at the end.
    """

    input: Mapping
    model: Mapping
    text: Mapping | None = None
    model_init: Mapping | str | None = None
    task: Mapping = dataclasses.field(default_factory=dict)
    evals: Mapping = dataclasses.field(default_factory=dict)
    seed: int = 0
    num_classes: int | None = None
    optax_name: str = "scale_by_adam"
    optax: Mapping | None = None
    lr: float = 1e-3
    lr_base_batch: float | None = None
    lr_mults: Sequence = ()
    layer_decay: float | None = None
    wd: float = 0.0
    wd_mults: Sequence | None = None
    schedule: Mapping | Sequence | None = None
    grad_clip_norm: float | None = None
    weight_clips: Sequence = ()
    grad_accum: int = 1
    ema: Mapping | None = None
    mesh: Sequence = (("data", -1),)
    sharding: Sequence = ()
    matmul_precision: str | None = None
    diagnostics: Mapping | None = None
    keep_last: int = 2
    best_metric: str | None = None
    report: bool = True


TOP_LEVEL = (
    *(field.name for field in dataclasses.fields(Settings)),
    *(f"{name}_{unit}" for name in DURATIONS for unit in UNITS),
)


def settings(config: ml_collections.ConfigDict) -> Settings:
    """Reads the top level of a config but for its durations.

    Raises:
      UserError: a value of the wrong type, or `input` or `model` is missing.
    """
    fields = {field.name for field in dataclasses.fields(Settings)}
    return Settings(**bind(Settings, {key: config[key] for key in config if key in fields}, "config"))


def load(spec: str, overrides: Mapping[str, str] | None = None) -> ml_collections.ConfigDict:
    """Builds the config of `FILE.py[:ARG]` and applies overrides `{"optax.b1": "0.95"}`.

    An override must name a key that the config has or that the loop reads. A value keeps the type of the
    one it replaces. Overriding a duration drops its other units: `total_steps=20` beats `total_epochs=300`.

    Raises:
      UserError: the file, the argument, a key or a value is wrong.
    """
    path, _, arg = spec.partition(":")
    config = _get_config(pathlib.Path(path), arg or None)
    config.unlock()
    for key, text in (overrides or {}).items():
        _override(config, key, text)
    check_top_level(config, path, overrides or {})
    return config.lock()


def check_top_level(config: ml_collections.ConfigDict, path: str, overrides: Mapping[str, str]) -> None:
    """Refuses top-level keys that nobody reads, naming where each was set."""
    for key in config:
        if key not in TOP_LEVEL:
            where = f"--config.{key}={overrides[key]}" if key in overrides else path
            raise UserError(f"unknown config key {key!r} (set by {where}).{nearest(key, TOP_LEVEL)}")
    for name in DURATIONS:
        given = [f"{name}_{unit}" for unit in UNITS if config.get(f"{name}_{unit}") is not None]
        if len(given) > 1:
            raise UserError(f"config keys {' and '.join(given)} (set by {path}) say the same: keep one.")


def bind(
    function: Callable, section: Mapping[str, Any], name: str, given: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns `section` as keyword arguments for `function`, refusing those that its signature lacks.

    Args:
      function: what will be called; its keyword parameters are the valid keys.
      section: the config section.
      name: path of the section in the config, for the message.
      given: parameters that the caller fills in itself and that a config may not set.

    Raises:
      UserError: an unknown key, or a required one that is missing.
    """
    parameters = {
        key: p
        for key, p in inspect.signature(function, eval_str=True).parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and key not in (*given, "self")
    }
    for key in section:
        if key not in parameters:
            raise UserError(
                f"unknown config key '{name}.{key}'.{nearest(key, parameters)} "
                f"Valid keys of {name}: {', '.join(parameters)}."
            )
        check_type(f"{name}.{key}", section[key], parameters[key].annotation)
    missing = [key for key, p in parameters.items() if p.default is p.empty and key not in section]
    if missing:
        raise UserError(f"config section {name!r} lacks {', '.join(missing)}.")
    return plain(section)


def check_type(key: str, value: Any, annotation: Any) -> None:
    """Refuses a config value that is not what the annotation of its argument asks for.

    Raises:
      UserError: it names the key, the value, its type and the types that would do.
    """
    if not _fits(value, annotation):
        raise UserError(
            f"config key {key!r} = {plain(value)!r} is of type {type(value).__name__}; it must be "
            f"{_type_name(annotation)}."
        )


def annotations(function: Callable) -> dict[str, Any]:
    """Returns the annotations of a callable's arguments; {} where they cannot be told."""
    try:
        parameters = inspect.signature(function, eval_str=True).parameters
    except (NameError, ValueError):  # a model from outside may name types that only a type checker imports
        return {}
    return {key: parameter.annotation for key, parameter in parameters.items()}


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a config value is what an annotation asks for; other annotations let everything pass."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(annotation))
    kind = typing.get_origin(annotation) or annotation
    if kind in (None, types.NoneType):
        return value is None
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in (Sequence, tuple, list):
        return isinstance(value, list | tuple)
    if kind in (Mapping, dict):
        return isinstance(value, Mapping | ml_collections.ConfigDict)
    return isinstance(value, kind) if kind in (str, bool) else True


def _type_name(annotation: Any) -> str:
    names = {Mapping: "a section, dict(...)", Sequence: "a tuple", types.NoneType: "None"}
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    options = typing.get_args(annotation) if union else (annotation,)
    kinds = [typing.get_origin(option) or option for option in options]
    return " or ".join(names.get(kind, getattr(kind, "__name__", str(kind))) for kind in kinds)


def plain(value: Any) -> Any:
    """Turns ConfigDicts inside `value` into dicts, so that libraries meet nothing they do not know."""
    if isinstance(value, ml_collections.ConfigDict | Mapping):
        return {key: plain(value[key]) for key in value}
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value)
    return value


def load_module(path: pathlib.Path) -> types.ModuleType:
    """Runs a config file, or a sweep file, and returns it as a module.

    Raises:
      UserError: there is no such file, or it fails; the message names the line.
    """
    if not path.is_file():
        others = sorted(str(p) for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise UserError(f"no config file {str(path)!r}.{nearest(str(path), others)}")
    # `from configs import common` works wherever the command is typed and the config file lies: `configs` is
    # looked for beside the file's own folder, and in the checkout that vitjax is imported from.
    for root in (path.resolve().parent.parent, pathlib.Path(__file__).resolve().parent.parent):
        if str(root) not in sys.path:
            sys.path.append(str(root))
    spec = importlib.util.spec_from_file_location(f"vitjax_config_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    with blaming(path):
        spec.loader.exec_module(module)
    return module


def _get_config(path: pathlib.Path, arg: str | None) -> ml_collections.ConfigDict:
    module = load_module(path)
    if not hasattr(module, "get_config"):
        raise UserError(f"config file {str(path)!r} has no function get_config(arg=None).")
    if arg is not None and not inspect.signature(module.get_config).parameters:
        raise UserError(
            f"config file {str(path)!r} takes no argument, but was given {arg!r} after the colon."
        )
    with blaming(path):
        config = module.get_config() if arg is None else module.get_config(arg)
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(
            f"config file {str(path)!r}: get_config() must return an ml_collections.ConfigDict, not "
            f"{type(config).__name__}."
        )
    return config


@contextlib.contextmanager
def blaming(path: pathlib.Path) -> Iterator[None]:
    """Turns whatever a config or sweep file raises into one sentence with the file and, if known, line."""
    try:
        yield
    except Exception as error:
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
        ]
        lines += [error.lineno] if isinstance(error, SyntaxError) and error.filename == str(path) else []
        where = f"{str(path)!r}" + (f", line {lines[-1]}" if lines else "")
        detail = " ".join(str(error.args[0] if error.args else error).split())
        if not detail or isinstance(error, LookupError):  # KeyError: 'x' says no more than 'x'
            detail = f"{type(error).__name__} {detail}".rstrip()
        raise UserError(f"config file {where} fails: {detail}") from error


def _override(config: ml_collections.ConfigDict, dotted: str, text: str) -> None:
    *parents, key = dotted.split(".")
    if parents and parents[0] in _sections() and config.get(parents[0]) is None:
        config[parents[0]] = ml_collections.ConfigDict()  # the config leaves out a section that may be there
    section = config
    for depth, parent in enumerate(parents):
        if not isinstance(section, ml_collections.ConfigDict) or parent not in section:
            valid = [*section] if isinstance(section, Mapping | ml_collections.ConfigDict) else []
            valid += [] if depth else _sections()
            name = ".".join(parents[: depth + 1])
            raise UserError(f"--config.{dotted}: no config section {name!r}.{nearest(parent, valid)}")
        section = section[parent]
    if not isinstance(section, ml_collections.ConfigDict):
        raise UserError(f"--config.{dotted}: {'.'.join(parents)!r} is a value, not a section.")
    section.unlock()
    value = _parse(text)
    stem, _, unit = key.rpartition("_")
    if unit in UNITS:
        for other in UNITS:
            if other != unit and f"{stem}_{other}" in section:
                del section[f"{stem}_{other}"]
    try:
        if isinstance(section.get(key), str) and not isinstance(value, str):
            value = text
        section[key] = value
    except (TypeError, ValueError) as error:
        old = section[key]
        raise UserError(
            f"--config.{dotted}={text}: expected {type(old).__name__} (as the present value {old!r}), "
            f"got {type(value).__name__}."
        ) from error


def _sections() -> list[str]:
    """Names of the top-level sections."""
    return [field.name for field in dataclasses.fields(Settings) if _fits({}, field.type)]


def _parse(text: str) -> Any:
    if text.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


# What may differ between two runs that go on from each other: it changes neither parameters nor batches.
BESIDE_TRAINING = (
    "evals",
    "mesh",
    "sharding",
    "diagnostics",
    "keep_last",
    "best_metric",
    "report",
    "input.workers",
    "input.steps_per_dispatch",
    "text.vocabulary",  # where it lies; what it holds has a checksum in the fingerprint
)


def fingerprint(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the part of a config that determines the trained parameters, as `{"model.name": "vit_s32"}`."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, ml_collections.ConfigDict | Mapping):
            for key in value:
                walk(f"{prefix}{key}.", value[key])
        else:
            flat[prefix[:-1]] = value

    walk("", config)
    beside = (
        *BESIDE_TRAINING,
        *(f"{name}_{unit}" for name in DURATIONS if name != "total" for unit in UNITS),
    )
    return {
        key: value
        for key, value in sorted(flat.items())
        if not any(key == name or key.startswith(name + ".") for name in beside)
    }
