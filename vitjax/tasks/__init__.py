"""What is learnt, behind one small contract, by name.

A task has `init(rng, batch) -> (params, model_state)`, `loss(params, model_state, batch, rng, train=True) ->
(loss, (metrics, model_state))` and `predict(params, model_state, batch) -> (logits, out)`. The batch has been
through the device half of the preprocessing.
"""

from collections.abc import Mapping
from typing import Any

from vitjax.config import bind
from vitjax.errors import UserError, nearest
from vitjax.tasks.classify import Classify

TASKS = {"classify": Classify}


def create(section: Mapping[str, Any], model: Any) -> Any:
    """Builds the task that config section `task` names: `dict(name="classify", loss="softmax_xent")`."""
    section = dict(section)
    name = section.pop("name", "classify")
    if not isinstance(name, str) or name not in TASKS:
        raise UserError(
            f"config.task.name = {name!r} is unknown.{nearest(str(name), TASKS)} Tasks: {', '.join(TASKS)}."
        )
    return TASKS[name](model, **bind(TASKS[name], section, "task", given=("model",)))
