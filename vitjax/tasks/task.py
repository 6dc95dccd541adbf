"""What all tasks have in common: a model, and a teacher or none."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vitjax.teachers import Network, Recorded


class Task:
    """A model, and what the loop asks of a task besides its loss.

    Attributes:
      model: the module.
      teacher: whose answers are learnt from; None without one.
      notes: lines to be told when training begins.
      takes_progress: whether the model wants to know the share of training that is done, as those with
        annealed gradients of signs do; `loss` and `forward` then take it.
    """

    teacher: Network | Recorded | None = None

    def __init__(self, model: Any):
        self.model = model
        self.notes: list[str] = []
        self.takes_progress = "progress" in inspect.signature(type(model).__call__).parameters

    @property
    def by_position(self) -> Mapping[str, Callable[[np.ndarray], np.ndarray]]:
        """Entries of a batch that are read from disk, as functions of stream positions."""
        return self.teacher.by_position if self.teacher else {}

    @property
    def abstract_frozen(self) -> Any:
        """Variables that the loss needs and the run does not train, by shape; None without any."""
        return self.teacher.abstract if self.teacher else None

    @property
    def frozen(self) -> Any:
        """These variables, read from disk as often as asked for; `notes` then says what was read."""
        if self.teacher is None:
            return None
        variables, self.notes = self.teacher.load()
        return variables
