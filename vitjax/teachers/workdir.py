"""What the workdir of a run says of the model that was trained there."""

import dataclasses
import json
import pathlib
from typing import Any

from vitjax.data import pp, value_scale
from vitjax.errors import UserError
from vitjax.run_info import read_run_info
from vitjax.teachers.images import Known
from vitjax.weights.loading import locate


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run of one's own.

    Attributes:
      model: its config section `model`.
      num_classes: its labels; None where an older run did not note them.
      images: what it was trained on.
    """

    model: dict[str, Any]
    num_classes: int | None
    images: Known


def read(source: str) -> Trained | None:
    """Reads what lies beside the checkpoints that `source` names; None where it is no workdir.

    Raises:
      UserError: there is nothing at `source`, or its `config.json` cannot be read.
    """
    path, _ = locate(source)
    folder = _workdir(path)
    if folder is None:
        return None
    try:
        config = json.loads((folder / "config.json").read_text())
        model, text = dict(config["model"]), config["input"]["pp"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{str(folder / 'config.json')!r} is not the config of a run: {error!r}.") from error
    about = read_run_info(folder)
    num_classes = about.get("num_classes", config.get("num_classes"))
    height, width, channels = about.get("image_shape") or (None, None, None)
    scale = value_scale.after(pp.parse(text.replace("{num_classes}", str(num_classes or 1))))
    size = None if height is None or width is None else (height, width)
    return Trained(_hashable(model), num_classes, Known(size, channels, scale))


def _workdir(path: pathlib.Path) -> pathlib.Path | None:
    """The workdir of a workdir, of its folder of checkpoints, or of one checkpoint in that."""
    for folder in (path, path.parent, path.parent.parent):
        if path.is_dir() and (folder / "config.json").is_file() and (folder / "checkpoints").is_dir():
            return folder
    return None


def _hashable(value: Any) -> Any:
    """JSON knows no tuples, which fields of modules are."""
    if isinstance(value, dict):
        return {key: _hashable(item) for key, item in value.items()}
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
