import jax
import jax.numpy as jnp
import ml_collections
import ml_dtypes
import numpy as np
import optax
import pytest

from vitjax import optim
from vitjax.errors import UserError
from vitjax.optim import layers

BF16 = ml_dtypes.bfloat16
STEPS = 12


def params():
    rng = np.random.default_rng(1)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    return {
        "encoder": {"kernel": normal(40, 64), "bias": normal(64), "deep": {"kernel": normal(3, 40, 32)}},
        "head": {"kernel": normal(64, 5), "bias": normal(5)},
    }


def gradients(t):
    rng = np.random.default_rng(100 + t)
    return jax.tree.map(lambda p: (0.3 * rng.standard_normal(p.shape)).astype(np.float32), params())


def train(tx, steps=STEPS):
    """Runs the optimizer on prepared gradients; returns the parameters and the float64 sum of all updates."""
    p = jax.tree.map(jnp.asarray, params())
    state, moved = jax.jit(tx.init)(p), jax.tree.map(np.zeros_like, p)
    update = jax.jit(tx.update)
    for t in range(steps):
        updates, state = update(gradients(t), state, p)
        moved = jax.tree.map(lambda m, u: m + np.float64(u), moved, updates)
        p = optax.apply_updates(p, updates)
    return p, moved


def schedule64(t, warmup=4, total=20):
    return 0.5 * (1 + np.cos(np.pi * np.clip((t - warmup) / (total - warmup), 0, 1))) * min(1, t / warmup)


COSINE = {"decay_type": "cosine", "warmup_steps": 4}


class Slot(dict):
    """What an optimizer remembers of one array; a subclass, which jax takes for a leaf."""


def reference(direction, *, lr=1e-2, wd=1e-3, clip=1.0, steps=STEPS):
    """The way moved in float64, by `direction(g, slot, t)` of each array; weight decay on kernels only."""
    start = p = jax.tree.map(np.float64, params())
    slots = jax.tree.map(lambda _: Slot(), p)
    for t in range(steps):
        g = jax.tree.map(np.float64, gradients(t))
        norm = np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(g)))
        g = jax.tree.map(lambda x, n=norm: x / max(n / clip, 1.0), g)

        def one(path, p, g, slot, t=t):
            decay = wd if path[-1].key == "kernel" else 0.0
            return p - schedule64(t) * (lr * direction(g, slot, t) + decay * p)

        p = jax.tree_util.tree_map_with_path(one, p, g, slots)
    return jax.tree.map(np.subtract, p, start)


def decayed(slot, key, decay, dtype):
    """decay * accumulator. For a bfloat16 accumulator optax converts the decay too: 0.9 becomes 0.8984."""
    return np.float64(np.asarray(decay, dtype)) * np.float64(slot.get(key, 0.0))


def adam64(g, slot, t, *, b1=0.9, b2=0.999, eps=1e-8, mu_dtype=np.float64):
    m = (1 - b1) * g + decayed(slot, "m", b1, mu_dtype)
    v = (1 - b2) * g**2 + b2 * slot.get("v", 0.0)
    slot |= {"m": np.asarray(m, mu_dtype), "v": v}
    return m / (1 - b1 ** (t + 1)) / (np.sqrt(v / (1 - b2 ** (t + 1))) + eps)


def momentum64(g, slot, t, *, decay=0.9, dtype=BF16):
    m = g + decayed(slot, "m", decay, dtype)
    slot["m"] = np.asarray(m, dtype)
    return m


def sgd64(g, p, slot, wd=0.5):
    """PyTorch's SGD with Nesterov momentum: the decay is part of the gradient."""
    g = g + wd * p
    slot["m"] = g + 0.9 * slot.get("m", 0.0)
    return g + 0.9 * slot["m"]


