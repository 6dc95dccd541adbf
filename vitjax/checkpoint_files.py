"""One checkpoint: a state, leaf by leaf, in one folder, with a record that tells whether it is whole.

This is the only file that knows Orbax, which writes the arrays (asynchronously, sharded, atomically). It is
imported when first needed: it costs a second or two.

    <path>/state/                the arrays, as a nested dict of plain names
    <path>/_CHECKPOINT_METADATA  JSON; `custom_metadata` is our record: what `write` was given, and with it
                                 `leaves` (name: [dtype, shape, checksum]), `format`, and a `crc` of all these
"""

import contextlib
import functools
import gc
import json
import logging
import os
import sys
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from vitjax.checksum import checksums
from vitjax.errors import UserError

FORMAT = 1
_RECORD = "_CHECKPOINT_METADATA"
Leaves = dict[str, Any]  # "params/head/kernel" -> array or ShapeDtypeStruct, in tree order


def absolute(path: epath.PathLike) -> epath.Path:
    """The same path, absolute as Orbax wants it; `scheme://` paths are so already."""
    return epath.Path(path if "://" in str(path) else os.path.abspath(os.path.expanduser(path)))


def is_checkpoint(path: epath.Path) -> bool:
    """Whether a whole or damaged checkpoint lies here, rather than none."""
    return (path / _RECORD).exists()


class DamagedError(Exception):
    """What is wrong with one checkpoint; names the first damaged leaf."""


def write(path: epath.Path, state: Any, **about: Any) -> Any:
    """Starts to write `state`; returns when it may be donated. The result's `.result()` waits for the rest.

    The record is `about`, which must be JSON, and the name, type, shape and checksum of each leaf.
    """
    leaves = named_leaves(state)
    sums = checksums(leaves.values())
    record = about | {
        "format": FORMAT,
        "leaves": {n: [*_signature(x), c] for (n, x), c in zip(leaves.items(), sums, strict=True)},
    }
    record["crc"] = _crc(record)
    return _orbax().save_checkpointables_async(path, {"state": nest(leaves)}, custom_metadata=record)


def read_record(path: epath.Path) -> dict[str, Any]:
    """Our part of a checkpoint's metadata. DamagedError, or UserError for a format of the future."""
    file = path / _RECORD
    try:
        record = json.loads(file.read_text())["custom_metadata"]
        whole = record.pop("crc") == _crc(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise DamagedError(f"its {file.name} cannot be read ({brief(e)})") from e
    if not whole:
        raise DamagedError(f"its {file.name} does not match its own checksum")
    if record["format"] > FORMAT:
        raise UserError(f"{path} is of a newer vitjax (checkpoint format {record['format']}). Update vitjax.")
    return record


def read(path: epath.Path, saved: Leaves, wanted: Leaves) -> Leaves:
    """The wanted leaves, compared with their checksums. DamagedError names the first bad one.

    All processes must call this together; what one cannot read is damaged for all.
    """
    leaves, complaint = _try_orbax(path, saved, wanted)
    if not everywhere(not complaint):
        for name, x in wanted.items():
            _, of_leaf = _try_orbax(path, saved, {name: x})
            if not everywhere(not of_leaf):
                raise DamagedError(f"leaf {name} cannot be read ({of_leaf or 'by another process'})")
        raise DamagedError(f"it cannot be read ({complaint or 'by another process'})")
    sums = checksums(leaves.values())
    # The type too: Orbax hands a typed PRNG key back as plain numbers if the file that says so is gone.
    changed = [n for (n, x), c in zip(leaves.items(), sums, strict=True) if [*_signature(x), c] != saved[n]]
    if not everywhere(not changed):
        raise DamagedError(f"leaf {changed[0] if changed else 'of a process'} does not match its checksum")
    return leaves


def everywhere(ok: bool) -> bool:
    """Whether it is ok in all processes; all must ask."""
    return ok if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.asarray(ok)).all())


def difference(saved: Leaves, wanted: Leaves) -> str:
    """In what the leaves of a record do not fit the wanted ones, for an error message; empty if they do."""
    other = [n for n in wanted if n in saved and not _fits(saved[n], wanted[n])]
    told = {
        "missing there": [name for name in wanted if name not in saved],
        "only there": [name for name in saved if name not in wanted],
        "different": [f"{n} ({_show(*saved[n])} there, {_show(*_signature(wanted[n]))} now)" for n in other],
    }
    return "; ".join(f"{what}: {some(names)}" for what, names in told.items() if names)


