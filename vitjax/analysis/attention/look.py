"""Runs a network on images and keeps what is shown: maps, and numbers by layer, not the attention itself."""

import dataclasses
import math
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitjax.analysis.attention import capture, maps, spread
from vitjax.analysis.attention.layers import Layer, choose, layers
from vitjax.analysis.attention.networks import Network

METHODS = ("cls", "rollout", "heads")
MOST_BYTES = 2**28  # of attention in one call; more images are taken in turns


@dataclasses.dataclass(frozen=True)
class Look:
    """What a network attends to.

    Attributes:
      network: the network.
      layers: its attentions.
      shown: which of them the maps of `cls` and `heads` are of.
      answers: int [K], its first class for each image.
      maps: by method, float [K, h, w]; of `heads` [K, H, h, w].
      published: the paper's divergence by layer, float [H] each, the mean over images and rows.
      divergence: over the keys that a query may see, the same.
      entropy: as a share of its most, the same.
      temperature: of layers whose temperature is learned, [H] each; else None.
      start: the temperature where it began or stays, one a layer; NaN where it is not known.
    """

    network: Network
    layers: list[Layer]
    shown: int
    answers: np.ndarray
    maps: dict[str, np.ndarray]
    published: list[np.ndarray]
    divergence: list[np.ndarray]
    entropy: list[np.ndarray]
    temperature: list[np.ndarray | None]
    start: np.ndarray

    @property
    def shown_layer(self) -> Layer:
        """The layer that maps of `cls` and `heads` are of."""
        return self.layers[self.shown]


def look(network: Network, methods: Collection[str], layer: int = -1) -> Look:
    """Runs a network on all its images.

    Args:
      network: the network.
      methods: which maps to make, of `METHODS`.
      layer: whose maps `cls` and `heads` are.

    Raises:
      UserError: it has no attention, or no such layer.
    """
    one = jax.ShapeDtypeStruct((1, *network.images.shape[1:]), jnp.float32)
    found, out = capture.attentions(network.model, network.variables, one)
    placed = layers(network.model, found, out, one)
    shown = choose(placed, layer, network.label)

    @jax.jit
    def see(variables: Any, images: jax.Array) -> dict[str, Any]:
        logits, _, sown = capture.run(network.model, variables, images)
        weights = [layer.attention.of(sown, capture.WEIGHTS) for layer in placed]
        by_head = maps.head_maps(placed[shown], weights[shown])
        seen: dict[str, Any] = {"answers": logits.argmax(-1), "spread": []}
        seen |= {"cls": by_head.mean(1)} if "cls" in methods else {}
        seen |= {"heads": by_head} if "heads" in methods else {}
        seen |= {"rollout": maps.rollout(placed, weights)} if "rollout" in methods else {}
        per_image = lambda values: values.reshape(len(images), -1, values.shape[-1]).mean(1)
        for layer in placed:  # windows of an image together: [B * W, H] to [B, H]
            weights, logits = softmax_of(layer, sown)
            measured = (
                spread.published_divergence(weights),
                spread.divergence(logits, layer.allowed),
                spread.entropy(logits, layer.allowed),
            )
            seen["spread"].append([per_image(values) for values in measured])
        return seen

    parts = [jax.device_get(see(network.variables, part)) for part in _parts(network.images, placed)]
    count = len(network.images)
    whole = lambda name: np.concatenate([np.asarray(part[name]) for part in parts])[:count]
    published, divergence, entropy = (_by_layer(parts, which, count) for which in range(3))
    multipliers = [layer.attention.multiplier(network.variables["params"]) for layer in placed]
    return Look(
        network=network,
        layers=placed,
        shown=shown,
        answers=whole("answers"),
        maps={method: whole(method) for method in METHODS if method in methods},
        published=published,
        divergence=divergence,
        entropy=entropy,
        temperature=[None if m is None else 1 / np.asarray(m, np.float64) for m in multipliers],
        start=np.array([layer.attention.start or math.nan for layer in placed]),
    )


def softmax_of(layer: Layer, sown: Any) -> tuple[jax.Array, jax.Array]:
    """What the softmax of a layer returned and what it saw, both `[B, H, N, M]`.

    Of talking heads that is before the mix. Their logits are not kept: their logarithms stand for them, those
    that underflowed cut off at 1e-38. Where the layer does not tell, all is NaN.
    """
    if not layer.attention.mixes_heads:
        return layer.attention.of(sown, capture.WEIGHTS), layer.attention.of(sown, capture.LOGITS)
    try:
        weights = layer.attention.of(sown, capture.UNMIXED)
    except KeyError:
        weights = jnp.full_like(layer.attention.of(sown, capture.WEIGHTS), jnp.nan)
    return weights, jnp.log(jnp.maximum(weights.astype(jnp.float32), jnp.finfo(jnp.float32).tiny))


def _parts(images: np.ndarray, placed: list[Layer]) -> list[np.ndarray]:
    """Images in equal parts that do not ask for too much memory, the last filled up with its last image."""
    each = sum(8 * math.prod(layer.attention.shape) for layer in placed)
    size = min(len(images), max(1, MOST_BYTES // each))
    parts = [images[at : at + size] for at in range(0, len(images), size)]
    missing = size - len(parts[-1])
    parts[-1] = np.concatenate([parts[-1], np.repeat(parts[-1][-1:], missing, axis=0)])
    return parts


def _by_layer(parts: list[dict], which: int, count: int) -> list[np.ndarray]:
    """The mean over images of a measure, [H] for each layer."""
    layers = range(len(parts[0]["spread"]))
    return [
        np.concatenate([part["spread"][at][which] for part in parts])[:count].mean(0, dtype=float)
        for at in layers
    ]
