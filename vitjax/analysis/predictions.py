"""What a model answered on a split: kept with some pictures in `WORKDIR/predictions.npz`, and counted."""

import io
import os
import pathlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vitjax import files

PREDICTIONS_FILE = "predictions.npz"
EXAMPLES = 12  # pictures of each kind, wrong and right
THUMBNAIL = 160  # longest side in pixels


@dataclass
class Predictions:
    """Answers to N examples.

    Attributes:
      ids: int [N], index into the source.
      label: int [N], the true class.
      top5: int [N, k], classes by falling probability, k <= 5.
      top5_prob: float [N, k], their probabilities.
      class_names: names by class; may be shorter than the number of classes.
      thumbnails: PNG files by position in [0, N), for the examples that are shown.
    """

    ids: np.ndarray
    label: np.ndarray
    top5: np.ndarray
    top5_prob: np.ndarray
    class_names: tuple[str, ...]
    thumbnails: dict[int, bytes]

    @property
    def num_classes(self) -> int:
        """The number of classes, as far as labels, answers and names tell."""
        seen = max(self.label.max(initial=-1), self.top5.max(initial=-1)) + 1
        return max(int(seen), len(self.class_names))

    def name(self, label: int) -> str:
        """The name of a class; its number where it has none."""
        return self.class_names[label] if 0 <= label < len(self.class_names) else str(label)

    @property
    def right(self) -> np.ndarray:
        """Bool [N]: the first answer is the true class."""
        return self.top5[:, 0] == self.label

    def accuracy(self, k: int = 1) -> float:
        """Share of examples whose true class is among the first k answers."""
        return float((self.top5[:, :k] == self.label[:, None]).any(axis=1).mean())


def from_arrays(arrays: Mapping[str, np.ndarray], class_names: Sequence[str]) -> Predictions | None:
    """Predictions of `_id`, `label`, `top5` and `top5_prob`; None where no example has a label >= 0."""
    label = np.asarray(arrays["label"]).reshape(-1).astype(np.int64)
    known = label >= 0
    if not known.any():
        return None
    top5, prob = np.asarray(arrays["top5"], np.int32), np.asarray(arrays["top5_prob"], np.float32)
    if top5.shape != prob.shape or top5.ndim != 2 or len(top5) != len(label):
        shapes = f"label {label.shape}, top5 {top5.shape} and top5_prob {prob.shape}"
        raise ValueError(f"{shapes} do not belong together")
    ids = np.asarray(arrays["_id"]).reshape(-1)
    names = tuple(str(name) for name in class_names)
    return Predictions(ids[known], label[known], top5[known], prob[known], names, {})


def choose_examples(predictions: Predictions, count: int = EXAMPLES) -> tuple[np.ndarray, np.ndarray]:
    """Positions of (wrong, right) examples to show: the surest mistakes, and right answers spread evenly."""
    wrong, right = np.flatnonzero(~predictions.right), np.flatnonzero(predictions.right)
    wrong = wrong[np.argsort(-predictions.top5_prob[wrong, 0], kind="stable")][:count]
    spread = np.linspace(0, max(len(right) - 1, 0), min(count, len(right))).round().astype(int)
    return wrong, right[spread]


def thumbnail(image: np.ndarray) -> bytes:
    """A uint8 [H, W, C] or [H, W] picture (grey or RGB) as a PNG file, at most THUMBNAIL pixels a side."""
    import cv2

    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise ValueError(f"a picture is uint8 [H, W, C], not {image.dtype} {image.shape}")
    scale = THUMBNAIL / max(image.shape[:2])
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    if image.ndim == 3 and image.shape[2] == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", image)[1].tobytes()


def add_thumbnails(predictions: Predictions, images: Callable[[int], np.ndarray]) -> None:
    """Fetches the pictures of the chosen examples; `images` maps an `_id` to uint8 [H, W, C]."""
    for position in np.concatenate(choose_examples(predictions)):
        picture = np.asarray(images(int(predictions.ids[position])))
        predictions.thumbnails[int(position)] = thumbnail(picture)


def save(workdir: str | os.PathLike, predictions: Predictions) -> None:
    """Writes `WORKDIR/predictions.npz`. Raises UserError where it cannot be written."""
    buffer = io.BytesIO()
    pictures = {f"png_{at}": np.frombuffer(png, np.uint8) for at, png in predictions.thumbnails.items()}
    np.savez_compressed(
        buffer,
        allow_pickle=False,
        _id=predictions.ids,
        label=predictions.label,
        top5=predictions.top5,
        top5_prob=predictions.top5_prob,
        class_names=np.array(predictions.class_names, dtype=np.str_),
        **pictures,
    )
    files.replace(files.folder(workdir) / PREDICTIONS_FILE, buffer.getvalue())


def load(workdir: str | os.PathLike) -> Predictions | None:
    """Reads `WORKDIR/predictions.npz`; None where there is none or it is damaged."""
    path = pathlib.Path(workdir) / PREDICTIONS_FILE
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
        predictions = from_arrays(arrays, arrays["class_names"].tolist())
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    if predictions is not None:
        pictures = {int(key[4:]): value.tobytes() for key, value in arrays.items() if key.startswith("png_")}
        predictions.thumbnails.update(pictures)
    return predictions


def confusion_matrix(predictions: Predictions) -> np.ndarray:
    """Counts, int [C, C]: row the true class, column the answer."""
    size = predictions.num_classes
    pairs = predictions.label * size + predictions.top5[:, 0]
    return np.bincount(pairs, minlength=size * size).reshape(size, size)


def most_confused(predictions: Predictions, count: int = 20) -> list[tuple[int, int, int, float]]:
    """The commonest mistakes: (true class, answer, examples, share of the true class), commonest first."""
    wrong = ~predictions.right
    pairs, counts = np.unique(
        np.stack([predictions.label[wrong], predictions.top5[wrong, 0]], axis=1), axis=0, return_counts=True
    )
    sizes = np.bincount(predictions.label)
    order = np.argsort(-counts, kind="stable")[:count]
    return [
        (int(true), int(answer), int(n), float(n / sizes[true]))
        for (true, answer), n in zip(pairs[order], counts[order], strict=True)
    ]


def hardest_classes(predictions: Predictions, count: int = 10) -> list[tuple[int, int, float]]:
    """The classes of lowest accuracy: (class, examples, accuracy), worst first."""
    sizes = np.bincount(predictions.label)
    hits = np.bincount(predictions.label[predictions.right], minlength=len(sizes))
    seen = np.flatnonzero(sizes)
    order = seen[np.argsort(hits[seen] / sizes[seen], kind="stable")][:count]
    return [(int(c), int(sizes[c]), float(hits[c] / sizes[c])) for c in order]
