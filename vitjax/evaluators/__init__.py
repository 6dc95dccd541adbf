"""Evaluators: what is measured of a train state, beside the training loss.

An evaluator is a class. Its first argument is the `Context`, its keyword arguments are the schema of its
config section, and `run(train_state)` yields pairs (metric name, float). The loop puts the section's name
before the metric's: `val/prec@1`. After `run`, lines in `notes`, if there are any, go to the log, and texts
in `documents`, by their file names, to the workdir.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax

from vitjax import config, durations, errors

EVALUATORS = {
    "accuracy": "vitjax.evaluators.accuracy.Accuracy",
    "bleu": "vitjax.evaluators.bleu.Bleu",
    "fewshot": "vitjax.evaluators.fewshot.FewShot",
    "perplexity": "vitjax.evaluators.perplexity.Perplexity",
}
# Keys of an evaluator's section that the training loop reads.
LOOP_KEYS = ("type", *durations.keys("log"))


@dataclasses.dataclass(frozen=True)
class Context:
    """What a run gives to all its evaluators.

    Attributes:
      task: has `predict(params, model_state, batch) -> (logits, out)`.
      mesh: the devices.
      batch_sharding: how the first axis of a batch lies on them; None for the axis `data` of the mesh, or its
        first one.
      progress: called after each batch with the number of batches done and the number there are.
      compiler_options: of the functions that run the model, see `vitjax.compiler`.
      text: section `text` of a run on sentence pairs, a `vitjax.data.text.section.Text`; None for others.
      vocabulary: that of such a run.
    """

    task: Any
    mesh: jax.sharding.Mesh
    batch_sharding: jax.sharding.Sharding | None = None
    progress: Callable[[int, int], None] | None = None
    compiler_options: Mapping[str, str] | None = None
    text: Any = None
    vocabulary: Any = None


def create(name: str, section: Any, *, context: Context, defaults: Mapping[str, Any] | None = None) -> Any:
    """Returns the evaluator that `config.evals.<name>` describes.

    Args:
      name: the section's name, for error messages.
      section: `type` names the evaluator (a name of `EVALUATORS` or the dotted path of a class); the keys of
        `LOOP_KEYS` are left to the loop; all others are arguments of the evaluator.
      context: what the run provides.
      defaults: values from elsewhere in the config (`loss`, `batch_size`, ...) for arguments that the
        evaluator has and the section does not give.

    Raises:
      UserError: an unknown type, an argument that is unknown or missing.
    """
    where = f"config.evals.{name}"
    if section.get("type") is None:
        raise errors.UserError(f"{where} has no type; set type to one of {', '.join(EVALUATORS)}.")
    cls = get(section["type"], where=where)
    valid = schema(cls)
    given = {str(key): section[key] for key in section if key not in LOOP_KEYS}
    for key in given:
        if key not in valid:
            hint = errors.nearest(key, [*valid, *LOOP_KEYS])
            raise errors.UserError(
                f"{where}.{key} is unknown; {section['type']} has {', '.join(valid)}.{hint}"
            )
    kinds = config.annotations(cls)
    for key, value in given.items():
        config.check_type(f"evals.{name}.{key}", value, kinds.get(key, Any))
    given = {key: value for key, value in (defaults or {}).items() if key in valid} | given
    required = [key for key, parameter in valid.items() if parameter.default is parameter.empty]
    if missing := [key for key in required if key not in given]:
        raise errors.UserError(f"{where} needs {' and '.join(missing)}.")
    return cls(context, **given)


def get(type_name: str, *, where: str = "config.evals") -> type:
    """Returns the evaluator class called `type_name`, or found at that dotted path."""
    path = EVALUATORS.get(type_name, type_name)
    module, _, attribute = str(path).rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), attribute)
        if not isinstance(cls, type):
            raise ValueError(f"{attribute} is no class")
        return cls
    except (ImportError, AttributeError, ValueError) as e:
        raise errors.UserError(
            f"{where}.type={type_name!r} is neither one of {', '.join(EVALUATORS)} nor the dotted path of a"
            f" class ({e}).{errors.nearest(str(type_name), EVALUATORS)}"
        ) from e


def schema(cls: type) -> dict[str, inspect.Parameter]:
    """Returns the config arguments of an evaluator class: all of its constructor's but the context."""
    return dict(list(inspect.signature(cls).parameters.items())[1:])
