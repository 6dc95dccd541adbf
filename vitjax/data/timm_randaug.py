"""RandAugment as timm does it, with which DeiT and its successors were trained: `rand-m9-mstd0.5-inc1`.

It differs from `randaug`, TensorFlow's, nearly everywhere: Pillow's arithmetic, bicubic interpolation,
magnitudes that are drawn and have another scale, and each op is left out half of the time.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from vitjax.data import pillow
from vitjax.data.pp import on_key, register
from vitjax.data.randaug import check_is_rgb, equalize, invert, solarize, solarize_add
from vitjax.errors import UserError

Image = np.ndarray
IMAGENET_MEAN = (124, 116, 104)


@register("timm_randaug")
@on_key("image")
def timm_randaug(config="rand-m9-mstd0.5-inc1", fill=IMAGENET_MEAN):
    """Applies ops drawn from 15, with replacement, at magnitudes drawn around a mean; see `OPS`.

    Args:
        config: timm's string: `rand`, then any of these, each after a dash. `m9`: the mean magnitude, 10 at
            most and unless told. `n2`: how many ops, 2 unless told. `mstd0.5`: the magnitude's standard
            deviation, 0 unless told; above 100 the magnitude is uniform from 0 to m. `mmax10`: the greatest
            magnitude, 10 unless told. `inc1`: all ops grow stronger with the magnitude; otherwise posterize
            and solarize grow weaker, and the factors of the four enhancements go from 0.1 to 1.9. `p0.5`: how
            probably each drawn op is applied, 0.5 unless told.
        fill: RGB where the geometric ops have no image; ImageNet's mean unless told.
    """
    settings = parse(config)
    if not isinstance(fill, list | tuple) or len(fill) != 3 or not all(value in range(256) for value in fill):
        raise UserError(f"fill={fill!r} must be three numbers of 0 to 255: red, green, blue.")

    def apply(image, rng):
        check_is_rgb(image, "timm_randaug")
        for name in rng.choice(settings.names, settings.num_layers).tolist():
            if rng.random() < settings.probability:
                magnitude = settings.draw_magnitude(rng)
                image = apply_op(name, image, OPS[name].argument(magnitude, _sign(rng)), tuple(fill))
        return image

    return apply


def _sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


class Settings(NamedTuple):
    """What timm's string says. See `timm_randaug`."""

    magnitude: float = 10
    num_layers: int = 2
    deviation: float = 0
    greatest: float = 10
    probability: float = 0.5
    increasing: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The ops to draw from."""
        return INCREASING if self.increasing else PLAIN

    def draw_magnitude(self, rng: np.random.Generator) -> float:
        """Draws one op's magnitude."""
        magnitude = self.magnitude
        if self.deviation > 100:
            magnitude = rng.uniform(0, magnitude)
        elif self.deviation > 0:
            magnitude = rng.normal(magnitude, self.deviation)
        return min(max(magnitude, 0), self.greatest)


_WHOLE = r"\d+"
_NUMBER = r"\d+(?:\.\d+)?"
_PARTS: dict[str, tuple[str, str, Callable]] = {  # key: (field, form of its value, reader)
    "m": ("magnitude", _WHOLE, int),
    "n": ("num_layers", _WHOLE, int),
    "mstd": ("deviation", _NUMBER, float),
    "mmax": ("greatest", _WHOLE, int),
    "p": ("probability", _NUMBER, float),
    "inc": ("increasing", "0|1", lambda text: text == "1"),
}


def parse(config: str) -> Settings:
    """Reads timm's string.

    Raises:
        UserError: a part is not known, is there twice, or its value makes no sense.
    """
    name, *parts = str(config).split("-")
    if name != "rand":
        raise UserError(
            f"config={config!r} must begin with 'rand', as in 'rand-m9-mstd0.5-inc1'. AutoAugment and AugMix "
            "are not offered."
        )
    found = {}
    for part in parts:
        key, value = re.fullmatch(r"([a-z]*)(.*)", part, re.DOTALL).groups()  # type: ignore[union-attr]
        if key not in _PARTS or not re.fullmatch(_PARTS[key][1], value):
            raise UserError(
                f"config={config!r}: cannot read {part!r}. A part is one of {', '.join(_PARTS)} and a number "
                "(inc: 0 or 1), as in 'rand-m9-mstd0.5-inc1'."
            )
        field, _, read = _PARTS[key]
        if field in found:
            raise UserError(f"config={config!r} has two parts {key!r}. Keep one of them.")
        found[field] = read(value)
    settings = Settings(**found)
    if settings.probability > 1:
        raise UserError(f"config={config!r}: p{settings.probability:g} must be a probability, 0 to 1.")
    if max(settings.magnitude, settings.greatest) > 10:
        raise UserError(f"config={config!r}: a magnitude (m and mmax) is at most 10.")
    return settings


