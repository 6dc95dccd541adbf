"""Files as timm and transformers wrote them, and logits as they computed them (`make_goldens.py`)."""

import pathlib

import jax
import numpy as np
import pytest

from vitjax import models
from vitjax.weights import load

GOLDENS = pathlib.Path(__file__).parent / "goldens"
# Seen: 7e-7, where the largest logit is 2.7; float32 of either side is good for about as much.
TOLERANCE = 5e-6


@pytest.mark.parametrize(
    ("name", "norm_epsilon", "method"), [("timm", 1e-6, "bicubic_aa"), ("transformers", 1e-12, "bicubic")]
)
def test_logits_of_a_peers_file(name, norm_epsilon, method):
    golden = np.load(GOLDENS / f"{name}.npz")
    fields = {"num_classes": 5, "width": 24, "depth": 2, "num_heads": 3, "mlp_dim": 48}
    model = models.create("vit_mu8", gelu="erf", norm_epsilon=norm_epsilon, **fields)

    forward = jax.jit(lambda params, image: model.apply({"params": params}, image)[0])

    def error(size, posemb):
        image = golden[f"image{size}"]
        shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
        loaded = load(GOLDENS / f"{name}.safetensors", shapes, posemb=posemb)
        with jax.default_matmul_precision("highest"):
            logits = forward(loaded.params, image)
        return np.abs(logits - golden[f"logits{size}"]).max()

    assert error(32, "auto") <= TOLERANCE
    assert error(48, "auto") <= TOLERANCE
    assert error(48, method) <= TOLERANCE
    # Any other way to resize is seen.
    for other in {"corners", "bicubic", "bicubic_aa"} - {method}:
        assert error(48, other) > 100 * TOLERANCE
