"""Stages of residual units, what every residual network is made of between its root and its head."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from vitjax.layers.drop_path import linear_rates


class Stage(nn.Module):
    """Residual units `unit1`, `unit2`, ... of one shape, the first with the stride.

    A unit is made as `unit(**fields, stride=...)` and called as `(x, rate of stochastic depth, train)`, and
    with what else the stage is called with.
    """

    unit: type[nn.Module]
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stride: int = 1
    drop_path: Sequence[float] = (0.0,)  # of each unit, so also their number
    remat: str | None = None  # what a unit may keep for the backward pass, by jax's names

    @nn.compact
    def __call__(self, x, *besides, train: bool = False):
        """Maps `[B, H, W, C]` to `[B, H/stride, W/stride, D]`, rounded up."""
        unit = self.unit
        if self.remat:
            policy = getattr(jax.checkpoint_policies, self.remat)
            unit = nn.remat(unit, policy=policy, static_argnums=(2, 3))  # rate, train
        for i, rate in enumerate(self.drop_path):
            stride = 1 if i else self.stride
            x = unit(**self.fields, stride=stride, name=f"unit{i + 1}")(x, rate, train, *besides)
        return x


def stages(
    x,
    unit: type[nn.Module],
    fields: Sequence[Mapping[str, Any]],
    units: Sequence[int],
    strides: Sequence[int],
    *,
    drop_path: float = 0.0,
    remat: str | None = None,
    train: bool = False,
    besides: Sequence[Any] = (),
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Runs the stages `block1`, `block2`, ... as submodules of the compact module that calls this.

    Args:
      x: `[B, H, W, C]`.
      unit: the class of the residual units.
      fields: of the units of each stage.
      units: their number in each stage.
      strides: of each stage.
      drop_path: rate of stochastic depth in the last unit, growing linearly from 0 in the first.
      remat: policy by which units are computed again in the backward pass; None for not at all.
      train: whether to train.
      besides: what else units are called with.

    Returns:
      The last feature map, and those after each stage by its name.
    """
    maps, rates = {}, linear_rates(drop_path, sum(units))
    for i, (own, count, stride) in enumerate(zip(fields, units, strides, strict=True)):
        begin = sum(units[:i])
        name = f"block{i + 1}"
        stage = Stage(unit, own, stride, rates[begin : begin + count], remat, name=name)
        x = maps[name] = stage(x, *besides, train=train)
    return x, maps
