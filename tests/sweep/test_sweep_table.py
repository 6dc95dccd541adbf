"""The table of a sweep: types, what is missing, and both files."""

import csv
import datetime
import math

import pytest
from made_up_sweep import CONFIG, RUN, finished, write_sweep, write_trial
from pyarrow import parquet

from vitjax.errors import UserError
from vitjax.sweep.table import (
    choose_metric,
    column,
    is_share,
    lower_is_better,
    read_table,
    same,
    write_table,
)

AXES = {"model": "vit_s16", "reg": 0.1, "rep": False, "steps": 7}


@pytest.fixture
def sweep(tmp_path):
    """One trial of each kind: done, failed, torn while it ran, damaged, not started."""
    trials = [(AXES | {"steps": n}, seed) for n in (7, 8, 9) for seed in (0, 1)][:5]
    done, failed, torn, damaged, _ = write_sweep(tmp_path, trials)
    write_trial(tmp_path, done, finished(0.75, **{"val/prec@1": 0.09}))
    write_trial(tmp_path, failed, [], status="failed", attempts=3, error="loss is nan at step 9")
    folder = write_trial(tmp_path, torn, finished(0.5)[:2], status="running")
    with open(folder / "metrics.jsonl", "a") as f:
        f.write('{"step": 60, "training_lo')
    folder = write_trial(tmp_path, damaged, [])
    for name in ("trial.json", "run.json", "config.json"):
        (folder / name).write_text('{"torn')
    return tmp_path


def test_a_finished_trial_has_every_column(sweep):
    table = read_table(sweep)
    row = table.rows[0]
    assert list(row) != table.columns and set(row) == set(table.columns)
    assert row["name"] == "model_vit_s16-reg_0.1-rep_False-steps_7-seed_0"
    assert row["group"] == "model_vit_s16-reg_0.1-rep_False-steps_7"
    assert (row["status"], row["attempts"], row["seed"]) == ("done", 1, 0)
    assert (row["model"], row["reg"], row["rep"], row["swept steps"]) == ("vit_s16", 0.1, False, 7)
    assert (row["final val/prec@1"], row["best val/prec@1"]) == (0.09, 0.1)
    assert (row["final val/loss"], row["best val/loss"]) == (3.0, 2.0)  # of a loss the lowest
    assert (row["training_loss"], row["steps"], row["total_steps"]) == (0.5, 100, 100)
    assert row["images_seen"] == 6400 and row["images_per_second"] == 1000.0
    assert row["device_hours"] == 4.0  # an hour on four devices
    assert row["num_params"] == 5_000_000 and row["gmacs_per_image"] == 2.0
    assert row["training_flops"] == 3 * 2 * 2e9 * 6400
    assert row["devices"] == "4 NVIDIA H200" and row["git_revision"] == "ab" * 20
    assert row["started"] == datetime.datetime(2026, 3, 1, 10, tzinfo=datetime.UTC)
    assert row["error"] is None and row["git_dirty"] is False


def test_what_is_missing_is_null(sweep):
    done, failed, torn, damaged, pending = read_table(sweep).rows
    assert [row["status"] for row in (failed, torn, damaged, pending)] == [
        "failed",
        "running",
        "unknown",
        "pending",
    ]
    assert failed["error"] == "loss is nan at step 9" and failed["attempts"] == 3
    assert failed["steps"] is failed["final val/prec@1"] is failed["training_flops"] is None
    assert (torn["steps"], torn["training_loss"]) == (50, 1.5)  # the torn line is passed over
    assert torn["images_seen"] == 50 * 64  # by the batch size of run.json
    known = {"name", "group", "status", "model", "reg", "rep", "swept steps", "seed"}
    for row in (damaged, pending):
        assert {name for name, value in row.items() if value is not None} == known
    assert [row["name"] for row in read_table(sweep).done] == [done["name"]]


def test_parquet_keeps_types_and_values(sweep):
    table = read_table(sweep)
    write_table(sweep, table)
    read = parquet.read_table(sweep / "table.parquet")
    assert read.column_names == table.columns
    kinds = {name: str(read.schema.field(name).type) for name in table.columns}
    assert kinds["rep"] == kinds["git_dirty"] == "bool"
    for name in ("attempts", "swept steps", "seed", "steps", "images_seen", "num_params"):
        assert kinds[name] == "int64"
    for name in ("reg", "final val/prec@1", "training_flops", "device_hours", "images_per_second"):
        assert kinds[name] == "double"
    assert kinds["model"] == "string" and kinds["started"].startswith("timestamp")
    assert read.to_pylist() == [{name: row[name] for name in table.columns} for row in table.rows]


def test_types_stay_before_the_first_trial_starts(tmp_path):
    write_sweep(tmp_path, [({"lr": 0.1}, 0)])
    write_table(tmp_path, read_table(tmp_path))
    schema = parquet.read_schema(tmp_path / "table.parquet")
    kinds = {name: str(schema.field(name).type) for name in ("steps", "training_flops", "git_dirty", "lr")}
    assert kinds == {"steps": "int64", "training_flops": "double", "git_dirty": "bool", "lr": "double"}
    assert str(schema.field("started").type).startswith("timestamp")


