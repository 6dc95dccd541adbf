"""Folders as a sweep leaves them, written by hand."""

import json

CONFIG = {
    "model": {"name": "vit_mu8", "dropout": 0.1},
    "num_classes": 10,
    "input": {
        "data": "digits",
        "split": "train",
        "pp": "value_range(-1, 1)|onehot(10, key='label', key_result='labels')|keep('image', 'labels')",
        "batch_size": 4,
    },
    "evals": {"val": {"type": "accuracy"}},
    "best_metric": "val/prec@1",
}
RUN = {
    "devices": [{"platform": "gpu", "kind": "NVIDIA H200", "count": 4}],
    "git": {"revision": "ab" * 20, "dirty": False},
    "started": "2026-03-01T10:00:00+00:00",
    "wall_time": {"step": 1800.0, "eval": 1800.0},
    "total_steps": 100,
    "batch_size": 64,
    "num_params": 5_000_000,
    "macs_per_image": 2_000_000_000,
}


def trial_name(axes, seed):
    return "-".join(f"{axis}_{value}" for axis, value in axes.items()) + f"-seed_{seed}"


def write_sweep(folder, trials, name="made up"):
    """Writes sweep.json for [(axes, seed)]; returns the names of the trials."""
    found = {
        trial_name(axes, seed): {
            "config": "configs/augreg.py",
            "overrides": {"seed": seed},
            "axes": axes,
            "seed": seed,
            "group": trial_name(axes, seed).rsplit("-", 1)[0],
        }
        for axes, seed in trials
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps({"sweep": "x.py", "name": name, "trials": found}))
    return list(found)


def write_trial(
    folder, name, metrics, *, status="done", run=None, config=None, log="", attempts=1, error=None
):
    """Writes what a trial leaves: `metrics` are rows of metrics.jsonl."""
    trial = folder / "trials" / name
    trial.mkdir(parents=True)
    (trial / "config.json").write_text(json.dumps(config or CONFIG))
    (trial / "run.json").write_text(json.dumps(RUN if run is None else run))
    (trial / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    (trial / "log.txt").write_text(log)
    state = {"status": status, "attempts": attempts, "error": error, "seconds": 1.0}
    (trial / "trial.json").write_text(json.dumps(state))
    return trial


def finished(score, **values):
    """Rows of a run that ends with `val/prec@1` = score."""
    return [
        {"step": 1, "training_loss": 2.5},
        {"step": 50, "training_loss": 1.5, "img/sec": 900.0, "val/prec@1": 0.1, "val/loss": 2.0},
        {"step": 100, "training_loss": 0.5, "img/sec": 1100.0, "examples_seen": 6400, "val/prec@1": score}
        | {"val/loss": 3.0, **values},
    ]


def whole_sweep(folder, score, axes, seeds=(0, 1), name="made up"):
    """A finished sweep over all combinations; `score(seed=..., **axes)` gives val/prec@1."""
    points = [{}]
    for axis, values in axes.items():
        points = [point | {axis: value} for point in points for value in values]
    trials = [(point, seed) for point in points for seed in seeds]
    for (point, seed), trial in zip(trials, write_sweep(folder, trials, name), strict=True):
        write_trial(folder, trial, finished(score(seed=seed, **point)))
    return folder
