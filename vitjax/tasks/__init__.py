"""What is learnt, behind one small contract, by name.

A task has `init(rng, batch) -> (params, model_state)`, `loss(params, model_state, batch, rng, train=True,
frozen=None) -> (loss, (metrics, model_state))` and `predict(params, model_state, batch) -> (logits, out)`.
The batch has been through the device half of the preprocessing. `frozen` are variables that the task needs
and the run does not train, those of a teacher; see `Classify` for how a task says which.
"""

from collections.abc import Mapping
from typing import Any

from vitjax.config import bind
from vitjax.errors import UserError, nearest
from vitjax.tasks.classify import Classify
from vitjax.tasks.distill import Distill
from vitjax.tasks.translate import Translate
from vitjax.teachers import Student

TASKS = {"classify": Classify, "distill": Distill, "translate": Translate}


def create(section: Mapping[str, Any], model: Any, student: Student | None = None) -> Any:
    """Builds the task that config section `task` names: `dict(name="classify", loss="softmax_xent")`.

    `student` is what a teacher has to know of the run; a task without a teacher goes without.
    """
    section = dict(section)
    name = section.pop("name", "classify")
    if not isinstance(name, str) or name not in TASKS:
        raise UserError(
            f"config.task.name = {name!r} is unknown.{nearest(str(name), TASKS)} Tasks: {', '.join(TASKS)}."
        )
    options = bind(TASKS[name], section, "task", given=("model", "student"))
    return TASKS[name](model, student, **options)
