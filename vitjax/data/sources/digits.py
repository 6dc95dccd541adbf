"""`digits`: 1,797 handwritten digits of 8x8 pixels, shipped with the package."""

import pathlib

from vitjax.data.sources.arrays import open_npz
from vitjax.data.sources.base import Splits, register

_FILE = pathlib.Path(__file__).parents[1] / "digits.npz"


@register("digits", "digits")
def open_digits(argument: str) -> Splits:
    """The digits of `sklearn.datasets.load_digits`: uint8 `[8, 8, 1]`, ten classes, in `train` and `test`.

    The pictures are counts of ink from 0 to 16, stored as `round(255 * count / 16)`. The hold-out is the
    usual 80/20 one by a fixed seed, stratified by class, 1,437 to train and 360 to test, classes mixed:
    `sklearn.model_selection.train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)`.

    Source: E. Alpaydin, C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository, https://doi.org/10.24432/C50P49, licensed CC BY 4.0. This is its test part, as scikit-learn
    distributes it; the grey levels were rescaled as said above.
    """
    del argument
    return open_npz(_FILE, name="digits")
