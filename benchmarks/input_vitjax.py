"""vitjax's own input pipeline, for `input_pipeline.py`."""

import contextlib
import pathlib
import sys

import input_turns
import numpy as np

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent.parent)]  # runs from a checkout as it is

from vitjax.data import pipeline, pp  # noqa: E402

BATCH = 50


class Photographs:
    """A `vitjax.data.sources.Source` of encoded images in memory."""

    name, num_classes, class_names = "photographs", 1, ("photograph",)

    def __init__(self, data: list[bytes]):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return {"image": self.data[index], "label": np.int32(0)}

    def describe(self, index):
        """Names an example in messages."""
        return f"photograph {index}"


def main() -> None:
    """Answers `input_pipeline.Pipeline`."""
    source = Photographs(input_turns.files())
    string = "decode_jpeg_and_inception_crop(224)|flip_lr" + (
        "|randaug(2, 15)" if input_turns.randaug() else ""
    )
    host, made, step = pp.parse(string).host, [], 0

    def counted(example, rng):
        made.append(1)  # threads work ahead of what is asked for, and close() lets them finish
        return host(example, rng)

    def make(images: int) -> int:
        nonlocal step
        made.clear()
        with contextlib.closing(
            pipeline.train_batches(source, counted, batch_size=BATCH, seed=0, start_step=step)
        ) as batches:
            for _ in range(images // BATCH):
                assert next(batches)["image"].shape == (BATCH, 224, 224, 3)
                step += 1
        return len(made)

    input_turns.serve(make)


if __name__ == "__main__":
    main()
