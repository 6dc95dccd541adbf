"""From the student's images to the teacher's: an affine map of the values, and resizing."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitjax.config import bind
from vitjax.data import pp, value_scale
from vitjax.data.value_scale import Scale
from vitjax.errors import UserError
from vitjax.teachers.student import Student

KEY = "config.task.teacher.input"


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of the images that a teacher was trained on; None where nothing is.

    Attributes:
      size: (height, width).
      channels: number of channels.
      scale: what its values mean.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    scale: Scale | None = None


@dataclasses.dataclass(frozen=True)
class Input:
    """Section `task.teacher.input`, see `section.Section`."""

    size: int | tuple | None = None
    values: str | None = None
    mean: float | tuple | None = None
    std: float | tuple | None = None


def read(section: Mapping[str, Any] | str) -> Known:
    """What config section `task.teacher.input` says of the teacher's images."""
    given = Input(values=section) if isinstance(section, str) else Input(**bind(Input, section, KEY[7:]))
    if (given.mean is None) != (given.std is None):
        raise UserError(f"{KEY} needs mean and std together, on the scale 0..255.")
    if given.values is not None and given.mean is not None:
        raise UserError(f"{KEY} has values={given.values!r} and mean: they say the same, keep one.")
    return Known(size=_size(given.size), scale=_scale(given))


def _size(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise UserError(f"{KEY}.size = {size!r} must be pixels, such as 224, or (height, width).")
    return pair


def _scale(given: Input) -> Scale | None:
    if given.values is not None:
        try:
            preprocess = pp.parse(given.values)
        except UserError as error:
            raise UserError(f"{KEY}: {error}") from error
        if not value_scale.only_rescales(preprocess):
            raise UserError(
                f"{KEY}: {given.values!r} must be a value-range op, such as 'value_range(-1, 1)' or "
                "'vgg_value_range'."
            )
        return value_scale.after(preprocess)
    if given.mean is None:
        return None
    mean, std = np.asarray(given.mean, np.float64), np.asarray(given.std, np.float64)
    if not (std > 0).all():
        raise UserError(f"{KEY}.std = {given.std!r} must be above 0.")
    if (np.abs(mean) <= 1).all() and (std <= 1).all() and mean.any():
        raise UserError(
            f"{KEY}: mean = {given.mean!r} and std = {given.std!r} must be on the scale 0..255 of pixels: "
            "multiply them by 255."
        )
    return Scale(1 / std, -mean / std)


@dataclasses.dataclass(frozen=True)
class Conversion:
    """`conversion(images)`: the student's images `[B, H, W, C]` as the teacher wants them, float32.

    Attributes:
      size: (height, width) to resize to, bicubic with antialiasing; None: as they are.
      scale: the map of values; None: as they are.
    """

    size: tuple[int, int] | None = None
    scale: Scale | None = None

    def __call__(self, images: jax.Array) -> jax.Array:
        """Traced inside the step."""
        if self.scale is not None:
            factor, offset = (np.asarray(x, np.float32) for x in self.scale)
            images = images.astype(jnp.float32) * factor + offset
        if self.size is not None:
            batch, _, _, channels = images.shape
            images = jax.image.resize(
                images.astype(jnp.float32), (batch, *self.size, channels), "cubic", antialias=True
            )
        return images


def conversion(known: Known, student: Student, *, allowed: bool, whose: str) -> Conversion:
    """The way from the student's images to those that the teacher knows.

    Args:
      known: the teacher's images.
      student: the student's side.
      allowed: whether anything may be converted: `task.teacher.convert`.
      whose: the teacher, for messages.

    Raises:
      UserError: they differ and may not be converted, or cannot be.
    """
    height, width, channels = student.image[1:]
    if known.channels not in (None, channels):
        raise UserError(
            f"config.task.teacher: {whose} takes images of {known.channels} channels, the student's have "
            f"{channels}. Let config.input.pp make as many, or name another teacher."
        )
    size = None if known.size in (None, (height, width)) else known.size
    scale = None
    if known.scale is not None:
        if student.scale is None:
            raise UserError(
                f"config.task.teacher: {whose} takes values of {known.scale}, but what those of the "
                "student's images mean is not known: use value-range ops that do not clip in config.input.pp."
            )
        scale = None if student.scale.equals(known.scale) else student.scale.onto(known.scale)
    if (size or scale) and not allowed:
        told = [f"{known.size[0]}x{known.size[1]} pixels"] if size and known.size else []
        told += [f"values of {known.scale}"] if scale else []
        ours = [f"{height}x{width}"] if size else []
        ours += [str(student.scale)] if scale else []
        raise UserError(
            f"config.task.teacher: {whose} takes {' and '.join(told)}, the student's images have "
            f"{' and '.join(ours)}. Set config.task.teacher.convert=True to convert them inside the step, or "
            "change config.input.pp."
        )
    return Conversion(size, scale)
