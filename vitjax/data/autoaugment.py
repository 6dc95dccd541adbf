"""AutoAugment (arXiv 1805.09501) as "Vision Transformer for Small-Size Datasets" trained with it.

The three policies are those of the AutoAugment paper. The ops are those of the authors' code
(`aanna0701/SPT_LSA_ViT:utils/autoaug.py`), in Pillow's arithmetic. They differ from torchvision's: rotation
is never clockwise, shears are bicubic and leave the top left corner where it is, and grey is what is
uncovered.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from vitjax.data import pillow
from vitjax.data.pp import on_key, register
from vitjax.data.randaug import check_is_rgb, equalize, invert, solarize
from vitjax.data.resize_ops import check_choice

Image = np.ndarray
FILL = (128, 128, 128)  # where the geometric ops have no image

# One line a sub-policy: two ops, each with its probability and, where it has one, the index of its magnitude.
_CIFAR = """
Invert 0.1 + Contrast 0.2 6
Rotate 0.7 2 + TranslateX 0.3 9
Sharpness 0.8 1 + Sharpness 0.9 3
ShearY 0.5 8 + TranslateY 0.7 9
AutoContrast 0.5 + Equalize 0.9
ShearY 0.2 7 + Posterize 0.3 7
Color 0.4 3 + Brightness 0.6 7
Sharpness 0.3 9 + Brightness 0.7 9
Equalize 0.6 + Equalize 0.5
Contrast 0.6 7 + Sharpness 0.6 5
Color 0.7 7 + TranslateX 0.5 8
Equalize 0.3 + AutoContrast 0.4
TranslateY 0.4 3 + Sharpness 0.2 6
Brightness 0.9 6 + Color 0.2 8
Solarize 0.5 2 + Invert 0
Equalize 0.2 + AutoContrast 0.6
Equalize 0.2 + Equalize 0.6
Color 0.9 9 + Equalize 0.6
AutoContrast 0.8 + Solarize 0.2 8
Brightness 0.1 3 + Color 0.7 0
Solarize 0.4 5 + AutoContrast 0.9
TranslateY 0.9 9 + TranslateY 0.7 9
AutoContrast 0.9 + Solarize 0.8 3
Equalize 0.8 + Invert 0.1
TranslateY 0.7 9 + AutoContrast 0.9
"""
_SVHN = """
ShearX 0.9 4 + Invert 0.2
ShearY 0.9 8 + Invert 0.7
Equalize 0.6 + Solarize 0.6 6
Invert 0.9 + Equalize 0.6
Equalize 0.6 + Rotate 0.9 3
ShearX 0.9 4 + AutoContrast 0.8
ShearY 0.9 8 + Invert 0.4
ShearY 0.9 5 + Solarize 0.2 6
Invert 0.9 + AutoContrast 0.8
Equalize 0.6 + Rotate 0.9 3
ShearX 0.9 4 + Solarize 0.3 3
ShearY 0.8 8 + Invert 0.7
Equalize 0.9 + TranslateY 0.6 6
Invert 0.9 + Equalize 0.6
Contrast 0.3 3 + Rotate 0.8 4
Invert 0.8 + TranslateY 0 2
ShearY 0.7 6 + Solarize 0.4 8
Invert 0.6 + Rotate 0.8 4
ShearY 0.3 7 + TranslateX 0.9 3
ShearX 0.1 6 + Invert 0.6
Solarize 0.7 2 + TranslateY 0.6 7
ShearY 0.8 4 + Invert 0.8
ShearX 0.7 9 + TranslateY 0.8 3
ShearY 0.8 5 + AutoContrast 0.7
ShearX 0.7 2 + Invert 0.1
"""
_IMAGENET = """
Posterize 0.4 8 + Rotate 0.6 9
Solarize 0.6 5 + AutoContrast 0.6
Equalize 0.8 + Equalize 0.6
Posterize 0.6 7 + Posterize 0.6 6
Equalize 0.4 + Solarize 0.2 4
Equalize 0.4 + Rotate 0.8 8
Solarize 0.6 3 + Equalize 0.6
Posterize 0.8 5 + Equalize 1
Rotate 0.2 3 + Solarize 0.6 8
Equalize 0.6 + Posterize 0.4 6
Rotate 0.8 8 + Color 0.4 0
Rotate 0.4 9 + Equalize 0.6
Equalize 0 + Equalize 0.8
Invert 0.6 + Equalize 1
Color 0.6 4 + Contrast 1 8
Rotate 0.8 8 + Color 1 2
Color 0.8 8 + Solarize 0.8 7
Sharpness 0.4 7 + Invert 0.6
ShearX 0.6 5 + Equalize 1
Color 0.4 0 + Equalize 0.6
Equalize 0.4 + Solarize 0.2 4
Solarize 0.6 5 + AutoContrast 0.6
Invert 0.6 + Equalize 1
Color 0.6 4 + Contrast 1 8
Equalize 0.8 + Equalize 0.6
"""


class Change(NamedTuple):
    """One op of a sub-policy."""

    op: str
    probability: float
    magnitude: int
    """Index into the op's ten magnitudes; 0 for ops that have none."""


