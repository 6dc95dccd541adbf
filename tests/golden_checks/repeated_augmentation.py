"""Repeated augmentation: what each process of the official sampler takes."""

from unittest import mock

import numpy as np

from golden_checks import below, checks
from vitjax.data import pipeline


def has_sampler(config):
    cases = config.get("cases")
    return isinstance(cases, list) and all({"repeats", "replicas", "n"} <= set(case) for case in cases)


@checks(has_sampler)
def check_sampler(config, arrays):
    for i, case in enumerate(config["cases"]):
        replicas, n, repeats = case["replicas"], case["n"], case["repeats"]
        epoch_rows = pipeline.examples_per_epoch(n, batch_size=replicas, repeats=repeats)
        if repeats > 1 and n >= 256:
            assert epoch_rows == case["len"] * replicas, f"case {i}: an epoch of {epoch_rows} rows"
        # In a global batch of one row for each process, row r is what process r takes.
        rows = pipeline.TrainRows(n, slice(0, replicas), replicas, seed=0, repeats=repeats)
        steps = min(case["len"], epoch_rows // replicas)
        for epoch in case["epochs"]:
            theirs = below(arrays, f"{i}/epoch{epoch}/")
            with mock.patch.object(pipeline, "_permutation", lambda *_, order=theirs["perm"]: order):
                ours = np.stack([rows(step)[1] for step in range(steps)])
            for rank in range(replicas):
                np.testing.assert_array_equal(ours[:, rank], theirs[f"rank{rank}"][:steps])
