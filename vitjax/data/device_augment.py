"""The host's augmentations on the device: flips, crops, AutoAugment, RandAugment.

Each is registered as the twin of the host's op, of the same name and arguments: it takes uint8 images
`[B, H, W, C]` and a jax key, and draws for each example from the distribution from which the host draws.
Given the same draws, the result is the host's (`device_colors`, `device_geometry` say how nearly).

Where the host looks up what to do and does it, here all examples go the same way: a table of 256 values, a
source for each pixel, a blend. What is drawn chooses among tables, sources and factors.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from vitjax.data import autoaugment as host_autoaugment
from vitjax.data import crop_ops
from vitjax.data import randaug as host_randaug
from vitjax.data import timm_randaug as host_timm
from vitjax.data.device_ops import on_any_mesh
from vitjax.data.pp import on_key, register_on_device
from vitjax.data.resize_ops import parse_size


def _for_batches(apply: Callable) -> Callable:
    """Lets an op on images `[B, H, W, C]` keep their division among devices."""
    return lambda image, rng: on_any_mesh(lambda image: apply(image, rng), image)(image)


def _one_of(batch) -> Any:
    """What is to be known of an image of a batch: its shape and dtype."""
    import jax

    return jax.ShapeDtypeStruct(batch.shape[1:], batch.dtype)


@register_on_device("flip_lr")
@on_key("image")
def flip_lr():
    """See `crop_ops.flip_lr`."""

    def apply(image, rng):
        import jax
        import jax.numpy as jnp

        coin = jax.random.bernoulli(rng, 0.5, (len(image), 1, 1, 1))
        return jnp.where(coin, image[:, :, ::-1], image)

    return _for_batches(apply)


@register_on_device("random_crop")
@on_key("image")
def random_crop(crop_size, padding=0):
    """See `crop_ops.random_crop`."""
    height, width = parse_size(crop_size)

    def apply(image, rng):
        import jax
        import jax.numpy as jnp

        from vitjax.data import device_geometry

        image = jnp.pad(image, [(0, 0), *[(padding, padding)] * 2, (0, 0)])
        crop_ops.check_fits(_one_of(image), height, width, "random_crop")
        free = [image.shape[1] - height + 1, image.shape[2] - width + 1]
        places = jax.random.randint(rng, (len(image), 2), 0, np.asarray(free))
        return device_geometry.crop(image, places[:, 0], places[:, 1], height, width)

    return _for_batches(apply)


# ---- Ops of which there is a finite number


class _Choice(NamedTuple):
    """One thing that can be done to an image."""

    op: str | None
    """An op of `device_colors`, if any."""
    argument: float
    moves: int
    """Index of a map; 0 is that which moves nothing."""


class _Catalogue:
    """All that an augmentation can do to images of one size, each thing known by a number; 0 is nothing."""

    def __init__(self, height: int, width: int, fill, arithmetic):
        from vitjax.data import device_geometry

        self._size, self._fill, self._arithmetic = (height, width), fill, arithmetic
        self._choices = {_Choice(None, 0.0, 0): 0}
        self._maps = [device_geometry.nearest(lambda image: image, height, width)]

    def add_color(self, op: str, argument: float | None) -> int:
        """Adds an op of `device_colors` with its argument."""
        return self._number(_Choice(op, float(argument or 0), 0))

    def add_nearest(self, op: Callable[[np.ndarray], np.ndarray]) -> int:
        """Adds an op of the host that moves pixels without interpolating them."""
        from vitjax.data import device_geometry

        return self._add_map(device_geometry.nearest(op, *self._size))

    def add_shear(self, level: float, axis: str) -> int:
        """Adds a bicubic shear along "x" or "y"."""
        from vitjax.data import device_geometry

        return self._add_map(device_geometry.shear(*self._size, level, axis))

    def _add_map(self, added) -> int:
        self._maps.append(added)
        return self._number(_Choice(None, 0.0, len(self._maps) - 1))

    def _number(self, choice: _Choice) -> int:
        return self._choices.setdefault(choice, len(self._choices))

    def apply(self, image, number):
        """Does to each image `[B, H, W, 3]` what its number `[B]` says."""
        import jax.numpy as jnp

        from vitjax.data import device_colors, device_geometry

        op, argument, moves = zip(*self._choices, strict=True)
        is_op = {
            name: jnp.asarray([other == name for other in op])[number] for name in sorted({*op} - {None})
        }
        argument = jnp.asarray(argument, jnp.float32)[number]
        if len(self._maps) > 1:
            maps = device_geometry.stack(self._maps)
            image = device_geometry.move(image, maps, jnp.asarray(moves)[number], self._fill)
        return device_colors.change_colors(image, is_op, argument, self._arithmetic)


@register_on_device("autoaugment")
@on_key("image")
def autoaugment(policy="cifar"):
    """See `autoaugment.autoaugment`."""
    pairs = host_autoaugment.POLICIES[policy]

    def apply(image, rng):
        import jax
        import jax.numpy as jnp

        host_randaug.check_is_rgb(_one_of(image), "autoaugment")
        catalogue, numbers = autoaugment_catalogue(policy, *image.shape[1:3])
        keys = jax.random.split(rng, 5)
        pair = jax.random.randint(keys[0], (len(image),), 0, len(pairs))
        for slot in range(2):
            probability = jnp.asarray([pair[slot].probability for pair in pairs], jnp.float32)[pair]
            applied = jax.random.uniform(keys[1 + slot], (len(image),)) < probability
            negative = jax.random.bernoulli(keys[3 + slot], 0.5, (len(image),)).astype(jnp.int32)
            image = catalogue.apply(image, jnp.where(applied, jnp.asarray(numbers)[pair, slot, negative], 0))
        return image

    return _for_batches(apply)


def autoaugment_catalogue(policy: str, height: int, width: int):
    """Returns what the policy can do, and its numbers: int `[25, 2 ops, 2 signs]`, 1 first."""
    from vitjax.data import device_colors

    catalogue = _Catalogue(height, width, host_autoaugment.FILL, device_colors.PILLOW)
    known = {}

    def number(change, sign):
        argument = host_autoaugment.OPS[change.op].argument(change.magnitude, sign)
        key = change.op, argument
        if key not in known:
            known[key] = add(change.op, argument)
        return known[key]

    def add(op, argument):
        if op in ("ShearX", "ShearY"):
            return catalogue.add_shear(argument, op[-1].lower())
        if op in device_colors.OPS:
            return catalogue.add_color(op, argument)
        return catalogue.add_nearest(lambda image: host_autoaugment.OPS[op].apply(image, argument))

    pairs = host_autoaugment.POLICIES[policy]
    return catalogue, np.asarray([[[number(c, s) for s in (1, -1)] for c in pair] for pair in pairs])


# ---- RandAugment


@register_on_device("randaug")
@on_key("image")
def randaug(num_layers=2, magnitude=10, compat="augreg", full_size=None):
    """See `randaug.randaug`."""

    def apply(image, rng):
        import jax
        import jax.numpy as jnp

        host_randaug.check_is_rgb(_one_of(image), "randaug")
        height, width = image.shape[1:3]
        scale = min(height, width) / full_size if full_size else 1
        catalogue, numbers = randaug_catalogue(magnitude, compat, scale, height, width)
        cutout = tuple(host_randaug.OPS).index("Cutout")
        for key in jax.random.split(rng, num_layers):
            keys = jax.random.split(key, 3)
            op = jax.random.randint(keys[0], (len(image),), 0, len(host_randaug.OPS))
            negative = jax.random.bernoulli(keys[1], 0.5, (len(image),)).astype(jnp.int32)
            image = catalogue.apply(image, jnp.asarray(numbers)[op, negative])
            middle = jax.random.randint(keys[2], (len(image), 2), 0, np.asarray([height, width]))
            half = int(40 * (magnitude * scale / 10))
            image = jnp.where(_square(middle, half * (op == cutout), height, width), host_randaug.FILL, image)
        return image

    return _for_batches(apply)


def _square(middle, half, height: int, width: int):
    """Which pixels lie in the square of side `2 * half` around a place: bool `[B, H, W, 1]`."""
    y, x = (
        (np.arange(size) >= (at - half)[:, None]) & (np.arange(size) < (at + half)[:, None])
        for size, at in zip((height, width), middle.T, strict=True)
    )
    return (y[:, :, None] & x[:, None, :])[..., None]


class _Fixed:
    """Stands in for a generator: `randaug` draws the sign that is wanted."""

    def __init__(self, sign: int):
        self.sign = sign

    def random(self) -> float:
        return 0.25 if self.sign > 0 else 0.75


def randaug_catalogue(magnitude: float, compat: str, scale: float, height: int, width: int):
    """Returns what `randaug` can do, cutout excepted, and its numbers: int `[16 ops, 2 signs]`, 1 first."""
    from vitjax.data import device_colors

    arithmetic = device_colors.TENSORFLOW
    if compat == "augreg":
        around = int(min(height * width / 256, 255))
        arithmetic = arithmetic._replace(contrast_around=lambda image: np.full(len(image), around))
    catalogue = _Catalogue(height, width, (host_randaug.FILL,) * 3, arithmetic)
    t = magnitude / 10
    enhanced, bits, threshold = t * 1.8 + 0.1, int(t * 4), int(t * 256)
    wrapped = (8 - bits) % 256 if compat == "augreg" else max(8 - bits, 0)
    arguments = {
        "AutoContrast": None,
        "Equalize": None,
        "Invert": None,
        "Posterize": 8 - min(wrapped, 7),
        "Solarize": threshold % 256 if compat == "augreg" else threshold,
        "SolarizeAdd": int(t * 110),
        **dict.fromkeys(("Color", "Contrast", "Brightness", "Sharpness"), enhanced),
    }

    def number(op, sign):
        if op in arguments:
            return catalogue.add_color(op, arguments[op])
        if op == "Cutout":
            return 0
        strength = magnitude * scale if op in host_randaug.IN_PIXELS else magnitude
        rng: Any = _Fixed(sign)
        return catalogue.add_nearest(lambda image: host_randaug.apply_op(op, image, strength, rng, compat))

    return catalogue, np.asarray([[number(op, sign) for sign in (1, -1)] for op in host_randaug.OPS])


@register_on_device("timm_randaug")
@on_key("image")
def timm_randaug(config="rand-m9-mstd0.5-inc1", fill=host_timm.IMAGENET_MEAN):
    """See `timm_randaug.timm_randaug`."""
    settings = host_timm.parse(config)

    def apply(image, rng):
        import jax
        import jax.numpy as jnp

        host_randaug.check_is_rgb(_one_of(image), "timm_randaug")
        batch = (len(image),)
        for key in jax.random.split(rng, settings.num_layers):
            keys = jax.random.split(key, 4)
            op = jax.random.randint(keys[0], batch, 0, len(settings.names))
            applied = jax.random.uniform(keys[1], batch) < settings.probability
            sign = jax.random.rademacher(keys[2], batch, jnp.float32)
            argument = timm_arguments(settings, _timm_magnitude(settings, keys[3], batch), sign)
            argument = jnp.take_along_axis(argument, op[None], axis=0)[0]
            image = timm_layer(image, settings, jnp.where(applied, op, -1), argument, tuple(fill))
        return image

    return _for_batches(apply)


def _timm_magnitude(settings: host_timm.Settings, key, shape):
    import jax
    import jax.numpy as jnp

    drawn = jnp.full(shape, settings.magnitude, jnp.float32)
    if settings.deviation > 100:
        drawn = jax.random.uniform(key, shape, maxval=settings.magnitude)
    elif settings.deviation > 0:
        drawn = settings.magnitude + settings.deviation * jax.random.normal(key, shape)
    return drawn.clip(0, settings.greatest)


def timm_arguments(settings: host_timm.Settings, magnitude, sign):
    """The arguments that all ops of `timm_randaug.OPS` that are drawn from would have: float32 `[ops, B]`."""
    import jax.numpy as jnp

    bits, threshold = jnp.floor(magnitude * 0.4), jnp.floor(magnitude * 25.6)
    plain, increasing = magnitude * 0.18 + 0.1, jnp.maximum(0.1, 1 + sign * (magnitude * 0.09))
    enhanced = increasing if settings.increasing else plain
    arguments = {
        "Rotate": sign * (magnitude * 3),
        "Posterize": 4 - bits if settings.increasing else bits,
        "Solarize": 256 - threshold if settings.increasing else threshold,
        "SolarizeAdd": jnp.minimum(128, jnp.floor(magnitude * 11)),
        **dict.fromkeys(("Color", "Contrast", "Brightness", "Sharpness"), enhanced),
        **dict.fromkeys(("ShearX", "ShearY"), sign * (magnitude * 0.03)),
        **dict.fromkeys(("TranslateXRel", "TranslateYRel"), sign * (magnitude * 0.045)),
    }
    names = [name.removesuffix("Increasing") for name in settings.names]
    return jnp.stack([arguments.get(name, jnp.zeros_like(magnitude)) for name in names])


def timm_layer(image, settings: host_timm.Settings, op, argument, fill: tuple[int, int, int]):
    """Applies to each image the op `settings.names[op]` with its argument, or none where `op` is -1."""
    import jax.numpy as jnp

    from vitjax.data import device_colors, device_geometry

    height, width = image.shape[1:3]
    names = [name.removesuffix("Increasing") for name in settings.names]
    is_op = {name: op == index for index, name in enumerate(names)}
    zero = jnp.zeros_like(argument)

    def of(name, value):
        return jnp.where(is_op[name], value, zero)

    angle = -jnp.deg2rad(of("Rotate", argument))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    y, x = height / 2, width / 2
    matrix = (
        cos,
        sin + of("ShearX", argument),
        x - cos * x - sin * y + of("TranslateXRel", argument * width),
        of("ShearY", argument) - sin,
        cos,
        y + sin * x - cos * y + of("TranslateYRel", argument * height),
    )
    moves = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
    moved = sum(is_op[name] for name in moves) > 0
    transformed = device_geometry.transform(image, matrix, fill)
    image = jnp.where(device_colors.for_images(moved), transformed, image)
    colors = {name: is_op[name] for name in names if name in device_colors.OPS}
    return device_colors.change_colors(image, colors, argument)
