"""Losses of timm and the official DeiT code: values, and gradients with respect to each head's logits."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from golden_checks import checks
from vitjax import losses
from vitjax.data.value_scale import Scale
from vitjax.tasks.distill import Distill
from vitjax.teachers import Student

# Ours is float32, the reference float64. Shares of the value, and of the largest gradient.
VALUE = 1e-6  # seen: 2e-7
GRADIENT = 1e-6  # seen: 3e-7
NAME = r"(?:distill_(none|hard|soft)|kl_batchmean)_a([\d.]+)_t([\d.]+)(?:_(soft|int)_target)?"
HEADS = ("student", "student_dist")


def has_losses(config):
    return {"B", "C", "lam", "smoothing"} <= set(config)


@checks(has_losses)
def check_losses(config, arrays):
    given = [jnp.asarray(arrays[head]) for head in HEADS]
    names = sorted({key.split("/")[0] for key in arrays if key.endswith("/value")})
    assert names
    for name in names:
        value, grads = jax.value_and_grad(loss_of(name, arrays), argnums=(0, 1))(*given)
        wanted = float(arrays[f"{name}/value"])
        assert abs(float(value) - wanted) <= VALUE * abs(wanted), f"{name} is {value}, not {wanted}"
        for head, grad in zip(HEADS, grads, strict=True):
            wanted = arrays.get(f"{name}/grad_{head}", np.zeros(grad.shape))  # a head it does not touch
            error = np.abs(np.float64(grad) - wanted).max()
            assert error <= GRADIENT * np.abs(wanted).max(), f"{name}/grad_{head} is off by {error:.1e}"


def loss_of(name, arrays):
    """The function `(student, student_dist) -> value` that a name in the file stands for."""
    hot = np.eye(arrays["student"].shape[-1])[arrays["labels"]]
    on_labels = {
        "ce": lambda student, _: losses.softmax_xent(student, hot),
        "soft_target_ce": lambda student, _: losses.softmax_xent(student, arrays["soft_target"]),
        "bce_binarised": lambda student, _: losses.binarised_xent(student, arrays["soft_target"]),
    }
    if name in on_labels:
        return on_labels[name]
    if found := re.fullmatch(r"label_smoothing_([\d.]+)", name):
        return lambda student, _: losses.softmax_xent(student, hot, label_smoothing=float(found[1]))
    if found := re.fullmatch(NAME, name):
        kind, alpha, temperature, target = found.groups()
        labels = hot if target == "int" else arrays["soft_target"]
        return distilled(kind, float(alpha), float(temperature), labels, arrays["teacher"])
    pytest.fail(f"Nothing checks the loss {name!r}.", pytrace=False)


def distilled(kind, alpha, temperature, labels, teacher):
    """The objective of our task, for a student with two heads."""
    two_heads = types.SimpleNamespace(distilled=True, average_heads=kind == "none")
    student = Student(labels.shape[-1], (len(labels), 8, 8, 3), Scale(), {}, steps=1)
    task = Distill(
        two_heads,
        student,
        kind=kind or "soft",
        alpha=alpha,
        temperature=temperature,
        kl_mean="elements" if kind else "batch",
        teacher=dict(model=dict(name="vit_mu8"), weights="random"),  # never asked
    )
    batch = {"labels": jnp.asarray(labels)}
    if kind == "none":
        return lambda student, _: task.loss_on_labels(student, batch)

    def objective(student, student_dist):
        out = {"logits_class": student, "logits_dist": student_dist}
        return task.objective((student + student_dist) / 2, out, batch, jnp.asarray(teacher))[0]

    return objective
