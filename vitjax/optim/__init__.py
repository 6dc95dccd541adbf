"""The optimizer, from config: clip, transform, learning rate, weight decay, schedule, in big_vision's order.

With g the gradient, p the parameter and s(t) the schedule of the parameter's group (`schedules`):

    u      = transform(clip(g))                      # config.grad_clip_norm, config.optax_name, config.optax
    update = -s(t) * layer_mult * (lr * lr_mult * u + wd * wd_mult * p)

`wd` is big_vision's: multiplied by the schedule only. The weight decay in papers that use AdamW is multiplied
by the learning rate as well, so `wd = paper_wd * lr` (AugReg's 0.1 at the peak of 1e-3 is wd=1e-4). Clipping
is by the global norm of the gradients of all parameters that are not frozen. `layer_mult` is 1 without
config.layer_decay, see `layers`.

With config.weight_clips, what `apply` makes of a parameter is then brought back to [-c, c]: BinaryConnect's
clipping of latent weights (arXiv 1511.00363, section 2.4), beyond which a straight-through estimator that is
zero there would never move them again.

With config.lr_base_batch = b, `lr` and `wd` are those of a batch of b examples, and both grow linearly with
the batch that is trained with: DeiT's lr of 5e-4 * batch / 512 is lr=5e-4 with lr_base_batch=512.
"""

import dataclasses
import math
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax as optax_lib

from vitjax import errors
from vitjax.optim import ema, layers, patterns, schedules, transforms

__all__ = ["Group", "Optimizer", "create", "ema", "layers", "patterns", "schedules", "transforms"]

CONSTANT = types.MappingProxyType({"decay_type": "constant"})
KERNELS = ((".*/kernel$", 1.0),)


@dataclasses.dataclass(frozen=True)
class Group:
    """What the config assigns to one parameter."""

    name: str  # a/b/c
    shape: tuple[int, ...]
    lr_mult: float
    wd_mult: float  # 0 where nothing decays
    schedule: int | None  # index into Optimizer.schedules; None = frozen
    layer_mult: float | tuple[float, ...] = 1.0  # of both; one for each block where blocks are stacked
    clip: float | None = None  # the largest absolute value; None for any


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A gradient transformation together with what it does to whom.

    `init(params) -> opt_state` and `update(grads, opt_state, params) -> (updates, opt_state)` are optax's; a
    new state has the structure of the old one, so that donated buffers are reused. Frozen parameters have no
    optimizer state, and `params + updates` leaves them as they are, bit for bit. `update` also takes
    `hyperparameters=`, of the structure of the property of that name, in place of its own.
    """

    init: Callable[[Any], Any]
    update: Callable[..., tuple[Any, Any]]
    lr: float
    wd: float
    schedules: tuple[schedules.Schedule, ...]
    groups: Any  # tree of `Group`, of the structure of the parameters

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The numbers that a compiled step takes as arguments: `lr`, `wd`, and those of each schedule."""
        return {"lr": self.lr, "wd": self.wd, "schedules": [dict(s.numbers) for s in self.schedules]}

    def global_schedule(self, step: Any) -> dict[str, Any]:
        """The factors s(t) after `step` updates: `global_schedule`, then `global_schedule1`, ... by group."""
        return {f"global_schedule{i or ''}": schedule(step) for i, schedule in enumerate(self.schedules)}

    def learning_rate(self, step: Any) -> Any:
        """The learning rate after `step` updates, by the first schedule and without lr_mults."""
        return self.lr * self.schedules[0](step)

    def trainable(self, tree: Any) -> Any:
        """Returns `tree` (gradients, say) with zeros for frozen parameters, for the norms in the log."""
        return jax.tree.map(lambda x, g: jnp.zeros_like(x) if g.schedule is None else x, tree, self.groups)

    def apply(self, params: Any, updates: Any) -> Any:
        """Returns `params + updates`, clipped where config.weight_clips says so, unless frozen."""

        def one(value: Any, group: Group) -> Any:
            if group.clip is None or group.schedule is None:
                return value
            return jnp.clip(value, -group.clip, group.clip)

        return jax.tree.map(one, optax_lib.apply_updates(params, updates), self.groups)

    def describe(self) -> str:
        """Returns one line for each set of parameters that are treated alike, for `--check`."""
        alike: dict[tuple[Any, ...], list[Group]] = {}
        for group in jax.tree.leaves(self.groups):
            key = (group.schedule, group.lr_mult, group.wd_mult, group.layer_mult, group.clip)
            alike.setdefault((None, 0, 0, 0, None) if group.schedule is None else key, []).append(group)
        lines = []
        for (schedule, lr_mult, wd_mult, layer_mult, clip), members in alike.items():
            what = f"schedule {schedule}, lr {self.lr:g} x {lr_mult:g}, wd {self.wd:g} x {wd_mult:g}"
            if layer_mult != 1:
                of_blocks = layer_mult if isinstance(layer_mult, tuple) else (layer_mult,)
                what += ", both x " + " to ".join(
                    f"{x:.4g}" for x in dict.fromkeys((of_blocks[0], of_blocks[-1]))
                )
            what += "" if clip is None else f", clipped to {clip:g}"
            names = ", ".join(m.name for m in members[:3]) + (", ..." if len(members) > 3 else "")
            size = sum(math.prod(m.shape) for m in members)
            what = "frozen" if schedule is None else what
            lines.append(f"{what}: {size:,} parameters in {len(members)} arrays ({names})")
        return "\n".join(lines)


