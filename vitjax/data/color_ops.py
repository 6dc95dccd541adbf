"""Augmentations of color and sharpness beside RandAugment: DeiT-III's three, and color jitter."""

from vitjax.data import pillow
from vitjax.data.pp import on_key, register
from vitjax.data.randaug import check_is_rgb, solarize
from vitjax.errors import UserError


@register("three_augment")
@on_key("image")
def three_augment(radius=(0.1, 2.0)):
    """One of grey, solarized (from 128 on) and blurred, each with probability 1/3.

    DeiT-III's 3-Augment (arXiv 2204.07118, section 3.3), with `color_jitter(0.3, 0.3, 0.3)` after it.

    Args:
        radius: the least and greatest deviation of the Gaussian blur, in pixels; it is uniform.
    """
    low_high = isinstance(radius, list | tuple) and len(radius) == 2 and 0 < radius[0] <= radius[1]
    if not low_high:
        raise UserError(f"radius={radius!r} must be two positive numbers, least and greatest.")

    def apply(image, rng):
        check_is_rgb(image, "three_augment")
        match int(rng.integers(3)):
            case 0:
                return pillow.grayscale(image)
            case 1:
                return solarize(image, 128, "fixed")
            case _:
                return pillow.gaussian_blur(image, rng.uniform(*radius))

    return apply


@register("color_jitter")
@on_key("image")
def color_jitter(brightness=0.3, contrast=0.3, saturation=0.3):
    """Changes brightness, contrast and saturation in random order: torchvision's `ColorJitter` without hue.

    Args:
        brightness: the factor is uniform between `max(0, 1 - brightness)` and `1 + brightness`.
        contrast: likewise.
        saturation: likewise.
    """
    strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    for name, value in strengths.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise UserError(f"{name}={value!r} must be a number, 0 or more.")
    functions = {"brightness": pillow.brightness, "contrast": pillow.contrast, "saturation": pillow.color}
    changes = [(functions[name], value) for name, value in strengths.items() if value]

    def apply(image, rng):
        check_is_rgb(image, "color_jitter")
        for index in rng.permutation(len(changes)).tolist():
            function, strength = changes[index]
            image = function(image, rng.uniform(max(0, 1 - strength), 1 + strength))
        return image

    return apply
