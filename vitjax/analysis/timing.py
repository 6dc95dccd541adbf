"""The one measuring loop of all speeds: programs in turns, so that a slow minute meets all of them."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of the calls of one program, round by round."""

    rounds: tuple[tuple[float, ...], ...]

    @property
    def calls(self) -> int:
        """Number of calls that were timed."""
        return sum(map(len, self.rounds))

    @property
    def fastest(self) -> float:
        """Seconds of the fastest call."""
        return min(map(min, self.rounds))

    def rates(self, items: int) -> list[float]:
        """Items a second in each round, with `items` in a call."""
        return [items * len(seconds) / sum(seconds) for seconds in self.rounds]

    def rate(self, items: int) -> float:
        """Items a second: the median over rounds."""
        return statistics.median(self.rates(items))

    def percentile(self, percent: float) -> float:
        """Seconds that so many percent of the calls took at most; of few calls, those of the slowest."""
        calls = sorted(seconds for one_round in self.rounds for seconds in one_round)
        return calls[math.ceil(percent * len(calls) / 100) - 1]


def in_turns(
    starts: Mapping[Key, Callable[[], Callable[[], Any]]],
    *,
    rounds: int,
    seconds: float,
    on_round: Callable[[int], None] = lambda done: None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[Key, Times], dict[Key, str]]:
    """Times all programs once a round.

    In its turn a program is started, called once untimed, and then as often as fills `seconds`, at least
    once. What its start allocated is free again before the next one's turn.

    Args:
      starts: `start() -> call` by program; `call()` returns when its work is done.
      rounds: how often each has its turn.
      seconds: of calls in a turn.
      on_round: told the number of rounds done.
      clock: seconds.

    Returns:
      `(times, failed)`: what was timed; and why nothing was of those that raised, which take no further
      turns and cost the others nothing.
    """
    times: dict[Key, list[tuple[float, ...]]] = {key: [] for key in starts}
    failed: dict[Key, str] = {}
    for done in range(rounds):
        for key in [key for key in starts if key not in failed]:
            try:
                times[key].append(_turn(starts[key], seconds, clock))
            except Exception as error:  # one too large for this device, say: the others count on
                failed[key] = reason(error)
        on_round(done + 1)
    return {key: Times(tuple(found)) for key, found in times.items() if key not in failed}, failed


def _turn(
    start: Callable[[], Callable[[], Any]], seconds: float, clock: Callable[[], float]
) -> tuple[float, ...]:
    """Seconds of the calls of one turn."""
    call = start()
    call()
    found: list[float] = []
    begin = last = clock()
    while not found or last - begin < seconds:
        call()
        now = clock()
        found.append(now - last)
        last = now
    return tuple(found)


def reason(error: Exception) -> str:
    """Why a program could not run, in one line: `out of memory` for all the ways in which XLA says that."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower():
        return "out of memory"
    return text[:300] or type(error).__name__
