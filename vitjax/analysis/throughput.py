"""How fast models are: `python -m vitjax.analysis.throughput MODEL... [options]`.

Images a second, latency, memory and the share of the device's arithmetic that is used (MFU), in inference and
training, as a table, a CSV and a picture of published accuracy against measured speed.
"""

import argparse
import dataclasses
import functools
import math
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vitjax import files
from vitjax.analysis.throughput_rows import Case, Row, filled, heading, table, to_csv
from vitjax.errors import UserError, nearest
from vitjax.host_memory import jax_runs_on_cpu, keep_freed_memory

CSV_FILE = "throughput.csv"
PICTURE = "accuracy_throughput"
MODES, DTYPES = ("inference", "training"), ("float32", "bfloat16")
NUM_CLASSES = 1000
PRODUCT = 2048  # rows and columns of the matrices whose product is timed where no peak is known: a CPU

EPILOG = """\
examples:
  python -m vitjax.analysis.throughput vit_s16 vit_b16 --batch 1,8
  python -m vitjax.analysis.throughput vit_s16 vit_b16@384 --mode inference,training --dtype bfloat16
MODEL@PIXELS sets the resolution of one model. Exit code: 0; 2 for a mistake of the user's own; 3 if nothing
could be measured.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    try:
        return run(parse(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}. See python -m vitjax.analysis.throughput --help.")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = _Parser(prog="python -m vitjax.analysis.throughput", epilog=EPILOG, allow_abbrev=False,
                     description="Measures how fast models are on this machine's first device, in turns.",
                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add(
        "models", nargs="+", metavar="MODEL[@PIXELS]", help="such as vit_s16, or my_package.my_module.MyModel"
    )
    add("--batch", default="1,32", metavar="N,...", help="images in a call (1,32)")
    add("--dtype", default="float32", metavar="TYPE,...", help="float32, bfloat16 or both (float32)")
    add("--resolution", type=int, metavar="PIXELS",
        help="of a side; default: what results of the model were published at, else 224")  # fmt: skip
    add("--mode", default="inference", metavar="MODE,...", help="inference, training or both (inference)")
    add("--rounds", type=int, default=5, metavar="N", help="turns of each model (5)")
    add("--seconds", type=float, default=1.0, metavar="S", help="of calls in a turn, at least one call (1)")
    add("--peak", type=float, metavar="TFLOPS", help="what one device can do at best in the dtype, for MFU")
    add("--out", metavar="DIR", help=f"writes {CSV_FILE}, {PICTURE}.png and .svg, and run.json there")
    args = parser.parse_args(argv)
    args.batch = [_number("--batch", word) for word in args.batch.split(",")]
    args.dtype = _choices("--dtype", args.dtype, DTYPES)
    args.mode = _choices("--mode", args.mode, MODES)
    for option in ("resolution", "rounds"):
        if getattr(args, option) is not None:
            _number(f"--{option}", str(getattr(args, option)))
    for option in ("seconds", "peak"):
        if (value := getattr(args, option)) is not None and not (0 < value < math.inf):
            raise UserError(f"--{option} {value:g} must be a number above 0.")
    if args.peak and len(args.dtype) > 1:
        raise UserError("--peak is that of one dtype: measure one --dtype at a time.")
    return args


def _number(option: str, word: str) -> int:
    if not (word.isascii() and word.isdigit() and int(word) > 0):
        raise UserError(f"{option} {word!r} must be a whole number of 1 or more.")
    return int(word)


def _choices(option: str, text: str, valid: Sequence[str]) -> list[str]:
    words = list(dict.fromkeys(text.split(",")))
    for word in words:
        if word not in valid:
            raise UserError(f"{option} {word!r} is none of {', '.join(valid)}.{nearest(word, valid)}")
    return words


def run(args: argparse.Namespace) -> int:
    """Measures, prints and writes what the command line asks for; returns the exit code."""
    if jax_runs_on_cpu():
        keep_freed_memory()  # as vitjax.main does; before jax is imported
    out = files.folder(args.out) if args.out else None
    cases = [
        Case(name, resolution, mode, dtype, batch_size)
        for name, resolution in _models(args.models, args.resolution)
        for mode in args.mode
        for dtype in args.dtype
        for batch_size in dict.fromkeys(args.batch)
    ]
    programs, known, sizes = {}, {}, {}
    for case in cases:  # all by shape before the first is compiled: a mistake is told at once
        programs[case], known[case] = _prepare(case, sizes)
    rows = measure(programs, known, rounds=args.rounds, seconds=args.seconds, peak=args.peak, say=_say)
    print(heading(rows))
    print(table(rows))
    if out:
        for path in write(out, rows):
            print(path)
    return 0 if any(row.images_per_second for row in rows) else 3


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _models(words: Sequence[str], resolution: int | None) -> list[tuple[str, int]]:
    """Names and resolutions, each pair once."""
    from vitjax.analysis.published import native_resolution

    found = []
    for word in words:
        name, at, pixels = word.partition("@")
        own = _number(word, pixels) if at else resolution or native_resolution(name)
        found.append((name, own))
    return list(dict.fromkeys(found))


@dataclasses.dataclass(frozen=True)
class _Size:
    """What a model has at a resolution whatever the case: variables by shape, parameters, GMACs."""

    variables: Any
    num_params: int
    gmacs: float | None


def _prepare(case: Case, sizes: dict[tuple[str, int], _Size]) -> tuple[Any, Row]:
    """The program of a case, not compiled yet, and what is known of it without running it.

    Args:
      case: what is to be measured.
      sizes: by model and resolution, kept between calls.
    """
    from vitjax import models
    from vitjax.analysis import programs

    model = models.create(case.model, num_classes=NUM_CLASSES, dtype=case.dtype)
    pixels = (case.resolution, case.resolution, 3)
    key = case.model, case.resolution
    try:
        if key not in sizes:
            sizes[key] = _size(model, pixels)
        variables, image = sizes[key].variables, (case.batch_size, *pixels)
        if case.mode == "training":
            program = programs.training_step(model, variables, image, NUM_CLASSES)
        else:
            program = programs.inference(model, variables, image)
    except UserError as error:
        raise UserError(f"{case.model} at {case.resolution} pixels, {case.mode}: {error}") from error
    known = sizes[key]
    return program, Row(**dataclasses.asdict(case), num_params=known.num_params, gmacs=known.gmacs)


def _size(model: Any, pixels: tuple[int, int, int]) -> _Size:
    import jax

    from vitjax.analysis.programs import abstract_variables, forward_macs

    variables = abstract_variables(model, pixels)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    macs = forward_macs(model, variables, pixels)
    return _Size(variables, num_params, None if macs is None else macs / 1e9)


def measure(
    programs: Mapping[Case, Any],
    known: Mapping[Case, Row],
    *,
    rounds: int,
    seconds: float,
    peak: float | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Times all programs in turns on jax's first device.

    Args:
      programs: what `vitjax.analysis.programs` makes, by case.
      known: rows to fill in.
      rounds: turns of each.
      seconds: of calls in a turn.
      peak: TFLOP/s of the device; None: from `peaks.PEAKS`, or measured if the device is a CPU.
      say: told how far it is.
    """
    import jax

    from vitjax.analysis import peaks, timing
    from vitjax.analysis.programs import matrix_product

    device = jax.devices()[0]
    memory, failed = _compile(programs, say)
    # From the smallest: the allocator's peak is that of the process so far, so it tells that of a program
    # only where it rises.
    ready = sorted((case for case in programs if case not in failed), key=lambda case: memory[case][0] or 0)
    starts: dict[Any, Callable] = {
        case: functools.partial(_start_and_watch, programs[case], device, case, memory) for case in ready
    }
    known_peaks = {case.dtype: _peak(device, case.dtype, peak) for case in ready}
    if device.platform == "cpu":
        unknown = [dtype for dtype, found in known_peaks.items() if found is None]
        starts |= {dtype: matrix_product(PRODUCT, dtype).start for dtype in unknown}
    times, more = timing.in_turns(
        starts, rounds=rounds, seconds=seconds, on_round=lambda done: say(f"round {done}/{rounds}")
    )
    failed |= more
    for dtype in known_peaks:
        if dtype in times:
            text = f"measured: product of {PRODUCT} x {PRODUCT} matrices"
            known_peaks[dtype] = 2 * PRODUCT**3 / times[dtype].fastest, text
    name = f"{peaks.processor()}, {_cores()}" if device.platform == "cpu" else device.device_kind
    return [
        filled(
            dataclasses.replace(known[case], device=name, error=failed.get(case, "")),
            times.get(case),
            memory.get(case, (None, "")),
            known_peaks.get(case.dtype),
        )
        for case in programs
    ]


