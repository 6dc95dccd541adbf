"""What comes out of a measurement of throughput: rows, as a table for the terminal and as CSV."""

import csv
import dataclasses
import io
from collections.abc import Sequence

from vitjax.analysis.timing import Times

# Passes that cost as much as the forward pass: the backward pass multiplies with inputs and with weights.
FORWARDS = {"inference": 1, "training": 3}


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
      model: name.
      resolution: pixels of a side.
      mode: one of `MODES`.
      dtype: of matrix products.
      batch_size: images in a call.
    """

    model: str
    resolution: int
    mode: str
    dtype: str
    batch_size: int

    def __str__(self) -> str:
        return f"{self.model}@{self.resolution} {self.mode} {self.dtype} batch {self.batch_size}"


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the CSV: a case and what came out; None where it is not known.

    Attributes:
      model: see `Case`, as the four that follow.
      num_params: number of parameters, batch statistics not counted.
      gmacs: multiply-accumulates of the forward pass for one image, in 1e9.
      images_per_second: median over rounds.
      slowest_round: images a second.
      fastest_round: images a second.
      calls: number of timed calls, of which the percentiles are.
      p50_ms: milliseconds a call, as the two that follow.
      memory_bytes: at the peak.
      memory_source: `allocator` (of the device) or `compiler` (its plan: arguments, results, temporaries).
      mfu: share of the peak FLOP/s in what the model needs, 2 FLOPs a multiply-accumulate, three forward
        passes a training step; recomputation is not counted.
      peak_tflops: that peak of one device.
      peak_source: where it is from.
      device: its kind.
      error: why it was not measured.
    """

    model: str
    resolution: int
    mode: str
    dtype: str
    batch_size: int
    num_params: int
    gmacs: float | None
    images_per_second: float | None = None
    slowest_round: float | None = None
    fastest_round: float | None = None
    calls: int = 0
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    memory_bytes: int | None = None
    memory_source: str = ""
    mfu: float | None = None
    peak_tflops: float | None = None
    peak_source: str = ""
    device: str = ""
    error: str = ""


def filled(
    row: Row, times: Times | None, memory: tuple[int | None, str], peak: tuple[float, str] | None
) -> Row:
    """The row with what was measured filled in.

    Args:
      row: what is known without measuring.
      times: `timing.Times`, or None if it could not run.
      memory: bytes and their source.
      peak: FLOP/s of the device and their source, if known.
    """
    row = dataclasses.replace(row, memory_bytes=memory[0], memory_source=memory[1])
    if times is None:
        return row
    rates = times.rates(row.batch_size)
    rate = times.rate(row.batch_size)
    row = dataclasses.replace(
        row,
        images_per_second=rate,
        slowest_round=min(rates),
        fastest_round=max(rates),
        calls=times.calls,
        **{f"p{percent}_ms": 1e3 * times.percentile(percent) for percent in (50, 90, 99)},
    )
    if peak is None:
        return row
    flops = None if row.gmacs is None else 2e9 * row.gmacs * FORWARDS[row.mode]
    mfu = None if flops is None else rate * flops / peak[0]
    return dataclasses.replace(row, mfu=mfu, peak_tflops=peak[0] / 1e12, peak_source=peak[1])


def heading(rows: Sequence[Row]) -> str:
    """The device, and what its peak is from."""
    lines = [f"device: {rows[0].device}"]
    for dtype in dict.fromkeys(row.dtype for row in rows):
        row = next((row for row in rows if row.dtype == dtype and row.peak_tflops), None)
        text = f"{row.peak_tflops:.4g} TFLOP/s ({row.peak_source})" if row else "not known: name it by --peak"
        lines.append(f"peak in {dtype}: {text}")
    return "\n".join(lines)


_COLUMNS = {  # and whether they stand to the left
    "model": (lambda row: row.model, True),
    "pixels": (lambda row: str(row.resolution), False),
    "mode": (lambda row: row.mode, True),
    "dtype": (lambda row: row.dtype, True),
    "batch": (lambda row: str(row.batch_size), False),
    "parameters": (lambda row: f"{row.num_params:,}", False),
    "GMACs": (lambda row: _short(row.gmacs), False),
    "images/s": (lambda row: _short(row.images_per_second), False),
    "slowest": (lambda row: _short(row.slowest_round), False),
    "fastest": (lambda row: _short(row.fastest_round), False),
    "p50 ms": (lambda row: _short(row.p50_ms), False),
    "p90 ms": (lambda row: _short(row.p90_ms), False),
    "p99 ms": (lambda row: _short(row.p99_ms), False),
    "calls": (lambda row: str(row.calls), False),
    "memory MiB": (lambda row: "" if row.memory_bytes is None else f"{row.memory_bytes / 2**20:,.0f}", False),
    "MFU": (lambda row: "" if row.mfu is None else f"{row.mfu:.1%}", False),
}


def table(rows: Sequence[Row]) -> str:
    """The rows as lines of text for a terminal; below, what failed and why."""
    measured = [row for row in rows if row.images_per_second is not None]
    columns = []
    for name, (show, left) in _COLUMNS.items() if measured else ():
        cells = [name, *map(show, measured)]
        width = max(map(len, cells))
        columns.append([cell.ljust(width) if left else cell.rjust(width) for cell in cells])
    lines = ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
    lines += [f"{case_of(row)}: {row.error}" for row in rows if row.error]
    return "\n".join(lines)


def to_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV, one column a field; nothing is rounded."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows)
    return text.getvalue()


def case_of(row: Row) -> Case:
    """What a row is of."""
    return Case(row.model, row.resolution, row.mode, row.dtype, row.batch_size)


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if value < 1e4 else f"{value:,.0f}"
