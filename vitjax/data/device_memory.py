"""Does a set of examples fit into the memory of the devices?"""

import math
import os
from collections.abc import Mapping
from typing import Any

from vitjax.errors import UserError


def check_fits(what: str, rows: int, row: Mapping[str, Any], sharding: Any, remedy: str) -> None:
    """Refuses a set that is larger than what is free on one of this process's devices now.

    What a training step needs besides cannot be known before it is compiled, and is not counted.

    Args:
      what: name of the set, for the message.
      rows: how many examples.
      row: arrays of one example by shape, or of several, with the example axis first.
      sharding: how the rows lie on the devices.
      remedy: what to do instead, the message's last sentence.

    Raises:
      UserError: it says how large the set is and how much is free.
    """
    share = -(-rows // num_shards(sharding))
    need = share * sum(math.prod(leaf.shape[1:]) * leaf.dtype.itemsize for leaf in row.values())
    for device in sharding.addressable_devices:
        free = free_bytes(device)
        if free is not None and need > free:
            raise UserError(
                f"{what}, {rows:,} examples, takes {gib(need)} on each device, but only {gib(free)} are free "
                f"on {device}. {remedy}"
            )


def num_shards(sharding: Any) -> int:
    """In how many parts the first axis of an array is divided."""
    size = len(sharding.device_set)
    return size // sharding.shard_shape((size,))[0]


def free_bytes(device: Any) -> int | None:
    """Memory of a device that is free; of a CPU, its part of what the machine can give; None: unknown."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    if device.platform != "cpu" or (machine := _machine_bytes()) is None:
        return None
    return machine // len(device.client.local_devices())


def _machine_bytes() -> int | None:
    """Memory that processes of this machine can still have; None where the system does not say."""
    try:
        with open("/proc/meminfo") as lines:
            sizes = {name: rest.split()[0] for name, rest in (line.split(":") for line in lines)}
        return int(sizes["MemAvailable"]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def gib(size: int) -> str:
    """Bytes as a person reads them: `1.44 GiB`, or MiB below one."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
