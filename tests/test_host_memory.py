"""The allocator: what it keeps, and where it is left alone."""

import platform
import subprocess
import sys

import pytest

from vitjax import host_memory

# In a process of its own, because the setting stays.
PAGE_FAULTS = """
import resource, numpy as np
from vitjax.host_memory import keep_freed_memory
assert {keep} is False or keep_freed_memory()
np.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4): np.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is nothing to set without glibc")
def test_large_arrays_are_allocated_without_page_faults():
    def faults(keep):
        command = [sys.executable, "-c", PAGE_FAULTS.format(keep=keep)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults(True) < faults(False) / 4


@pytest.mark.parametrize(
    ("platforms", "installed", "expected"),
    [
        ("cpu", ("libtpu",), True),
        ("cuda,cpu", (), False),
        ("", (), True),
        ("", ("jax_plugins",), False),
        ("", ("libtpu",), False),
    ],
)
def test_the_allocator_is_left_alone_where_there_is_an_accelerator(
    monkeypatch, platforms, installed, expected
):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    find = lambda name: object() if name in installed else None
    monkeypatch.setattr(host_memory.importlib.util, "find_spec", find)
    assert host_memory.jax_runs_on_cpu() is expected
