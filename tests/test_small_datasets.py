"""The recipe for small data sets: each number is the published one, each data set has its own."""

import csv
import json
import re
import sys

import jax
import numpy as np
import pytest

from benchmarks import small_datasets
from vitjax import config, durations, experiment, models, optim, train
from vitjax.data import pipeline, pp
from vitjax.errors import UserError
from vitjax.metrics import read_metrics
from vitjax.models import small
from vitjax.sweep import trials

FILE = "configs/small_datasets.py"
# Training images, iterations in an epoch and in all (the paper's code at batch 128).
LENGTHS = {
    "cifar10": (50_000, 1171, 117_100),
    "cifar100": (50_000, 1171, 117_100),
    "svhn": (73_257, 1716, 171_600),
    "tiny_imagenet": (100_000, 2343, 234_300),
}


def load(arg):
    if "tiny_imagenet" in arg and "source" not in arg:
        arg += ",source=x.zip"
    return config.load(f"{FILE}:{arg}")


def optimizer_of(c, num_examples):
    epoch = pipeline.examples_per_epoch(num_examples, batch_size=c.input.batch_size, passes=c.input.passes)
    sizes = dict(batch_size=c.input.batch_size, num_examples=epoch)
    total = durations.steps(c, "total", total_steps=None, **sizes)
    names = ("bias", "scale", "kernel", "pos_embedding")
    params = {name: jax.ShapeDtypeStruct((2,), np.float32) for name in names}
    return optim.create(params, total_steps=total, **sizes, **experiment.optimizer_section(c)), total, epoch


