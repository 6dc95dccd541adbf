"""The attentions of a model, found by tracing it, and what they sow when it runs.

Every attention of `vitjax.layers` puts `attention_logits` and `attention_weights` into the collection
`intermediates`. Their order is that of the calls: names sort `encoderblock_10` before `encoderblock_2`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from vitjax.layers.locality import NOWHERE, Locality

Pair = tuple[int, int]

WEIGHTS, LOGITS = "attention_weights", "attention_logits"
UNMIXED = "unmixed_weights"  # of talking heads: what the softmax returns
NOTHING_MASKED = (
    -1e4
)  # a value above it on the diagonal leaves a logit like others: the -1e-9 of CaiT as released


class Attention(NamedTuple):
    """One attention of a model, by shape.

    Attributes:
      path: names of the modules that lead to it.
      call: which of its calls, if a module is called more than once.
      at: which layer of a scanned stack; None outside of one.
      shape: `[B, H, N, M]` of its weights, for as many images as were traced; B is larger with windows.
      locality: which parts of LSA it has.
      mixes_heads: whether weights are mixed over heads after the softmax, so that rows need not sum to one.
      start: the temperature that its logits are divided by, or where it began if it is learned; None where it
        could not be seen.
      windows: `(window, shift, grid)` in tokens (down, across), where attention stays inside windows.
    """

    path: tuple[str, ...]
    call: int
    at: int | None
    shape: tuple[int, ...]
    locality: Locality
    mixes_heads: bool
    start: float | None
    windows: tuple[Pair, Pair, Pair] | None

    @property
    def name(self) -> str:
        """`encoderblock_3`: the block that it is in."""
        names = [part for part in self.path if part != "Transformer"]
        names = names[:-1] if len(names) > 1 else names
        name = "/".join(names)
        if self.at is not None:
            name += f"_{self.at}"
        return f"{name} (call {self.call + 1})" if self.call else name

    @property
    def masks_itself(self) -> bool:
        """Whether no token sees itself: LSA's mask, unless its value masks nothing."""
        return self.locality.masked_diagonal and self.locality.mask <= NOTHING_MASKED

    def of(self, sown: Mapping[str, Any], what: str) -> jax.Array:
        """`[B, H, N, M]` of this attention in the collection; KeyError if it sows no such thing."""
        array = _inside(sown, self.path)[what][self.call]
        return array if self.at is None else array[self.at]

    def multiplier(self, params: Mapping[str, Any]) -> jax.Array | None:
        """The learned multiplier `[H]` of its logits, the inverse of the temperature; None if it is fixed."""
        if not self.locality.learned_temperature:
            return None
        scale = _inside(params, self.path)["scale"]
        return scale if self.at is None else scale[self.at]


def run(model: nn.Module, variables: Mapping[str, Any], images: jax.Array) -> tuple[jax.Array, Any, Any]:
    """Runs the model in inference mode: `(logits, out, intermediates)`; what is unused is dead under jit."""
    (logits, out), state = model.apply(variables, images, train=False, mutable=["intermediates"])
    return logits, out, state.get("intermediates", {})


def attentions(model: nn.Module, variables: Any, images: Any) -> tuple[list[Attention], Any]:
    """Finds the attentions of a model, in the order of their calls, and the shapes of its `out`.

    Args:
      model: any module of the registry.
      variables: its variables, or their shapes.
      images: `[B, H, W, C]`, or their shape.
    """
    seen: dict[tuple[str, ...], Any] = {}
    head_dims: dict[tuple[str, ...], int] = {}

    def watch(call, args, kwargs, context):
        if context.module.scope is None:  # a method called while the module is made
            return call(*args, **kwargs)
        path = context.module.path
        if context.method_name == "__call__":
            seen.setdefault(path, context.module)
        elif context.method_name in ("products", "logits") and getattr(args[0], "ndim", 0) == 4:
            head_dims.setdefault(path, args[0].shape[-1])
        return call(*args, **kwargs)

    def traced(variables, images):
        with nn.intercept_methods(watch):
            return run(model, variables, images)

    _, out, sown = jax.eval_shape(traced, variables, images)
    found = []
    for path, module in seen.items():
        try:
            calls = _inside(sown, path)[WEIGHTS]
        except (KeyError, TypeError):
            continue
        about = (
            getattr(module, "locality", NOWHERE),
            hasattr(module, "mix"),
            _start(module, head_dims.get(path)),
            _windows(module),
        )
        for call, weights in enumerate(calls):
            stacked = len(weights.shape) == 5
            for at in range(weights.shape[0]) if stacked else (None,):
                found.append(Attention(path, call, at, weights.shape[-4:], *about))
    return found, out


def _start(module: nn.Module, head_dim: int | None) -> float | None:
    if head_dim is None:  # it takes no scaled products, like a Performer's
        return None
    scale = getattr(module, "scale", None)
    return 1 / scale if isinstance(scale, float) else math.sqrt(head_dim)


def _windows(module: nn.Module) -> tuple[Pair, Pair, Pair] | None:
    fields = [getattr(module, name, None) for name in ("window", "shift", "grid")]
    return None if None in fields else tuple(map(tuple, fields))  # pyright: ignore


def _inside(tree: Mapping[str, Any], path: Sequence[str]) -> Any:
    for name in path:
        tree = tree[name]
    return tree