def create(
    params: Any,
    *,
    total_steps: int,
    batch_size: int | None = None,
    num_examples: int | None = None,
    optax_name: str = "scale_by_adam",
    optax: Mapping[str, Any] | None = None,
    lr: float = 1e-3,
    lr_base_batch: float | None = None,
    lr_mults: Any = (),
    layer_decay: float | None = None,
    wd: float = 0.0,
    wd_mults: Any = KERNELS,
    schedule: Any = CONSTANT,
    grad_clip_norm: float | None = None,
    weight_clips: Any = (),
) -> Optimizer:
    """Returns the optimizer that the config keys of these names describe.

    Args:
      params: the parameters, or their shapes; names are `a/b/c`, and all regexes match whole names.
      total_steps: length of the run; `batch_size` and `num_examples` serve durations in examples and epochs.
      batch_size: see `total_steps`.
      num_examples: see `total_steps`.
      optax_name: the transformation, see `transforms`.
      optax: its options, such as dict(b2=0.95, mu_dtype="bfloat16").
      lr: the peak learning rate.
      lr_base_batch: the batch that `lr` and `wd` are for; None for the batch trained with, whatever it is.
      lr_mults: pairs (regex, factor > 0); the first match wins, a parameter without one has 1.
      layer_decay: factor of both rates from each layer to the one before, see `layers`; None or 1 for none.
      wd: weight decay per step at the peak of the schedule (not multiplied by lr, see the top of this file).
      wd_mults: pairs (regex, factor >= 0); the first match wins, a parameter without one does not decay.
      schedule: the options of `schedules.create`, or pairs (regex, options or None) that cover every
        parameter; the first match wins and None freezes.
      grad_clip_norm: the largest global norm of the gradients; None or 0 for no clipping.
      weight_clips: pairs (regex, largest absolute value > 0) of parameters that are clipped after each
        update, such as the latent weights of binary kernels; the first match wins.

    Raises:
      UserError: a value out of range, an unknown name or option, a pattern that matches nothing.
    """
    scale = _batch_scale(lr_base_batch, batch_size)
    lr, wd = _number("lr", lr) * scale, _number("wd", wd) * scale
    clip_norm = _number("grad_clip_norm", grad_clip_norm or 0.0)
    rules = (
        [(patterns.CATCH_ALL, schedule)]
        if _is_mapping(schedule)
        else patterns.pairs(schedule, "config.schedule")
    )
    groups = _groups(params, rules, lr_mults, wd_mults, 1.0 if layer_decay is None else layer_decay)
    groups = _with_clips(groups, weight_clips)

    # Frozen rules have no schedule function, so the remaining ones are renumbered.
    live = [i for i, (_, options) in enumerate(rules) if options is not None]
    renumber = {rule: n for n, rule in enumerate(live)}
    groups = jax.tree.map(lambda g: dataclasses.replace(g, schedule=renumber.get(g.schedule)), groups)
    sizes = {"total_steps": total_steps, "batch_size": batch_size, "num_examples": num_examples, "lr": lr}
    functions = tuple(_schedule(rules[i][1], sizes) for i in live)

    trainable = jax.tree.map(lambda g: g.schedule is not None, groups)
    if not any(jax.tree.leaves(trainable)):
        raise errors.UserError("config.schedule freezes every parameter, so there is nothing to train.")
    inner = transforms.create(optax_name, dict(optax or {}))
    if clip_norm:
        inner = optax_lib.chain(optax_lib.clip_by_global_norm(clip_norm), inner)
    if not all(jax.tree.leaves(trainable)):
        inner = optax_lib.masked(inner, trainable)
    tx = optax_lib.chain(inner, _scale_and_decay(lr, wd, groups, functions))
    return Optimizer(tx.init, tx.update, lr, wd, functions, groups)  # pyright: ignore[reportArgumentType]


def _batch_scale(lr_base_batch: float | None, batch_size: int | None) -> float:
    """What `lr` and `wd` are multiplied by for the batch that is trained with."""
    if lr_base_batch is None:
        return 1.0
    if _number("lr_base_batch", lr_base_batch) == 0 or batch_size is None:
        raise errors.UserError(
            f"config.lr_base_batch={lr_base_batch!r} must be the batch that config.lr is for, such as 512"
            + ("." if batch_size else ", and the batch trained with is not known here.")
        )
    return batch_size / lr_base_batch