def _read(policy: str) -> tuple[tuple[Change, Change], ...]:
    def change(text: str) -> Change:
        op, probability, *magnitude = text.split()
        return Change(op, float(probability), int(magnitude[0]) if magnitude else 0)

    pairs = (line.split(" + ") for line in policy.strip().splitlines())
    return tuple((change(first), change(second)) for first, second in pairs)


POLICIES = {"cifar": _read(_CIFAR), "svhn": _read(_SVHN), "imagenet": _read(_IMAGENET)}


@register("autoaugment")
@on_key("image")
def autoaugment(policy="cifar"):
    """Applies one of the policy's 25 sub-policies, drawn uniformly: two ops, each with its own probability.

    Drawn as well is the sign of shear, translation and of the four enhancements. See `OPS`.

    Args:
        policy: "cifar", "svhn" or "imagenet". The paper takes that of ImageNet for Tiny-ImageNet.
    """
    check_choice("policy", policy, tuple(POLICIES))
    pairs = POLICIES[policy]

    def apply(image, rng):
        check_is_rgb(image, "autoaugment")
        for change in pairs[rng.integers(len(pairs))]:
            if rng.random() < change.probability:
                image = apply_op(change.op, image, change.magnitude, 1 if rng.random() < 0.5 else -1)
        return image

    return apply


# ---- The ops


class _Op(NamedTuple):
    argument: Callable[[int, int], Any]
    """Of the magnitude's index, 0 to 9, and the sign, 1 or -1, which some ops do not look at."""
    apply: Callable[[Image, Any], Image]


def apply_op(name: str, image: Image, magnitude: int, sign: int) -> Image:
    """Applies one op of `OPS` at one of its ten magnitudes, 0 to 9."""
    return OPS[name].apply(image, OPS[name].argument(magnitude, sign))


def _nothing(index, sign):
    return None


def _signed(greatest):
    levels = np.linspace(0, greatest, 10).tolist()  # to the last bit: on it hangs how a half is rounded
    return lambda index, sign: sign * levels[index]


def _factor(index, sign):
    return 1 + _signed(0.9)(index, sign)


def _rotate(image, degrees):
    return pillow.transform_nearest(image, pillow.rotation(image.shape, degrees), FILL)


def _translate_x(image, part):
    return pillow.transform_nearest(image, (1, 0, part * image.shape[1], 0, 1, 0), FILL)


def _translate_y(image, part):
    return pillow.transform_nearest(image, (1, 0, 0, 0, 1, part * image.shape[0]), FILL)


OPS: dict[str, _Op] = {
    "ShearX": _Op(_signed(0.3), lambda image, level: pillow.shear_x_exactly(image, level, FILL)),
    "ShearY": _Op(_signed(0.3), lambda image, level: pillow.shear_y_exactly(image, level, FILL)),
    "TranslateX": _Op(_signed(150 / 331), _translate_x),
    "TranslateY": _Op(_signed(150 / 331), _translate_y),
    "Rotate": _Op(lambda index, sign: _signed(30)(index, 1), _rotate),
    "Color": _Op(_factor, pillow.color),
    "Contrast": _Op(_factor, pillow.contrast),
    "Sharpness": _Op(_factor, pillow.sharpness),
    "Brightness": _Op(_factor, pillow.brightness),
    "Posterize": _Op(lambda index, sign: (8, 8, 7, 7, 6, 6, 5, 5, 4, 4)[index], pillow.posterize),
    "Solarize": _Op(
        lambda index, sign: 256 - _signed(256)(index, 1),
        lambda image, threshold: solarize(image, threshold, "fixed"),
    ),
    "AutoContrast": _Op(_nothing, lambda image, _: pillow.autocontrast(image)),
    "Equalize": _Op(_nothing, lambda image, _: equalize(image)),
    "Invert": _Op(_nothing, lambda image, _: invert(image)),
}
