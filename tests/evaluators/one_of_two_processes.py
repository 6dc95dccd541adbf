"""One process of `test_two_processes`: evaluates its share and prints metrics, which must be those of one."""

import json
import sys

import jax
import numpy as np
import pytest
import stand_ins

from vitjax import evaluators

process, port = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(
    f"localhost:{port}", num_processes=2, process_id=process, initialization_timeout=60
)
assert jax.device_count() == 4 and jax.process_count() == 2

table = stand_ins.install(pytest.MonkeyPatch())
table["preprocessings"]["onehot"] = lambda batch: batch | {"labels": jax.nn.one_hot(batch["label"], 4)}
rng = np.random.default_rng(0)
labels = rng.integers(0, 4, 45).astype(np.int32)
table["toy", "all"] = stand_ins.Source(rng.standard_normal((45, 6)).astype(np.float32), labels, 4)
kernel = rng.standard_normal((6, 4)).astype(np.float32)

metrics = {}
for devices in (jax.devices(), jax.local_devices()[:1]):
    mesh = jax.make_mesh((len(devices),), ("data",), (jax.sharding.AxisType.Auto,), devices=devices)
    if len(devices) == 1:  # the same on a single device, as if alone
        jax.process_index, jax.process_count = (lambda: 0), (lambda: 1)
    context = evaluators.Context(stand_ins.Task(), mesh)
    state = stand_ins.train_state(kernel)
    if len(devices) > 1:
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        place = lambda x, s=whole: jax.make_array_from_process_local_data(s, np.asarray(x))
        state.params, state.model_state = jax.tree.map(place, (state.params, state.model_state))
    section = {"type": "accuracy", "data": "toy", "split": "all", "pp": "onehot", "loss": "softmax_xent"}
    val = evaluators.create("val", section | {"batch_size": 10}, context=context)
    section = {"type": "fewshot", "datasets": {"toys": ("toy", "all", "all")}, "pp": "", "shots": (1, 3)}
    shots = evaluators.create("shots", section | {"batch_size": 7}, context=context)
    answers = {k: np.round(v, 5).tolist() for k, v in val.predictions(state).items()}
    metrics[len(devices)] = [*val.run(state), *shots.run(state), answers]
print(json.dumps(metrics))
