"""Mixup (arXiv 1710.09412) and cutmix (arXiv 1905.04899) in turns, on the device, as timm mixes for DeiT."""

from typing import Any, NamedTuple

import numpy as np

from vitjax.data.device_ops import floats_of, on_any_mesh
from vitjax.data.pp import register
from vitjax.data.random_erasing import within
from vitjax.data.resize_ops import check_choice
from vitjax.errors import UserError

_MODES = ("batch", "pair", "elem")
_BOXES = ("classic", "ceil_odd")
_PARTNERS = ("reversed", "permuted")


@register("mixup_cutmix", device=True, whole_batch=True)
def mixup_cutmix(
    mixup=0.8,
    cutmix=1.0,
    prob=1.0,
    switch=0.5,
    mode="batch",
    box="classic",
    groups=1,
    partner="reversed",
    image="image",
    labels="labels",
):
    """Mixes each example i of B with example B - 1 - i, either all pixels (mixup) or those in a box (cutmix).

    Mixup: `lam * x + (1 - lam) * partner(x)` with lam ~ Beta(mixup, mixup). Cutmix pastes a box of about
    `1 - lam` of the area, lam ~ Beta(cutmix, cutmix), around a place drawn uniformly; lam then becomes what
    really was left. The labels are mixed by lam in either case. Label smoothing s over K classes comes
    before, by `onehot(K, on=1 - s + s / K, off=s / K)`.

    Args:
        mixup: parameter of the Beta distribution of mixup; 0 means cutmix only.
        cutmix: parameter of the Beta distribution of cutmix; 0 means mixup only.
        prob: how probably anything is mixed, per draw.
        switch: how probably cutmix is taken, if both are on.
        mode: what has a draw of its own: the whole "batch" (DeiT), each "pair" that is mixed, or each example
            ("elem").
        box: "classic" is the box DeiT was trained with, which for odd sides lacks a row or column;
            "ceil_odd" has them (timm 1.0.31).
        groups: in how many equal parts, of consecutive examples, the global batch is divided first. Each is
            mixed as if it were a batch. DeiT draws once in each process: `groups` is then the number of its
            GPUs, 4 for Ti and S and 16 for B, however many devices there are here.
        partner: "reversed" is B - 1 - i. "permuted" is drawn, a permutation of each group, which may leave an
            example as its own partner.
        image: key of the images, floats `[B, H, W, C]`.
        labels: key of the labels, floats `[B, K]`.
    """
    for name, value in (("mixup", mixup), ("cutmix", cutmix)):
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise UserError(f"{name}={value!r} must be a number, 0 or more: the parameter of Beta(p, p).")
    for name, value in (("prob", prob), ("switch", switch)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise UserError(f"{name}={value!r} must be a probability, 0 to 1.")
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
        raise UserError(f"groups={groups!r} must be a whole number, 1 or more.")
    check_choice("mode", mode, _MODES)
    check_choice("box", box, _BOXES)
    check_choice("partner", partner, _PARTNERS)
    if (mode, partner) == ("pair", "permuted"):
        raise UserError(
            'mode="pair" needs partner="reversed": permuted examples are not each other\'s partners.'
        )
    if mixup == cutmix == 0:
        return lambda batch, rng: batch
    switch = float(switch) if mixup and cutmix else float(cutmix > 0)

    def op(batch, rng):
        import jax
        import jax.numpy as jnp

        x = floats_of(batch, image, "mixup_cutmix")
        y = floats_of(batch, labels, "mixup_cutmix")
        size = len(x)
        parts = groups if partner == "permuted" else 2 * groups
        if size % parts:
            raise UserError(
                f"mixup_cutmix(groups={groups}) mixes pairs within each group: the batch size must be "
                f"divisible by {parts}, but it is {size}."
            )
        draws = {"batch": groups, "pair": size // 2, "elem": size}[mode]
        keys = jax.random.split(rng, 5)
        take_cutmix = jax.random.bernoulli(keys[0], switch, (draws,))
        lam = _beta(keys[1], draws, take_cutmix, float(cutmix), float(mixup))
        lam = jnp.where(jax.random.bernoulli(keys[2], float(prob), (draws,)), lam, 1.0)
        centre_y = jax.random.randint(keys[3], (draws,), 0, x.shape[1])
        centre_x = jax.random.randint(keys[4], (draws,), 0, x.shape[2])
        drawn = Draws(lam, take_cutmix, centre_y, centre_x)
        drawn = Draws(*(for_each_example(value, size, mode, groups) for value in drawn))
        permutation = (
            _permutation(jax.random.fold_in(rng, 5), size, groups) if partner == "permuted" else None
        )
        x, y = mix(x, y, drawn, box, groups, permutation)
        return {**batch, image: x, labels: y}

    return op


@register("cutmix_or_mixup", device=True, whole_batch=True)
def cutmix_or_mixup(p=0.5, image="image", labels="labels"):
    """Mixes the whole batch with a permutation of itself, by cutmix or by mixup, each half of the time.

    So "Vision Transformer for Small-Size Datasets" was trained (`aanna0701/SPT_LSA_ViT:main.py`): one lam ~
    Beta(1, 1), one box and one permutation a batch. It is
    `mixup_cutmix(mixup=1, prob=p, partner="permuted")`.

    Args:
        p: how probably the batch is mixed at all.
        image: key of the images, floats `[B, H, W, C]`.
        labels: key of the labels, floats `[B, K]`, after label smoothing. See `mixup_cutmix`.
    """
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:
        raise UserError(f"p={p!r} must be a probability, 0 to 1.")
    return mixup_cutmix(mixup=1.0, cutmix=1.0, prob=p, partner="permuted", image=image, labels=labels)


def _beta(rng, draws: int, take_cutmix, cutmix: float, mixup: float):
    """Draws from Beta(cutmix, cutmix) or Beta(mixup, mixup); 0 stands for a parameter that is never taken."""
    import jax
    import jax.numpy as jnp

    if {cutmix, mixup} <= {0.0, 1.0}:  # the uniform distribution, without a sampler that rejects in a loop
        return jax.random.uniform(rng, (draws,))
    alpha = jnp.where(take_cutmix, cutmix or 1.0, mixup or 1.0)
    # A Beta variable is a ratio of Gamma variables, whose sampler jax.random.beta would compile twice.
    log_gamma = jax.random.loggamma(rng, alpha, (2, draws))
    return jax.nn.sigmoid(log_gamma[0] - log_gamma[1])


def _permutation(rng, size: int, groups: int):
    """Draws a permutation of each group's examples: int32 `[size]`, indices into the batch."""
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(rng, groups)
    within_group = jax.vmap(lambda key: jax.random.permutation(key, size // groups))(keys)
    return (within_group + size // groups * jnp.arange(groups)[:, None]).reshape(size)


class Draws(NamedTuple):
    """What is drawn, for each example `[B]`."""

    lam: Any
    """Float, as drawn: cutmix corrects it."""
    cutmix: Any
    """Bool: cutmix or mixup."""
    centre_y: Any
    centre_x: Any


def for_each_example(value, size: int, mode: str, groups: int = 1):
    """Repeats draws so that there is one for each of `size` examples; in a pair, both have the same."""
    example = np.arange(size // groups)
    draw = {"batch": 0 * example, "pair": np.minimum(example, example[::-1]), "elem": example}[mode]
    return value.reshape(groups, -1)[:, draw].reshape(size)


def mix(x, y, drawn: Draws, box: str = "classic", groups: int = 1, permutation=None) -> tuple:
    """Mixes images `[B, H, W, C]` and labels `[B, K]` by given draws. See `mixup_cutmix`.

    With a `permutation`, int `[B]`, example i is mixed with `permutation[i]`, whatever the groups.
    """
    import jax.numpy as jnp

    top, bottom, left, right, lam = box_of(drawn, x.shape[1:3], box)

    def mixed(x, share):
        if permutation is None:
            partner = x.reshape(groups, -1, *x.shape[1:])[:, ::-1].reshape(x.shape)
        else:
            partner = x[permutation]
        share = share.reshape(len(x), *share.shape[1:], *[1] * (x.ndim - share.ndim)).astype(x.dtype)
        return x * share + partner * (1 - share)

    def mixed_images(x):
        outside = ~(within(top, bottom, x.shape[1])[:, :, None] & within(left, right, x.shape[2])[:, None, :])
        return mixed(x, jnp.where(drawn.cutmix[:, None, None], outside, lam[:, None, None]))

    return on_any_mesh(mixed_images, x)(x), on_any_mesh(lambda y: mixed(y, lam), y)(y)


def box_of(drawn: Draws, size: tuple[int, int], box: str = "classic") -> tuple:
    """Returns the boxes' top, bottom, left and right (ends exclusive), int32 `[B]`, and the corrected lam.

    Of numpy or jax arrays. Where there is no cutmix, the box has no meaning, and lam is as drawn.
    """
    sides = []
    for length, centre in zip(size, (drawn.centre_y, drawn.centre_x), strict=True):
        cut = (length * (1 - drawn.lam) ** 0.5).astype(np.int32)
        upper = (cut + 1) // 2 if box == "ceil_odd" else cut // 2
        sides += [(centre - cut // 2).clip(0, length), (centre + upper).clip(0, length)]
    top, bottom, left, right = sides
    left_over = 1 - (bottom - top) * (right - left) / (size[0] * size[1])
    lam = drawn.cutmix * left_over + (1 - drawn.cutmix) * drawn.lam
    return top, bottom, left, right, lam.astype(drawn.lam.dtype)
