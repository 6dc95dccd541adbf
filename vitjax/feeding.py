"""The two ways in which steps get their batches: one by one from the host, or many at once on the devices.

Either has `take(most) -> Dispatch`, which waits for data and nothing else; `run(state, dispatch) -> (state,
metrics)`, which hands it to the devices and does not wait; `skipped` and `close()`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from vitjax import sharding
from vitjax.experiment import Experiment
from vitjax.metrics import WallTime
from vitjax.train_state import TrainState


class Dispatch(NamedTuple):
    """Steps that are handed to the devices together.

    Attributes:
      count: how many.
      ids: `ids(step)`, the examples of one of them, as indices into the source.
      batch: on the devices, from the host; None where the devices make theirs.
    """

    count: int
    ids: Callable[[int], np.ndarray]
    batch: dict[str, jax.Array] | None = None


class FromHost:
    """Batches that the host makes and sends ahead; a dispatch is one step."""

    def __init__(self, run: Experiment, start_step: int):
        self._loader = run.batches(start_step)
        self._batches = sharding.prefetch(self._loader, run.mesh)
        self._step = run.train_step()

    def take(self, most: int) -> Dispatch:
        """Waits for the next batch."""
        host_batch, batch = next(self._batches)
        return Dispatch(1, lambda step: host_batch["_id"], batch)

    def run(self, state: TrainState, dispatch: Dispatch) -> tuple[TrainState, dict]:
        """Hands one step over; metrics are scalars."""
        assert dispatch.batch is not None
        return self._step(state, dispatch.batch)

    @property
    def skipped(self) -> int:
        """Broken examples that were replaced so far."""
        return self._loader.skipped

    def close(self) -> None:
        """Stops threads and worker processes of the input."""
        self._loader.close()


class OnDevice:
    """A set that lies on the devices: a dispatch is as many steps as the pace allows."""

    def __init__(self, run: Experiment, wall: WallTime, tell: Callable[[str], None]):
        data, self._loaded = run.load_on_device(tell)
        self._steps = run.train_steps(data)
        self._order, self._seed = data.order, data.seed
        # Processes have to choose the same number, so where there are several, no clock may say it.
        adapt = jax.process_count() == 1
        self._pace = Pace(run.input.steps_per_dispatch, lambda: wall.split()["step"], adapt=adapt)

    def take(self, most: int) -> Dispatch:
        """Chooses the number of steps, `most` at most; there is nothing to wait for."""
        return Dispatch(min(most, self._pace.next()), self._ids)

    def run(self, state: TrainState, dispatch: Dispatch) -> tuple[TrainState, dict]:
        """Hands the steps over; metrics are arrays with an entry a step, and some more behind these."""
        return self._steps(state, dispatch.count)

    @property
    def skipped(self) -> int:
        """Broken examples that were replaced when the set was read."""
        return self._loaded.skipped

    def close(self) -> None:
        """Nothing to close."""

    def _ids(self, step: int) -> np.ndarray:
        return self._loaded.ids[self._order.indices(step - 1, self._seed)]


def open_feed(run: Experiment, start_step: int, wall: WallTime, tell: Callable[[str], None]) -> Any:
    """Returns the `FromHost` or `OnDevice` that the config asks for."""
    return OnDevice(run, wall, tell) if run.input.on_device else FromHost(run, start_step)


class Pace:
    """How many steps to hand over at once.

    One at first, which is compiled, then twice as many each time while a dispatch takes less than `SECONDS`,
    half as many when it takes more than four times that: signals, the log and a loss that is not finite are
    seen between dispatches, and three of these may be under way.
    """

    SECONDS = 0.25

    def __init__(self, most: int, clock: Callable[[], float], *, adapt: bool = True):
        """Starts with one step.

        Args:
          most: never more than this.
          clock: seconds that were spent in steps so far. The loop waits for the devices two dispatches
            behind, so between two calls as much passes as one dispatch takes.
          adapt: False: `most` from the second dispatch on.
        """
        self._most, self._clock, self._adapt = most, clock, adapt
        self._count, self._last = 0, 0.0

    def next(self) -> int:
        """The number of steps to hand over now."""
        now = self._clock()
        seconds, self._last = now - self._last, now
        if self._count == 0:
            self._count = 1
        elif not self._adapt or seconds < self.SECONDS:
            self._count = min(self._most, 2 * self._count if self._adapt else self._most)
        elif seconds > 4 * self.SECONDS:
            self._count = max(1, self._count // 2)
        return self._count
