"""Small stand-ins for the rooms next door: a source, a preprocessing, a pipeline, a task, a train state."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax.evaluators import inputs


class Source:
    """Vectors for images, so that a linear model can be checked by hand."""

    def __init__(self, images, labels, num_classes):
        self.images, self.labels, self.num_classes = images, labels, num_classes
        self.class_names = tuple(f"class {c}" for c in range(num_classes))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return {"image": self.images[i], "label": self.labels[i]}


class Batches:
    """The contract of `eval_batches`: this process's rows, the last batch padded, `close()`."""

    opened = closed = 0

    def __init__(self, source, host_fn, *, batch_size, workers, on_error, process_index, process_count):
        assert batch_size % process_count == 0 and workers == 0 and on_error == "raise"
        self.source, self.host_fn, self.batch_size = source, host_fn, batch_size
        self.local = np.split(np.arange(batch_size), process_count)[process_index]
        Batches.opened += 1

    def __iter__(self):
        for first in range(0, len(self.source), self.batch_size):
            ids = first + self.local
            mask = ids < len(self.source)
            rows = [
                self.host_fn(self.source[i] if ok else self.source[0], None)
                for i, ok in zip(ids, mask, strict=True)
            ]
            batch = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
            batch["image"][~mask] = np.nan  # whatever stands in a padding row must not matter
            yield batch | {"_id": np.where(mask, ids, -1), "_mask": mask}

    def close(self):
        Batches.closed += 1


class Task:
    """A linear model."""

    def predict(self, params, model_state, batch):
        logits = batch["image"] @ params["kernel"] + model_state["shift"]
        return logits, {
            "pre_logits": batch["image"] * 2.0,
            "deep": {"features": batch["image"]},
            "logits": logits,
        }


def train_state(kernel, ema=None, ema_shift=0.0):
    shift = jnp.zeros(kernel.shape[1])
    return types.SimpleNamespace(
        params={"kernel": jnp.asarray(kernel)},
        model_state={"shift": shift},
        ema_params=None if ema is None else {"kernel": jnp.asarray(ema)},
        ema_model_state=None if ema is None else {"shift": shift.at[0].add(ema_shift)},
    )


def mesh(num_devices):
    auto = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((num_devices,), ("data",), auto, devices=jax.devices()[:num_devices])


@pytest.fixture
def sources(monkeypatch):
    """A dict (data, split) -> Source that `open_source` reads; its "preprocessings" are named by pp."""
    return install(monkeypatch)


def install(monkeypatch):
    """Puts the stand-ins where evaluators reach for the data rooms."""
    table, preprocessings = {}, {"": lambda batch: batch}
    monkeypatch.setattr(inputs, "_open_source", lambda data, split: table[data, split])
    monkeypatch.setattr(inputs, "_eval_batches", Batches)
    host = lambda example, rng: dict(example)
    parse = lambda pp: types.SimpleNamespace(host=host, device=lambda batch, rng: preprocessings[pp](batch))
    monkeypatch.setattr(inputs, "_parse", parse)
    table["preprocessings"] = preprocessings
    return table
