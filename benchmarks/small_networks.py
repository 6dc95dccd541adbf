"""What shifted patches and locality cost: the reduced networks with both against the same ones plain.

The protocol is that of "Vision Transformer for Small-Size Datasets" (arXiv 2112.13492) but for the batch: the
forward pass on random images of 64x64 pixels, 200 classes. `--training` takes the training step instead.
Plain and SL take turns in one process. `ratio` is SL over plain, beside `published`, the latency factor that
follows from the paper's images a second on a GPU.

  python benchmarks/small_networks.py --batch 32 --threads 1 --rounds 9
"""

import argparse
import pathlib
import sys
import time

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent.parent)]  # runs from a checkout as it is

from benchmarks import measure  # noqa: E402
from vitjax.host_memory import keep_freed_memory  # noqa: E402

PACKAGES = ("jax", "jaxlib", "flax", "optax")
PUBLISHED = {"vit": 1.12, "t2t": 1.15, "cait": 1.06, "pit": 1.27, "swin": 1.19}
SHAPE, CLASSES = (64, 64, 3), 200


def main() -> None:
    """Measures and writes `results/small_networks_{device}.csv`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--networks", default=",".join(PUBLISHED))
    parser.add_argument("--training", action="store_true")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="of calls in a turn, at least one call")
    args = parser.parse_args()
    if args.device == "cpu":
        measure.pin(args.threads)
        keep_freed_memory()  # vitjax.main does
    rows = []
    for network in args.networks.split(","):
        rows += compare(network, args)
        print(measure.write(f"small_networks_{args.device}", rows, PACKAGES), flush=True)


def compare(network: str, args: argparse.Namespace) -> list[dict]:
    """Returns a row for the plain network and one for that with both parts."""
    from vitjax.analysis.timing import in_turns

    cpu_clock = args.device == "cpu" and args.threads == 1
    times, failed = in_turns(
        {variant: start_of(f"{variant}_{network}", args) for variant in ("small", "sl")},
        rounds=args.rounds,
        seconds=args.seconds,
        clock=time.process_time if cpu_clock else time.perf_counter,
    )
    if failed:
        sys.exit(f"{network}: {failed}")
    seconds = {name: [sum(calls) / len(calls) for calls in found.rounds] for name, found in times.items()}
    rows = []
    for variant, found in times.items():
        row = dict(model=f"{variant}_{network}", mode="training" if args.training else "inference")
        row |= {key: getattr(args, key) for key in ("dtype", "batch", "threads", "rounds")}
        row |= dict(clock="cpu" if cpu_clock else "wall", images_per_s=round(found.rate(args.batch), 2))
        row |= measure.ratio(seconds[variant], seconds["small"])
        row["published"] = PUBLISHED[network] if variant == "sl" else 1.0
        rows.append(row)
        print(row, flush=True)
    return rows


def start_of(name: str, args: argparse.Namespace):
    """Returns `start() -> call` of one network."""
    from vitjax import models
    from vitjax.analysis import programs
    from vitjax.models.small import at_64_pixels

    fields = at_64_pixels(name.partition("_")[2])
    module = models.create(name, num_classes=CLASSES, dtype=args.dtype, **fields)
    variables = programs.abstract_variables(module, SHAPE)
    if args.training:
        return programs.training_step(module, variables, (args.batch, *SHAPE), CLASSES).start
    return programs.inference(module, variables, (args.batch, *SHAPE)).start


if __name__ == "__main__":
    main()
