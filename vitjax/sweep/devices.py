"""Which cores and accelerators of this machine each of several workers gets."""

import dataclasses
import itertools
import os
import pathlib
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from vitjax.errors import UserError
from vitjax.host_memory import jax_runs_on_cpu

# What tells a program which chips are its own, by vendor.
CUDA, ROCM, TPU = "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS"
# Bounds (x,y,z) of the chips of one process on a TPU host.
TPU_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}


@dataclasses.dataclass(frozen=True)
class Share:
    """What one worker may use.

    Attributes:
      cores: numbers of CPU cores; empty where they cannot be told apart.
      environment: variables to set before jax is imported; None takes a variable away.
    """

    cores: Sequence[int] = ()
    environment: Mapping[str, str | None] = dataclasses.field(default_factory=dict)

    def take(self) -> None:
        """Confines this process, and what it starts, to the share. To be called before jax is imported."""
        if self.cores:
            os.sched_setaffinity(0, self.cores)
        for name, value in self.environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def shares(workers: int) -> list[Share]:
    """Deals cores and accelerators out to `workers` workers.

    Cores are dealt in neighbouring runs. With more workers than cores, or than GPUs, several have the same
    one; the memory of a GPU is then divided among them. A TPU chip serves one process only.

    Raises:
      UserError: more workers than TPU chips, or chips that cannot be divided evenly.
    """
    kind, chips = accelerators()
    return [
        Share(cores, _chip_variables(kind, chips, index, workers))
        for index, cores in enumerate(deal(_cores(), workers))
    ]


def deal(things: Sequence, workers: int) -> list[list]:
    """`things` in neighbouring runs, one a worker; with fewer things than workers each has one, in turn."""
    if not things:
        return [[] for _ in range(workers)]
    if len(things) < workers:
        return [[things[index % len(things)]] for index in range(workers)]
    bounds = [round(index * len(things) / workers) for index in range(workers + 1)]
    return [list(things[start:end]) for start, end in itertools.pairwise(bounds)]


def accelerators() -> tuple[str | None, list[str]]:
    """The kind of accelerator that jax will use, as the variable that selects it, and the ids of those here.

    Found without jax, which would take hold of them. (None, []) where jax runs on the CPU.
    """
    if jax_runs_on_cpu():
        return None, []
    for name, found in ((CUDA, _nvidia), (ROCM, _amd), (TPU, _tpu)):
        if os.environ.get(name):
            return name, os.environ[name].split(",")
        if chips := found():
            return name, chips
    return None, []


def _nvidia() -> list[str]:
    if not shutil.which("nvidia-smi"):
        return []
    done = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("GPU ")]
    return [str(index) for index in range(len(lines))] if done.returncode == 0 else []


def _amd() -> list[str]:
    # Nodes of the compute driver with SIMD units are GPUs, the others are CPUs.
    nodes = sorted(pathlib.Path("/sys/class/kfd/kfd/topology/nodes").glob("*/properties"))
    gpus = [node for node in nodes if "simd_count 0\n" not in node.read_text()]
    return [str(index) for index in range(len(gpus))]


def _tpu() -> list[str]:
    chips = [*pathlib.Path("/dev").glob("accel[0-9]*"), *pathlib.Path("/dev/vfio").glob("[0-9]*")]
    return [str(index) for index in range(len(chips))]


def _chip_variables(
    kind: str | None, chips: Sequence[str], index: int, workers: int
) -> dict[str, str | None]:
    # submitit hides all GPUs of jobs that ask for none: what this process sees is put back.
    if kind is None:
        return {CUDA: os.environ.get(CUDA)}
    own = deal(chips, workers)[index]
    variables: dict[str, str | None] = {CUDA: os.environ.get(CUDA), kind: ",".join(own)}
    if kind == TPU:
        if len(chips) < workers or len(own) not in TPU_BOUNDS or len(chips) % workers:
            raise UserError(
                f"--parallel {workers}: {len(chips)} TPU chips cannot be dealt out evenly to {workers} "
                "workers. Give each worker 1, 2, 4 or 8 chips."
            )
        variables |= {"TPU_CHIPS_PER_PROCESS_BOUNDS": TPU_BOUNDS[len(own)], "TPU_PROCESS_BOUNDS": "1,1,1"}
    elif workers > len(chips):
        together = -(-workers // len(chips))
        variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / together:.3f}"
    return variables


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
