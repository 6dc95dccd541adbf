"""Preprocessing strings: `decode|inception_crop(224)|flip_lr|value_range(-1, 1)` becomes two functions.

The language is big_vision's: names or calls with literal arguments, separated by `|`. What is added is
the split. The longest run of device ops at the end of the string is traced into the jitted step; all before
it runs on the host, one example at a time. So only uint8 travels to the device.

An op is a factory, registered by name, whose signature is the schema of its arguments:

    @register("flip_lr")
    @on_key("image")
    def flip_lr():
        def apply(image, rng):
            return image[:, ::-1] if rng.random() < 0.5 else image
        return apply

With `parse(string, on_device=True)`, for a set that lives on the device, all but a deterministic beginning of
the string (`decode`, `resize`) runs there. A host op can do so once it has a twin, which `register_on_device`
registers under the same name:

    @register_on_device("flip_lr")
    @on_key("image")
    def flip_lr():
        def apply(images, rng):  # uint8 [B, H, W, C] and a jax key
            ...
        return apply

This module imports neither jax nor any image library: jax is not needed by the processes that load data, and
the ops are loaded when the first string is parsed.
"""

import ast
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from vitjax.errors import UserError, nearest

Example = dict[str, Any]
Op = Callable[[Example, Any], Example]
"""On the host `op(example, rng: np.random.Generator)`, on the device `op(batch, rng: jax key)`."""

_OP_MODULES = (
    "decode_ops",
    "resize_ops",
    "crop_ops",
    "randaug",
    "timm_randaug",
    "autoaugment",
    "color_ops",
    "dict_ops",
    "device_ops",
    "random_erasing",
    "cutmix",
    "device_augment",
)


class _Entry(NamedTuple):
    name: str
    factory: Callable[..., Op]
    device: bool
    whole_batch: bool
    deterministic: bool


_REGISTRY: dict[str, _Entry] = {}
_ON_DEVICE: dict[str, Callable[..., Op]] = {}


def register(name: str, *, device: bool = False, whole_batch: bool = False, deterministic: bool = False):
    """Registers the decorated factory of an op under `name`.

    Args:
        name: what preprocessing strings call it. May contain dots.
        device: the op takes a batch (arrays with the example axis first, numpy or jax) and is traceable.
            Where a host op follows, it is given a batch of one on the host.
        whole_batch: a device op that mixes examples, which therefore cannot run on the host.
        deterministic: the op draws nothing, so that it can be applied once for all epochs.
    """

    def decorate(factory):
        if name in _REGISTRY:
            raise ValueError(f"A preprocessing op named {name!r} is registered already.")
        _REGISTRY[name] = _Entry(name, factory, device, whole_batch, deterministic)
        return factory

    return decorate


def register_on_device(name: str):
    """Registers the decorated factory as the twin on the device of the host op `name`.

    It takes the same arguments. Its ops take a batch of jax arrays and a jax key, are traceable, draw for
    each example from the distribution of the host op, and leave uint8 as uint8. What it cannot do there it
    refuses by a UserError.
    """

    def decorate(factory):
        if name in _ON_DEVICE:
            raise ValueError(f"A preprocessing op named {name!r} is registered on the device already.")
        _ON_DEVICE[name] = factory
        return factory

    return decorate


class KeyOp(NamedTuple):
    """An op that writes `apply(value, rng)` of one key to the same or another key."""

    apply: Callable[[Any, Any], Any]
    inkey: str
    outkey: str

    def __call__(self, example: Example, rng: Any) -> Example:
        """Applies it; the given dict stays as it is."""
        return {**example, self.outkey: self.apply(value_of(example, self.inkey), rng)}


def on_key(default: str = "image"):
    """Makes a factory of `apply(value, rng) -> value` a factory of ops, which read and write one key.

    The op takes three more keyword arguments: `inkey` and `outkey`, both `default` unless told, and `key`,
    which stands for both and wins over them.
    """

    def decorate(factory):
        @functools.wraps(factory)
        def keyed(*args, key=None, inkey=default, outkey=default, **kwargs):
            return KeyOp(factory(*args, **kwargs), key or inkey, key or outkey)

        extra = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value)
            for name, value in (("key", None), ("inkey", default), ("outkey", default))
        ]
        own = list(inspect.signature(factory).parameters.values())
        keyed.__signature__ = inspect.Signature(own + extra)
        return keyed

    return decorate


