"""`digits`: 1,797 handwritten digits of 8x8 pixels, shipped with the package."""

import pathlib

from vitjax.data.sources.arrays import open_npz
from vitjax.data.sources.base import Splits, register

_FILE = pathlib.Path(__file__).parents[1] / "digits.npz"


@register("digits", "digits")
def open_digits(argument: str) -> Splits:
    """The digits of `sklearn.datasets.load_digits`: uint8 `[8, 8, 1]`, ten classes, splits `train` and `test`.

    The pictures are counts of ink from 0 to 16, stored as `round(255 * count / 16)`. The hold-out is the usual
    80/20 one, stratified by class: `sklearn.model_selection.train_test_split(images, labels, test_size=0.2,
    random_state=0, stratify=labels)`, which gives 1,437 for training and 360 for testing, classes mixed.

    Source: E. Alpaydin, C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository, https://doi.org/10.24432/C50P49, licensed CC BY 4.0. This is its test part, as scikit-learn
    distributes it; the grey levels were rescaled as said above.
    """
    del argument
    return open_npz(_FILE)
