"""What a network computes and stores, read from its traced computation.

`costs` counts products. This also tells the binary ones from the real, and follows the parameters through
the program: to where only their signs go on, and to the element-wise scales that the literature of binary
networks counts.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.extend.core import Jaxpr, JaxprEqn, Literal, jaxprs_in_params

from vitjax.analysis.costs import binary_product, called, open_jaxpr, real_product, used

BINARISER = "binarise_weights"  # of vitjax.layers.binary


class Operations(NamedTuple):
    """Operations of one forward pass.

    Attributes:
      binary: multiply-accumulates of two binary operands.
      real: those where at least one operand is real.
      scaled: multiplications of an element by the learned scale of its channel, as LayerScale has them.
    """

    binary: int = 0
    real: int = 0
    scaled: int = 0

    @property
    def products(self) -> int:
        """Multiply-accumulates of all products."""
        return self.binary + self.real

    def plus(self, other: "Operations") -> "Operations":
        """The sum."""
        return Operations(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, count: int) -> "Operations":
        """As often as `count` says."""
        return Operations(*(count * number for number in self))


class Network(NamedTuple):
    """What `read` finds.

    Attributes:
      operations: of one call.
      binary: numbers of weights of which the program takes the signs alone, by the name of the parameter.
      scales: how many real numbers stand beside those signs.
    """

    operations: Operations
    binary: dict[str, int]
    scales: int


def read(model: nn.Module, variables: Mapping[str, Any], images: jax.ShapeDtypeStruct) -> Network:
    """Reads the computation of the logits in inference; nothing is computed.

    Args:
      model: returns `(logits, ...)`.
      variables: its variables by shape, the collection `params` among them.
      images: by shape, `[B, H, W, C]`.

    Raises:
      ValueError: products whose number cannot be told by shape, see `costs.multiply_accumulates`.
    """
    logits = lambda variables, images: model.apply(variables, images, train=False)[0]
    traced = jax.make_jaxpr(logits)(variables, images).jaxpr
    leaves = jax.tree_util.tree_leaves_with_path((variables, images))
    walk = _Walk([leaf.size for _, leaf in leaves])
    inputs = [
        _Value(parameters=frozenset([index]) if _is_parameter(path) else frozenset(), image=path[0].idx == 1)
        for index, (path, _) in enumerate(leaves)
    ]
    _, operations = walk.program(traced, inputs)
    binarised = [parameters for parameters in walk.scales if not parameters & walk.real]
    binary = [leaves[index] for index in sorted(frozenset().union(*binarised))]
    return Network(
        operations,
        {jax.tree_util.keystr(path[2:], simple=True, separator="/"): leaf.size for path, leaf in binary},
        sum(walk.scales[parameters] for parameters in binarised),
    )


def _is_parameter(path: tuple[Any, ...]) -> bool:
    return path[0].idx == 0 and path[1].key == "params"


@dataclasses.dataclass(frozen=True)
class _Value:
    """What is known of an array in the program.

    Attributes:
      parameters: those that it is made of, if it is nothing but their numbers, rearranged; else none.
      along_channels: it differs along the last axis alone.
      image: it depends on the images.
      root: it is divided by a root, as what a norm makes is.
      negative: it was cut off from above, as the negative side of a PReLU is.
      scaled: it is the product of such an array with a parameter along its channels.
    """

    parameters: frozenset[int] = frozenset()
    along_channels: bool = False
    image: bool = False
    root: bool = False
    negative: bool = False
    scaled: bool = False


# Operations after which the numbers of an array are the same ones.
_REARRANGE = {
    "broadcast_in_dim",
    "concatenate",
    "convert_element_type",
    "copy",
    "dynamic_slice",
    "expand_dims",
    "optimization_barrier",
    "reshape",
    "rev",
    "sharding_constraint",
    "slice",
    "split",
    "squeeze",
    "transpose",
}
_ROOTS = {"rsqrt", "sqrt"}
_KEEP_ROOT = {"mul", "div"}
_ADD = {"add", "sub", "add_any"}
# Operations whose programs run an unknown number of times, or once a device or a block.
_UNTOLD = ("while", "shard_map", "pallas_call")


class _Walk:
    """Goes through a program and keeps what it learns of parameters.

    Attributes:
      real: parameters that something other than the binariser computes with.
      scales: by the parameters that are binarised together, the number of their scales.
    """

    def __init__(self, sizes: Sequence[int]):
        self.real: set[int] = set()
        self.scales: dict[frozenset[int], int] = {}
        self._sizes = sizes

    def program(self, jaxpr: Jaxpr, inputs: Sequence[_Value]) -> tuple[list[_Value], Operations]:
        """Returns what is known of the outputs, and the operations that they take."""
        known = dict(zip(jaxpr.invars, inputs, strict=True))
        total = Operations()
        value = lambda var: _Value() if isinstance(var, Literal) else known.get(var, _Value())
        for eqn in reversed(list(used(jaxpr))):
            outputs, operations = self._equation(eqn, [value(var) for var in eqn.invars])
            known.update(zip(eqn.outvars, outputs, strict=True))
            total = total.plus(operations)
        return [value(var) for var in jaxpr.outvars], total

    def _equation(self, eqn: JaxprEqn, inputs: list[_Value]) -> tuple[list[_Value], Operations]:
        if called(eqn) == BINARISER:
            return self._binarised(eqn, inputs), Operations()
        if (binary := binary_product(eqn)) is not None:
            return self._computed(eqn, inputs), Operations(binary=binary)
        if (real := real_product(eqn)) is not None:
            return self._computed(eqn, inputs), Operations(real=real)
        if eqn.primitive.name in _REARRANGE:
            return self._rearranged(eqn, inputs), Operations()
        if any(True for _ in jaxprs_in_params(eqn.params)):
            return self._inside(eqn, inputs)
        return self._element_wise(eqn, inputs)

    def _binarised(self, eqn: JaxprEqn, inputs: list[_Value]) -> list[_Value]:
        """Signs and scales. A kernel that is computed from parameters cannot be stored as bits."""
        kernel, (_, scale) = inputs[0].parameters, eqn.outvars
        if kernel:  # a `scan` sees one of many kernels, with the scales of one
            many = sum(self._sizes[index] for index in kernel) // eqn.invars[0].aval.size
            self.scales[kernel] = many * scale.aval.size
        return [_Value() for _ in eqn.outvars]

    def _computed(self, eqn: JaxprEqn, inputs: Sequence[_Value]) -> list[_Value]:
        """Outputs of which nothing is known but whether they depend on the images."""
        for value in inputs:
            self.real |= value.parameters
        return [_Value(image=any(value.image for value in inputs)) for _ in eqn.outvars]

    def _rearranged(self, eqn: JaxprEqn, inputs: list[_Value]) -> list[_Value]:
        if eqn.primitive.name == "optimization_barrier":
            return inputs
        if eqn.primitive.name != "concatenate":
            inputs = inputs[:1]  # what follows are places
        elif not all(value.parameters for value in inputs):
            return self._computed(eqn, inputs)
        joined = dataclasses.replace(
            inputs[0],
            parameters=frozenset().union(*(value.parameters for value in inputs)),
            scaled=any(value.scaled for value in inputs),
        )
        shape = eqn.invars[0].aval.shape
        along = joined.along_channels or _is_vector(shape)
        return [
            dataclasses.replace(joined, along_channels=_is_vector(var.aval.shape) or (along and _stays(eqn)))
            for var in eqn.outvars
        ]

    def _element_wise(self, eqn: JaxprEqn, inputs: list[_Value]) -> tuple[list[_Value], Operations]:
        """Scales count where what they scaled is added to something: a PReLU chooses instead."""
        name, (output, *_) = eqn.primitive.name, self._computed(eqn, inputs)
        root = name in _ROOTS or (name in _KEEP_ROOT and any(value.root for value in inputs))
        scaled = name == "mul" and (_scales(*inputs) or _scales(*reversed(inputs)))
        output = dataclasses.replace(output, root=root, negative=name == "min", scaled=scaled)
        added = sum(value.scaled for value in inputs) if name in _ADD else 0
        return [output] * len(eqn.outvars), Operations(scaled=added * eqn.outvars[0].aval.size)

    def _inside(self, eqn: JaxprEqn, inputs: list[_Value]) -> tuple[list[_Value], Operations]:
        """What the programs inside an equation do."""
        name, params = eqn.primitive.name, eqn.params
        programs = [open_jaxpr(inner) for inner in jaxprs_in_params(params)]
        if name == "scan":
            return self._scan(eqn, programs[0], inputs)
        if name == "cond":  # the dearest branch
            branches = [self.program(branch, inputs[1:]) for branch in programs]
            outputs = [self._either(values) for values in zip(*(of for of, _ in branches), strict=True)]
            return outputs, max((cost for _, cost in branches), key=lambda cost: (cost.products, cost))
        whole = len(programs) == 1 and name not in _UNTOLD
        if whole and (len(programs[0].invars), len(programs[0].outvars)) == (len(inputs), len(eqn.outvars)):
            return self.program(programs[0], inputs)
        outputs = self._computed(eqn, inputs)
        costs = [self.program(inner, [_Value()] * len(inner.invars))[1] for inner in programs]
        if any(any(cost) for cost in costs) and name in _UNTOLD:
            raise ValueError(f"The products inside a {name!r} cannot be counted by shape.")
        return outputs, functools.reduce(Operations.plus, costs, Operations())

    def _scan(self, eqn: JaxprEqn, body: Jaxpr, inputs: list[_Value]) -> tuple[list[_Value], Operations]:
        """The body, again until what is known of the carried values holds from one round to the next."""
        consts, carries = eqn.params["num_consts"], eqn.params["num_carry"]
        before, carry, after = inputs[:consts], inputs[consts:][:carries], inputs[consts + carries :]
        while True:
            outputs, operations = self.program(body, [*before, *carry, *after])
            later = [self._either(both) for both in zip(carry, outputs[:carries], strict=True)]
            if later == carry:
                return outputs, operations.times(eqn.params["length"])
            carry = later

    def _either(self, values: Sequence[_Value]) -> _Value:
        """What is known of an array that is one of several."""
        if all(value == values[0] for value in values):
            return values[0]
        for value in values:
            self.real |= value.parameters
        return _Value(image=any(value.image for value in values))


def _scales(array: _Value, by: _Value) -> bool:
    """Whether a product is that of activations with the learned scales of their channels.

    Neither the scale of a norm, which is part of it, nor the slope of a PReLU.
    """
    return array.image and not array.root and not array.negative and bool(by.parameters) and by.along_channels


def _is_vector(shape: Sequence[int]) -> bool:
    return math.prod(shape[:-1]) == 1 < math.prod(shape)


def _stays(eqn: JaxprEqn) -> bool:
    """Whether what differs along its last axis alone does so afterwards."""
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if eqn.primitive.name != "broadcast_in_dim":
        return before == after
    return eqn.params["broadcast_dimensions"][-1:] == (len(after) - 1,) and before[-1] == after[-1]
