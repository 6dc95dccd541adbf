"""SIGTERM and ctrl-C: finish the step, save, leave. A second ctrl-C ends the process at once."""

import os
import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Preempted:
    """Says after each step whether the run has been told to stop.

    Create it in the main thread and before `jax.distributed.initialize`, which then takes SIGTERM over:

        with Preempted() as preempted:
            for step in ...:
                state = update(state)
                if preempted(step):
                    checkpointer.save(step, state)
                    break

    With `jax.distributed` all processes hear of it at the same later step, so that they save the same one;
    every process must ask after the same steps. The old signal handlers come back on leaving the context.
    """

    def __init__(self):
        self._flag = threading.Event()
        self._asked = 0
        # What the process is to exit with if it was told to stop: 128 and the signal, as shells say.
        self.exit_code = 128 + signal.SIGTERM
        self._old = {
            signal.SIGTERM: signal.signal(signal.SIGTERM, self._on_sigterm),
            signal.SIGINT: signal.signal(signal.SIGINT, self._on_sigint),
        }

    def __call__(self, step: int) -> bool:
        """True if the run is to save its state of `step` and leave."""
        if jax.distributed.is_initialized():
            # It agrees on a number that is to come, so none may be left out, as steps are in one dispatch.
            self._asked += 1
            return multihost_utils.reached_preemption_sync_point(self._asked)
        return self._flag.is_set()

    def __enter__(self) -> "Preempted":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Puts back the signal handlers that were there before."""
        for number, handler in self._old.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        self._flag.set()

    def _on_sigint(self, number: int, frame: FrameType | None) -> None:
        self.exit_code = 128 + signal.SIGINT
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the second one is the operating system's business
        # Not print: a handler may come in the middle of one.
        os.write(2, b"Interrupted: finishing this step and saving. Ctrl-C again leaves at once.\n")
        if jax.distributed.is_initialized():
            os.kill(os.getpid(), signal.SIGTERM)  # the way to tell the other processes
        self._flag.set()
