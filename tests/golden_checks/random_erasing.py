"""timm's random erasing: the boxes that Python's generator gives, number by number."""

import random

import jax
import numpy as np

from golden_checks import checks
from vitjax.data.random_erasing import boxes

AREA, RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)


@checks(lambda config: config.get("columns", [None])[0] == "python random.seed")
def check_boxes(config, arrays):
    find = jax.jit(lambda uniform: boxes(uniform, config["hw"], AREA, RATIO))
    for name, rows in arrays.items():
        probability = float(name.removeprefix("p"))
        erased = np.asarray([random.Random(seed).random() <= probability for seed in rows[:, 0].tolist()])
        assert erased.any() and not rows[~erased, 3].any()
        uniform = np.asarray([replay(row, config["hw"]) for row in rows[erased]], np.float32)
        ours = np.stack(find(uniform), axis=-1)
        found = rows[erased, 3] > 0
        np.testing.assert_array_equal(ours[found], rows[erased, 1:][found])
        assert not ours[~found, 2:].any()


def replay(row, size):
    """The numbers that timm draws after the first, whether to erase: until a box fits, then its place.

    The place is a whole number there; here, the middle of what is rounded down to it.
    """
    seed, top, left, height, width = row.tolist()
    generator = random.Random(seed)
    generator.random()
    attempts = [generator.random() for _ in range(20)]
    free = size[0] - height + 1, size[1] - width + 1
    return [*attempts, (top + 0.5) / free[0], (left + 0.5) / free[1]]