def _compile(
    programs: Mapping[Case, Any], say: Callable[[str], None]
) -> tuple[dict[Case, tuple[int | None, str]], dict[Any, str]]:
    """Compiles all programs; returns what memory they need and from whom that is, and why some cannot run."""
    import jax

    from vitjax.analysis import timing

    on_cpu = jax.devices()[0].platform == "cpu"
    memory: dict[Case, tuple[int | None, str]] = {}
    failed: dict[Any, str] = {}
    for index, (case, program) in enumerate(programs.items()):
        say(f"compiling {index + 1}/{len(programs)}: {case}")
        try:
            memory[case] = program.memory, "compiler"
        except Exception as error:  # what the compiler cannot place costs the other models nothing
            failed[case] = timing.reason(error)
        else:
            if on_cpu and (lack := _too_large(memory[case][0])):
                failed[case] = lack
    return memory, failed


def _cores() -> str:
    count = len(os.sched_getaffinity(0))
    return f"{count} core{'s' * (count != 1)}"


def _too_large(needed: int | None) -> str:
    """Why a program must not start on a CPU, where the system would kill the process; else nothing."""
    from vitjax.analysis.peaks import free_memory

    free = free_memory()
    if needed is None or free is None or needed < free:
        return ""
    return f"out of memory: {needed / 2**30:.1f} GiB are needed, {free / 2**30:.1f} GiB are free"


