"""A run's checkpoint gives the batch statistics that belong to the parameters asked for."""

import numpy as np
import pytest

from vitjax import weights
from vitjax.checkpoint import Checkpointer


@pytest.mark.parametrize(("key", "mean"), [("params", 2.0), ("ema_params", 4.0)])
def test_averaged_parameters_come_with_averaged_statistics(key, mean, tmp_path):
    leaf = lambda value: {"bn1": {"mean": np.full(3, value, np.float32)}}
    params = lambda value: {"bn1": {"scale": np.full(3, value, np.float32)}}
    state = dict(
        params=params(1.0),
        model_state={"batch_stats": leaf(2.0)},
        ema_params=params(3.0),
        ema_model_state={"batch_stats": leaf(4.0)},
    )
    with Checkpointer(tmp_path / "checkpoints", fingerprint={}) as checkpointer:
        checkpointer.save(1, state)
        checkpointer.wait()
    wanted = {"bn1": {"scale": np.zeros(3), "mean": np.zeros(3)}}
    loaded = weights.load(f"{tmp_path}:{key}", wanted).params
    assert loaded["bn1"]["scale"][0] == mean - 1 and loaded["bn1"]["mean"][0] == mean