def value_of(example: Example, key: str) -> Any:
    """Returns `example[key]`, or says which keys there are."""
    try:
        return example[key]
    except KeyError:
        raise UserError(
            f"A preprocessing op reads the key {key!r}, which the example does not have; it has "
            f"{', '.join(map(repr, example))}.{nearest(key, example)}"
        ) from None


class Step(NamedTuple):
    """One op of a string: as written, built, and where it may run."""

    text: str
    op: Op
    device: bool
    whole_batch: bool
    deterministic: bool
    twin: Op | None = None
    """What does the same on the device, for a host op that has such a form."""

    @property
    def runs_on_device(self) -> bool:
        """Whether the op can run on the device, as it is or as its twin."""
        return self.device or self.twin is not None

    @property
    def device_op(self) -> Op:
        """The op as it runs on the device."""
        return self.op if self.twin is None else self.twin


class HostOps:
    """The host's part: `host(example, rng) -> example`. Pickles as its string, for workers to rebuild."""

    def __init__(self, string: str, steps: list[Step], on_device: bool = False):
        self.string, self._on_device = string, on_device
        self.ops = [_on_one_example(step.op) if step.device else step.op for step in steps]

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Applies the ops in order; the given dict stays as it is."""
        example = dict(example)
        for op in self.ops:
            example = op(example, rng)
        return example

    def __reduce__(self):
        return _host_part, (self.string, self._on_device)

    def __repr__(self):
        return f"HostOps({self.string!r})"


class DeviceOps:
    """The device's part: `device(batch, rng) -> batch`, traceable. Each op has its own random stream."""

    def __init__(self, string: str, steps: list[Step], on_device: bool = False):
        self.string, self._on_device = string, on_device
        self.ops = [step.device_op for step in steps]

    def __call__(self, batch: Example, rng) -> Example:
        """Applies the ops in order; `rng` is a jax key."""
        import jax

        batch = dict(batch)
        for index, op in enumerate(self.ops):
            batch = op(batch, jax.random.fold_in(rng, index))
        return batch

    def __reduce__(self):
        return _device_part, (self.string, self._on_device)

    def __repr__(self):
        return f"DeviceOps({self.string!r})"


class Preprocess(NamedTuple):
    """A parsed string: `host(example, rng)` for one example, then `device(batch, rng)` for the batch."""

    host: HostOps
    device: DeviceOps


def parse(string: str | None, *, on_device: bool = False) -> Preprocess:
    """Parses a preprocessing string into its host part and its device part.

    Args:
        string: the ops.
        on_device: for a set that lives on the device: the host part is applied once to each example, so it
            ends with the last op that has no form for the device, and must be deterministic.

    Raises:
        UserError: the syntax, an op's name or an argument is wrong; or an op on the whole batch, such as
            `mixup`, stands before an op that runs on the host; or, with `on_device`, an op that draws does.
    """
    string = string or ""
    if not isinstance(string, str):
        raise UserError(
            f"A preprocessing string must be a string such as 'decode|resize(224)', not {string!r}."
        )
    steps = [_build(piece.strip(), string, on_device) for piece in _split(string) if piece.strip()]
    first_device = len(steps)
    while first_device and (
        steps[first_device - 1].runs_on_device if on_device else steps[first_device - 1].device
    ):
        first_device -= 1
    for step in steps[:first_device]:
        if step.whole_batch:
            raise UserError(
                f"In the preprocessing string {string!r}, {step.text!r} works on the whole batch, on the "
                f"device, but {steps[first_device - 1].text!r}, which runs on the host, follows. Move "
                f"{step.text!r} to the end."
            )
        if on_device and not step.deterministic:
            raise _not_on_device(step, steps[first_device - 1], string)
    return Preprocess(
        HostOps(string, steps[:first_device], on_device), DeviceOps(string, steps[first_device:], on_device)
    )


def _not_on_device(step: Step, last: Step, string: str) -> UserError:
    """What to say of an op that draws, where the host would apply it once for all epochs."""
    if not step.runs_on_device:
        why = f"{step.text!r} draws for each view, but has no form for the device"
        names = sorted({name for name, entry in _REGISTRY.items() if entry.device} | set(_ON_DEVICE))
        other = f" or use ops that have one: {', '.join(names)}"
    else:
        why = (
            f"{step.text!r} draws for each view, but {last.text!r} follows, which has no form for the device"
        )
        other = f" or move {last.text!r} before {step.text!r}"
    return UserError(
        f"In the preprocessing string {string!r}, {why}. Read this set on the host with "
        f"config.input.on_device=False,{other}."
    )


