"""What the values of an image mean after preprocessing, as an affine map of pixels of 0..255.

Value-range ops say what they do (`Rescaling`), all others leave the meaning of values as it is: crops and
RandAugment stay on the scale 0..255, mixup and erasing on that of what they are given. So the scale of a
whole preprocessing string is known, and an image on one scale can be put on another exactly.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from vitjax.data.pp import KeyOp, Preprocess


class Scale(NamedTuple):
    """`value = factor * pixel + offset`, float64 numbers or one a channel, for pixels of 0..255."""

    factor: Any = 1.0
    offset: Any = 0.0

    def of(self, inner: "Scale") -> "Scale":
        """The scale of what is put through this map after `inner`."""
        return Scale(self.factor * inner.factor, self.factor * inner.offset + self.offset)

    def onto(self, other: "Scale") -> "Scale":
        """The map from values on this scale to values on the other."""
        factor = np.float64(other.factor) / self.factor
        return Scale(factor, other.offset - factor * self.offset)

    def equals(self, other: "Scale") -> bool:
        """Whether both give a pixel the same value, up to the rounding of float32 constants."""
        return all(
            bool(np.all(np.abs(self._at(pixel) - other._at(pixel)) <= 1e-5 * np.abs(other.factor * 255.0)))
            for pixel in (0.0, 255.0)
        )

    def __str__(self) -> str:
        """`[-1, 1]`, or the range of each channel."""
        low, high = np.atleast_1d(self._at(0.0)), np.atleast_1d(self._at(255.0))
        ranges = [f"[{a:.4g}, {b:.4g}]" for a, b in zip(*np.broadcast_arrays(low, high), strict=True)]
        return ranges[0] if len(set(ranges)) == 1 else " ".join(ranges)

    def _at(self, pixel: float) -> Any:
        return np.float64(self.factor) * pixel + self.offset


class Rescaling(NamedTuple):
    """The `apply(image, rng)` of a value-range op with the map that it is; None where it is not affine."""

    apply: Callable[[Any, Any], Any]
    scale: Scale | None

    def __call__(self, image: Any, rng: Any) -> Any:
        """Applies it."""
        return self.apply(image, rng)


def after(preprocess: Preprocess, key: str = "image") -> Scale | None:
    """The scale of the values under `key` after preprocessing; None where an op on the way is not affine."""
    scales: dict[str, Scale | None] = {}
    for op in map(inspect.unwrap, (*preprocess.host.ops, *preprocess.device.ops)):
        if isinstance(op, KeyOp):
            before = scales.get(op.inkey, Scale())
            own = op.apply.scale if isinstance(op.apply, Rescaling) else Scale()
            scales[op.outkey] = None if before is None or own is None else own.of(before)
    return scales.get(key, Scale())


def only_rescales(preprocess: Preprocess, key: str = "image") -> bool:
    """Whether all ops are value-range ops on `key`."""
    ops = [inspect.unwrap(op) for op in (*preprocess.host.ops, *preprocess.device.ops)]
    return bool(ops) and all(
        isinstance(op, KeyOp) and isinstance(op.apply, Rescaling) and {op.inkey, op.outkey} == {key}
        for op in ops
    )