def test_decay_of_sgd_goes_through_the_momentum():
    options = dict(momentum=0.9, nesterov=True, weight_decay=0.5)
    tx = optim.create(params(), total_steps=9, optax_name="sgd", optax=options, lr=0.1)
    p, state, slots = params(), tx.init(params()), (Slot(), Slot())
    ours, theirs = (
        jax.tree.map(jnp.asarray, p),
        (np.float64(p["head"]["kernel"]), np.float64(p["head"]["bias"])),
    )
    for t in range(4):
        g = gradients(t)
        updates, state = jax.jit(tx.update)(g, state, ours)
        ours = optax.apply_updates(ours, updates)
        kernel, bias = theirs
        theirs = (
            kernel - 0.1 * sgd64(np.float64(g["head"]["kernel"]), kernel, slots[0]),
            bias - 0.1 * sgd64(np.float64(g["head"]["bias"]), bias, slots[1], wd=0.0),
        )
    np.testing.assert_allclose(ours["head"]["kernel"], theirs[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours["head"]["bias"], theirs[1], rtol=0, atol=1e-6)


def adafactor64(g, slot, t, *, factor=32, clipping=None):
    beta = min(0.999, 1 - (t + 1.0) ** -0.8)
    mean = lambda key, x: slot.update({key: beta * slot.get(key, 0.0) + (1 - beta) * x}) or slot[key]
    large = sorted(range(g.ndim), key=lambda d: g.shape[d])[-2:]
    if g.ndim >= 2 and g.shape[large[0]] >= factor:
        row = mean("row", np.mean(g**2 + 1e-30, axis=large[1], keepdims=True))
        col = mean("col", np.mean(g**2 + 1e-30, axis=large[0], keepdims=True))
        v = row * col / np.mean(row, axis=large[0], keepdims=True)
    else:
        v = mean("v", g**2 + 1e-30)
    u = g / np.sqrt(v)
    if clipping:
        u = u / max(1.0, np.sqrt(np.mean(u**2)) / clipping)
    m = 0.1 * u + decayed(slot, "m", 0.9, BF16)
    slot["m"] = np.asarray(m, BF16)
    return m


# Relative to the longest way that any element of the array moved (measured: 8e-6 and 5e-4). A bfloat16
# accumulator is rounded by up to 2^-9 at each step, and so is its product with the decay, where XLA likes.
F32, HALF = 3e-5, 2e-3


@pytest.mark.parametrize(
    ("name", "options", "direction", "tolerance"),
    [
        ("scale_by_adam", {}, adam64, F32),
        ("adamw", {"b1": 0.8, "b2": 0.95}, lambda *a: adam64(*a, b1=0.8, b2=0.95), F32),
        ("adam", {"mu_dtype": "bfloat16"}, lambda *a: adam64(*a, mu_dtype=BF16), HALF),
        ("sgd", {}, lambda g, slot, t: g, F32),
        ("sgd", {"momentum": 0.9}, lambda *a: momentum64(*a, dtype=np.float64), F32),
        ("big_vision.momentum_hp", {}, momentum64, HALF),
        ("adafactor", {}, adafactor64, HALF),
        (
            "big_vision.scale_by_adafactor",
            {"clipping_threshold": 0.5},
            lambda *a: adafactor64(*a, clipping=0.5),
            HALF,
        ),
        ("adafactor", {"min_dim_size_to_factor": 64}, lambda *a: adafactor64(*a, factor=64), HALF),
    ],
)
def test_optimizers_equal_float64(name, options, direction, tolerance):
    tx = optim.create(
        params(),
        total_steps=20,
        optax_name=name,
        optax=ml_collections.ConfigDict(options),
        lr=1e-2,
        wd=1e-3,
        grad_clip_norm=1.0,
        schedule=COSINE,
    )
    compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())
    jax.tree.map(compare, train(tx)[1], reference(direction))


def test_accumulators_have_the_dtype_and_size_that_the_config_asks_for():
    p = params()
    state = lambda name, **options: optim.create(p, total_steps=9, optax_name=name, optax=options).init(p)
    adam = optax.tree.get(state("adamw", mu_dtype="bfloat16"), "mu")
    assert {x.dtype.name for x in jax.tree.leaves(adam)} == {"bfloat16"}
    trace = optax.tree.get(state("big_vision.momentum_hp"), "trace")
    assert {x.dtype.name for x in jax.tree.leaves(trace)} == {"bfloat16"}
    factored = state("big_vision.scale_by_adafactor")
    assert optax.tree.get(factored, "v_row")["encoder"]["kernel"].shape == (40,)
    assert optax.tree.get(factored, "v_col")["encoder"]["kernel"].shape == (64,)
    assert optax.tree.get(factored, "v")["head"]["kernel"].shape == (64, 5)
    assert optax.tree.get(factored, "ema")["head"]["kernel"].dtype == jnp.bfloat16


