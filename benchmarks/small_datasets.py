"""Cells of the table of "Vision Transformer for Small-Size Datasets", trained, beside the published numbers.

A cell is a network, a data set and a seed, trained by configs/small_datasets.py through `vitjax.main` as
anybody would. Its row is appended to `results/small_datasets.csv` when it is done; a cell that has a row is
passed over. A cell that was killed goes on where it was: the same command.

  python benchmarks/small_datasets.py --data cifar10 --source cifar-10-binary.tar.gz
  python benchmarks/small_datasets.py --models small_vit,s_vit,l_vit,sl_vit --data fashion_mnist \\
      --source IDX_FOLDER --train "train[:10000]" --epochs 10 --seeds 0,1,2

Beside an accuracy stands what it was trained with: `schedule` is the share of the published hundred epochs of
three passes each, `train_images` how many images there were. `comparable` says whether both are whole and the
recipe is unchanged but for `dtype` and `input`; `published` is a number to hold it against only then. `top1`
is the accuracy after the last step, `best_top1` the best of all epochs, which the test set itself has picked;
all in percent.
`images_per_second` is the median of what the run logs of its training steps, without evaluation; `wall_s` is
all of the run: start, compilation, evaluation and checkpoints, over all its restarts.
"""

import argparse
import csv
import hashlib
import os
import pathlib
import shlex
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]  # runs from a checkout as it is

from benchmarks import measure  # noqa: E402
from configs.small_datasets import DATA  # noqa: E402
from vitjax.metrics import read_metrics  # noqa: E402
from vitjax.run_info import read_run_info  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "small_datasets.csv"
PUBLISHED = ROOT / "benchmarks" / "small_datasets_published.csv"
# What tells a cell from others.
CELL = ("model", "data", "seed", "epochs", "train", "repeats", "batch", "dtype", "input", "changed")
COLUMNS = (*CELL, "schedule", "train_images", "steps", "top1", "best_top1", "published", "comparable")
COLUMNS += ("wall_s", "images_per_second", "device", "versions", "note")
WHOLE = {"cifar10": 50_000, "cifar100": 50_000, "svhn": 73_257, "tiny_imagenet": 100_000}
METRIC = "val/prec@1"