@pytest.mark.parametrize("model", ["small_vit", "sl_vit", "s_cait", "sl_pit", "l_swin", "sl_t2t"])
@pytest.mark.parametrize("data", LENGTHS)
def test_the_recipe_to_the_letter(model, data):
    c = load(f"{model},data={data}")
    images, iterations, total = LENGTHS[data]
    optimizer, steps, epoch = optimizer_of(c, images)
    assert (epoch, steps) == (iterations * 128, total)
    lr = 3e-3 if model.endswith("vit") else 1e-3
    at = np.array([0, 1, total // 20, total // 10, total // 10 * 11 // 2, total - 1])
    warmup = total // 10
    expected = np.where(
        at < warmup,
        1e-6 + (lr - 1e-6) * at / warmup,
        1e-6 + (lr - 1e-6) * (1 + np.cos(np.pi * (at - warmup) / (total - warmup))) / 2,
    )
    # Of the peak, in float32; the cosine's low end is 1e-6 of it and worse below that.
    np.testing.assert_allclose([optimizer.learning_rate(t) for t in at], expected, rtol=0, atol=4e-7 * lr)
    assert optimizer.lr == lr and optimizer.wd == 0.05 * lr
    assert {group.wd_mult for group in jax.tree.leaves(optimizer.groups)} == {1.0}
    assert c.optax.to_dict() == dict(b1=0.9, b2=0.999, eps=1e-8) and c.optax_name == "scale_by_adam"
    assert c.task.to_dict() == dict(name="classify", loss="softmax_xent", label_smoothing=0.1)
    assert (c.input.batch_size, c.input.repeats, c.model.drop_path) == (128, 1, 0.1)
    assert "grad_clip_norm" not in c and "ema" not in c and c.evals.val.log_epochs == 1


def test_small_images_have_small_patches_and_tiny_imagenet_others():
    assert load("sl_vit").model.to_dict() == dict(name="sl_vit", drop_path=0.1, dtype="float32")
    changed = {
        name: load(f"small_{name},data=tiny_imagenet").model.to_dict() for name in ("vit", "swin", "t2t")
    }
    assert [changed[name].get("patch_size") for name in changed] == [8, 4, None]
    assert changed["t2t"]["splits"] == 3


# Trainable parameters of the released code: plain for CIFAR-100, with SPT and LSA for Tiny-ImageNet.
PARAMETERS = {
    "vit": (2_709_796, 2_906_228),
    "cait": (9_037_988, 9_234_416),
    "pit": (7_007_236, 8_732_804),
    "swin": (7_107_838, 8_652_956),
    "t2t": (6_509_210, 6_680_264),
}


@pytest.mark.parametrize("network", small.NETWORKS)
def test_networks_have_the_released_number_of_parameters(network):
    found = []
    for c, side in (
        (load(f"small_{network},data=cifar100"), 32),
        (load(f"sl_{network},data=tiny_imagenet"), 64),
    ):
        model = models.create(num_classes=c.num_classes, **c.model)
        image = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
        params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
        found.append(sum(leaf.size for leaf in jax.tree.leaves(params)))
    assert tuple(found) == PARAMETERS[network]


@pytest.mark.parametrize(
    ("data", "res", "policy", "fill"),
    [
        ("cifar10", 32, "cifar", (0.4914, 0.4822, 0.4465)),
        ("cifar100", 32, "cifar", (0.507, 0.4865, 0.4409)),
        ("svhn", 32, "svhn", (0.4377, 0.4438, 0.4728)),
        ("tiny_imagenet", 64, "imagenet", (0.4802, 0.4481, 0.3975)),
    ],
)
def test_augmentation_is_in_the_official_order(data, res, policy, fill):
    text = load(f"data={data}").input.pp
    names = [re.match(r"\w+", op)[0] for op in text.split("|")]
    assert names == [
        "decode",
        "flip_lr",
        "random_crop",
        "autoaugment",
        "vgg_value_range",
        "random_erasing",
        "onehot",
        "keep",
        "cutmix_or_mixup",
    ]
    erasing = f"random_erasing(0.25, mode={fill}, area=(0.02, 0.4), aspect='uniform', tries=100)"
    for op in (
        f"random_crop({res}, padding=4)",
        f"autoaugment('{policy}')",
        erasing,
        "cutmix_or_mixup(p=0.5)",
    ):
        assert op in text.split("|")
    for on_device in (False, True):
        ops = pp.parse(experiment.fill_in(text, 10), on_device=on_device)
        assert len(ops.host.ops) == (1 if on_device else 4)  # all but the decoding


@pytest.mark.parametrize("data", [*LENGTHS, "fashion_mnist"])
def test_pixels_are_standardized_by_the_numbers_of_the_data_set(data):
    c = load(f"data={data}")
    side = {"tiny_imagenet": 64, "fashion_mnist": 28}.get(data, 32)
    image = np.full((side, side, 1 if side == 28 else 3), 255, np.uint8)
    batch = {"image": image, "label": np.int32(1)}
    ops = pp.parse(experiment.fill_in(c.evals.val.pp, c.num_classes))
    example = ops.host(batch, np.random.default_rng(0))
    out = ops.device({key: value[None] for key, value in example.items()}, jax.random.key(0))
    mean, std = (
        np.array(eval(part)) for part in re.findall(r"=(\(.*?\))", c.evals.val.pp.split("vgg_")[1])[:2]
    )
    centre = np.asarray(out["image"])[0, side // 2, side // 2]
    np.testing.assert_allclose(centre, (255 - mean) / std, rtol=1e-6)
    assert out["image"].shape[1:] == ((64, 64, 3) if side == 64 else (32, 32, 3))
    assert out["labels"].shape == (1, c.num_classes)
    assert (mean / 255).max() < 0.6 and (std / 255).max() < 0.4
    if side == 28:  # black around the picture
        np.testing.assert_allclose(np.asarray(out["image"])[0, 1, 1], -mean / std, rtol=1e-6)


def test_sources():
    assert load("data=cifar10").input.data == "tfds:cifar10"
    assert load("data=cifar10,source=/a/b.tar.gz").input.data == "cifar10:/a/b.tar.gz"
    assert load("data=cifar10,source=arrays:a.npz").evals.val.data == "arrays:a.npz"
    assert load("data=cifar10,source=a.npz").input.data == "arrays:a.npz"
    assert load("data=fashion_mnist,source=/a").input.data == "arrays:/a"
    assert load("data=tiny_imagenet,source=x").evals.val.split == "val"
    with pytest.raises(
        UserError, match="tiny_imagenet is not in TFDS: give its archive or folder, source=PATH"
    ):
        config.load(f"{FILE}:data=tiny_imagenet")
    with pytest.raises(UserError, match="unknown data 'cifar1'"):
        load("data=cifar1")
    with pytest.raises(UserError, match="unknown network 's16'"):
        load("vit_s16,data=tiny_imagenet")


def test_the_repeated_form_and_short_runs():
    c = load("repeats=3,epochs=10")
    assert (c.input.repeats, c.input.passes, c.input.split_views) == (3, 3, True)
    optimizer, steps, _ = optimizer_of(c, 50_000)
    assert steps == 11_710 and optimizer.schedules[0].numbers["warmup"] == 1171
    assert load("sl_vit").input.on_device and "on_device" not in load("on_device=False").input


@pytest.mark.parametrize("on_device", [False, True])
def test_the_recipe_trains(on_device, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        f"x_{split}": rng.integers(256, size=(9, 32, 32, 3), dtype=np.uint8) for split in ("train", "test")
    }
    labels = {f"y_{split}": np.arange(9) for split in ("train", "test")}
    np.savez(tmp_path / "a.npz", **arrays, **labels)
    spec = f"{FILE}:sl_vit,data=cifar10,source=arrays:{tmp_path}/a.npz,batch=8,epochs=2,on_device={on_device}"
    small = {"model.width": "24", "model.depth": "1", "model.mlp_dim": "24", "model.num_heads": "2"}
    small |= {"report": "False", **({} if on_device else {"input.workers": "0"})}
    assert train.train(config.load(spec, small), tmp_path / "run", lambda step: False) == 0
    rows = read_metrics(tmp_path / "run")
    losses = [row["training_loss"] for row in rows if "training_loss" in row]
    assert losses and np.isfinite(losses).all()
    # An epoch is three passes of one batch of eight.
    assert [row["step"] for row in rows if "val/prec@1" in row] == [3, 6]


def test_the_published_table_has_every_cell_and_the_paper_s_mean_gain():
    networks = ("vit", "t2t", "cait", "pit", "swin")
    cells = [
        (f"{kind}_{network}", data) for kind in ("small", "sl") for network in networks for data in LENGTHS
    ]
    assert all(small_datasets.published_top1(*cell) for cell in cells)
    assert small_datasets.published_top1("sl_vit", "fashion_mnist") is None
    gains = [
        small_datasets.published_top1(f"sl_{network}", "tiny_imagenet")
        - small_datasets.published_top1(f"small_{network}", "tiny_imagenet")
        for network in networks
    ]
    assert round(np.mean(gains), 2) == 2.96  # of the abstract


def test_a_cell_of_the_table_is_trained_once(tmp_path, monkeypatch):
    started = []

    def train(cell, source, workdir):
        started.append((cell["model"], cell["seed"], small_datasets.config_of(cell, source)))
        workdir.mkdir(parents=True)
        rows = [{"step": 1, "img/sec": 90.0}, {"step": 2, "val/prec@1": 0.5, "img/sec": 110.0}]
        rows += [{"step": 3, "val/prec@1": 0.25, "img/sec": 100.0}]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        about = dict(
            total_steps=3,
            wall_time={"step": 2.0, "eval": 3.2},
            devices=[{"count": 2, "kind": "H", "platform": "gpu"}],
        )
        about["versions"] = {"vitjax": "1", "jax": "2", "flax": "3"}
        (workdir / "run.json").write_text(json.dumps(about))

    np.savez(tmp_path / "a.npz", x_train=np.zeros((4, 32, 32, 3), np.uint8), y_train=np.arange(4))
    monkeypatch.setattr(small_datasets, "train", train)
    results = tmp_path / "r.csv"
    command = ["x", "--models", "small_vit,sl_vit", "--data", "cifar10", "--source", f"{tmp_path}/a.npz"]
    command += ["--workdir", str(tmp_path), "--results", str(results)]
    for seeds, number in (("0", 2), ("0,3", 4), ("3", 4)):
        monkeypatch.setattr(sys, "argv", [*command, "--seeds", seeds])
        small_datasets.main()
        assert len(started) == number
        experiment_config = config.load(started[-1][2])
        assert experiment_config.model.name == started[-1][0]
    rows = list(csv.DictReader(results.open()))
    assert [(row["model"], row["seed"]) for row in rows] == [cell[:2] for cell in started]
    row = rows[1]
    assert (row["top1"], row["best_top1"], row["published"], row["comparable"]) == (
        "25.0",
        "50.0",
        "94.53",
        "no",
    )
    assert (row["wall_s"], row["images_per_second"], row["schedule"]) == ("5", "100", "1.0")
    assert row["device"] == "2 x H"
    monkeypatch.setitem(small_datasets.WHOLE, "cifar10", 4)
    cell = {key: row[key] for key in small_datasets.CELL}
    workdir = tmp_path / small_datasets.name_of(cell)
    measured = lambda **changes: small_datasets.measured(cell | changes, f"{tmp_path}/a.npz", workdir)[
        "comparable"
    ]
    assert measured() == "yes"
    assert measured(epochs="10") == measured(repeats="3") == measured(changed="lr=1") == "no"


def test_the_study_is_four_networks_with_three_seeds():
    plan = trials.read("configs/sweeps/small_datasets.py:cifar10,source=arrays:a.npz,epochs=2")
    assert sorted(plan.trials) == sorted(
        f"{variant}_vit-seed_{seed}" for variant in ("small", "s", "l", "sl") for seed in range(3)
    )
    c = next(iter(plan.trials.values())).load()
    assert (c.input.split, c.evals.val.split, c.total_epochs) == ("train[:5000]", "test", 2)
