"""What all benchmarks share: pinning, interleaved timing, ratios with spread, CSV with circumstances."""

import csv
import importlib.metadata
import os
import pathlib
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

RESULTS = pathlib.Path(__file__).parent / "results"


def pin(threads: int) -> None:
    """Confines this process and its children to the first `threads` cores it may use.

    To be called before numpy, jax or torch are imported: they size their thread pools by it.
    """
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ["OMP_NUM_THREADS"] = str(threads)


def interleave(
    runs: Mapping[str, Callable[[], Any]],
    repetitions: int,
    clock: Callable[[], float] = time.process_time,
    warmup: int = 2,
) -> dict[str, list[float]]:
    """Times all `runs` in turn, again and again, so that what else the machine does falls on all alike.

    The default clock counts the CPU seconds of all threads of this process: on a shared machine it is far
    steadier than wall time. Pass `time.perf_counter` where the work is on an accelerator.
    """
    for run in runs.values():
        for _ in range(warmup):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, run in runs.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return seconds


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Seconds of `ours` over `theirs`, pair by pair: median, quartiles; and the ratio of the minima."""
    low, median, high = statistics.quantiles([a / b for a, b in zip(ours, theirs, strict=True)], n=4)
    return {
        "ratio": round(median, 3),
        "quartile_low": round(low, 3),
        "quartile_high": round(high, 3),
        "ratio_of_minima": round(min(ours) / min(theirs), 3),
    }


def machine() -> str:
    """Kind of processor and number of cores in use."""
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            model = next(
                (line.split(":")[1].strip() for line in file if line.startswith("model name")), model
            )
    return f"{model}, {len(os.sched_getaffinity(0))} core(s)"


def versions(packages: Sequence[str]) -> str:
    """`jax 0.10.2, flax 0.12.8` for those of the packages that are installed."""
    found = []
    for name in packages:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def write(name: str, rows: Sequence[Mapping[str, Any]], packages: Sequence[str]) -> pathlib.Path:
    """Writes `benchmarks/results/{name}.csv`: three comment lines with the circumstances, then the rows."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    script = pathlib.Path(sys.argv[0])
    with open(path, "w", newline="") as file:
        # Where things lie on this machine is nobody's concern: of paths only the last part.
        arguments = [pathlib.Path(word).name if os.path.isabs(word) else word for word in sys.argv[1:]]
        file.write(f"# command: python benchmarks/{script.name} {shlex.join(arguments)}".rstrip() + "\n")
        file.write(f"# machine: {machine()}\n# versions: python {platform.python_version()}, ")
        file.write(versions(packages) + "\n")
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path
