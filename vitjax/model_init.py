"""Parameters to start from, the config section `model_init`: official weights or a run of one's own.

    config.model_init = dict(weights="augreg:vit_b16", dont_load=("head/.*",))

What is loaded takes the place of what the seed drew; what `dont_load` leaves out stays as drawn. A run that
resumes takes its checkpoint and does not look at this section.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from vitjax import weights as weights_lib
from vitjax.config import bind


@dataclasses.dataclass(frozen=True)
class ModelInit:
    """Section `model_init`.

    Attributes:
      weights: path or name of the weights, see `vitjax.weights.load`.
      dont_load: regexes over whole parameter names `a/b/c`; what one matches stays as initialised.
      posemb: how position embeddings of another resolution are resampled; `auto` is as the family of the
        file does it.
    """

    weights: str
    dont_load: Sequence = ()
    posemb: str = "auto"


def read(section: Any) -> ModelInit:
    """Reads the section; a string alone is `weights`, as in big_vision."""
    section = dict(weights=section) if isinstance(section, str) else section
    return ModelInit(**bind(ModelInit, section, "model_init"))


def load(section: Any, abstract_params: Any, grid: tuple[int, int] | None) -> weights_lib.Loaded:
    """Reads what the section names, for parameters of these shapes.

    Args:
      section: the config section.
      abstract_params: the parameters by shape.
      grid: (height, width) of the model's grid of patches, None where it has none.

    Raises:
      UserError: the file is not to be had, is damaged, or does not fit the model.
    """
    init = read(section)
    return weights_lib.load(
        init.weights, abstract_params, dont_load=init.dont_load, grid=grid, posemb=init.posemb
    )


def place(params: dict[str, Any], abstract_params: Any) -> dict[str, Any]:
    """Puts host arrays where the parameters of the same names belong; each process puts its own shards."""

    def put(array: Any, like: Any) -> jax.Array:
        array = np.asarray(array, like.dtype)
        return jax.make_array_from_callback(array.shape, like.sharding, lambda index: array[index])

    wanted = flax.traverse_util.flatten_dict(abstract_params)
    placed = {path: put(leaf, wanted[path]) for path, leaf in flax.traverse_util.flatten_dict(params).items()}
    return flax.traverse_util.unflatten_dict(placed)
