"""Checkpoints: the whole train state on disk, checked leaf by leaf when it comes back.

Here is what happens to the checkpoints of a run: which are kept, whose they are, which one is gone back to
when one is damaged, and errors a user can act on. A single checkpoint is the matter of `checkpoint_files`.

On disk, below the checkpointer's directory:

    <step>/             one whole checkpoint, renamed into place when all of it is written
    damaged-<step>/     moved aside by `restore`, never deleted
    *.orbax-checkpoint-tmp, deleting-*    half-written, half-deleted; swept at the next start
"""

import concurrent.futures
import contextlib
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from vitjax import checkpoint_files as files
from vitjax.errors import UserError


class Checkpointer:
    """Saves and restores the state of one run in one directory.

    Every process of a multi-host run makes every call; process 0 alone sweeps, renames and deletes. Close it
    (or use it as a context manager) before the interpreter exits, or the save under way may be lost.

    Args:
      directory: where the run's checkpoints live; created if missing.
      fingerprint: what the run is, as JSON: those parts of the resolved config that must not change between
        saving and resuming.
      keep_last: how many of the newest checkpoints are kept, at least 1.
      keep_best: how many of the best by `best_metric` are kept beside them.
      best_metric: a name among the metrics given to `save`: "val/prec@1" or "max:val/prec@1" (more is
        better), "min:val/loss" (less is better). None: none is best.
      keep_every: checkpoints at multiples of this many steps are permanent.
      remedy: last sentence of the error about another config or another tree.
      warn: takes a line of text; stderr by default.

    Raises:
      UserError: the directory cannot be written, or holds the checkpoints of another config.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        fingerprint: Mapping[str, Any],
        keep_last: int = 1,
        keep_best: int = 1,
        best_metric: str | None = None,
        keep_every: int | None = None,
        remedy: str = "Give another --workdir, or set these back.",
        warn: Callable[[str], None] = lambda text: print(f"warning: {text}", file=sys.stderr, flush=True),
    ):
        if keep_last < 1:
            raise UserError(f"keep_last={keep_last}: the newest checkpoint must be kept, so 1 or more.")
        self.directory = files.absolute(directory)
        self._fingerprint = json.loads(json.dumps(fingerprint))  # as it is read back: tuples become lists
        self._keep_last, self._keep_best, self._keep_every = keep_last, keep_best, keep_every
        mode, _, name = (best_metric or "").partition(":")
        self._best_metric = name if mode in ("max", "min") else best_metric
        self._best_sign = -1 if mode == "min" else 1
        self._remedy, self._warn = remedy, warn
        self._known = -1  # newest step that this object saved or restored
        self._pending: concurrent.futures.Future[None] | None = None
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        if jax.process_index() == 0:
            self._check_writable()
        self._check_fingerprint()
        self._sweep()
        _sync("checkpoint directory is ready")

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if error is None:
            return self.close()
        # The other processes may not come here, so they are not waited for; and the error on its way out is
        # the one to be seen.
        self._pool.shutdown()
        pending, self._pending = self._pending, None
        if pending is not None and (late := pending.exception()):
            self._warn(str(late))

    def steps(self) -> list[int]:
        """The committed steps on disk, ascending. Their bytes are not looked at."""
        return _steps(self.directory)

    def latest_step(self) -> int | None:
        """The newest of `steps()`, or None."""
        return max(self.steps(), default=None)

    def save(
        self,
        step: int,
        state: Any,
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts to write `state` as the checkpoint of `step`; returns when the state may be donated.

        By then the checksums are on the host and the arrays copied (or, on CPU, held, so that their donation
        turns into a copy). A save still under way is waited for first. Nothing happens at a step that this
        object has saved or restored before.

        Args:
          step: number of updates done.
          state: pytree of jax arrays (of any sharding; typed PRNG keys too), numpy arrays, Python numbers
            and None.
          metrics: name -> number, kept with the checkpoint; NaN is never best.

        Raises:
          UserError: the save before this one failed, or this one cannot begin, or the directory holds a
            checkpoint of this step or a later one that was not restored.
        """
        self.wait()
        newest = self.latest_step()
        if newest is not None and step <= newest:
            if step <= self._known:
                return
            raise UserError(
                f"{self.directory} holds a checkpoint of step {newest}, which this run, about to save step"
                f" {step}, has not restored. Restore it first, or give another --workdir."
            )
        try:
            response = files.write(
                self.directory / str(step),
                state,
                step=int(step),
                fingerprint=self._fingerprint,
                metrics={name: float(value) for name, value in (metrics or {}).items()},
            )
        except OSError as e:
            raise self._failure(step, e) from e
        self._known = step
        self._pending = self._pool.submit(self._finish, step, response)

    def restore(self, abstract_state: Any) -> tuple[int, Any] | None:
        """Loads the newest whole checkpoint; None if there is no checkpoint at all.

        Damaged ones before it are named to `warn`, each with its first damaged leaf, and moved aside to
        `damaged-<step>`.

        Args:
          abstract_state: the tree to fill: `jax.ShapeDtypeStruct` with sharding (of any mesh) for jax arrays;
            numpy arrays and Python numbers stand for their like.

        Raises:
          UserError: the checkpoint holds another tree, or no checkpoint is whole.
        """
        self.wait()
        wanted = files.named_leaves(abstract_state)
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            leaves, complaint = self._read(self.directory / str(step), wanted)
            if not complaint:
                self._set_aside(damaged, step)
                self._known = step
                asked, structure = jax.tree.flatten(abstract_state)
                return step, structure.unflatten(map(files.as_asked, asked, leaves.values()))
            damaged[step] = complaint
        if not damaged:
            return None
        told = "; ".join(f"step {step}: {complaint}" for step, complaint in damaged.items())
        raise UserError(
            f"No checkpoint in {self.directory} is whole ({told}). Nothing there was changed. Put back an"
            " undamaged copy, or move the directory away to start at step 0."
        )

    def _read(self, path: epath.Path, wanted: files.Leaves) -> tuple[files.Leaves, str]:
        """The leaves, or what is wrong with them."""
        saved, complaint = {}, ""
        try:
            saved = files.read_record(path)["leaves"]
        except files.DamagedError as e:
            complaint = str(e)
        if not files.everywhere(not complaint):
            return {}, complaint or "another process cannot read its record"
        if told := files.difference(saved, wanted):
            raise UserError(f"{path} holds another state than this run's: {told}. {self._remedy}")
        try:
            return files.read(path, saved, wanted), ""
        except files.DamagedError as e:
            return {}, str(e)

    def wait(self) -> None:
        """Blocks until the last save is committed and old ones are deleted. UserError if it failed."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        concurrent.futures.wait([pending])
        error = pending.exception()
        # Asking the others also keeps them from looking at the directory while process 0 still deletes.
        if not files.everywhere(error is None):
            raise error or UserError("Another process could not save its part of the checkpoint.")

    def close(self) -> None:
        """Waits for the last save and ends the background thread. UserError if that save failed."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def _finish(self, step: int, response: Any) -> None:
        """The background thread's part of a save."""
        try:
            response.result()
        except Exception as e:
            raise self._failure(step, e) from e
        if jax.process_index() == 0:
            try:
                self._prune()
            except OSError as e:
                self._warn(f"cannot delete old checkpoints in {self.directory}: {e}")

    def _failure(self, step: int, error: Exception) -> UserError:
        """Tells of a save that failed, after clearing away what it left."""
        newest = self.latest_step()
        self._known = -1 if newest is None else newest
        self._sweep()
        good = "nothing was saved before" if newest is None else f"step {newest} is the last good one"
        return UserError(
            f"Cannot save the checkpoint of step {step} to {self.directory / str(step)}:"
            f" {files.brief(error)}. {_free_space(self.directory)} are free there; {good}. Make room or mend"
            " the disk, then start the same command again: it goes on from the last good one."
        )

    def _prune(self) -> None:
        steps = self.steps()
        keep = set(steps[-self._keep_last :])
        ranked = []
        for step in steps:
            try:
                metrics = files.read_record(self.directory / str(step))["metrics"]
            except (files.DamagedError, UserError):
                keep.add(step)  # nothing that is not understood is deleted
                continue
            value = metrics.get(self._best_metric, math.nan)
            if not math.isnan(value):
                ranked.append((self._best_sign * value, step))  # of equals, the newer is better
            if self._keep_every and step % self._keep_every == 0:
                keep.add(step)
        keep |= {step for _, step in sorted(ranked, reverse=True)[: self._keep_best]}
        for step in set(steps) - keep:
            _delete(self.directory / str(step))

    def _sweep(self) -> None:
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):  # a leftover does no harm
                for path in self.directory.iterdir():
                    if ".orbax-checkpoint-tmp" in path.name or path.name.startswith("deleting-"):
                        path.rmtree(missing_ok=True)

    def _check_writable(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if "://" not in str(self.directory):
                tempfile.TemporaryFile(dir=self.directory).close()
        except OSError as e:
            raise UserError(
                f"Cannot write checkpoints to {self.directory}: {e.strerror or e}. Give a --workdir that you"
                " may write to."
            ) from e

    def _check_fingerprint(self) -> None:
        for step in reversed(self.steps()):
            try:
                there = _flat(files.read_record(self.directory / str(step))["fingerprint"])
            except files.DamagedError:
                continue
            here = _flat(self._fingerprint)
            told = [
                f"{key} is {here.get(key, '(absent)')} now, {there.get(key, '(absent)')} there"
                for key in sorted(here | there)
                if here.get(key) != there.get(key)
            ]
            if told:
                raise UserError(
                    f"{self.directory} holds checkpoints of another config: {files.some(told, '; ')}."
                    f" {self._remedy}"
                )
            return

    def _set_aside(self, damaged: Mapping[int, str], used: int) -> None:
        targets = {}
        for step in damaged:
            targets[step], n = self.directory / f"damaged-{step}", 1
            while targets[step].exists():
                targets[step], n = self.directory / f"damaged-{step}-{n + 1}", n + 1
        _sync("names for damaged checkpoints are found")
        for step, complaint in damaged.items():
            if jax.process_index() == 0:
                (self.directory / str(step)).rename(targets[step])
            self._warn(
                f"the checkpoint of step {step} is damaged: {complaint}. Going on from step {used};"
                f" the damaged one is now {targets[step]}."
            )
        _sync("damaged checkpoints are set aside")


def load_params(path: epath.PathLike, key: str = "params", beside: Sequence[str] = ()) -> dict[str, Any]:
    """Loads one subtree of a saved state, for evaluation and transfer.

    Args:
      path: a checkpointer's directory (its newest checkpoint is taken) or one `<step>` folder in it.
      key: the subtree's name, e.g. "params", "ema_params", "model_state".
      beside: parts of the state whose leaves, if there are any, are put among those of the subtree by their
        names below them, e.g. "model_state/batch_stats".

    Returns:
      A nested dict of numpy arrays, each compared with its checksum.

    Raises:
      UserError: there is no checkpoint, or it has no such subtree, or a leaf of it is damaged.
    """
    path = files.absolute(path)
    if steps := _steps(path):
        path = path / str(steps[-1])
    if not files.is_checkpoint(path):
        raise UserError(
            f"There is no checkpoint at {path}. Give the folder of a run's checkpoints, or one in it."
        )
    try:
        saved = files.read_record(path)["leaves"]
        wanted = {
            name: np.zeros(shape, jax.numpy.dtype(dtype))
            for name, (dtype, shape, _) in saved.items()
            if name.split("/")[0] == key or any(name.startswith(f"{part}/") for part in beside)
        }
        if not any(name.split("/")[0] == key for name in wanted):
            have = ", ".join(sorted({name.split("/")[0] for name in saved}))
            raise UserError(f"The checkpoint {path} has no {key!r} in it, but {have}.")
        leaves = files.read(path, saved, wanted)
        for part in beside:
            leaves = {
                f"{key}/{name.removeprefix(f'{part}/')}" if name.startswith(f"{part}/") else name: leaf
                for name, leaf in leaves.items()
            }
        return files.nest(leaves)[key]
    except files.DamagedError as e:
        raise UserError(f"The checkpoint {path} is damaged: {e}. Take another one of that run.") from e


def _steps(directory: epath.Path) -> list[int]:
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())


def _delete(path: epath.Path) -> None:
    """Renames first: a run killed half-way leaves nothing that looks like a checkpoint."""
    path.rename(path.parent / f"deleting-{path.name}").rmtree()


def _sync(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """`{"model.name": "'vit_s32'"}`: dotted keys and the text of their values."""
    flat = {}
    for key, value in tree.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": repr(value)}
        )
    return flat


def _free_space(directory: epath.Path) -> str:
    try:
        return f"{shutil.disk_usage(directory).free / 1e6:,.1f} MB"
    except OSError:
        return "Unknown amounts"
