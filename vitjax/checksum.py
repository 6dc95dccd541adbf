"""One number per array that shows when an array has changed; the same for any sharding and on any host."""

import zlib
from collections.abc import Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

_Words = TypeVar("_Words", jax.Array, np.ndarray)  # uint32


def checksums(leaves: Iterable[Any]) -> list[int]:
    """uint32 checksum of each jax or numpy array, as Python ints; on the host when this returns.

    It is the sum, modulo 2^32, of a hash of each 32-bit word and its position (16- and 8-bit elements count
    as words of their own). Whole numbers add up the same in any order, so sharding does not matter; the hash
    is invertible, so a change of a single word always shows.
    """
    sums = [_on_device(x) if isinstance(x, jax.Array) else _on_host(x) for x in leaves]
    return [int(x) for x in jax.device_get(sums)]  # all are under way before the first is waited for


def checksum(tree: Any) -> int:
    """One uint32 for all leaves of a pytree, by name."""
    named = sorted((jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(tree))
    sums = checksums(leaf for _, leaf in named)
    text = ";".join(f"{name}={number}" for (name, _), number in zip(named, sums, strict=True))
    return zlib.crc32(text.encode())


@jax.jit
def _on_device(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    x = x.astype(jnp.uint8) if x.dtype == bool else x
    width = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    words = jax.lax.bitcast_convert_type(x, width).astype(
        jnp.uint32
    )  # of 8 bytes: two words, a new last axis
    position = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):  # no ravel: a reshape would gather a sharded array
        position = position * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.sum(_hash(words, position), dtype=jnp.uint32)


def _on_host(x: np.ndarray) -> np.uint32:
    width = {1: np.uint8, 2: np.uint16}.get(x.dtype.itemsize, np.uint32)
    words = np.ascontiguousarray(x).reshape(-1).view(width).astype(np.uint32)
    return np.sum(_hash(words, np.arange(words.size, dtype=np.uint32)), dtype=np.uint32)


def _hash(words: _Words, position: _Words) -> _Words:
    """Mixes word and position by the finalizer of MurmurHash3 (public domain)."""
    h = words ^ (position * np.uint32(2654435761))
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return h ^ (h >> np.uint32(16))
