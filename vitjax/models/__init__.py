"""Architectures, by name.

An architecture joins by one line in `FAMILIES` and a module with two functions:
`names()`, the names to offer, and `configure(name)`, which returns the module
class and the field values a name stands for, or None if the name is not its own.
The fields of the class are the schema of the overrides.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn

from vitjax.config import annotations, check_type
from vitjax.errors import UserError, nearest

FAMILIES = (
    "vitjax.models.vit",
    "vitjax.models.hybrid",
    "vitjax.models.deit",
    "vitjax.models.cait",
    "vitjax.models.pit",
    "vitjax.models.swin",
    "vitjax.models.t2t",
    "vitjax.models.binaryvit",
    "vitjax.models.resnet",
    "vitjax.models.bit",
    "vitjax.models.regnet",
    "vitjax.models.efficientnet",
    "vitjax.models.reactnet",
    "vitjax.models.small",
    "vitjax.models.transformer",
)

_OF_FLAX = {"parent", "name"}  # dataclass fields of every linen module


def names() -> tuple[str, ...]:
    """Returns the usual model names, family by family."""
    return tuple(name for family in FAMILIES for name in importlib.import_module(family).names())


def create(name: str, *, num_classes: int | None = None, **overrides: Any) -> nn.Module:
    """Builds a model: `create("vit_s32", num_classes=1000, dropout=0.1)`.

    `name` is a registered name (`names()`) or the dotted path of a linen module
    class, or of a function that returns a module, outside the package
    (`my_package.my_module.MyModel`). `overrides` are fields of the model; one it
    does not have is a `UserError`. Without `num_classes` the model has no head.
    """
    if not isinstance(name, str):
        raise UserError(f"model.name={name!r} must be a string, such as 'vit_s16'.")
    make, fields = _import(name) if "." in name else _configure(name)
    if num_classes is not None:
        overrides["num_classes"] = num_classes
    valid = _parameters(make)
    for key in overrides:
        if valid is not None and key not in valid:
            raise UserError(
                f"model.{key} is not a field of {name!r}.{nearest(key, valid)} "
                f"Valid are: {', '.join(sorted(valid - {'num_classes'}))}."
            )
    kinds = annotations(make)
    for key, value in overrides.items():
        check_type(f"model.{key}", value, kinds.get(key, Any))
    return make(**{**fields, **overrides})


def _configure(name: str) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    for family in FAMILIES:
        found = importlib.import_module(family).configure(name)
        if found is not None:
            return found
    # big_vision's "ViT-S/16" leads to vit_s16, and the paper's "R26+S/32" to r26_s32.
    spelled_ours = name.lower().replace("/", "").replace("-", "_").replace("+", "_")
    hint = nearest(name, names()) if name == name.lower() else nearest(spelled_ours, names())
    raise UserError(
        f"model.name={name!r} names no model.{hint} Names are like {_examples()}; "
        "vitjax.models.names() has them all. 'my_package.my_module.MyModel' imports a model from outside."
    )


def _examples() -> str:
    return ", ".join(repr(importlib.import_module(family).names()[-1]) for family in FAMILIES)


def _import(path: str) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    module, _, attribute = path.rpartition(".")
    try:
        make = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"model.name={path!r} cannot be imported: {error}.") from error
    if not callable(make):
        raise UserError(f"model.name={path!r} is neither a linen module class nor a function that makes one.")
    return cast(Callable[..., nn.Module], make), {}


def _parameters(make: Callable[..., nn.Module]) -> set[str] | None:
    """The keyword arguments of a module class or factory; None if it takes any."""
    if dataclasses.is_dataclass(make):
        return {field.name for field in dataclasses.fields(make) if field.init} - _OF_FLAX
    parameters = inspect.signature(make).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters}
