"""What a function costs in arithmetic, counted by shape."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxprs_in_params


def multiply_accumulates(function: Callable, *abstract_args: Any) -> int:
    """Counts the multiply-accumulates of the matrix products and convolutions in one call of `function`.

    Nothing is computed. FLOPs in the usual sense are twice this number, those of a training step about three
    times the forward pass (the backward pass multiplies with inputs and with weights). Counted is what the
    function's outputs depend on, as it is written: padding that a convolution multiplies with included,
    element-wise arithmetic, norms, softmax and pooling left out. A `scan` counts as often as it runs its
    body, a `cond` as its dearest branch.

    The published "GMACs" of vision models are this number: for Vision Transformers of timm they agree to
    every digit that timm's manifests give.

    Args:
      function: what is counted; it is traced by `jax.make_jaxpr`.
      *abstract_args: its arguments, arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: products where the number of repetitions cannot be told by shape: in a `while` loop, or
        inside a primitive that runs its body once a device or once a block (`shard_map`, `pallas_call`).
    """
    return _count(jax.make_jaxpr(function)(*abstract_args).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
    return sum(_cost(eqn) for eqn in _used(jaxpr))


def _used(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """The equations that the outputs depend on: what only the others need, the compiler drops."""
    wanted = {var for var in jaxpr.outvars if not isinstance(var, Literal)}
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or any(var in wanted for var in eqn.outvars):
            wanted.update(var for var in eqn.invars if not isinstance(var, Literal))
            yield eqn


def _cost(eqn: JaxprEqn) -> int:
    name = eqn.primitive.name
    if name == "dot_general":
        return _dot_general(eqn)
    if name == "conv_general_dilated":
        return _convolution(eqn)
    costs = [_count(_open(inner)) for inner in jaxprs_in_params(eqn.params)]
    if not any(costs):
        return 0
    if name in ("while", "shard_map", "pallas_call"):
        raise ValueError(f"The products inside a {name!r} cannot be counted by shape.")
    if name == "cond":
        return max(costs)
    return sum(costs) * (eqn.params["length"] if name == "scan" else 1)


def _open(jaxpr: Jaxpr | ClosedJaxpr) -> Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def _dot_general(eqn: JaxprEqn) -> int:
    """Each output is a sum over the contracted axes."""
    (contracted, _), _ = eqn.params["dimension_numbers"]
    return _size(eqn.outvars[0].aval.shape) * _size([eqn.invars[0].aval.shape[axis] for axis in contracted])


def _convolution(eqn: JaxprEqn) -> int:
    """Each output is a sum over the kernel's window and the input channels of its group."""
    kernel, numbers = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"]
    _, channels, *window = (kernel[axis] for axis in numbers.rhs_spec)  # the kernel has one group's channels
    return _size(eqn.outvars[0].aval.shape) * channels * _size(window)


def _size(shape: Sequence[int]) -> int:
    return math.prod(int(size) for size in shape)
