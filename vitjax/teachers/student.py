"""What a teacher has to know of its student's run."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vitjax.data.value_scale import Scale


@dataclasses.dataclass(frozen=True)
class Student:
    """The side of the student.

    Attributes:
      num_classes: its labels, K.
      image: shape `[B, H, W, C]` of a batch of images after preprocessing.
      scale: what the values of these images mean; None where the pp string does not tell.
      stream: all that determines the batches, as JSON: seed, batch size, source, pp string, ...
      steps: how many batches the run takes.
      vocabulary: of a run on text, `vitjax.data.text.vocabulary.Vocabulary`; else None.
    """

    num_classes: int
    image: tuple[int, ...]
    scale: Scale | None
    stream: Mapping[str, Any]
    steps: int
    vocabulary: Any = None