def test_paper_weight_decay_times_lr_is_adamw():
    mask = lambda p: jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", p)
    schedule = optim.schedules.create(total_steps=20, **COSINE)
    theirs = optax.adamw(lambda t: 1e-2 * schedule(t), weight_decay=0.1, mask=mask)
    ours = optim.create(params(), total_steps=20, lr=1e-2, wd=0.1 * 1e-2, schedule=COSINE)
    compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
    jax.tree.map(compare, train(ours)[1], train(theirs)[1])


def test_first_update_under_warmup_changes_nothing():
    tx = optim.create(params(), total_steps=20, wd=0.1, schedule=COSINE)
    got, _ = train(tx, steps=1)
    jax.tree.map(np.testing.assert_array_equal, got, params())


def test_frozen_parameters_keep_their_bits_hold_no_state_and_do_not_count_for_the_norm():
    schedule = [("encoder/.*", None), (".*", {"decay_type": "constant"})]
    p = params()
    p["encoder"]["bias"][:2] = -0.0, 0.0
    tx = optim.create(p, total_steps=20, lr=1e-2, wd=1e-1, schedule=schedule, grad_clip_norm=1.0)
    state = tx.init(p)
    head = sum(x.nbytes for x in jax.tree.leaves(p["head"]))
    assert sum(x.nbytes for x in jax.tree.leaves(state)) == 2 * head + 8  # two moments, two counters
    g = gradients(0)
    g["encoder"]["kernel"][0, 0] = np.nan  # nor do their gradients matter
    updates, _ = jax.jit(tx.update)(g, state, p)
    new = jax.jit(optax.apply_updates)(p, updates)
    same_bits = lambda a, b: np.testing.assert_array_equal(np.asarray(a).view(np.int32), b.view(np.int32))
    jax.tree.map(same_bits, new["encoder"], p["encoder"])
    alone = optim.create({"head": p["head"]}, total_steps=20, lr=1e-2, wd=1e-1, grad_clip_norm=1.0)
    want, _ = alone.update({"head": g["head"]}, alone.init({"head": p["head"]}), {"head": p["head"]})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates["head"], want["head"])
    assert not np.any(tx.trainable(g)["encoder"]["kernel"]) and np.all(tx.trainable(g)["head"]["kernel"])


def test_groups_have_their_own_schedules_and_multipliers():
    tx = optim.create(
        params(),
        total_steps=10,
        optax_name="identity",
        lr=0.5,
        wd=0.25,
        lr_mults=[("head/.*", 10.0), (".*/bias", 3.0)],
        wd_mults=[(".*head/kernel", 4.0), (".*/kernel", 1.0)],
        schedule=[
            ("encoder/deep/.*", {"decay_type": "linear", "mult": 2.0}),
            (".*/bias", None),
            (".*", {"decay_type": "stair", "steps": (1,), "mults": (0.5,)}),
        ],
    )
    p, g, state = params(), gradients(0), tx.init(params())
    for linear, stair in ((2.0, 1.0), (1.8, 0.5)):
        u, state = tx.update(g, state, p)
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        close(u["encoder"]["deep"]["kernel"], -linear * (0.5 * g["encoder"]["deep"]["kernel"] + 0.25 * p["encoder"]["deep"]["kernel"]))  # fmt: skip  # noqa: E501
        close(u["encoder"]["kernel"], -stair * (0.5 * g["encoder"]["kernel"] + 0.25 * p["encoder"]["kernel"]))
        close(u["head"]["kernel"], -stair * (5.0 * g["head"]["kernel"] + 1.0 * p["head"]["kernel"]))
        assert not np.any(u["head"]["bias"]) and not np.any(u["encoder"]["bias"])
    assert {k: float(v) for k, v in tx.global_schedule(0).items()} == {
        "global_schedule": 2,
        "global_schedule1": 1,
    }
    assert float(tx.learning_rate(5)) == 0.5
    text = tx.describe()
    assert "frozen: 69 parameters in 2 arrays (encoder/bias, head/bias)" in text
    assert "schedule 1, lr 0.5 x 10, wd 0.25 x 4: 320 parameters in 1 arrays (head/kernel)" in text


def transformer(scan=False):
    """Parameters of a Transformer of three blocks and two of class attention, all 1."""
    block = {"Dense_0": {"kernel": np.ones((2, 2), np.float32)}}
    blocks = {f"encoderblock_{i}": block for i in range(3)}
    if scan:
        blocks = {"encoderblock": jax.tree.map(lambda x: np.ones((3, *x.shape), np.float32), block)}
    return {
        "cls": np.ones((1, 1, 2), np.float32),
        "embedding": {"kernel": np.ones((4, 2), np.float32)},
        "Transformer": {**blocks, "encoder_norm": {"scale": np.ones(2, np.float32)}},
        "class_attention_0": block,
        "class_attention_1": block,
        "head": {"kernel": np.ones((2, 5), np.float32)},
    }


