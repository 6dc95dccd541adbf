"""Published accuracies on ImageNet-1k; numbers and their sources stand in the CSV beside this file."""

import csv
import dataclasses
import functools
import importlib.resources

FILE = "published_imagenet.csv"


@dataclasses.dataclass(frozen=True)
class Published:
    """What was published of a model trained by one recipe.

    Attributes:
      model: name in `vitjax.models`.
      resolution: pixels of a side at test time.
      series: family and recipe, such as `DeiT distilled`.
      top1: accuracy, a share.
      v100: images a second on a V100 GPU; None where its source does not say.
      source: as explained at the top of the file.
    """

    model: str
    resolution: int
    series: str
    top1: float
    v100: float | None
    source: str


@functools.cache
def published() -> tuple[Published, ...]:
    """All rows of the file."""
    lines = (importlib.resources.files("vitjax.analysis") / FILE).read_text("utf-8").splitlines()
    return tuple(
        Published(
            row["model"],
            int(row["resolution"]),
            row["series"],
            round(float(row["top1"]) / 100, 6),
            float(row["v100_images_per_second"]) if row["v100_images_per_second"] else None,
            row["source"],
        )
        for row in csv.DictReader(line for line in lines if not line.startswith("#"))
    )


def of(model: str, resolution: int) -> list[Published]:
    """What was published of a model at a resolution, by recipe."""
    return [row for row in published() if (row.model, row.resolution) == (model, resolution)]


def native_resolution(model: str) -> int:
    """The lowest resolution that results of a model were published at; 224 for any other."""
    return min((row.resolution for row in published() if row.model == model), default=224)
