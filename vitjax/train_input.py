"""Section `input` of a config: where training examples come from, and what a batch of them looks like."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from vitjax.config import bind
from vitjax.data import pipeline, pp
from vitjax.data.sources import Source, open_source
from vitjax.data.text.section import Text
from vitjax.data.text.vocabulary import Vocabulary
from vitjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Input:
    """Section `input`: where training examples come from and what happens to them.

    Attributes:
      data: source, such as `digits`, `folder:PATH`, `tfds:NAME`; of sentence pairs, with a section `text`,
        `multi30k:DIR`, `text:SOURCE_FILE,TARGET_FILE` and others.
      pp: preprocessing string; `{num_classes}` stands for the number of labels.
      batch_size: examples in a global batch.
      split: part of the source, such as `train[:90%]`.
      workers: processes that prepare batches; 0: threads of this process, -1: one a core but one.
      on_error: `raise` stops at a broken image, `skip` replaces it by another and counts.
      repeats: repeated augmentation: views of each image in a row, 3 for DeiT; see `pipeline.TrainRows`.
      split_views: let the views of an image fall into two batches where `repeats` does not divide the batch,
        as they do in the official runs (3 views, batches of 1024).
      passes: makes an epoch so many times as long as the data set, in whole batches; the recipe for small
        sets has 3. See `pipeline.examples_per_epoch`. Left out it is one pass, and a batch may straddle two.
      on_device: keep the whole set in the devices' memory and make its batches there, see docs/on_device.md.
      steps_per_dispatch: with on_device, how many steps the host hands over at once at most. It changes no
        result, only how long the devices can go on without the host.
    """

    data: str
    pp: str
    batch_size: int
    split: str = "train"
    workers: int = 0
    on_error: str = "raise"
    repeats: int = 1
    split_views: bool = False
    passes: int | None = None
    on_device: bool = False
    steps_per_dispatch: int = 100

    def __post_init__(self):
        """Refuses numbers out of range."""
        if self.workers < -1:
            raise UserError(
                f"config.input.workers = {self.workers}: 0 or more, or -1 for one a core but one."
            )
        if self.steps_per_dispatch < 1:
            raise UserError(f"config.input.steps_per_dispatch = {self.steps_per_dispatch}: 1 step or more.")
        if self.repeats < 1:
            raise UserError(f"config.input.repeats = {self.repeats}: 1 for one view of each image, or more.")
        if self.passes is not None and self.passes < 1:
            raise UserError(
                f"config.input.passes = {self.passes}: how many passes over the data an epoch is, 1 or more."
            )
        if (rest := self.batch_size % self.repeats) and not self.split_views:
            fitting = [n for n in (self.batch_size - rest, self.batch_size - rest + self.repeats) if n > 0]
            raise UserError(
                f"config.input.repeats = {self.repeats} does not divide config.input.batch_size = "
                f"{self.batch_size}: the views of some images would fall into two batches. Take a batch of "
                f"{' or '.join(map(str, fitting))}, or allow it with config.input.split_views = True, as in "
                "the official DeiT runs."
            )

    @property
    def num_workers(self) -> int:
        """The number of worker processes, with -1 resolved for this machine."""
        return self.workers if self.workers >= 0 else max(0, len(os.sched_getaffinity(0)) - 1)

    def sizes(self, source: Any) -> dict[str, int]:
        """What epochs and examples are measured by: `batch_size`, and the `num_examples` of an epoch."""
        epoch = pipeline.examples_per_epoch(
            len(source), batch_size=self.batch_size, repeats=self.repeats, passes=self.passes
        )
        return dict(batch_size=self.batch_size, num_examples=epoch)


def open_training(
    data: Input,
    text: Mapping[str, Any] | None,
    seed: int,
    workdir: pathlib.Path | None,
    tell: Callable[[str], None],
    *,
    store: bool,
) -> tuple[Source, Text | None, Vocabulary | None]:
    """Opens the training examples: images, or with a section `text` packed sentence pairs.

    Args:
      data: section `input`.
      text: section `text`.
      seed: of the run.
      workdir: keeps the vocabulary; None for none.
      tell: takes lines on what takes long.
      store: whether this process writes the vocabulary.

    Returns:
      The source, section `text` and the vocabulary; the last two are None for images.
    """
    if text is None:
        return open_source(data.data, data.split), None, None
    section = Text(**bind(Text, text, "text"))
    pairs = section.open_pairs(data.data, data.split)
    vocabulary = section.open_vocabulary(pairs, workdir, store=store, tell=tell)
    return section.open_rows(pairs, vocabulary, seed=seed, tell=tell), section, vocabulary


def parse_pp(text: str, num_classes: int, key: str, *, on_device: bool = False) -> pp.Preprocess:
    """Parses the preprocessing string of config key `key`, with the number of labels filled in."""
    try:
        return pp.parse(fill_in(text, num_classes), on_device=on_device)
    except UserError as error:
        raise UserError(f"config.{key}: {error}") from error


def fill_in(value: Any, num_classes: int) -> Any:
    """Puts the number of labels where preprocessing strings inside `value` say `{num_classes}`."""
    if isinstance(value, dict):
        return {key: fill_in(item, num_classes) for key, item in value.items()}
    return value.replace("{num_classes}", str(num_classes)) if isinstance(value, str) else value


def first_batch_spec(source: Any, preprocess: pp.Preprocess, data: Input, num_classes: int) -> dict:
    """The shapes of a global batch, found by preprocessing the first example."""
    if len(source) == 0:
        raise UserError(f"the training source {source.name!r} holds no examples.")
    example = pipeline.first_example(source, preprocess.host, on_error=data.on_error, num_classes=num_classes)
    arrays = {key: value for key, value in example.items() if not key.startswith("_")}
    odd = [key for key, value in arrays.items() if value.dtype.kind not in "uifb"]
    if odd:
        raise UserError(
            f"config.input.pp leaves {odd[0]!r} as {arrays[odd[0]].dtype}, which no device can hold: "
            "decode it, or drop it with keep('image', 'label')."
        )
    return {
        key: jax.ShapeDtypeStruct(
            (data.batch_size, *value.shape[1:]), jax.dtypes.canonicalize_dtype(value.dtype)
        )
        for key, value in arrays.items()
    }
