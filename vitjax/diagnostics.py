"""What happens inside a binary network while it trains, seen at logging steps: config section `diagnostics`.

    config.diagnostics = dict()                 # means over the network
    config.diagnostics = dict(layers=True)      # and every quantiser by itself

Nothing is asked of the model. The forward pass is traced, and the quantisers of `layers/binary.py` are found
in the trace by their names, wherever a model calls them, scanned or rematerialised; a quantiser's place is
the path of the module that calls it. So every architecture with binary weights or activations has these:

    binary/signs_flipped       share of binary weights whose sign this update changed
    binary/pass/weights        share of latent weights, of activations, and of attention probabilities through
    binary/pass/activations    whose straight-through estimator a gradient passes, being not exactly 0
    binary/pass/attention
    binary/attention_on        share of attention probabilities that became 1
    binary/attention_dead      share of (head, query, key) whose probability is on for no image of the batch
    binary/latent_weights      histogram of the latent weights

All but the first are of the state before the update, on the images of the step. They cost one more forward
pass at steps that are logged, and next to nothing at others.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.api_util import debug_info
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun, jaxprs_in_params

from vitjax.config import bind
from vitjax.errors import UserError
from vitjax.layers import binary

BINS = 40  # of a histogram
HISTOGRAMS = "histograms"  # key of the metrics that are no scalars

# The quantisers by the names that their traces bear.
SIGN, WEIGHTS, ATTENTION = (
    f.__name__ for f in (binary._sign, binary._binarise_weights, binary.binarise_attention)
)

Place = tuple[str, str]  # kind of quantiser, path of the module that calls it
Found = dict[Place, dict[str, jax.Array]]  # [L, ...] inside a scan of length L
_Look = Callable[[JaxprEqn, Sequence[Any], Sequence[Any]], dict[str, jax.Array]]


class Diagnostics:
    """Measures a binary network around one update of it.

    Args:
      forward: `(params, model_state, batch, rng, progress) -> anything`, the forward pass in training.
      layers: each quantiser by itself, too.
      histograms: histograms of the latent weights.
    """

    def __init__(self, forward: Callable, *, layers: bool = False, histograms: bool = True):
        self._forward, self._layers, self._histograms = forward, layers, histograms

    def check(self, *abstract_args: Any) -> None:
        """Raises a UserError if nothing in the network, given by shape, is binary."""
        closed = jax.make_jaxpr(self._forward)(*abstract_args)
        if not _quantises(closed.jaxpr):
            raise UserError(
                "config.diagnostics measures binary networks, but config.model has neither binary weights "
                "nor binary activations: leave the section out, or take a binary model or precision."
            )

    def before(
        self, params: Any, model_state: Any, batch: dict, rng: jax.Array, progress: Any = 0.0
    ) -> tuple[dict[str, Any], dict[Place, jax.Array]]:
        """Returns `(metrics, signs)` of the state that is about to be updated; `after` wants the signs."""
        found = observe(self._forward, _measure, params, model_state, batch, rng, progress)
        pick = lambda key: {path: values[key] for path, values in found.items() if key in values}
        metrics: dict[str, Any] = {}
        for name, key in (
            ("pass/weights", "weights_pass"),
            ("pass/activations", "sign_pass"),
            ("pass/attention", "attention_pass"),
            ("attention_on", "attention_on"),
            ("attention_dead", "attention_dead"),
        ):
            sizes = {path: values["size"] for path, values in found.items()}
            metrics |= self._told(name, pick(key), sizes)
        if self._histograms and (kernels := pick("kernel")):
            metrics[HISTOGRAMS] = self._histograms_of(kernels)
        return metrics, pick("signs")

    def after(
        self,
        signs: dict[Place, jax.Array],
        params: Any,
        model_state: Any,
        batch: dict,
        rng: jax.Array,
        progress: Any = 0.0,
    ) -> dict[str, jax.Array]:
        """Returns the metrics of the update that led to `params` from where `signs` were measured.

        The compiler drops what of this forward pass no sign depends on: nearly all.
        """
        found = observe(self._forward, _signs, params, model_state, batch, rng, progress)
        flipped = {}
        for path, old in signs.items():
            changed = (found[path]["signs"] != old).astype(jnp.float32)
            kernel = changed.ndim - found[path]["size"].ndim  # in front: the axes of scans
            flipped[path] = changed.mean(axis=tuple(range(-kernel, 0)))
        return self._told("signs_flipped", flipped, {path: found[path]["size"] for path in signs})

    def _told(
        self, name: str, shares: Mapping[Place, jax.Array], sizes: Mapping[Place, jax.Array]
    ) -> dict[str, jax.Array]:
        """The mean over all places, each as large as it is, and with `layers` those of every place."""
        if not shares:
            return {}
        total = sum(jnp.sum(sizes[path]) for path in shares)
        parts = [jnp.sum(share * (sizes[path] / total)) for path, share in shares.items()]
        told = {f"binary/{name}": sum(parts, start=jnp.float32(0))}
        if self._layers:
            for (_, path), share in shares.items():
                told |= {f"binary/{name}/{where}": value for where, value in _each(path, share)}
        return told

    def _histograms_of(self, kernels: Mapping[Place, jax.Array]) -> dict[str, jax.Array]:
        largest = jnp.stack([jnp.max(jnp.abs(kernel)) for kernel in kernels.values()]).max()
        counts = sum(histogram(kernel, largest)[:-1] for kernel in kernels.values())
        told = {"binary/latent_weights": jnp.append(jnp.asarray(counts), largest)}
        if self._layers:
            for (_, path), kernel in kernels.items():
                own = jnp.max(jnp.abs(kernel))
                told[f"binary/latent_weights/{path}"] = histogram(kernel, own)
        return told


def create(section: Mapping[str, Any], task: Any) -> Diagnostics:
    """Builds what config section `diagnostics` asks for.

    Raises:
      UserError: a key nobody reads.
    """

    def forward(params: Any, model_state: Any, batch: dict, rng: jax.Array, progress: Any) -> jax.Array:
        return task.forward(params, model_state, batch, rng, train=True, progress=progress)[0]

    return Diagnostics(forward, **bind(Diagnostics, section, "diagnostics", given=("forward",)))


def histogram(values: jax.Array, largest: jax.Array) -> jax.Array:
    """Counts of `values` in BINS equal bins of [-largest, largest], and `largest` behind them: `[BINS + 1]`.

    A bin holds its lower end; the last one its upper end, too. Comparisons are quick on every device.
    """
    edges = jnp.linspace(-1.0, 1.0, BINS + 1)[1:-1] * largest
    below = jnp.stack([jnp.sum(values < edge, dtype=jnp.float32) for edge in edges])
    counts = jnp.diff(below, prepend=0.0, append=jnp.float32(values.size))
    return jnp.append(counts, largest).astype(jnp.float32)


def _each(path: str, share: jax.Array) -> list[tuple[str, jax.Array]]:
    """One entry a layer: places inside scans have many."""
    if share.ndim == 0:
        return [(path, share)]
    return [(f"{path}/{i}", value) for i, value in enumerate(share.reshape(-1))]


# What is looked at, in each quantiser


def _measure(eqn: JaxprEqn, inputs: Sequence[Any], outputs: Sequence[Any]) -> dict[str, jax.Array]:
    kind, x = _quantiser(eqn), inputs[0]
    size = jnp.float32(x.size)
    if kind == WEIGHTS:
        inside = _inside(eqn, x)
        signs = outputs[0].astype(jnp.int8)
        return dict(size=size, kernel=x, signs=signs, weights_pass=jnp.mean(inside, dtype=jnp.float32))
    backward = jax.vjp(lambda *args: tuple(_bind(eqn, args)), *inputs)[1]
    ones = [jnp.ones_like(outputs[0]), *(jnp.zeros_like(out) for out in outputs[1:])]
    passes = jnp.mean(backward(tuple(ones))[0] != 0, dtype=jnp.float32)
    if kind == SIGN:
        return dict(size=size, sign_pass=passes)
    on = outputs[0] > 0
    dead = ~jnp.any(on, axis=0)
    mean = lambda share: jnp.mean(share, dtype=jnp.float32)
    return dict(size=size, attention_pass=passes, attention_on=mean(on), attention_dead=mean(dead))


def _signs(eqn: JaxprEqn, inputs: Sequence[Any], outputs: Sequence[Any]) -> dict[str, jax.Array]:
    if _quantiser(eqn) != WEIGHTS:
        return {}
    return dict(size=jnp.float32(inputs[0].size), signs=outputs[0].astype(jnp.int8))


def _inside(eqn: JaxprEqn, kernel: jax.Array) -> jax.Array:
    """Where the gradient passes. It cannot be told from the gradient: centring spreads it everywhere."""
    equations = eqn.params["call_jaxpr"].jaxpr.eqns
    axes = next(inner.params["axes"] for inner in equations if inner.primitive.name == "reduce_sum")
    centred = any(inner.primitive.name == "sub" for inner in equations)
    return binary._weights_forward(kernel, centred, axes)[1][0]


# The trace, gone through with an eye on the quantisers


def observe(function: Callable, look: _Look, *args: Any) -> Found:
    """Returns what `look(eqn, inputs, outputs)` gives of each quantiser in a call of `function(*args)`."""
    closed = jax.make_jaxpr(function)(*args)
    found: Found = {}
    _run(closed.jaxpr, closed.consts, jax.tree.leaves(args), look, "", found, collections.Counter())
    return {path: values for path, values in found.items() if values}


def _run(
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    args: Sequence[Any],
    look: _Look,
    place: str,
    found: Found,
    seen: collections.Counter,
) -> list[Any]:
    """Evaluates a program, adds what is found to `found`, and returns its outputs."""
    values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
    read = lambda var: var.val if isinstance(var, Literal) else values[var]
    for eqn in _used(jaxpr):
        inputs = [read(var) for var in eqn.invars]
        here = "/".join(part for part in (place, str(eqn.source_info.name_stack)) if part)
        inner = _program(eqn)
        if _quantiser(eqn):
            outputs = _bind(eqn, inputs)
            found[_name(here, eqn, seen)] = look(eqn, inputs, outputs)
        elif not any(_quantises(_open(j)) for j in jaxprs_in_params(eqn.params)):
            outputs = _bind(eqn, inputs)
        elif eqn.primitive.name == "scan":
            outputs = _scan(eqn, inputs, look, here, found, seen)
        elif inner is not None:
            closed = inner.consts if isinstance(inner, ClosedJaxpr) else ()
            outputs = _run(_open(inner), closed, inputs, look, here, found, seen)
        else:  # a branch, or a loop of unknown length: what happens there is not to be had outside
            outputs = _bind(eqn, inputs)
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _scan(
    eqn: JaxprEqn, inputs: Sequence[Any], look: _Look, place: str, found: Found, seen: collections.Counter
) -> list[Any]:
    params = eqn.params
    closed, consts, carried = params["jaxpr"], params["num_consts"], params["num_carry"]

    def body(carry: Any, x: Any) -> tuple[Any, Any]:
        own: Found = {}
        args = [*inputs[:consts], *carry, *x]
        outputs = _run(closed.jaxpr, closed.consts, args, look, place, own, seen)
        return outputs[:carried], (outputs[carried:], own)

    options = {key: params[key] for key in ("length", "reverse", "unroll")}
    first, xs = inputs[consts : consts + carried], inputs[consts + carried :]
    carry, (rows, own) = jax.lax.scan(body, first, xs, **options)
    found.update(own)
    return [*carry, *rows]


def _bind(eqn: JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any]:
    """Evaluates one equation as it is: as a program of this equation alone."""
    taken = {
        var: value for var, value in zip(eqn.invars, inputs, strict=True) if not isinstance(var, Literal)
    }
    about = debug_info("diagnostics", lambda *args: None, tuple(taken.values()), {})
    about = about._replace(result_paths=("",) * len(eqn.outvars))
    program = Jaxpr((), list(taken), eqn.outvars, [eqn], eqn.effects, debug_info=about)
    return jaxpr_as_fun(ClosedJaxpr(program, ()))(*taken.values())


def _program(eqn: JaxprEqn) -> Jaxpr | ClosedJaxpr | None:
    """The program that an equation calls once, with its own inputs; None where it does something else."""
    if eqn.primitive.name in ("cond", "while"):
        return None
    inside = list(jaxprs_in_params(eqn.params))
    fits = len(inside) == 1 and len(_open(inside[0]).invars) == len(eqn.invars)
    return inside[0] if fits else None


def _quantiser(eqn: JaxprEqn) -> str | None:
    if eqn.primitive.name != "custom_vjp_call":
        return None
    name = eqn.params["call_jaxpr"].jaxpr.debug_info.func_name
    return name if name in (SIGN, WEIGHTS, ATTENTION) else None


def _quantises(jaxpr: Jaxpr) -> bool:
    """Whether there is a quantiser in a program, or in one that it calls."""
    return any(
        _quantiser(eqn) or any(_quantises(_open(inner)) for inner in jaxprs_in_params(eqn.params))
        for eqn in jaxpr.eqns
    )


def _used(jaxpr: Jaxpr) -> list[JaxprEqn]:
    """The equations that the outputs depend on, in order: tracing a scan leaves others behind."""
    wanted, used = {var for var in jaxpr.outvars if not isinstance(var, Literal)}, []
    for eqn in reversed(jaxpr.eqns):
        if any(var in wanted for var in eqn.outvars):
            wanted.update(var for var in eqn.invars if not isinstance(var, Literal))
            used.append(eqn)
    return used[::-1]


def _open(jaxpr: Jaxpr | ClosedJaxpr) -> Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def _name(place: str, eqn: JaxprEqn, seen: collections.Counter) -> tuple[str, str]:
    """Kind of the quantiser, and path of its module without the model's name; a second there is `PATH.2`."""
    kind, name = _quantiser(eqn), place.partition("/")[2] or place
    assert kind is not None
    seen[kind, name] += 1
    number = seen[kind, name]
    return kind, name if number == 1 else f"{name}.{number}"