def _groups(
    params: Any, rules: list[tuple[str, Any]], lr_mults: Any, wd_mults: Any, layer_decay: float
) -> Any:
    """Returns the tree of `Group`s; their `schedule` is the index of the rule."""
    tree = patterns.parameter_names(params)
    names = jax.tree.leaves(tree)
    schedule_of = patterns.first_match(names, rules, key="config.schedule")
    if left := [name for name in names if name not in schedule_of]:
        raise errors.UserError(
            f"config.schedule leaves out {left[0]!r} ({len(left)} of {len(names)} parameters); each needs a"
            " schedule, so end the list with ('.*', dict(...)), or with ('.*', None) to freeze the rest."
        )
    lr_of = _mults(names, lr_mults, "lr_mults")
    if zero := [name for name, mult in lr_of.items() if mult == 0]:
        raise errors.UserError(
            f"lr_mults gives {zero[0]!r} a factor of 0; freeze it with None in config.schedule."
        )
    wd_of = _mults(names, wd_mults, "wd_mults")
    shapes = [tuple(leaf.shape) for leaf in jax.tree.leaves(params)]
    layer_of = {}
    if layer_decay != 1:
        layer_of = layers.factors(dict(zip(names, shapes, strict=True)), layer_decay)

    def group(name: str, param: Any) -> Group:
        return Group(
            name,
            tuple(param.shape),
            lr_of.get(name, 1.0),
            wd_of.get(name, 0.0),
            schedule_of[name],
            layer_of.get(name, 1.0),
        )

    return jax.tree.map(group, tree, params)


def _with_clips(groups: Any, rules: Any) -> Any:
    """Returns the groups with the limits that `weight_clips` gives them."""
    limit_of = _mults([group.name for group in jax.tree.leaves(groups)], rules, "weight_clips")
    if zero := [name for name, limit in limit_of.items() if limit == 0]:
        raise errors.UserError(
            f"weight_clips gives {zero[0]!r} a limit of 0, which would keep it at 0: give more, such as 1."
        )
    return jax.tree.map(lambda group: dataclasses.replace(group, clip=limit_of.get(group.name)), groups)


def _mults(names: list[str], rules: Any, key: str) -> dict[str, float]:
    """Returns the factor of each name that one of the (regex, factor) pairs matches."""
    # The default may find no kernel in an unusual model; a pattern the user wrote must find something.
    found = patterns.first_match(names, rules, key=f"config.{key}", must_match=rules != KERNELS)
    values = [
        _number(f"{key} of {pattern!r}", value) for pattern, value in patterns.pairs(rules, f"config.{key}")
    ]
    return {name: values[i] for name, i in found.items()}


def _schedule(options: Any, sizes: dict[str, Any]) -> schedules.Schedule:
    if not _is_mapping(options):
        raise errors.UserError(
            f"config.schedule: {options!r} should be a dict of options, or None to freeze."
        )
    return schedules.create(**sizes, **{str(k): options[k] for k in options})


def _is_mapping(value: Any) -> bool:
    return hasattr(value, "keys")  # a ConfigDict is not a collections.abc.Mapping


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise errors.UserError(f"config.{key}={value!r} must be a number, 0 or more.")
    return float(value)


def _scale_and_decay(
    lr: float, wd: float, groups: Any, functions: tuple[schedules.Schedule, ...]
) -> optax_lib.GradientTransformationExtraArgs:
    """The tail of the chain as one pass, with one counter for all groups."""
    own = {"lr": lr, "wd": wd, "schedules": [None] * len(functions)}

    def init(params: Any) -> optax_lib.ScaleByScheduleState:
        del params
        return optax_lib.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

    def update(
        updates: Any, state: Any, params: Any = None, *, hyperparameters: Any = None, **_: Any
    ) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("update(grads, opt_state, params) needs the parameters.")
        given = own if hyperparameters is None else hyperparameters
        schedules = zip(functions, given["schedules"], strict=True)
        factors = [function(state.count, numbers) for function, numbers in schedules]

        def one(u: Any, p: Any, group: Group) -> Any:
            if group.schedule is None:
                return jnp.full_like(p, -0.0)  # p + -0.0 is p for every p; p + 0.0 turns -0.0 into 0.0
            u = u * given["lr"] * group.lr_mult
            if wd * group.wd_mult:
                u = u + (given["wd"] * group.wd_mult) * p
            if group.layer_mult != 1:
                each = np.asarray(group.layer_mult, u.dtype)
                u = u * each.reshape(each.shape + (1,) * (u.ndim - each.ndim))
            return u * factors[group.schedule] * -1.0

        new_state = optax_lib.ScaleByScheduleState(count=optax_lib.safe_increment(state.count))
        return jax.tree.map(one, updates, params, groups), new_state

    return optax_lib.GradientTransformationExtraArgs(init, update)
