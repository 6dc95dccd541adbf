"""How this process's memory allocator treats freed memory."""

import ctypes
import importlib.util
import os

# mallopt(3): parameters and what they are set to.
_MMAP_MAX, _TRIM_THRESHOLD, _ARENA_MAX = -4, -1, -8


def keep_freed_memory() -> bool:
    """Tells glibc to keep what is freed for the next allocation; returns whether this libc can be told.

    XLA's CPU backend allocates all temporaries of a step anew and frees them after it. By default glibc
    returns blocks of that size to the kernel at once, and the next step faults every page in again: 15-20 %
    of the training step of a ViT-Ti/16. Without mmap, and without arenas of single threads (whose heaps are
    unmapped when they empty), freed memory stays: the process holds its peak until it ends. To be called
    before there are other threads, so before jax is imported. Nothing happens where there is no glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    return all([mallopt(_ARENA_MAX, 1), mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1)])


def jax_runs_on_cpu() -> bool:
    """Whether jax will run on the CPU, as far as can be told before it is imported.

    Elsewhere the device holds the temporaries, and many threads of the input may want arenas of their own.
    """
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return platforms.split(",")[0] == "cpu"
    return not any(importlib.util.find_spec(plugin) for plugin in ("jax_plugins", "libtpu"))