# ---- The ops


class _Op(NamedTuple):
    argument: Callable[[float, int], Any]
    """Of the magnitude, 0 to 10, and the sign, 1 or -1, which only half of the ops look at."""
    apply: Callable[[Image, Any, tuple[int, int, int]], Image]


def apply_op(name: str, image: Image, argument: float | None, fill=IMAGENET_MEAN) -> Image:
    """Applies one op of `OPS`, with the argument that its `argument(magnitude, sign)` gives."""
    return OPS[name].apply(image, argument, fill)


def _nothing(magnitude, sign):
    return None


def _plain_factor(magnitude, sign):
    return magnitude / 10 * 1.8 + 0.1


def _increasing_factor(magnitude, sign):
    return max(0.1, 1 + sign * (magnitude / 10 * 0.9))


def _signed(greatest):
    return lambda magnitude, sign: sign * (magnitude / 10 * greatest)


def _bits(magnitude, sign):
    return int(magnitude / 10 * 4)


def _threshold(magnitude, sign):
    return min(256, int(magnitude / 10 * 256))


def _enhance(function):
    return lambda image, factor, fill: function(image, factor)


_POSTERIZE = lambda image, bits, fill: pillow.posterize(image, int(bits))
_SOLARIZE = lambda image, threshold, fill: solarize(image, int(threshold), "fixed")

OPS: dict[str, _Op] = {
    "AutoContrast": _Op(_nothing, lambda image, _, fill: pillow.autocontrast(image)),
    "Equalize": _Op(_nothing, lambda image, _, fill: equalize(image)),
    "Invert": _Op(_nothing, lambda image, _, fill: invert(image)),
    "Rotate": _Op(_signed(30.0), pillow.rotate),
    "Posterize": _Op(_bits, _POSTERIZE),
    "PosterizeIncreasing": _Op(lambda magnitude, sign: 4 - _bits(magnitude, sign), _POSTERIZE),
    "Solarize": _Op(_threshold, _SOLARIZE),
    "SolarizeIncreasing": _Op(lambda magnitude, sign: 256 - _threshold(magnitude, sign), _SOLARIZE),
    "SolarizeAdd": _Op(
        lambda magnitude, sign: min(128, int(magnitude / 10 * 110)),
        lambda image, addition, fill: solarize_add(image, int(addition)),
    ),
    "Color": _Op(_plain_factor, _enhance(pillow.color)),
    "ColorIncreasing": _Op(_increasing_factor, _enhance(pillow.color)),
    "Contrast": _Op(_plain_factor, _enhance(pillow.contrast)),
    "ContrastIncreasing": _Op(_increasing_factor, _enhance(pillow.contrast)),
    "Brightness": _Op(_plain_factor, _enhance(pillow.brightness)),
    "BrightnessIncreasing": _Op(_increasing_factor, _enhance(pillow.brightness)),
    "Sharpness": _Op(_plain_factor, _enhance(pillow.sharpness)),
    "SharpnessIncreasing": _Op(_increasing_factor, _enhance(pillow.sharpness)),
    "ShearX": _Op(_signed(0.3), pillow.shear_x),
    "ShearY": _Op(_signed(0.3), pillow.shear_y),
    "TranslateXRel": _Op(
        _signed(0.45), lambda image, part, fill: pillow.translate_x(image, part * image.shape[1], fill)
    ),
    "TranslateYRel": _Op(
        _signed(0.45), lambda image, part, fill: pillow.translate_y(image, part * image.shape[0], fill)
    ),
}
INCREASING = tuple(name for name in OPS if f"{name}Increasing" not in OPS)
PLAIN = tuple(name for name in OPS if not name.endswith("Increasing"))
