"""The answering side of `input_pipeline.Pipeline`, imported by each pipeline's script; plain Python."""

import json
import pathlib
import sys
import time
from collections.abc import Callable


def files() -> list[bytes]:
    """The JPEG files of the folder named on the command line, in memory: no disk is measured."""
    paths = sorted(pathlib.Path(sys.argv[1]).rglob("*"))
    return [path.read_bytes() for path in paths if path.suffix.lower() in (".jpg", ".jpeg")]


def randaug() -> bool:
    """Whether the command line asks for RandAugment."""
    return sys.argv[2] == "1"


def serve(make: Callable[[int], int]) -> None:
    """For each number read, calls `make(number) -> images really made` and prints the CPU seconds it took."""
    for line in sys.stdin:
        start = time.process_time()
        images = make(int(line))
        print(json.dumps({"seconds": time.process_time() - start, "images": images}), flush=True)
