"""Images per second of one core from JPEG bytes to augmented 224-pixel uint8 batches, three ways.

  vitjax   `vitjax.data.pipeline.train_batches` with the AugReg preprocessing string
  tf.data  fused `decode_and_crop_jpeg` and RandAugment in TensorFlow ops, after big_vision (`input_tf.py`)
  PIL      random resized crop, flip and RandAugment on PIL images, as torchvision does (`input_pil.py`)

Each with crop and flip only, and with RandAugment(2, 15). Every one is a process of its own, pinned to the
same core; they take turns of a few batches, and report CPU seconds and how many images these made.

  python benchmarks/input_pipeline.py --folder ~/photos --tf_python ~/venv-tf/bin/python
"""

import argparse
import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]  # runs from a checkout as it is

from benchmarks import measure  # noqa: E402

AUGMENTATIONS = ("crop+flip", "crop+flip+randaug(2,15)")
IMAGES_A_TURN = 200
PACKAGES = ("grain", "simplejpeg", "opencv-python-headless", "pillow", "numpy")


def main() -> None:
    """Measures and writes `results/input_pipeline.csv`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", help="directory with .jpg or .JPEG files; by default some are made up")
    parser.add_argument("--tf_python", help="a Python that has tensorflow; without it tf.data is left out")
    parser.add_argument("--repetitions", type=int, default=10, help=f"of {IMAGES_A_TURN} images each")
    args = parser.parse_args()
    measure.pin(1)
    scripts = {"vitjax": (sys.executable, "input_vitjax.py"), "PIL": (sys.executable, "input_pil.py")}
    if args.tf_python:
        scripts["tf.data"] = (args.tf_python, "input_tf.py")
    rows = []
    with contextlib.ExitStack() as stack:
        folder = args.folder or stack.enter_context(tempfile.TemporaryDirectory())
        if not args.folder:
            make_photographs(pathlib.Path(folder))
        for augmentation in AUGMENTATIONS:
            with contextlib.ExitStack() as processes:
                runs = {
                    name: processes.enter_context(Pipeline(python, script, folder, "randaug" in augmentation))
                    for name, (python, script) in scripts.items()
                }
                seconds = take_turns(runs, args.repetitions)
            rows += [dict(augmentation=augmentation) | row for row in summary(seconds)]
    print(measure.write("input_pipeline", rows, PACKAGES))


class Pipeline:
    """A pipeline in a process of its own. A call makes some images and returns CPU seconds an image."""

    def __init__(self, python: str, script: str, folder: str, randaug: bool):
        command = [python, str(HERE / script), folder, str(int(randaug))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._process.communicate()  # closes its input, upon which it ends

    def __call__(self) -> float:
        """Runs a turn."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{IMAGES_A_TURN}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self._process.args} ended; run it by hand, and type {IMAGES_A_TURN}, to see why.")
        spent = json.loads(line)
        return spent["seconds"] / spent["images"]


def take_turns(runs: dict[str, Pipeline], repetitions: int) -> dict[str, list[float]]:
    """Returns CPU seconds an image for each turn of each pipeline, after a turn to warm up."""
    turns: list[dict[str, float]] = [
        {name: run() for name, run in runs.items()} for _ in range(repetitions + 1)
    ]
    return {name: [turn[name] for turn in turns[1:]] for name in runs}


def summary(seconds: dict[str, list[float]]) -> list[dict]:
    """Returns one row a pipeline; `speed_vs_tf_data` above 1 means faster than tf.data."""
    rows = []
    for name, times in seconds.items():
        row = dict(pipeline=name, images_a_turn=IMAGES_A_TURN, repetitions=len(times))
        row |= dict(ms_per_image=round(statistics.median(times) * 1e3, 3))
        row |= dict(images_per_s_per_core=round(1 / statistics.median(times), 1))
        for key, other in (("tf_data", "tf.data"), ("pil", "PIL")):
            found = measure.ratio(seconds[other], times) if other in seconds else None
            row[f"speed_vs_{key}"] = found and found["ratio"]
            row[f"quartiles_vs_{key}"] = found and f"{found['quartile_low']}-{found['quartile_high']}"
        print(row, flush=True)
        rows.append(row)
    return rows


def make_photographs(folder: pathlib.Path, count: int = 64) -> None:
    """Writes JPEGs of ImageNet's usual size and, by their noise, about its usual bytes (110 kB)."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    for i in range(count):
        layers = [cv2.resize(rng.normal(0, 40, (s, s, 3)), (500, 375)) for s in (4, 16, 64, 256)]
        image = np.clip(128 + sum(layers), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{i:03d}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 90])


if __name__ == "__main__":
    main()