def moved_by_layer(scan, **options):
    p = transformer(scan)
    tx = optim.create(p, total_steps=9, optax_name="identity", lr=0.5, layer_decay=0.5, **options)
    updates, _ = jax.jit(tx.update)(p, tx.init(p), p)
    return updates, tx


@pytest.mark.parametrize("scan", [False, True])
def test_layers_learn_the_slower_the_farther_they_are_from_the_head(scan):
    u, tx = moved_by_layer(scan, wd=0.25)
    kernel = 0.5 + 0.25  # lr times a gradient of 1, and weight decay of a weight of 1
    close = lambda x, rate: np.testing.assert_allclose(x, np.full_like(x, -rate), rtol=1e-6)
    close(u["cls"], 0.5 / 16)
    close(u["embedding"]["kernel"], kernel / 16)
    for i, rate in enumerate((1 / 8, 1 / 4, 1 / 2)):
        blocks = u["Transformer"]
        block = blocks["encoderblock"] if scan else blocks[f"encoderblock_{i}"]
        close(block["Dense_0"]["kernel"][i] if scan else block["Dense_0"]["kernel"], kernel * rate)
    close(u["class_attention_0"]["Dense_0"]["kernel"], kernel / 4)
    close(u["class_attention_1"]["Dense_0"]["kernel"], kernel / 2)
    close(u["Transformer"]["encoder_norm"]["scale"], 0.5)
    close(u["head"]["kernel"], kernel)
    assert float(tx.learning_rate(0)) == 0.5
    assert (
        "lr 0.5 x 1, wd 0.25 x 1, both x 0.0625: 8 parameters in 1 arrays (embedding/kernel)" in tx.describe()
    )
    assert ("both x 0.125 to 0.5: 12 parameters in 1 arrays" in tx.describe()) == scan


def test_blocks_of_a_pyramid_count_through_its_stages():
    shapes = {
        **dict.fromkeys(("embedding/kernel", "embedding_norm/scale", "pos_embedding"), (4, 2)),
        **{f"stage_0/encoderblock_{i}/Dense_0/kernel": (2, 2) for i in (1, 0)},
        "pooling_0/norm/scale": (8,),
        **{f"stage_1/encoderblock_{i}/Dense_0/kernel": (4, 4) for i in range(11)},
        "encoder_norm/scale": (4,),
        "head/kernel": (4, 5),
    }
    found = layers.factors(shapes, 0.5)
    names = ["embedding/kernel", *(f"stage_0/encoderblock_{i}/Dense_0/kernel" for i in range(2))]
    names += [f"stage_1/encoderblock_{i}/Dense_0/kernel" for i in range(11)] + ["head/kernel"]
    assert [found[name] for name in names] == [0.5 ** (14 - layer) for layer in range(15)]
    assert found["pooling_0/norm/scale"] == found["stage_1/encoderblock_0/Dense_0/kernel"]
    assert found["embedding_norm/scale"] == found["pos_embedding"] == 0.5**14
    assert found["encoder_norm/scale"] == 1
    with pytest.raises(UserError, match="'pooling_1/norm/scale' lies"):
        layers.factors({**shapes, "pooling_1/norm/scale": (8,)}, 0.5)


def test_layer_decay_multiplies_what_lr_mults_say():
    u, _ = moved_by_layer(False, lr_mults=[(".*encoderblock_0/.*", 3.0)])
    np.testing.assert_allclose(u["Transformer"]["encoderblock_0"]["Dense_0"]["kernel"], -3 * 0.5 / 8)


def test_rates_grow_linearly_with_the_batch():
    tx = optim.create(params(), total_steps=9, batch_size=1024, lr=5e-4, wd=0.05 * 5e-4, lr_base_batch=512)
    assert (tx.lr, tx.wd) == (1e-3, 0.05 * 1e-3)
    # Learning rates in a schedule are absolute: they do not grow.
    schedule = {"decay_type": "timm_cosine", "per": "step", "warmup_steps": 2, "warmup_lr": 1e-6}
    tx = optim.create(params(), total_steps=9, batch_size=1024, lr=5e-4, lr_base_batch=512, schedule=schedule)
    np.testing.assert_allclose(
        [tx.learning_rate(t) for t in (0, 8, 9)],
        [1e-6, 1e-5 + 9.9e-4 * 0.5 * (1 + np.cos(8 / 9 * np.pi)), 1e-5],
        rtol=1e-6,
    )