def main() -> None:
    """Trains the cells that are not in the table yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", default="small_vit,sl_vit")
    parser.add_argument("--data", default="cifar100", choices=list(DATA))
    parser.add_argument("--source", help="as in configs/small_datasets.py; left out: TFDS")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--epochs", type=int, default=100, help="of three passes; 100 is the whole schedule")
    parser.add_argument("--train", default="train", help="split to train on, such as train[:10000]")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--host", action="store_true", help="input from the host, not on the device")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="further config keys")
    parser.add_argument("--note", default="", help="what is to be said of the data, such as a re-encoding")
    parser.add_argument(
        "--workdir", default="runs/small_datasets", help="a folder for each cell is made in it"
    )
    parser.add_argument("--results", default=str(RESULTS))
    args = parser.parse_args()
    results = pathlib.Path(args.results)
    for cell in cells(args):
        if is_in(results, cell):
            print(f"{name_of(cell)}: there already", flush=True)
            continue
        workdir = pathlib.Path(args.workdir).absolute() / name_of(cell)
        train(cell, args.source, workdir)
        row = dict(measured(cell, args.source, workdir), note=args.note)
        append(results, row)
        shown = ("top1", "best_top1", "published", "comparable")
        print(f"{name_of(cell)}: {', '.join(f'{key} {row[key]}' for key in shown)}", flush=True)


def cells(args: argparse.Namespace) -> list[dict[str, str]]:
    """What is to be trained, seeds outermost, so that each seed is a whole row of networks."""
    shared = dict(
        data=args.data, epochs=args.epochs, train=args.train, repeats=args.repeats, batch=args.batch
    )
    shared |= dict(dtype=args.dtype, input="host" if args.host else "on_device")
    shared |= dict(changed=" ".join(args.set))
    return [
        {key: str(dict(shared, model=model, seed=seed)[key]) for key in CELL}
        for seed in args.seeds.split(",")
        for model in args.models.split(",")
    ]


def name_of(cell: dict[str, str]) -> str:
    """Name of the folder of a cell: its values, of further config keys a checksum."""
    words = [cell[key] for key in CELL if key != "changed"]
    words += [hashlib.blake2b(cell["changed"].encode(), digest_size=4).hexdigest()] if cell["changed"] else []
    return "-".join("".join(c if c.isalnum() or c in "_." else "_" for c in word) for word in words)


def config_of(cell: dict[str, str], source: str | None) -> str:
    """The config file with its arguments."""
    given = {key: cell[key] for key in ("model", "data", "epochs", "train", "repeats", "batch", "dtype")}
    given |= {"source": source} if source else {}
    given |= {"on_device": "false"} if cell["input"] == "host" else {}
    return str(ROOT / "configs/small_datasets.py") + ":" + ",".join(f"{k}={v}" for k, v in given.items())


def train(cell: dict[str, str], source: str | None, workdir: pathlib.Path) -> None:
    """Trains a cell to its end; ends this program if that fails."""
    command = [sys.executable, "-m", "vitjax.main", "--config", config_of(cell, source)]
    command += ["--workdir", str(workdir), f"--config.seed={cell['seed']}", "--config.report=False"]
    command += [f"--config.{each}" for each in cell["changed"].split()]
    print(shlex.join(command[1:]), flush=True)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path})
    if done.returncode:
        sys.exit(
            f"{name_of(cell)} stopped with exit code {done.returncode}; the same command goes on with it."
        )


def measured(cell: dict[str, str], source: str | None, workdir: pathlib.Path) -> dict[str, object]:
    """The row of a cell that has been trained."""
    from vitjax.config import load
    from vitjax.data.sources import open_source

    section = load(config_of(cell, source)).to_dict()["input"]
    images = len(open_source(section["data"], section["split"]))
    about = read_run_info(workdir)
    metrics = read_metrics(workdir)
    accuracies = [row[METRIC] for row in metrics if METRIC in row]
    rates = [row["img/sec"] for row in metrics if "img/sec" in row]
    epochs, published = int(cell["epochs"]), published_top1(cell["model"], cell["data"])
    plain = {"repeats": "1", "batch": "128", "changed": ""}
    whole = (
        epochs == 100 and images == WHOLE.get(cell["data"]) and all(cell[k] == v for k, v in plain.items())
    )
    (device, *_) = about["devices"]
    return dict(
        cell,
        schedule=epochs / 100,
        train_images=images,
        steps=about["total_steps"],
        top1=round(100 * accuracies[-1], 2),
        best_top1=round(100 * max(accuracies), 2),
        published="" if published is None else published,
        comparable="yes" if whole and published is not None else "no",
        wall_s=round(sum(about["wall_time"].values())),
        images_per_second=round(statistics.median(rates)) if rates else "",
        device=measure.machine() if device["platform"] == "cpu" else f"{device['count']} x {device['kind']}",
        versions=" ".join(f"{key} {about['versions'][key]}" for key in ("vitjax", "jax", "flax")),
    )


def published_top1(model: str, data: str) -> float | None:
    """The published accuracy in percent, None if there is none."""
    with open(PUBLISHED, newline="") as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            if (row["model"], row["data"]) == (model, data):
                return float(row["top1"])
    return None


def is_in(results: pathlib.Path, cell: dict[str, str]) -> bool:
    """Whether the table has the row of a cell."""
    if not results.is_file():
        return False
    with open(results, newline="") as file:
        return any(all(row[key] == cell[key] for key in CELL) for row in csv.DictReader(file))


def append(results: pathlib.Path, row: dict[str, object]) -> None:
    """Adds a row to the table, which begins with the names of its columns."""
    results.parent.mkdir(parents=True, exist_ok=True)
    new = not results.is_file()
    with open(results, "a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(COLUMNS)
        writer.writerow([row[column] for column in COLUMNS])


if __name__ == "__main__":
    main()
