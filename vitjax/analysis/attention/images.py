"""The images that are looked at: files, the files of a folder, or examples of a data set."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vitjax.data.sources import open_source
from vitjax.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclasses.dataclass(frozen=True)
class Examples:
    """What to look at.

    Attributes:
      examples: `{"image": bytes or uint8 array, "label": int}` each; files have label 0.
      names: of files, or `digits[test] 7`.
      classes: the true class of each, as text; None for files.
      class_names: of the data set; empty for files.
    """

    examples: list[dict[str, Any]]
    names: list[str]
    classes: list[str] | None = None
    class_names: tuple[str, ...] = ()


def read(words: Sequence[str], count: int, data: str | None) -> Examples:
    """Reads at most `count` images of what `--images` names.

    Args:
      words: files and folders, or one `data:SPLIT`.
      count: the most images of folders and data sets; files named one by one are all taken.
      data: the data set that `data:` means.

    Raises:
      UserError: there is no such file, or no image.
    """
    if any(word.startswith("data:") for word in words):
        if len(words) > 1:
            raise UserError("--images takes one data:SPLIT alone, or files and folders.")
        return _of_data(words[0].removeprefix("data:"), count, data)
    files: list[pathlib.Path] = []
    for word in words:
        path = pathlib.Path(word).expanduser()
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
            if not inside:
                raise UserError(f"--images {word!r}: the folder holds no images ({', '.join(EXTENSIONS)}).")
            files += inside[:count]
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(
                f"--images {word!r}: there is no such file or folder. Name images, or data:test for those of "
                "the run's own data set."
            )
    try:
        examples = [dict(image=path.read_bytes(), label=np.int32(0)) for path in files]
    except OSError as error:
        raise UserError(f"--images: cannot read {error.filename!r}: {error.strerror}.") from error
    return Examples(examples, [str(path) for path in files])


def _of_data(split: str, count: int, data: str | None) -> Examples:
    if data is None:
        raise UserError(
            "--images data:SPLIT means the data set of a run: name its --workdir, or --data, such as digits."
        )
    source = open_source(data, split or "test")
    if not len(source):
        raise UserError(f"--images data:{split}: {source.name} holds no examples.")
    chosen = range(min(count, len(source)))
    examples = [source[i] for i in chosen]
    labels = [int(example["label"]) for example in examples]
    names = tuple(map(str, source.class_names))
    classes = [names[label] if 0 <= label < len(names) else str(label) for label in labels]
    return Examples(examples, [source.describe(i) for i in chosen], classes, names)