def test_no_weight_decay_is_the_default_for_arrays_that_are_not_kernels():
    groups = optim.create(params(), total_steps=5, wd=1e-4).groups
    assert groups["encoder"]["kernel"].wd_mult == 1 and groups["encoder"]["bias"].wd_mult == 0
    assert optim.create({"scale": jnp.ones(3)}, total_steps=5, wd=1e-4).groups["scale"].wd_mult == 0


def test_a_donated_step_reuses_every_buffer_in_place():
    tx = optim.create(params(), total_steps=20, optax={"mu_dtype": "bfloat16"}, wd=1e-4, grad_clip_norm=1.0)

    def step(train, g):
        p, state = train
        updates, state = tx.update(g, state, p)
        return optax.apply_updates(p, updates), state

    train_state = (params(), tx.init(params()))
    assert jax.tree.structure(train_state) == jax.tree.structure(
        jax.eval_shape(step, train_state, gradients(0))
    )
    text = jax.jit(step, donate_argnums=0).lower(train_state, gradients(0)).compile().as_text()
    aliases = text[: text.index("\n")].split("input_output_alias={")[1].split("}, entry")[0]
    for i in range(len(jax.tree.leaves(train_state))):
        assert f"{{{i}}}: ({i}, {{}}" in aliases


RSQRT = {"decay_type": "rsqrt", "warmup_steps": 10, "timescale": 10, "cooldown_steps": 20}


@pytest.mark.parametrize(
    ("options", "points"),
    [
        ({}, {0: 1, 100: 1}),
        ({"decay_type": "cosine", "warmup_steps": 10}, {0: 0, 5: 0.5, 10: 1, 55: 0.5, 100: 0, 120: 0}),
        ({"decay_type": "cosine", "warmup_percent": 0.1, "end": 0.2}, {10: 1, 55: 0.6, 100: 0.2}),
        ({"decay_type": "cosine", "warmup_epochs": 1}, {10: 0.5 * 1.0, 20: 1, 60: 0.5}),
        ({"decay_type": "linear"}, {0: 1, 25: 0.75, 100: 0}),
        ({"decay_type": "linear", "end": 0.5, "mult": 3.0}, {0: 3, 50: 1.75, 100: 0.5}),
        ({"decay_type": "polynomial", "power": 2, "end": 0.1}, {0: 1, 50: 0.1 + 0.9 * 0.25, 100: 0.1}),
        (RSQRT, {0: 0, 5: 0.5, 10: 1, 40: 0.5, 90: 0.5 * 9**-0.5, 100: 0}),
        ({"decay_type": "rsqrt", "timescale_epochs": 1, "shift": 20}, {0: 2**-0.5, 20: 3**-0.5}),
        (
            {"decay_type": "stair", "steps": [10, 20], "mults": [0.1, 0.01]},
            {9: 1, 10: 0.1, 19: 0.1, 20: 0.01},
        ),
        ({"decay_type": "stair", "warmup_examples": 80}, {0: 0, 10: 1, 99: 1}),
        ({"cooldown_steps": 50, "warmup_steps": 4}, {2: 0.5, 50: 1, 75: 0.5, 100: 0}),
        ({"scale_with_batchsize": True}, {0: 8 / 256}),
        # An epoch is 20 steps; the second is like the first, and the fifth has the clock of the fourth: 3.
        (
            {"decay_type": "timm_cosine", "warmup_epochs": 2, "warmup_lr": 0.05, "min_lr": 0.1},
            {
                0: 0.1,
                20: 0.1,
                39: 0.1,
                40: 0.55,
                60: 0.2 + 0.4 * (1 + np.cos(0.4 * np.pi)),
                80: 0.2 + 0.4 * (1 + np.cos(0.6 * np.pi)),
                120: 0.2,
            },
        ),
        (
            {"decay_type": "timm_cosine", "lag": 0, "min_lr": 0.0},
            {0: 1, 19: 1, 40: 0.5 + 0.5 * np.cos(0.4 * np.pi)},
        ),
        (
            {
                "decay_type": "timm_cosine",
                "per": "step",
                "min_lr": 0.25,
                "warmup_steps": 10,
                "warmup_lr": 0.05,
            },
            {0: 0.1, 5: 0.55, 10: 0.5 + 0.25 * (1 + np.cos(0.1 * np.pi)), 50: 0.75, 100: 0.5},
        ),
        (
            {
                "decay_type": "timm_cosine",
                "per": "step",
                "min_lr": 0.25,
                "warmup_steps": 10,
                "warmup_lr": 0.05,
                "warmup_prefix": True,
            },
            {0: 0.1, 5: 0.55, 10: 1, 55: 0.75, 100: 0.5},
        ),
        # Five epochs of 20 steps, the rate lowered before each of them: the last has none.
        ({"decay_type": "epoch_linear"}, {0: 0.8, 19: 0.8, 20: 0.6, 79: 0.2, 80: 0, 99: 0, 100: 0}),
        ({"decay_type": "epoch_linear", "ahead": 0, "mult": 2.0}, {0: 2, 20: 1.6, 80: 0.4, 99: 0.4}),
        ({"decay_type": "timm_step", "every_epochs": 2}, {0: 1, 59: 1, 60: 0.5, 99: 0.5, 100: 0.25}),
        (
            {
                "decay_type": "timm_step",
                "per": "step",
                "every_steps": 3,
                "rate": 0.1,
                "warmup_steps": 4,
                "warmup_lr": 0.05,
            },
            {0: 0.1, 2: 0.55, 3: 0.775, 4: 0.1, 6: 0.01},
        ),
        (
            {"decay_type": "timm_step", "every_percent": 0.4, "warmup_percent": 0.2, "mult": 2.0},
            {40: 2, 60: 1},
        ),
    ],
)
def test_schedules_at_given_points(options, points):
    schedule = optim.schedules.create(total_steps=100, batch_size=8, num_examples=160, lr=0.5, **options)
    for t, want in points.items():
        np.testing.assert_allclose(schedule(t), want, rtol=1e-6, atol=1e-7, err_msg=f"t={t}")
        assert schedule(t).dtype == jnp.float32 and not isinstance(schedule(t), jax.Array)
    times = jnp.asarray(list(points))
    np.testing.assert_allclose(jax.jit(schedule)(times), [schedule(t) for t in points], atol=1e-6)


