"""Teachers: whose answers a student learns from, by config section `task.teacher`.

    teacher = dict(weights="runs/teacher")
    teacher = dict(model=dict(name="resnet50"), weights="resnet50.safetensors", input="vgg_value_range")
    teacher = dict(logits="teacher.logits")

A teacher is a network that runs inside the training step (`network`), or its logits, recorded by
`python -m vitjax.teacher_logits` (`recorded`). Either has

  - `logits(frozen, batch) -> [B, K]`, traced in the step;
  - `abstract`: its variables by shape, or None, and `load() -> (variables, notes)`;
  - `by_position`: entries of a batch that are read from disk, as functions of stream positions.
"""

from collections.abc import Mapping
from typing import Any

from vitjax.config import bind
from vitjax.errors import UserError
from vitjax.teachers.network import Network
from vitjax.teachers.recorded import Recorded
from vitjax.teachers.section import Section
from vitjax.teachers.student import Student

__all__ = ["Network", "Recorded", "Student", "create"]


def create(section: Mapping[str, Any], student: Student) -> Network | Recorded:
    """Builds the teacher that config section `task.teacher` names.

    Raises:
      UserError: a key nobody reads, weights or logits that are not there or are not for this student, or
        images that the teacher was not trained on.
    """
    options = Section(**bind(Section, section, "task.teacher"))
    if options.logits is not None:
        return Recorded(options, student)
    if options.weights is None:
        raise UserError(
            "config.task.teacher names neither weights nor logits: give weights='FILE' or the workdir of a "
            "run, or logits='FILE' as python -m vitjax.teacher_logits writes it."
        )
    return Network(options, student)
