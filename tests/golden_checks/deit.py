"""DeiT with a distillation token against timm, in inference and in training: outputs and gradients.

DeiT without one, and DeiT III, are checked as the Vision Transformers that they are (`vit.py`).
"""

import jax.numpy as jnp
import numpy as np

from golden_checks import below, checks
from golden_checks.vit import compare, compare_gradients, compare_one, fields, forward_and_gradient, loaded
from vitjax.models.deit import DistilledViT
from vitjax.weights.timm_names import to_timm


@checks(lambda config: config.get("family") == "deit_distilled")
def check_distilled(config, arrays):
    model = DistilledViT(**fields(config["kwargs"]))
    compare(model, arrays)
    check_training(model, arrays)


def check_training(model, arrays, table=None):
    """Each head has logits and a gradient of its own."""
    heads = {"logits_class": "train_logits", "logits_dist": "train_logits_dist"}
    cotangents = {ours: arrays[theirs.replace("logits", "cotangent")] for ours, theirs in heads.items()}
    params, image = loaded(model, arrays, table)
    loss = lambda out: sum(jnp.sum(out[name] * cotangents[name]) for name in heads)
    out, grads, _ = forward_and_gradient(model, params, image, loss, train=True)
    for ours, theirs in heads.items():
        compare_one(theirs, out[ours], arrays[theirs])
    np.testing.assert_array_equal(out["logits"], out["logits_class"])
    compare_gradients(below(arrays, "grad_train/"), to_timm(grads, table=table))