def test_rsqrt_is_the_transformer_schedule():
    """arXiv 1706.03762, equation 3, over its peak at t = warmup."""
    schedule = optim.schedules.create(
        total_steps=100_000, decay_type="rsqrt", warmup_steps=4000, timescale=4000
    )
    noam = lambda t: min(t**-0.5, t * 4000**-1.5)
    for t in (1, 100, 3999, 4000, 4001, 20_000, 99_999):
        np.testing.assert_allclose(schedule(t), noam(t) / noam(4000), rtol=1e-6)


@pytest.mark.parametrize("warmup", [False, True])
def test_ema_equals_float64(warmup):
    update = optim.ema.create(decay=0.99, warmup=warmup)
    average = optim.ema.init({"w": jnp.full(3, 2.0)})
    want = 2.0
    for t in range(200):
        average = jax.jit(update)(average, {"w": jnp.full(3, np.sin(t))}, t)
        d = min(0.99, (1 + t) / (10 + t)) if warmup else 0.99
        want = d * want + (1 - d) * np.sin(t)
    np.testing.assert_allclose(average["w"], want, rtol=1e-5)


def test_ema_starts_as_a_copy_and_rests_where_the_parameters_rest():
    p = {"w": jnp.asarray([0.1, -3.0])}
    average = optim.ema.init(p)
    assert (
        average["w"] is not p["w"] and average["w"].unsafe_buffer_pointer() != p["w"].unsafe_buffer_pointer()
    )
    np.testing.assert_array_equal(optim.ema.create()(average, p, 7)["w"], p["w"])
    assert (
        int(optim.ema.create()({"n": jnp.asarray(3)}, {"n": jnp.asarray(4)}, 7)["n"]) == 4
    )  # no float follows
    with pytest.raises(UserError, match=r"decay=1\.0"):
        optim.ema.create(decay=1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"lr_mults": [("heads/.*", 2.0)]},
            "lr_mults: 'heads/.*' matches no parameter. Did you mean 'head/bias'",
        ),
        ({"lr_mults": [("head", 2.0)]}, "'.*head.*' would match 'head/bias'"),
        ({"wd_mults": [("/head/.*", 2.0)]}, "never start with a slash; write 'head/.*'"),
        ({"lr_mults": [("he(ad", 2.0)]}, "is not a regular expression"),
        ({"lr_mults": ("head/.*", 2.0)}, "list of pairs"),
        ({"lr_mults": [(".*kernel", 2.0), ("head/kernel", 3.0)]}, "'head/kernel' (entry 1) has no effect"),
        ({"lr_mults": [("head/.*", 0)]}, "freeze it with None"),
        ({"lr_mults": [("head/.*", -1)]}, "lr_mults of 'head/.*'=-1"),
        ({"optax_name": "scale_by_adm"}, "Did you mean 'scale_by_adam'"),
        ({"optax_name": "big_vision.adafactor"}, "Did you mean 'big_vision.scale_by_adafactor'"),
        ({"optax_name": "lion"}, "name 'scale_by_lion'"),
        ({"optax_name": "global_norm"}, "does not suit 'global_norm'"),
        ({"optax": {"beta1": 0.9}}, "Did you mean 'b1'"),
        ({"optax": {"mu_dtype": "bfloat17"}}, "bfloat17"),
        ({"schedule": {"decay_type": "cosin"}}, "Did you mean 'cosine'"),
        ({"schedule": {"decay_type": "cosine", "power": 2}}, "the decay 'cosine' has no 'power'"),
        ({"schedule": {"decay_typ": "cosine"}}, "Did you mean 'decay_type'"),
        ({"schedule": {"warmup_step": 2}}, "Did you mean 'warmup_steps'"),
        ({"schedule": {"warmup_steps": 100}}, "a warmup of 100 steps is too long for 100 steps"),
        ({"schedule": {"decay_type": "stair", "steps": (3, 2), "mults": (1, 2)}}, "must rise"),
        ({"schedule": {"decay_type": "cosine", "end": "0.1"}}, "end='0.1'"),
        ({"schedule": {"decay_type": "timm_cosine", "warmup_lr": "a"}}, "warmup_lr='a'"),
        (
            {"schedule": {"decay_type": "timm_cosine", "per": "batch"}},
            "per='batch' must be 'epoch' or 'step'",
        ),
        ({"schedule": {"decay_type": "timm_cosine", "warmup_prefix": 1}}, "warmup_prefix=1 must be True or"),
        ({"schedule": {"decay_type": "timm_cosine", "rate": 0.5}}, "has no 'rate'"),
        ({"schedule": {"decay_type": "timm_cosine"}}, "num_examples is not known"),
        ({"schedule": {"decay_type": "timm_step"}}, "set one of every_steps"),
        ({"schedule": {"decay_type": "epoch_linear"}}, "num_examples is not known"),
        (
            {"schedule": {"decay_type": "epoch_linear", "ahead": 2}, "batch_size": 1, "num_examples": 9},
            "ahead=2 must be 1",
        ),
        ({"weight_clips": (("head/kernl", 1.0),)}, "config.weight_clips: 'head/kernl' matches no parameter"),
        ({"weight_clips": (("head/kernel", 0),)}, "weight_clips gives 'head/kernel' a limit of 0"),
        ({"weight_clips": (("head/kernel", -1),)}, "weight_clips of 'head/kernel'=-1 must be a number"),
        (
            {"schedule": {"decay_type": "timm_cosine", "per": "step"}, "lr": 0},
            "config.lr=0.0 must be more than 0",
        ),
        ({"schedule": [("head/.*", None)]}, "leaves out 'encoder/bias' (3 of 5 parameters)"),
        ({"schedule": [(".*", None)]}, "freezes every parameter"),
        ({"schedule": None}, "config.schedule"),
        ({"lr": "1e-3"}, "config.lr='1e-3'"),
        ({"lr_base_batch": 512}, "the batch trained with is not known here"),
        ({"lr_base_batch": 0, "batch_size": 8}, "config.lr_base_batch=0 must be the batch"),
        ({"layer_decay": 1.5}, "config.layer_decay=1.5 must be above 0"),
        ({"layer_decay": 0.0}, "config.layer_decay=0.0 must be above 0"),
        ({"layer_decay": 0.5}, "no Transformer blocks, parameters called 'encoderblock_0/...'; its own"),
        ({"wd": -1}, "config.wd=-1"),
        ({"grad_clip_norm": float("inf")}, "config.grad_clip_norm=inf"),
    ],
)
def test_mistakes_are_told_with_key_and_remedy(arguments, message):
    with pytest.raises(UserError) as caught:
        optim.create(params(), total_steps=100, **arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_layer_decay_refuses_a_parameter_of_which_it_does_not_know_the_layer():
    with pytest.raises(UserError, match=r"config\.layer_decay: .* 'neck/kernel' lies"):
        optim.create(transformer() | {"neck": {"kernel": np.ones((2, 2))}}, total_steps=9, layer_decay=0.5)


def test_a_whole_section_can_come_from_a_config_dict():
    config = ml_collections.ConfigDict()
    config.optax_name = "big_vision.scale_by_adafactor"
    config.grad_clip_norm = 1.0
    config.lr, config.wd = 8e-4, 0.03 * 8e-4
    config.wd_mults = [(".*head/kernel", 100.0), (".*/kernel", 1.0)]
    config.schedule = {"decay_type": "rsqrt", "timescale": 100, "warmup_steps": 100, "cooldown_steps": 500}
    tx = optim.create(jax.eval_shape(lambda: params()), total_steps=1000, **config)
    assert tx.groups["head"]["kernel"].wd_mult == 100
    jax.eval_shape(tx.init, params())


def test_the_schedule_of_binaryvit_has_two_epochs_at_the_peak():
    """timm's cosine over 300 epochs from 5e-4 to 1e-5: epoch e > 0 runs at lr(e - 1)."""
    options = dict(decay_type="timm_cosine", min_lr=1e-5)
    schedule = optim.schedules.create(total_steps=900, batch_size=512, num_examples=1600, lr=5e-4, **options)
    epochs = np.arange(300)
    t = np.maximum(epochs - 1, 0)
    published = 1e-5 + 0.5 * (5e-4 - 1e-5) * (1 + np.cos(np.pi * t / 300))
    np.testing.assert_allclose(5e-4 * schedule(3 * epochs), published, rtol=1e-6)
    np.testing.assert_allclose(5e-4 * schedule(3 * epochs + 2), published, rtol=1e-6)
    assert schedule(0) == schedule(5) == 1 > schedule(6)


def test_adam_with_l2_decays_what_it_is_told_inside_the_moments():
    options = dict(weight_decay=0.1, decayed="encoder/.*")
    tx = optim.create(params(), total_steps=9, optax_name="adam_l2", optax=options, lr=1e-2)
    _, moved = train(tx, 5)
    p, slots = jax.tree.map(np.float64, params()), jax.tree.map(lambda _: Slot(), params())
    for t in range(5):

        def one(path, p, g, slot, t=t):
            g = np.float64(g) + (0.1 * p if path[0].key == "encoder" else 0.0)
            return p - 1e-2 * adam64(g, slot, t)

        p = jax.tree_util.tree_map_with_path(one, p, gradients(t), slots)
    wanted = jax.tree.map(lambda a, b: a - np.float64(b), p, params())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), moved, wanted)
    with pytest.raises(UserError, match=r"config\.optax\.decayed='enc' matches no parameter"):
        optim.create(params(), total_steps=9, optax_name="adam_l2", optax=options | dict(decayed="enc")).init(
            params()
        )


