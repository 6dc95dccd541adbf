"""A random order of any number of things that is computed place by place, without ever making the whole.

The swap-or-not shuffle (Hoang, Morris and Rogaway, CRYPTO 2012, arXiv 1208.1176): each round pairs x with
K - x mod N for a random K and, by a coin that both of a pair share, swaps them or not. Each round is a
bijection of [0, N), so all of them together are, for every N. Nothing has to be sorted, nothing searched for
until it fits. The authors suggest 6 log2(N) rounds, as here.

The coins are those of a 32-bit hash, not of a cipher: good for shuffling, no secret.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

MOST = 2**31
"""More things than this cannot be shuffled: sums of two indices would overflow."""

_GOLDEN = 0x9E3779B9


class Seed(NamedTuple):
    """A seed below 2**63 as two uint32 words, so that it can be an argument of a compiled program."""

    low: Any
    high: Any

    @classmethod
    def of(cls, seed: int) -> "Seed":
        """The words of `seed`."""
        return cls(np.uint32(seed & 0xFFFFFFFF), np.uint32(seed >> 32))


def rounds(size: int) -> int:
    """How many rounds mix `size` things."""
    return max(48, 6 * (size - 1).bit_length())


def shuffled(place: Any, epoch: Any, seed: Seed, size: int) -> Any:
    """Returns which of `size` things stands at `place` in the order of `epoch`.

    Args:
      place: places in `[0, size)`, uint32 array of NumPy or jax.
      epoch: the epochs they are places of, uint32 array of the same shape; each has an order of its own.
      seed: what makes the orders.
      size: number of things, 1 to 2**31.

    Returns:
      uint32 array: for each epoch a permutation. NumPy and jax give the same.
    """
    with np.errstate(over="ignore"):  # words wrap around
        first = _mix(epoch + _mix(seed.low))
        second = _mix(first ^ _mix(seed.high + np.uint32(_GOLDEN)))
        swap_or_not = lambda number, x: _round(x, number * np.uint32(_GOLDEN), first, second, np.uint32(size))
        if isinstance(place, np.ndarray):
            numbers = np.arange(rounds(size), dtype=np.uint32)
            return functools.reduce(lambda x, number: swap_or_not(number, x), numbers, place)
        return _repeat(rounds(size), swap_or_not, place)


def _round(x: Any, number: Any, first: Any, second: Any, size: np.uint32) -> Any:
    """One round of those that `number` tells apart, with two words as the key."""
    word = _mix(first + number)
    other = _less(word % size + size - x, size)
    coin = _mix((_larger(x, other) ^ word) + second)
    return _choose(coin >> np.uint32(31), other, x)


def _repeat(times: int, body: Callable[[Any, Any], Any], start: Any) -> Any:
    """`body(number, x)` for so many numbers: on a CPU mostly a loop, which compiles fast; elsewhere none.

    A GPU would launch a kernel for each turn of a loop.
    """
    import jax

    unroll = 8 if jax.default_backend() == "cpu" else times
    body_of_words = lambda number, x: body(number.astype(np.uint32), x)
    return jax.lax.fori_loop(0, times, body_of_words, start, unroll=unroll)


def _mix(x: Any) -> Any:
    """A bijection of 32-bit words in which every bit of the result depends on every bit of `x`.

    The constants are those of lowbias32 in C. Wellons' hash-prospector (public domain).
    """
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def _less(x: Any, size: np.uint32) -> Any:
    """`x mod size` for x below `2 * size`."""
    return x - size * (x >= size).astype(np.uint32)


def _larger(x: Any, y: Any) -> Any:
    """The larger of two words."""
    return _choose((x > y).astype(np.uint32), x, y)


def _choose(bit: Any, one: Any, zero: Any) -> Any:
    """`one` where the bit is 1, `zero` where it is 0: what `where` would do, for NumPy and jax alike."""
    return zero ^ ((zero ^ one) * bit)