def test_csv_has_all_digits_and_the_same_order_every_time(sweep):
    score = 0.1234567890123456
    write_trial(sweep, read_table(sweep).rows[4]["name"], finished(score))
    paths = write_table(sweep, read_table(sweep))
    first = [path.read_bytes() for path in paths]
    with open(paths[0], newline="") as f:
        rows = list(csv.DictReader(f))
    assert float(rows[4]["final val/prec@1"]) == score
    assert rows[1]["steps"] == "" and rows[0]["rep"] == "false" and rows[0]["swept steps"] == "7"
    assert rows[0]["started"] == "2026-03-01T10:00:00+00:00"
    write_table(sweep, read_table(sweep))
    assert [path.read_bytes() for path in paths] == first


def test_values_of_several_types_become_text(tmp_path):
    names = write_sweep(
        tmp_path, [({"a": value, "b": b}, 0) for value, b in (("x", 1), (None, 0.5), ([1, 2], 2))]
    )
    write_table(tmp_path, read_table(tmp_path))
    assert len(names) == 3
    read = parquet.read_table(tmp_path / "table.parquet").to_pydict()
    assert read["a"] == ["x", None, "[1, 2]"] and read["b"] == [1.0, 0.5, 2.0]


def test_non_finite_metrics_stay_non_finite(tmp_path):
    name, *_ = write_sweep(tmp_path, [({"lr": 1.0}, 0)])
    write_trial(tmp_path, name, [{"step": 1, "training_loss": None, "val/prec@1": None, "img/sec": None}])
    write_table(tmp_path, read_table(tmp_path))
    row = parquet.read_table(tmp_path / "table.parquet").to_pylist()[0]
    assert math.isnan(row["training_loss"]) and math.isnan(row["best val/prec@1"])
    assert row["images_per_second"] is None


def test_without_a_config_names_with_a_slash_are_metrics(tmp_path):
    name, *_ = write_sweep(tmp_path, [({"lr": 1.0}, 0)])
    rows = [{"step": 1, "a/cifar_10shot": 0.5, "img/sec/core": 1.0, "data/skipped": 0, "val/prec@1": 0.1}]
    folder = write_trial(tmp_path, name, rows)
    (folder / "config.json").unlink()
    assert read_table(tmp_path).metrics == ["a/cifar_10shot", "val/prec@1"]


def test_flops_beyond_64_bits_and_devices_of_two_kinds(tmp_path):
    name, *_ = write_sweep(tmp_path, [({"lr": 1.0}, 0)])
    devices = [{"kind": "A", "count": 1}, {"kind": "B", "count": 2}]
    run = RUN | {"macs_per_image": 17_563_828_224, "devices": devices, "batch_size": 4096}
    write_trial(tmp_path, name, [{"step": 92_897, "training_loss": 1.0, "core_hours": 9.0}], run=run)
    write_table(tmp_path, read_table(tmp_path))
    row = parquet.read_table(tmp_path / "table.parquet").to_pylist()[0]
    assert row["training_flops"] == 6.0 * 17_563_828_224 * 92_897 * 4096 > 2**63
    assert row["devices"] == "1 A, 2 B" and row["device_hours"] == 9.0  # logged later than run.json


def test_the_metric_of_a_page(sweep):
    table = read_table(sweep)
    assert choose_metric(table, None) == "val/prec@1"
    assert choose_metric(table, "val/loss") == "val/loss"
    with pytest.raises(UserError, match=r"--metric val/prec1: .* Did you mean 'val/prec@1'\? There are: val"):
        choose_metric(table, "val/prec1")


@pytest.mark.parametrize("best", ["max:val/loss", None])
def test_the_metric_of_the_trials_comes_first_then_a_share(tmp_path, best):
    name, *_ = write_sweep(tmp_path, [({"lr": 1.0}, 0)])
    rows = [{"step": 1, "val/loss": 1.0, "val/ece": 0.1, "val/prec@1": 0.1}]
    write_trial(tmp_path, name, rows, config=CONFIG | {"best_metric": best})
    assert choose_metric(read_table(tmp_path), None) == ("val/loss" if best else "val/prec@1")


def test_no_metric_and_no_sweep(tmp_path):
    with pytest.raises(UserError, match="is not there"):
        read_table(tmp_path)
    for text in ("{", "[]", '{"trials": 3}', '{"trials": {"a": 1}}'):
        (tmp_path / "sweep.json").write_text(text)
        with pytest.raises(UserError, match="is not the record of a sweep"):
            read_table(tmp_path)
    write_sweep(tmp_path, [({"lr": 1.0}, 0)])
    assert choose_metric(read_table(tmp_path), None) is None


def test_names_of_metrics_and_values_of_axes():
    assert lower_is_better("val/loss") and lower_is_better("val/ece") and not lower_is_better("val/prec@1")
    assert is_share("a/cifar_10shot") and is_share("val/accuracy") and not is_share("val/loss")
    assert column("aug") == "aug" and column("status") == "swept status" and column("seed") == "swept seed"
    assert same(1, 1.0) and not same(1, True) and same([1], [1]) and not same("1", 1)