def test_weights_are_clipped_after_the_update_and_others_are_not():
    tx = optim.create(params(), total_steps=9, weight_clips=(("encoder/.*kernel", 0.5),))
    before = jax.tree.map(jnp.asarray, params())
    updates = jax.tree.map(lambda p: jnp.full_like(p, 0.2), before)
    after = tx.apply(before, updates)
    kernel = params()["encoder"]["kernel"] + np.float32(0.2)
    np.testing.assert_array_equal(after["encoder"]["kernel"], np.clip(kernel, -0.5, 0.5))
    np.testing.assert_array_equal(after["encoder"]["deep"]["kernel"].max(), 0.5)
    np.testing.assert_array_equal(after["head"]["kernel"], params()["head"]["kernel"] + np.float32(0.2))
    assert np.abs(after["encoder"]["bias"]).max() > 0.5 and "clipped to 0.5" in tx.describe()
    frozen = [("encoder/kernel", None), (".*", dict(decay_type="constant"))]
    tx = optim.create(params(), total_steps=9, schedule=frozen, weight_clips=(("encoder/.*kernel", 0.5),))
    still = tx.apply(before, jax.tree.map(jnp.zeros_like, before))
    np.testing.assert_array_equal(still["encoder"]["kernel"], params()["encoder"]["kernel"])
