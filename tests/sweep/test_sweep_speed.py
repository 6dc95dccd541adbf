"""Inference speed: each model once, kept, and never in the way of the page."""

import csv
import json
import shutil

import pytest
from made_up_sweep import CONFIG, finished, write_sweep, write_trial
from test_sweep_page import make

from vitjax.errors import UserError
from vitjax.sweep import speed
from vitjax.sweep.speed import Forward, forward_of, inference_speeds


def model(name="vit_mu8", size=8, **options):
    pp = f"resize({size})|" + CONFIG["input"]["pp"]
    return CONFIG | {"model": {"name": name, **options}, "input": CONFIG["input"] | {"pp": pp}}


CONFIGS = {
    "plain": model(),
    "dropped": model(dropout=0.1, drop_path=0.1),
    "wide": model(width=64),
    "large": model(size=16),
}


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "ROUNDS", 2)
    monkeypatch.setattr(speed, "SECONDS", 0.001)
    names = write_sweep(tmp_path, [({"kind": kind}, 0) for kind in CONFIGS])
    for name, config in zip(names, CONFIGS.values(), strict=True):
        write_trial(tmp_path, name, finished(0.5), config=config)
    return tmp_path, names


def kept(folder):
    with open(folder / "inference_speed.csv", newline="") as f:
        return list(csv.DictReader(f))


def test_models_are_measured_once_and_kept(sweep, capsys):
    folder, names = sweep
    found = inference_speeds(folder, names, batch_size=2, measure=True)
    assert "inference speed: 3 models, 2 images a call" in capsys.readouterr().out
    assert found.device == "cpu" and found.batch_size == 2 and not found.missing
    assert set(found.by_trial) == set(names) and all(rate > 0 for rate in found.by_trial.values())
    plain, dropped, wide, large = names
    assert found.by_trial[plain] == found.by_trial[dropped]  # dropout is nothing in inference
    assert len({found.by_trial[name] for name in (plain, wide, large)}) == 3
    rows = kept(folder)
    assert [(row["model"], row["image"]) for row in rows] == [
        ('{"name": "vit_mu8"}', "8x8x1"),
        ('{"name": "vit_mu8", "width": 64}', "8x8x1"),
        ('{"name": "vit_mu8"}', "16x16x1"),
    ]
    assert {(row["device"], row["batch_size"], row["num_classes"]) for row in rows} == {("cpu", "2", "10")}

    def refuse(*args):
        raise AssertionError("measured again")

    speed._measure, measure = refuse, speed._measure
    try:
        assert inference_speeds(folder, names, batch_size=2, measure=True) == found
        assert inference_speeds(folder, names, batch_size=64, measure=False) == found
    finally:
        speed._measure = measure
    text, page = make(folder)  # with --no-speed: what is kept is shown
    assert "Forward pass, 2 images a call, on one cpu; from inference_speed.csv." in text
    assert any("against inference, images/s (cpu)" in spoken for spoken in page.spoken)


def test_the_front_is_of_the_fast_and_the_good(sweep):
    folder, names = sweep
    rates = dict(zip(names, (5.0, 5.0, 9.0, 2.0), strict=True))
    kept_rates = {(forward_of(folder / "trials" / n), "TPU v4", 32): rate for n, rate in rates.items()}
    speed._write(folder / "inference_speed.csv", kept_rates)
    for name, score in zip(names, (0.5, 0.4, 0.3, 0.45), strict=True):
        shutil.rmtree(folder / "trials" / name)
        write_trial(folder, name, finished(score), config=CONFIGS[name.split("_")[1].split("-")[0]])
    _, page = make(folder)
    fronts = [spoken for spoken in page.spoken if "images/s" in spoken]
    assert fronts[0].endswith("4 settings. Pareto front: kind plain; kind wide.")


def test_what_was_measured_elsewhere_counts_if_it_is_whole(sweep):
    folder, names = sweep
    forwards = [forward_of(folder / "trials" / name) for name in names]
    speed._write(folder / "inference_speed.csv", {(f, "TPU v4", 32): 10.0 for f in forwards[1:]})
    found = inference_speeds(folder, names[:3], batch_size=32, measure=True)
    assert found.device == "TPU v4" and set(found.by_trial.values()) == {10.0} and not found.missing
    found = inference_speeds(folder, [names[0], names[3]], batch_size=32, measure=True)
    assert found.device == "TPU v4"  # 8x8 without options was measured as `dropped`
    found = inference_speeds(folder, names[3:], batch_size=2, measure=True)  # other batches: measured here
    assert found.device == "cpu" and found.batch_size == 2
    lines = (folder / "inference_speed.csv").read_text().splitlines()
    (folder / "inference_speed.csv").write_text("\n".join([*lines[:2], "torn,x"]))
    found = inference_speeds(folder, names, batch_size=32, measure=False)
    assert found.device == "TPU v4" and set(found.by_trial) == set(names[:2])


def test_what_was_measured_elsewhere_in_part_is_measured_here(sweep):
    folder, names = sweep
    forward = forward_of(folder / "trials" / names[0])
    speed._write(folder / "inference_speed.csv", {(forward, "TPU v4", 2): 10.0})
    found = inference_speeds(folder, names[:3], batch_size=2, measure=True)
    assert found.device == "cpu" and set(found.by_trial) == set(names[:3])
    assert [row["device"] for row in kept(folder)] == ["TPU v4", "cpu", "cpu"]


def test_a_model_that_cannot_be_built_is_named_and_others_go_on(sweep):
    folder, names = sweep
    gone = names[2]
    (folder / "trials" / gone / "config.json").write_text(json.dumps(model(name="gone.away.Model")))
    (folder / "trials" / names[3] / "config.json").write_text("{")
    found = inference_speeds(folder, names, batch_size=1, measure=True)
    assert set(found.by_trial) == set(names[:2])
    assert "cannot be imported" in found.missing[gone] and "cannot be read" in found.missing[names[3]]
    assert [row["model"] for row in kept(folder)] == ['{"name": "vit_mu8"}']


def test_nothing_is_known_without_measuring(sweep):
    folder, names = sweep
    assert inference_speeds(folder, names, batch_size=1, measure=False) is None


def test_data_that_is_not_there_is_said(sweep):
    folder, names = sweep
    config = model() | {"input": CONFIG["input"] | {"data": "folder:/not/there"}}
    (folder / "trials" / names[0] / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="/not/there"):
        forward_of(folder / "trials" / names[0])
    assert forward_of(folder / "trials" / names[1]) == Forward('{"name": "vit_mu8"}', 10, "8x8x1")
