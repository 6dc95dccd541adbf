"""Seconds and peak memory to load a ViT-B/16, over reading the file's bytes and copying them once.

python benchmarks/load_weights.py --model vit_b16 --repetitions 15

Files: an AugReg npz (the numbers lie as in the model), and timm's safetensors (most matrices are transposed).
Peers: `numpy.load` of the same npz, and the `safetensors` library with the transpositions that its reader
needs as well. Time is that of one process, in turns, the files in the page cache. Peak memory is that of a
process of its own for each: how far its resident memory rose above what it was before, over the file's size.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]  # runs from a checkout as it is

from benchmarks import measure  # noqa: E402

PACKAGES = ("jax", "numpy", "safetensors", "opencv-python-headless")
CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}


def main() -> None:
    """Measures and writes `results/load_weights.csv`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="vit_b16")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--peak", nargs=2, metavar=("READER", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    measure.pin(args.threads)
    if args.peak:
        print(json.dumps(rise(args.model, *args.peak)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_files(args.model, folder)
        rows = []
        for kind in ("npz", "safetensors"):
            found = readers(args.model, folder, kind)
            seconds = measure.interleave(found, args.repetitions, CLOCKS[args.clock])
            size = file_of(folder, kind).stat().st_size
            for reader in found:
                command = [sys.executable, __file__, "--model", args.model]
                command += ["--peak", f"{kind}:{reader}", folder]
                peak = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                row = dict(
                    file=kind,
                    reader=reader,
                    megabytes=round(size / 1e6, 1),
                    clock=args.clock,
                    seconds=round(sorted(seconds[reader])[args.repetitions // 2], 4),
                    **measure.ratio(seconds[reader], seconds["read and copy"]),
                    peak_over_file=round(peak / size, 3),
                )
                rows.append(row)
                print(row, flush=True)
    print(measure.write("load_weights", rows, PACKAGES))


def file_of(folder: str, kind: str) -> pathlib.Path:
    """The file that is read."""
    return pathlib.Path(folder) / f"model.{kind}"


def abstract_params(model: str):
    """Shapes of the model's parameters, at 224 pixels and 1000 classes."""
    import jax

    from vitjax import models

    made = models.create(model, num_classes=1000)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
    return jax.eval_shape(made.init, jax.random.key(0), image)["params"]


def make_files(model: str, folder: str) -> None:
    """Random numbers in the form of an official npz and of timm's file."""
    import jax
    import numpy as np

    from vitjax.weights import save

    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.random(x.shape, np.float32), abstract_params(model))
    save(file_of(folder, "npz"), params, names="augreg")
    save(file_of(folder, "safetensors"), params, names="timm")


def readers(model: str, folder: str, kind: str):
    """What reads the file: the yardstick, ours, and the peer."""
    import numpy as np

    from vitjax.weights import load

    path = file_of(folder, kind)
    abstract = abstract_params(model)

    def read_and_copy():
        with open(path, "rb") as f:
            return np.frombuffer(f.read(), np.uint8).copy()

    def numpy_load():
        with np.load(path, allow_pickle=False) as opened:
            return {name: opened[name] for name in opened.files}

    def safetensors_library():
        from safetensors import safe_open

        from vitjax.weights.timm_names import from_timm

        with safe_open(path, "np") as opened:
            names = opened.keys()
            params = from_timm({name: opened.get_tensor(name) for name in names}, num_heads=12)
        return [np.ascontiguousarray(x) for x in leaves(params)]

    peer = {"npz": ("numpy.load", numpy_load), "safetensors": ("safetensors library", safetensors_library)}
    found = {"read and copy": read_and_copy, "vitjax": lambda: load(path, abstract)}
    return found | dict([peer[kind]])


def leaves(tree):
    """All arrays of a nested dict."""
    for value in tree.values():
        if isinstance(value, dict):
            yield from leaves(value)
        else:
            yield value


def rise(model: str, which: str, folder: str) -> int:
    """Bytes by which this process grew at most while it read."""
    import cv2
    import safetensors

    import vitjax.weights.families
    import vitjax.weights.timm_names

    assert cv2 and safetensors and vitjax.weights.families and vitjax.weights.timm_names  # loaded by now
    kind, _, reader = which.partition(":")
    read = readers(model, folder, kind)[reader]
    before = peak_bytes()
    kept = read()
    assert kept is not None
    return peak_bytes() - before


def peak_bytes() -> int:
    """The most that has been resident of this process. (`ru_maxrss` would count its parent's, too.)"""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


if __name__ == "__main__":
    main()
