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
    element-wise arithmetic, norms, softmax and pooling left out. Binary products count as real ones do. A
    `scan` counts as often as it runs its body, a `cond` as its dearest branch.

    The published "GMACs" of vision models are this number: for Vision Transformers of timm they agree to
    every digit that timm's manifests give.

    Args:
      function: what is counted; it is traced by `jax.make_jaxpr`.
      *abstract_args: its arguments, arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: products where the number of repetitions cannot be told by shape: in a `while` loop, or
        inside a primitive that runs its body once a device or once a block (`shard_map`, `pallas_call`).
    """
    return _count(jax.make_jaxpr(function)(*abstract_args).jaxpr, _products)


def layer_norms(function: Callable, *abstract_args: Any) -> int:
    """Counts the numbers, tokens times width, that the LayerNorms in one call of `function` return.

    Counted like the products of `multiply_accumulates`, from the same arguments.
    """
    return _count(jax.make_jaxpr(function)(*abstract_args).jaxpr, _normalised)


# What an equation costs by itself; None: what the programs inside it cost, which is nothing without any.
_Cost = Callable[[JaxprEqn], int | None]


def _count(jaxpr: Jaxpr, cost: _Cost) -> int:
    return sum(_cost(eqn, cost) for eqn in used(jaxpr))


def used(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """The equations that the outputs depend on, last first: what the others need, the compiler drops."""
    wanted = {var for var in jaxpr.outvars if not isinstance(var, Literal)}
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or any(var in wanted for var in eqn.outvars):
            wanted.update(var for var in eqn.invars if not isinstance(var, Literal))
            yield eqn


def _products(eqn: JaxprEqn) -> int | None:
    binary = binary_product(eqn)
    return real_product(eqn) if binary is None else binary


def binary_product(eqn: JaxprEqn) -> int | None:
    """Multiply-accumulates of a call of `vitjax.kernels`' door; None of anything else.

    They follow from the shapes of the operands, so whatever backend multiplies counts the same.
    """
    name, shapes = called(eqn), [var.aval.shape for var in eqn.invars[:2]]
    if name == "binary_matmul":
        return _size(eqn.outvars[0].aval.shape) * shapes[0][-1]
    return _size(eqn.outvars[0].aval.shape) * _size(shapes[1][:-1]) if name == "binary_conv" else None


def called(eqn: JaxprEqn) -> str | None:
    """The function that an equation calls, jitted or with its own gradient; no leading underscore."""
    if eqn.primitive.name == "custom_vjp_call":
        return open_jaxpr(eqn.params["call_jaxpr"]).debug_info.func_name.lstrip("_")
    return eqn.params["name"].lstrip("_") if eqn.primitive.name == "jit" else None


def real_product(eqn: JaxprEqn) -> int | None:
    """Multiply-accumulates of a matrix product or convolution; None of anything else."""
    if eqn.primitive.name == "dot_general":
        return _dot_general(eqn)
    return _convolution(eqn) if eqn.primitive.name == "conv_general_dilated" else None


def _normalised(eqn: JaxprEqn) -> int | None:
    """A LayerNorm is a function with a gradient of its own that takes the root of a variance."""
    if eqn.primitive.name != "custom_vjp_call":
        return None
    inside = [inner.primitive.name for inner in open_jaxpr(eqn.params["call_jaxpr"]).eqns]
    return _size(eqn.outvars[0].aval.shape) if "rsqrt" in inside else None


def _cost(eqn: JaxprEqn, cost: _Cost) -> int:
    name = eqn.primitive.name
    if (own := cost(eqn)) is not None:
        return own
    costs = [_count(open_jaxpr(inner), cost) for inner in jaxprs_in_params(eqn.params)]
    if not any(costs):
        return 0
    if name in ("while", "shard_map", "pallas_call"):
        raise ValueError(f"The products inside a {name!r} cannot be counted by shape.")
    if name == "cond":
        return max(costs)
    return sum(costs) * (eqn.params["length"] if name == "scan" else 1)


def open_jaxpr(jaxpr: Jaxpr | ClosedJaxpr) -> Jaxpr:
    """The program, without its constants if it is closed over some."""
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
