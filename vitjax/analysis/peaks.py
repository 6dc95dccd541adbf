"""What a device can do at best: FLOP/s by kind of device, from its maker's data sheet."""

import pathlib
import platform
import re

NVIDIA, CLOUD_TPU = "https://www.nvidia.com/en-us/data-center", "https://cloud.google.com/tpu/docs"

# TFLOP/s of one jax device: bfloat16 on matrix units, float32 rounded to TF32 or bfloat16 before it is
# multiplied (what XLA does with float32 by default on these devices), and exact float32. Dense: data sheets
# of NVIDIA give tensor cores twice these numbers, "with sparsity". None: the device has no such unit, or its
# maker gives no number. The device kind of jax has to match the regular expression as a whole.
PEAKS = (
    ("NVIDIA H200", 989.4, 494.7, 66.9, f"{NVIDIA}/h200"),
    ("NVIDIA H100 80GB HBM3", 989.4, 494.7, 66.9, f"{NVIDIA}/h100"),
    ("NVIDIA H100 PCIe", 756.0, 378.0, 51.0, f"{NVIDIA}/h100"),
    ("(NVIDIA )?A100-(SXM4|PCIE)-.*", 312.0, 156.0, 19.5, f"{NVIDIA}/a100"),
    ("NVIDIA A100.*", 312.0, 156.0, 19.5, f"{NVIDIA}/a100"),
    ("NVIDIA L4", 121.0, 60.0, 30.3, f"{NVIDIA}/l4"),
    ("(Tesla|NVIDIA) V100-SXM.*", None, 15.7, 15.7, f"{NVIDIA}/v100"),
    ("(Tesla|NVIDIA) T4", None, 8.1, 8.1, f"{NVIDIA}/tesla-t4"),
    ("TPU v2", 22.5, 22.5, None, f"{CLOUD_TPU}/v2"),  # a jax device is one of two cores here and in v3
    ("TPU v3", 61.5, 61.5, None, f"{CLOUD_TPU}/v3"),
    ("TPU v4", 275.0, 275.0, None, f"{CLOUD_TPU}/v4"),
    ("TPU v5 lite|TPU v5e", 197.0, 197.0, None, f"{CLOUD_TPU}/v5e"),
    ("TPU v5p?", 459.0, 459.0, None, f"{CLOUD_TPU}/v5p"),
    ("TPU v6 lite|TPU v6e", 918.0, 918.0, None, f"{CLOUD_TPU}/v6e"),
)

_EXACT = ("highest", "float32")


def known_peak(device_kind: str, dtype: str, precision: str | None = None) -> tuple[float, str] | None:
    """Peak FLOP/s of one device and where that is written; None for a device that `PEAKS` does not know.

    Args:
      device_kind: `jax.Device.device_kind`; a part of a GPU (MIG) is none of its kind.
      dtype: of matrix products, `bfloat16` or `float32`.
      precision: jax's default matmul precision, which says how exact products in float32 are.
    """
    for kind, bfloat16, rounded, float32, source in PEAKS:
        if re.fullmatch(kind, device_kind) and "MIG" not in device_kind:
            by_float32 = float32 if precision in _EXACT else rounded
            teraflops = bfloat16 if dtype == "bfloat16" else by_float32
            return None if teraflops is None else (teraflops * 1e12, source)
    return None


def processor() -> str:
    """The kind of this machine's processor."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def free_memory() -> int | None:
    """Bytes of this machine's memory that a program may still take; None where the system does not say."""
    meminfo = pathlib.Path("/proc/meminfo")
    if meminfo.exists() and (found := re.search(r"MemAvailable: +(\d+) kB", meminfo.read_text())):
        return 1024 * int(found[1])
    return None