def named_leaves(tree: Any) -> Leaves:
    """The leaves of a tree by name. None is no leaf; Python numbers become numpy arrays of 64 bits."""
    named = {}
    for path, leaf in jax.tree.flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        named[name] = leaf if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) else np.asarray(leaf)
        if str(named[name].dtype).startswith(("object", "<U", "|S")):
            raise TypeError(f"the leaf {name} of the state is {leaf!r}, which is neither array nor number")
    return named


def nest(leaves: Leaves) -> dict[str, Any]:
    """Plain nested dicts, so that nothing on disk depends on the classes of optax or our own."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)[last] = leaf
    return tree


def _signature(leaf: Any) -> tuple[str, list[int]]:
    return str(leaf.dtype), list(leaf.shape)


def _fits(saved: list[Any], leaf: Any) -> bool:
    """Equal type and shape; what was a Python number also fits a scalar of its kind."""
    dtype, shape = _signature(leaf)
    number = shape == [] and saved[0] in ("int64", "float64") and saved[0][0] == dtype[0]
    return saved[1] == shape and (saved[0] == dtype or number)


def as_asked(asked: Any, leaf: Any) -> Any:
    """A leaf as it was read -> jax array, numpy array or Python number."""
    if isinstance(asked, bool | int | float):
        return leaf.item()
    if isinstance(asked, jax.Array | jax.ShapeDtypeStruct) and not isinstance(leaf, jax.Array):
        return jax.device_put(leaf.astype(asked.dtype), asked.sharding)
    return leaf


def brief(error: BaseException) -> str:
    """One short line about the root of an error."""
    while cause := error.__cause__ or error.__context__:
        error = cause  # Orbax wraps what happened in what it was doing
    text = " ".join(str(error).split()).split(" [tensorstore_spec")[0]
    return f"...{text[-250:]}" if len(text) > 250 else text or type(error).__name__


def some(names: list[str], separator: str = ", ", most: int = 6) -> str:
    """The first few of them, joined, and how many more there are."""
    return separator.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@functools.cache
def _orbax() -> Any:
    """Orbax, imported when first needed; without its stack traces in the log, since we tell of its errors."""
    from orbax.checkpoint import v1

    logging.getLogger("absl").addFilter(lambda line: not (line.exc_info and "orbax" in line.pathname))
    _drop_late_callbacks()
    return v1


def _drop_late_callbacks() -> None:
    """Keeps quiet about writes that end after the one that failed first.

    TensorStore's threads then report to an event loop that is closed already, each with a stack trace of its
    own as an error that nobody can raise, where the user should see one sentence.
    """
    show = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        error, trace = unraisable.exc_value, unraisable.exc_traceback
        late = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
        if not (late and trace and trace.tb_frame.f_code.co_name == "call_soon_threadsafe"):
            show(unraisable)

    sys.unraisablehook = hook


def _try_orbax(path: epath.Path, saved: Leaves, wanted: Leaves) -> tuple[Leaves, str]:
    """The leaves, or why they cannot be read.

    Waits for no other process, since one that stumbles would leave the rest waiting. But Orbax counts its
    calls, and all processes must make as many: so none may be skipped where another process makes it.
    """
    with _hushed():
        try:
            return _load_orbax(path, saved, wanted), ""
        except Exception as e:
            if isinstance(e, MemoryError) or "RESOURCE_EXHAUSTED" in str(e):
                raise  # this machine's trouble, not the file's
            complaint = brief(e)
        gc.collect()
    return {}, complaint


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """No stack traces of pieces that a failed load leaves hanging, when they are freed in here."""
    log, hook = logging.getLogger("asyncio"), sys.unraisablehook
    log.disabled, sys.unraisablehook = True, lambda _: None
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        log.disabled, sys.unraisablehook = False, hook


def _load_orbax(path: epath.Path, saved: Leaves, wanted: Leaves) -> Leaves:
    ocp = _orbax()
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract: Leaves = dict.fromkeys(saved, ocp.PLACEHOLDER)
    for name, x in wanted.items():
        if str(x.dtype) != saved[name][0]:
            x = np.zeros((), saved[name][0])  # was a Python number; `as_asked` makes it what is wanted
        elif isinstance(x, jax.Array | jax.ShapeDtypeStruct):
            x = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or device)
        abstract[name] = x
    context = ocp.Context()
    context.multiprocessing.primary_host = jax.process_index()
    context.multiprocessing.active_processes = {jax.process_index()}
    context.multiprocessing.barrier_sync_key_prefix = f"process_{jax.process_index()}"
    with context:
        tree = ocp.load_checkpointables(path, {"state": nest(abstract)})["state"]
    return {name: functools.reduce(lambda node, key: node[key], name.split("/"), tree) for name in wanted}


def _crc(record: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _show(dtype: str, shape: Iterable[int], *_) -> str:
    return f"{dtype}[{','.join(map(str, shape))}]"