def _start_and_watch(
    program: Any, device: Any, case: Case, memory: dict[Any, tuple[int | None, str]]
) -> Callable[[], None]:
    """Starts a program; the first time, learns from the device's allocator what it takes at its peak."""
    before = device.memory_stats() if memory[case][1] == "compiler" else None
    call = program.start()
    if before and "peak_bytes_in_use" in before:
        call()
        after = device.memory_stats()
        if after["peak_bytes_in_use"] > before["peak_bytes_in_use"]:
            memory[case] = after["peak_bytes_in_use"] - before["bytes_in_use"], "allocator"
    return call


def _peak(device: Any, dtype: str, given: float | None) -> tuple[float, str] | None:
    """Peak FLOP/s and its source; None where only a measurement can tell."""
    import jax

    from vitjax.analysis.peaks import known_peak

    if given:
        return 1e12 * given, "--peak"
    precision = jax.config.jax_default_matmul_precision
    return known_peak(device.device_kind, dtype, precision)


def write(folder: pathlib.Path, rows: Sequence[Row]) -> list[pathlib.Path]:
    """Writes CSV, pictures, and what it all ran on; returns the paths."""
    from vitjax import run_info
    from vitjax.analysis.throughput_picture import draw

    files.replace(folder / CSV_FILE, to_csv(rows))
    run_info.write_run_info(folder, run_info.run_info())
    paths = [folder / CSV_FILE, folder / run_info.RUN_FILE]
    for kind in ("png", "svg"):
        if picture := draw(rows, kind):
            paths.append(folder / f"{PICTURE}.{kind}")
            files.replace(paths[-1], picture)
    return paths


if __name__ == "__main__":
    sys.exit(main())
