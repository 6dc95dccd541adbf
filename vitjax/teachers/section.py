"""The keys of config section `task.teacher`."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Section:
    """Section `task.teacher`.

    Attributes:
      weights: what `vitjax.weights.load` takes, such as a file or the workdir of a run; `random` draws them,
        which teaches nothing and is for trying out a config or its speed.
      model: name and options of the architecture; left out for a workdir, whose config says it.
      input: the images it was trained on, where `weights` is no workdir or another input is wanted: a
        value-range op as in a pp string, `vgg_value_range`; or `dict(size=, mean=, std=)` or
        `dict(size=, values="value_range(-1, 1)")`. `size` is pixels or (height, width), as the student's
        where it is left out; `mean` and `std`, numbers or one a channel, are on the scale 0..255.
      convert: whether the student's images are brought to the teacher's size and value range.
      logits: a file of recorded logits, which is read instead of running the model. Where `weights` is given
        too, the file must come from them.
    """

    weights: str | None = None
    model: Mapping | None = None
    input: Mapping | str | None = None
    convert: bool = False
    logits: str | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """Which network it is on which images, as JSON, for a file of its logits."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "logits"}
