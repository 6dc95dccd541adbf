"""A teacher that runs inside the training step: any model with any weights, frozen, in inference mode."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vitjax import models, weights
from vitjax.errors import UserError
from vitjax.teachers import images, workdir
from vitjax.teachers.section import Section
from vitjax.teachers.student import Student
from vitjax.weights import variables
from vitjax.weights.tree import flatten

RANDOM = "random"


class Network:
    """A teacher's model, and how the student's images become its own.

    Attributes:
      abstract: its variables by shape, `{"params": ..., "batch_stats": ...}`.
      section: its config section.
      student: the student's side.
      by_position: nothing, since it reads nothing from disk while it runs.
      whose: `resnet50 of runs/teacher`, for messages.
    """

    by_position: Mapping[str, Any] = {}

    def __init__(self, section: Section, student: Student):
        assert section.weights is not None
        self.section, self.student = section, student
        self._source, self._labels = section.weights, student.num_classes
        trained = None if self._source == RANDOM else _blamed(workdir.read, self._source)
        model = dict(section.model or (trained.model if trained else {}))
        if "name" not in model:
            raise UserError(
                f"config.task.teacher.model.name is missing, and {self._source!r} is no workdir of a run, "
                "which would say it: name an architecture, such as 'resnet50'."
            )
        self.whose = f"{model['name']} of {self._source}"
        if "num_classes" in model:
            raise UserError(
                "config.task.teacher.model.num_classes is the student's: a teacher has the same labels."
            )
        if trained and trained.num_classes not in (None, student.num_classes):
            raise self._other_labels(trained.num_classes)
        self.model = _blamed(
            lambda: models.create(model.pop("name"), num_classes=student.num_classes, **model)
        )
        known = self._known(section, trained)
        self.convert = images.conversion(known, student, allowed=section.convert, whose=self.whose)
        self._image = jax.eval_shape(self.convert, jax.ShapeDtypeStruct(student.image, jnp.float32))
        self.abstract = dict(_blamed(jax.eval_shape, self.model.init, jax.random.key(0), self._image))

    def _known(self, section: Section, trained: workdir.Trained | None) -> images.Known:
        """What the config says of its images; where it says nothing, the run that trained it."""
        of_run = trained.images if trained else images.Known()
        known = images.read(section.input) if section.input is not None else images.Known()
        known = images.Known(known.size or of_run.size, of_run.channels, known.scale or of_run.scale)
        if known.scale is None and self._source != RANDOM:
            raise UserError(
                f"config.task.teacher.input is missing: nothing says which values {self.whose} takes. Set "
                "it to 'vgg_value_range' or another value-range op, or to dict(size=, mean=, std=)."
            )
        return known

    def logits(self, frozen: Any, batch: dict) -> jax.Array:
        """Its answers `[B, K]` to the images of a batch, float32, through which nothing is learnt."""
        logits, _ = self.model.apply(frozen, self.convert(batch["image"]), train=False)
        return jax.lax.stop_gradient(logits.astype(jnp.float32))

    def load(self) -> tuple[dict[str, Any], list[str]]:
        """Reads its weights; returns its variables, host arrays, and what is to be said about them.

        Raises:
          UserError: the weights are damaged or do not fit the model, or have other labels.
        """
        told = [f"teacher: {self.whose}, {self._described()}"]
        if self._source == RANDOM:
            zeros = jnp.zeros(self._image.shape, self._image.dtype)
            return dict(jax.device_get(jax.jit(self.model.init)(jax.random.key(0), zeros))), told
        params, state = self.abstract["params"], {k: v for k, v in self.abstract.items() if k != "params"}
        joined = variables.join(params, state)
        try:
            loaded = weights.load(self._source, joined, grid=self._grid())
        except UserError as error:
            found = self._labels_there(joined)
            if found not in (None, self._labels):
                raise self._other_labels(found) from error
            raise UserError(f"config.task.teacher.weights: {error}") from error
        params, state = variables.split(loaded.params, state)
        return {"params": params, **state}, [*told, *loaded.report.splitlines()]

    def _described(self) -> str:
        size, scale = self.convert.size, self.convert.scale
        done = [f"resized to {size[0]}x{size[1]}"] if size else []
        done += ["brought to its range of values"] if scale else []
        return "images " + (" and ".join(done) or "as the student's")

    def _grid(self) -> tuple[int, int] | None:
        """(height, width) of its grid of patches on these images, None where it has none."""
        stem = jax.eval_shape(
            lambda variables, image: self.model.apply(variables, image, train=False)[1].get("stem"),
            self.abstract,
            self._image,
        )
        return None if stem is None else stem.shape[1:3]

    def _labels_there(self, wanted: Any) -> int | None:
        """The number of labels of the weights, if nothing but that keeps them from fitting the model."""
        there = weights.shapes(self._source, wanted)
        ours = {name: tuple(leaf.shape) for name, leaf in flatten(wanted).items()}
        other = [(there.get(name, ()), shape) for name, shape in ours.items() if there.get(name) != shape]
        heads = all(a[:-1] == b[:-1] and b[-1:] == (self._labels,) and len(a) == len(b) for a, b in other)
        found = {a[-1] for a, _ in other} if heads else set()
        return found.pop() if len(found) == 1 else None

    def _other_labels(self, found: int | None) -> UserError:
        return UserError(
            f"config.task.teacher: {self.whose} has {found:,} labels, the student {self._labels:,}. Both "
            "need the same ones in the same order: take another teacher, or set config.num_classes."
        )


def _blamed(function: Any, *args: Any) -> Any:
    """Calls it; a mistake in it is one of the teacher's."""
    try:
        return function(*args)
    except UserError as error:
        raise UserError(f"config.task.teacher: {error}") from error
