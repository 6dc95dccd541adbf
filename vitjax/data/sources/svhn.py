"""`svhn:PATH`: Street View House Numbers, the cropped digits of http://ufldl.stanford.edu/housenumbers."""

import functools
import pathlib

import numpy as np

from vitjax.data.sources.archives import damaged
from vitjax.data.sources.arrays import Arrays, ArraySource
from vitjax.data.sources.base import Splits, register
from vitjax.errors import UserError

# Split -> MD5 of the file `{split}_32x32.mat`, as torchvision checks them.
_MD5 = {
    "train": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test": "eb5a983be6a315427106f1b164d9cef3",
    "extra": "a93ce644f1a588dc4d68dda5feec44a7",
}


@register("svhn", "svhn:PATH")
def open_svhn(path: str) -> Splits:
    """SVHN: uint8 `[32, 32, 3]`, ten classes, in those of `train`, `test` and `extra` whose files are there.

    `PATH` is a folder with `train_32x32.mat`, `test_32x32.mat`, `extra_32x32.mat`, or one of these.
    The files call the digit 0 ten; here it is 0.
    """
    place = pathlib.Path(path).expanduser()
    if not place.exists():
        raise UserError(f"data='svhn:{path}': there is no such file or folder.")
    files = {split: place / f"{split}_32x32.mat" for split in _MD5}
    if place.is_file():
        files = {split: place for split, file in files.items() if file.name == place.name}
    files = {split: file for split, file in files.items() if file.is_file()}
    if not files:
        raise UserError(
            f"data='svhn:{path}': there is no train_32x32.mat, test_32x32.mat or extra_32x32.mat."
        )
    names = tuple(str(digit) for digit in range(10))
    return {
        split: functools.partial(
            ArraySource, f"svhn:{file}", functools.partial(_load, file, _MD5[split]), names
        )
        for split, file in files.items()
    }


def _load(file: pathlib.Path, md5: str) -> Arrays:
    """Images uint8 `[N, 32, 32, 3]` and labels int32 `[N]`."""
    import scipy.io  # here, since it takes a while

    try:
        found = scipy.io.loadmat(file, variable_names=("X", "y"))
    except Exception as error:  # SciPy raises many kinds
        raise damaged(file, error, md5) from error
    images, labels = (np.asarray(found.get(name, ())) for name in ("X", "y"))
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, labels.size):
        raise damaged(
            file,
            f"X is {images.dtype} {list(images.shape)} and y {list(labels.shape)}, where uint8 "
            "[32, 32, 3, N] and [N, 1] belong",
            md5,
        )
    labels = labels.reshape(-1)
    if labels.dtype.kind not in "iu" or not np.isin(labels, np.arange(1, 11)).all():
        raise damaged(file, "its labels y are not the numbers 1 to 10", md5)
    return np.ascontiguousarray(images.transpose(3, 0, 1, 2)), labels.astype(np.int32) % 10
