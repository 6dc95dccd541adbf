"""Weights to start from, the config section `model_init`: official ones or those of a run of one's own.

    config.model_init = dict(weights="augreg:vit_b16", dont_load=("head/.*",))

What is loaded takes the place of what the seed drew; what `dont_load` leaves out stays as drawn. A run that
resumes takes its checkpoint and does not look at this section. Batch statistics, where a model has them, are
loaded like parameters, by names such as `bn_root/mean`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from vitjax import weights as weights_lib
from vitjax.config import bind
from vitjax.weights import variables
from vitjax.weights.tree import flatten, nest


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


def load(section: Any, abstract_state: Any, grid: tuple[int, int] | None) -> weights_lib.Loaded:
    """Reads what the section names, for parameters and batch statistics of these shapes.

    Args:
      section: the config section.
      abstract_state: the train state by shape.
      grid: (height, width) of the model's grid of patches, None where it has none.

    Raises:
      UserError: the file is not to be had, is damaged, or does not fit the model.
    """
    init = read(section)
    joined = variables.join(abstract_state.params, abstract_state.model_state)
    return weights_lib.load(init.weights, joined, dont_load=init.dont_load, grid=grid, posemb=init.posemb)


def place(loaded: dict[str, Any], abstract_state: Any) -> dict[str, Any]:
    """Puts host arrays where the leaves of the same names belong; each process puts its own shards.

    Returns parts of `params` and of `model_state`, by these names.
    """

    def put(array: Any, like: Any) -> jax.Array:
        array = np.asarray(array, like.dtype)
        return jax.make_array_from_callback(array.shape, like.sharding, lambda index: array[index])

    wanted = flatten(variables.join(abstract_state.params, abstract_state.model_state))
    placed = nest({name: put(leaf, wanted[name]) for name, leaf in flatten(loaded).items()})
    params, model_state = variables.split(placed, abstract_state.model_state)
    return {"params": params, "model_state": model_state}