def _host_part(string: str, on_device: bool) -> HostOps:
    return parse(string, on_device=on_device).host


def _device_part(string: str, on_device: bool) -> DeviceOps:
    return parse(string, on_device=on_device).device


def _split(string: str) -> Iterator[str]:
    """Yields the pieces between those `|` that stand outside of quotes."""
    start, quote, escaped = 0, None, False
    for i, char in enumerate(string):
        if escaped:
            escaped = False
        elif quote:
            escaped = char == "\\"
            quote = None if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char == "|":
            yield string[start:i]
            start = i + 1
    yield string[start:]


def _build(piece: str, string: str, on_device: bool) -> Step:
    name, args, kwargs = _parse_call(piece, string)
    entry = _lookup(name, string)
    _check_arguments(name, entry.factory, args, kwargs, piece)
    twin = _ON_DEVICE.get(entry.name) if on_device else None
    try:
        op = entry.factory(*args, **kwargs)
        device_op = twin and twin(*args, **kwargs)
    except (UserError, TypeError, ValueError) as err:
        raise UserError(f"In the preprocessing op {piece!r}: {err}") from err
    return Step(piece, op, entry.device, entry.whole_batch, entry.deterministic, device_op)


def _parse_call(piece: str, string: str) -> tuple[str, list, dict]:
    """Takes `name` or `name(literal, key=literal)` apart without evaluating anything."""
    try:
        node = ast.parse(piece, mode="eval").body
        args, kwargs = [], {}
        if isinstance(node, ast.Call):
            args = [ast.literal_eval(arg) for arg in node.args]
            if any(keyword.arg is None for keyword in node.keywords):
                raise ValueError("** is not a literal")
            kwargs = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
            node = node.func
        return _dotted_name(node), args, kwargs
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise UserError(
            f"Cannot read {piece!r} in the preprocessing string {string!r}: each piece must be the name of "
            "an op, or a call with literal arguments such as resize(224, method='area')."
        ) from None


def _dotted_name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted_name(node.value)}.{node.attr}"
    if isinstance(node, ast.Name):
        return node.id
    raise ValueError("not a name")


@functools.cache
def _load_ops() -> None:
    for module in _OP_MODULES:
        importlib.import_module(f"vitjax.data.{module}")


def _lookup(name: str, string: str) -> _Entry:
    """Finds an op by name; `my_package.my_module.my_op` imports the module that registers it first."""
    _load_ops()
    if name in _REGISTRY:
        return _REGISTRY[name]
    module, _, short = name.rpartition(".")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as err:
            raise UserError(
                f"The preprocessing string {string!r} names the op {name!r}, but {module!r} cannot be "
                f"imported: {err}."
            ) from err
        for candidate in (name, short):
            entry = _REGISTRY.get(candidate)
            if entry and (candidate == name or entry.factory.__module__ == module):
                return entry
    raise UserError(
        f"There is no preprocessing op {name!r} (in {string!r}).{nearest(name, _REGISTRY)} "
        f"Known: {', '.join(sorted(_REGISTRY))}."
    )


def _check_arguments(name: str, factory: Callable, args: list, kwargs: dict, piece: str) -> None:
    """Holds the arguments against the factory's signature, and says what is wrong in the user's terms."""
    signature = inspect.signature(factory)
    parameters = signature.parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for key in kwargs:
        if key not in named and not takes_any:
            valid = f"It takes {', '.join(named)}." if named else "It takes no arguments by name."
            raise UserError(
                f"The preprocessing op {name!r} has no argument {key!r} (in {piece!r})."
                f"{nearest(key, named)} {valid}"
            )
    try:
        signature.bind(*args, **kwargs)
    except TypeError as err:
        raise UserError(f"The preprocessing op {piece!r} does not fit {name}{signature}: {err}.") from None


def _on_one_example(op: Op) -> Op:
    """Lets the host call a device op, which expects a batch, on one example: on a batch of one."""

    @functools.wraps(op)
    def on_host(example, rng):
        batch = {
            key: value if _is_opaque(value) else np.asarray(value)[None] for key, value in example.items()
        }
        batch = op(batch, rng)
        return {key: value if _is_opaque(value) else value[0] for key, value in batch.items()}

    return on_host


def _is_opaque(value: Any) -> bool:
    """Bytes, strings and nested structures have no example axis; device ops can only carry them along."""
    return not isinstance(value, np.ndarray | np.generic | int | float)
