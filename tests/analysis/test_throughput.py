"""The throughput tool: its arithmetic, its refusals, and that what it times is what runs."""

import csv
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax import models
from vitjax.analysis import peaks, programs, published, throughput, timing
from vitjax.analysis.throughput_picture import draw
from vitjax.analysis.throughput_rows import Case, Row, filled, table
from vitjax.layers.batch_norm import BatchNorm


class Clock:
    """A clock that only the programs move on."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def program(self, log, name, first, *seconds):
        """A `start` whose calls take `first`, then the other seconds, the last for ever."""

        def start():
            left = [first, *seconds]

            def call():
                log.append(name)
                self.now += left.pop(0) if len(left) > 1 else left[0]

            return call

        return start


def test_programs_take_turns_and_the_first_call_of_a_turn_does_not_count():
    clock, log = Clock(), []
    starts = {"a": clock.program(log, "a", 100, 1, 3), "b": clock.program(log, "b", 50, 7)}
    rounds = []
    times, failed = timing.in_turns(starts, rounds=2, seconds=6, on_round=rounds.append, clock=clock)
    assert "".join(log) == "aaaabbaaaabb" and rounds == [1, 2] and not failed
    assert times["a"].rounds == ((1, 3, 3), (1, 3, 3)) and times["b"].rounds == ((7,), (7,))
    assert times["a"].calls == 6 and times["a"].fastest == 1
    assert times["a"].rates(14) == [6, 6] and times["b"].rate(14) == 2


def test_the_rate_is_the_median_of_the_rounds_and_percentiles_are_of_calls():
    times = timing.Times(((1.0, 3.0), (2.0,), (10.0,)))
    assert times.rates(2) == [1.0, 1.0, 0.2] and times.rate(2) == 1.0
    assert [times.percentile(p) for p in (25, 50, 51, 75, 76, 99)] == [1, 2, 3, 3, 10, 10]
    hundred = timing.Times((tuple(map(float, range(1, 101))),))
    assert [hundred.percentile(p) for p in (50, 90, 99)] == [50, 90, 99]


def test_what_fails_takes_no_more_turns_and_the_others_go_on():
    clock, log = Clock(), []

    def exhausted():
        log.append("x")
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes.")

    starts = {"x": exhausted, "a": clock.program(log, "a", 1, 1)}
    times, failed = timing.in_turns(starts, rounds=2, seconds=1, clock=clock)
    assert failed == {"x": "out of memory"} and set(times) == {"a"} and log.count("x") == 1
    assert timing.reason(ValueError("two\n lines")) == "two lines"
    assert timing.reason(KeyError()) == "KeyError"


class Normed(nn.Module):
    """A network with batch statistics; its first norm would show a variance below 0."""

    num_classes: int | None = None
    dtype: str = "float32"

    @nn.compact
    def __call__(self, image, *, train: bool = False):
        x = nn.relu(BatchNorm()(nn.Conv(4, (3, 3), strides=2)(image), train=train))
        logits = nn.Dense(self.num_classes)(x.mean((1, 2)))
        return logits, {}


def training_step(model, image, num_classes):
    variables = programs.abstract_variables(model, image[1:])
    return programs.training_step(model, variables, image, num_classes)


def test_the_training_step_learns_and_moves_batch_statistics():
    step = training_step(Normed(num_classes=1000), (2, 8, 8, 3), 1000)
    state, batch, _ = step.arguments
    assert batch["image"].dtype == np.uint8 and batch["label"].shape == (2,)
    assert np.all(state.model_state["batch_stats"]["BatchNorm_0"]["var"] == 1)
    new, metrics = step.compiled(*jax.device_put(step.arguments))
    assert int(new.step) == 1 and np.isfinite(metrics["training_loss"])
    for before, after in ((state.params, new.params), (state.model_state, new.model_state)):
        moved = jax.tree.map(lambda a, b: bool(np.any(a != np.asarray(b))), before, after)
        assert all(jax.tree.leaves(moved))
    call, seen = step.start(), []
    step.__dict__["compiled"] = lambda state, *_: (seen.append(int(state.step)), (new, metrics))[1]
    call()
    call()
    assert seen == [0, 1]  # each call goes on from the state of the one before


def test_the_optimizer_starts_as_in_a_run():
    from vitjax import optim

    state = training_step(Normed(num_classes=10), (1, 8, 8, 3), 10).arguments[0]
    born = optim.create(state.params, total_steps=1000, batch_size=1, lr=1e-3, wd=1e-4).init(state.params)
    assert jax.tree.structure(born) == jax.tree.structure(state.opt_state)
    jax.tree.map(np.testing.assert_array_equal, born, state.opt_state)


def test_drawn_numbers_keep_activations_in_range():
    model = models.create("vit_mu16", num_classes=10)
    variables = programs.draw(programs.abstract_variables(model, (32, 32, 3)))
    logits, out = jax.jit(model.apply)(variables, jnp.ones((1, 32, 32, 3)))
    assert 0.1 < np.std(logits) < 10 and 0.1 < np.std(out["encoded"]) < 10


def test_memory_is_what_the_compiler_plans_for():
    product = programs.matrix_product(256, "float32")
    assert 3 * 4 * 256**2 <= product.memory < 4 * 4 * 256**2
    step = training_step(Normed(num_classes=1000), (2, 8, 8, 3), 1000)
    state = sum(leaf.nbytes for leaf in jax.tree.leaves(step.arguments[0]))
    assert state < step.memory < 2.5 * state  # the donated state counts once; temporaries are as large again


def test_utilisation_by_hand():
    row = Row("m", 224, "training", "float32", 4, num_params=1, gmacs=2.0)
    row = filled(row, timing.Times(((0.5,), (0.25, 0.25))), (10, "compiler"), (1e12, "a sheet"))
    assert row.images_per_second == 12 and (row.slowest_round, row.fastest_round) == (8, 16)
    assert row.mfu == pytest.approx(12 * 2e9 * 2 * 3 / 1e12) and row.peak_tflops == 1
    assert (row.p50_ms, row.p99_ms, row.calls) == (250, 500, 3)
    unknown = filled(
        Row("m", 224, "inference", "float32", 4, 1, None), timing.Times(((1.0,),)), (None, ""), None
    )
    assert unknown.mfu is None and unknown.images_per_second == 4
    assert "12" in table([row]) and table([row]).splitlines()[0].split()[:3] == ["model", "pixels", "mode"]


def test_peaks_of_devices():
    assert peaks.known_peak("NVIDIA H200", "bfloat16")[0] == pytest.approx(989.4e12)
    assert peaks.known_peak("NVIDIA H200", "float32")[0] == pytest.approx(494.7e12)
    assert peaks.known_peak("NVIDIA H200", "float32", "highest")[0] == pytest.approx(66.9e12)
    assert peaks.known_peak("NVIDIA A100-SXM4-80GB", "bfloat16")[0] == 312e12
    assert peaks.known_peak("TPU v5 lite", "bfloat16")[0] == 197e12
    assert peaks.known_peak("TPU v5", "bfloat16")[0] == 459e12
    assert peaks.known_peak("TPU v4", "float32", "float32") is None
    assert peaks.known_peak("Tesla V100-SXM2-16GB", "bfloat16") is None
    assert peaks.known_peak("NVIDIA H200 MIG 1g.18gb", "bfloat16") is None
    assert peaks.known_peak("NVIDIA H2000", "bfloat16") is None


@pytest.fixture
def quick(monkeypatch):
    """Small matrices, and no malloc settings for the rest of the suite."""
    monkeypatch.setattr(throughput, "PRODUCT", 64)
    monkeypatch.setattr(throughput, "keep_freed_memory", lambda: True)
    return lambda *words: throughput.main([*words, "--rounds", "2", "--seconds", "0.001"])


def test_command_line_to_files(quick, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(published, "published", lambda: (
        published.Published("vit_mu16", 32, "ViT", 0.5, 100.0, "made up"),
        published.Published("vit_mu16", 32, "ViT, distilled", 0.6, None, "made up"),
    ))  # fmt: skip
    out = tmp_path / "new" / "out"
    code = quick("vit_mu16", "--batch", "2", "--mode", "inference,training", "--out", str(out))
    printed = capsys.readouterr()
    assert code == 0 and "round 2/2" in printed.err
    assert "(measured: product of 64 x 64 matrices)" in printed.out
    assert {path.name for path in out.iterdir()} == {
        "throughput.csv", "accuracy_throughput.png", "accuracy_throughput.svg", "run.json",
    }  # fmt: skip
    with open(out / "throughput.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert [(row["resolution"], row["mode"]) for row in rows] == [("32", "inference"), ("32", "training")]
    tokens, width, mlp = 5, 32, 128
    block = tokens * width * (4 * width + 2 * mlp) + 2 * tokens * tokens * width
    macs = 4 * 16 * 16 * 3 * width + block + width * 1000
    for row in rows:
        assert float(row["gmacs"]) == pytest.approx(macs / 1e9)
        assert float(row["slowest_round"]) <= float(row["images_per_second"]) <= float(row["fastest_round"])
        assert float(row["p50_ms"]) <= float(row["p90_ms"]) <= float(row["p99_ms"])
        passes = 3 if row["mode"] == "training" else 1
        flops = 2 * macs * passes * float(row["images_per_second"])
        assert float(row["mfu"]) == pytest.approx(flops / float(row["peak_tflops"]) / 1e12)
        assert int(row["memory_bytes"]) > 4 * int(row["num_params"]) * (3 if passes == 3 else 1)
        assert row["memory_source"] == "compiler" and not row["error"]
    svg = (out / "accuracy_throughput.svg").read_text()
    assert "ViT, distilled" in svg and "published: V100 GPU" in svg and "float32" in svg


def test_the_picture_takes_the_fastest_batch_of_each_dtype_and_inference_alone():
    def row(model, rate, mode="inference", dtype="float32", batch=1):
        return Row(model, 224, mode, dtype, batch, 1, 1.0, images_per_second=rate, device="a device")

    rows = [row("deit_s16", 10.0), row("deit_s16", 30.0, batch=8), row("deit_s16", 90.0, "training")]
    svg = draw([*rows, row("cait_s24", 5.0, dtype="bfloat16")], "svg").decode()
    assert "measured: a device, float32" in svg and "measured: a device, bfloat16" in svg
    assert (
        len(re.findall(">s16<", svg)) == 2 and len(re.findall(">s24<", svg)) == 2
    )  # CaiT: two recipes, no V100
    from vitjax.analysis.throughput_picture import _points

    assert [(result.top1, rate) for result, rate in _points(rows)] == [(0.798, 30.0)]
    assert draw([row("vit_mu16", 1.0)], "png") is None


def test_what_does_not_fit_is_said_and_the_others_go_on(quick, capsys, monkeypatch):
    monkeypatch.setattr(peaks, "free_memory", lambda: 2**20)
    monkeypatch.setattr(programs.Program, "memory", property(lambda self: 2**19 * self.arguments[1].shape[0]))
    assert quick("vit_mu16@16", "--batch", "4,1", "--peak", "2") == 0
    printed = capsys.readouterr().out
    assert "vit_mu16@16 inference float32 batch 4: out of memory: 0.0 GiB are needed" in printed
    assert "2 TFLOP/s (--peak)" in printed and len(printed.splitlines()) == 5
    monkeypatch.setattr(peaks, "free_memory", lambda: 1)
    assert quick("vit_mu16@16", "--batch", "1") == 3


class Allocator:
    """A device whose allocator counts."""

    platform = "gpu"

    def __init__(self, *stats):
        self.stats = [dict(zip(("bytes_in_use", "peak_bytes_in_use"), pair, strict=True)) for pair in stats]

    def memory_stats(self):
        return self.stats.pop(0)


@pytest.mark.parametrize(
    ("after", "expected"), [((90, 150), (140, "allocator")), ((10, 120), (70, "compiler"))]
)
def test_the_allocator_tells_the_peak_where_it_rises(after, expected):
    program = type("P", (), {"start": lambda self: lambda: None})()
    memory = {"case": (70, "compiler")}
    throughput._start_and_watch(program, Allocator((10, 120), after), "case", memory)
    assert memory["case"] == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["vit_s17x"], "names no model"),
        (["vit_mu16", "--batch", "0"], "--batch '0' must be a whole number of 1 or more"),
        (["vit_mu16", "--batch", "1,,2"], "--batch '' must be"),
        (["vit_mu16", "--dtype", "float16"], "--dtype 'float16' is none of float32, bfloat16"),
        (["vit_mu16", "--mode", "train"], "Did you mean 'training'?"),
        (["vit_mu16", "--rounds", "-1"], "--rounds '-1' must be a whole number"),
        (["vit_mu16", "--seconds", "nan"], "--seconds nan must be a number above 0"),
        (["vit_mu16", "--peak", "0"], "--peak 0 must be"),
        (["vit_mu16", "--peak", "1", "--dtype", "float32,bfloat16"], "one --dtype at a time"),
        (["vit_mu16@", "--batch", "1"], "vit_mu16@ '' must be a whole number"),
        (["vit_mu16@33"], "vit_mu16 at 33 pixels, inference: "),
        (["vit_mu16", "--bach", "1"], "unrecognized arguments: --bach 1. See python -m vitjax"),
        ([], "required: MODEL"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_sentence_before_anything_is_compiled(words, message, capsys, monkeypatch):
    monkeypatch.setattr(throughput, "measure", lambda *_, **__: pytest.fail("went on"))
    monkeypatch.setattr(throughput, "keep_freed_memory", lambda: True)
    assert throughput.main(words) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert not printed.out


def test_published_numbers_have_sources_and_plausible_values():
    rows = published.published()
    text = (throughput.pathlib.Path(published.__file__).parent / published.FILE).read_text()
    explained = set(re.findall(r"^# (\w+): ", text, re.MULTILINE)) - {"model", "series"}
    assert {row.source for row in rows} == explained
    assert len({(row.model, row.resolution, row.series) for row in rows}) == len(rows)
    assert all(0.69 < row.top1 < 0.87 and (row.v100 is None or row.v100 > 20) for row in rows)
    assert [row.top1 for row in published.of("deit_b16_distilled", 384)] == [0.845, 0.852]
    assert published.native_resolution("efficientnet_b4") == 380
    assert published.native_resolution("cait_s24") == 224 and published.native_resolution("vit_mu16") == 224
    assert published.native_resolution("cait_m48") == 448
    family = re.compile(r"(vit|r|r26|r50|deit|cait|resnet|regnety|efficientnet)")
    assert all(family.match(row.model) for row in rows)


def test_a_case_says_what_it_is():
    assert str(Case("m", 32, "training", "bfloat16", 4)) == "m@32 training bfloat16 batch 4"
