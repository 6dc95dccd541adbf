"""What attention looks at: maps of attention made by hand, rollout, spread, and the tool in use."""

import json
import pathlib

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_report import check

from vitjax import models, weights
from vitjax.analysis.attention import capture, images, maps, networks, pictures, spread
from vitjax.analysis.attention.layers import Layer, Windows, choose, grid_of, layers, of_windows
from vitjax.analysis.attention.look import look
from vitjax.analysis.attention.main import main
from vitjax.data import pp, value_scale
from vitjax.errors import UserError
from vitjax.layers.encoder import loop_to_scan
from vitjax.layers.locality import NOWHERE, locality
from vitjax.main import main as train
from vitjax.models.small import NETWORKS

RNG = np.random.default_rng(0)


def attention(shape, path=("encoderblock_0", "attention"), lsa=NOWHERE, windows=None):
    return capture.Attention(path, 0, None, shape, lsa, False, None, windows)


def layer(queries, keys, grid, front=0, rows=slice(None), **more):
    path = ("class_attention_0", "attention") if queries == 1 else ("encoderblock_0", "attention")
    return Layer(attention((1, 1, queries, keys), path), grid, front, rows, "who", **more)


def rows(*shape):
    """Random attention whose rows sum to one."""
    raw = RNG.random(shape) ** 4
    return (raw / raw.sum(-1, keepdims=True)).astype(np.float32)


def shapes_of(name, size=32, **fields):
    """The placed layers of a model, by shape alone."""
    model = models.create(name, num_classes=10, **fields)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    found, out = capture.attentions(model, variables, image)
    return layers(model, found, out, image)


# Finding attentions


@pytest.mark.parametrize("fields", [{}, {"scan": True}, {"remat": "nothing_saveable"}])
def test_layers_come_in_the_order_of_their_calls(fields):
    placed = shapes_of("vit_mu8", depth=11, **fields)
    assert [layer.name for layer in placed] == [f"encoderblock_{i}" for i in range(11)]
    assert {(layer.grid, layer.front, layer.whose, layer.stage) for layer in placed} == {
        ((4, 4), 1, "class token", 0)
    }
    assert placed[0].attention.start == pytest.approx(4.0)  # sqrt of 32 / 2 heads


@pytest.mark.parametrize(
    ("name", "fields", "front", "asks", "whose"),
    [
        ("vit_mu8", {}, 1, slice(0, 1), "class token"),
        ("vit_mu8", {"pool": "gap"}, 0, slice(0, None), "mean over the patches"),
        ("vit_mu8", {"pool": "gap", "class_token": True}, 1, slice(1, None), "mean over the patches"),
        ("vit_mu8", {"pool": "0", "class_token": False}, 0, slice(0, 1), "first patch"),
        ("vit_mu8", {"pool": "map"}, 0, slice(0, 1), "pooling query"),
        ("vit_mu8", {"pool": "map", "class_token": True}, 1, slice(0, 1), "pooling query"),
        ("deit_ti16_distilled", {"patch_size": 8, "depth": 1}, 2, slice(0, 1), "class token"),
        ("cait_xxs24", {"patch_size": 8, "depth": 1}, 1, slice(0, 1), "class token"),
        ("cait_xxs24", {"patch_size": 8, "depth": 1, "class_depth": 0}, 1, slice(0, 1), "class token"),
    ],
)
def test_who_asks_in_the_last_layer(name, fields, front, asks, whose):
    last = shapes_of(name, **fields)[-1]
    assert (last.grid, last.front, last.rows, last.whose) == ((4, 4), front, asks, whose)


def test_a_grid_that_is_not_square_and_tokens_of_any_model():
    assert grid_of(945, (224, 288)) == (27, 35)  # the overlapping patches of a PiT
    assert [grid_of(n, (32, 32)) for n in (64, 65, 66, 0, -1)] == [(8, 8), None, None, None, None]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("variant", ["small", "sl"])
def test_the_networks_of_the_small_dataset_paper(network, variant):
    placed = shapes_of(f"{variant}_{network}")
    for one in placed:
        keys, places = one.attention.shape[-1], one.grid[0] * one.grid[1]
        assert (one.windows.tokens.size if one.windows else keys - one.front) == places
        assert one.attention.locality.learned_temperature == (variant == "sl")
    # CaiT's mask of -1e-9 masks nothing, all others do.
    assert {one.attention.masks_itself for one in placed} == {variant == "sl" and network != "cait"}
    assert placed[-1].whose == ("mean over the window" if network == "swin" else "class token")
    stages = {"pit": 3, "swin": 3, "t2t": 2}.get(network, 1)
    assert placed[-1].stage == stages - 1


def test_a_model_without_attention():
    with pytest.raises(UserError, match="ResNet has no attention that could be shown"):
        shapes_of("resnet18")


def test_layers_are_counted_from_both_ends():
    assert [choose([1, 2, 3], number, "w") for number in (0, 2, -1, -3)] == [0, 2, 2, 0]
    for number in (3, -4):
        with pytest.raises(UserError, match=f"--layer {number}: runs/w has 3 attention layers, 0 to 2"):
            choose([1, 2, 3], number, "runs/w")


# Maps


def test_maps_of_attention_made_by_hand():
    weights = np.zeros((1, 2, 5, 5), np.float32)  # a class token and 2x2 patches, two heads
    weights[0, 0, 0] = [0.5, 0.1, 0.2, 0.0, 0.2]
    weights[0, 1, 0] = [0.0, 1.0, 0.0, 0.0, 0.0]
    weights[0, :, 1:] = 0.2  # what other queries see must not count
    by_head = maps.head_maps(layer(5, 5, (2, 2), 1, slice(0, 1)), weights)
    np.testing.assert_allclose(by_head[0, 0], [[0.1, 0.2], [0.0, 0.2]], atol=1e-7)
    np.testing.assert_allclose(by_head[0, 1], [[1, 0], [0, 0]], atol=1e-7)
    # Without a class token, the mean over the queries that are pooled.
    weights = rows(3, 2, 6, 6)
    by_head = maps.head_maps(layer(6, 6, (2, 3)), weights)
    np.testing.assert_allclose(by_head, weights.mean(2).reshape(3, 2, 2, 3), rtol=1e-6)
    by_head = maps.head_maps(layer(6, 6, (1, 4), 2, slice(2, None)), weights)
    np.testing.assert_allclose(by_head[:, :, 0], weights[:, :, 2:, 2:].mean(2), rtol=1e-6)


@pytest.mark.parametrize("shift", [(0, 0), (1, 2), (0, 1)])
def test_windows_come_back_to_their_places(shift):
    grid, window = (4, 8), (2, 4)
    one = of_windows(None, attention((4, 1, 8, 8), windows=(window, shift, grid)), None, ())
    numbers = np.roll(np.arange(32).reshape(grid), (-shift[0], -shift[1]), (0, 1))
    expected = [numbers[i : i + 2, j : j + 4].ravel() for i in (0, 2) for j in (0, 4)]
    np.testing.assert_array_equal(one.windows.tokens, expected)
    # Two images whose windows attend to what stands in them: the map must be the image again.
    values = RNG.random((2, 32)).astype(np.float32)
    weights = np.stack([values[b][tokens] for b in range(2) for tokens in expected])
    weights = np.broadcast_to(weights[:, None, None], (8, 1, 8, 8))
    np.testing.assert_array_equal(maps.head_maps(one, weights)[:, 0], values.reshape(2, 4, 8))
    # As a matrix, every row has its window's weights, and nothing else.
    weights = rows(8, 3, 8, 8)
    whole = np.asarray(maps.matrix(one, weights))
    assert whole.shape == (2, 32, 32) and (whole > 0).sum() == 2 * 32 * 8
    for w, tokens in enumerate(expected):
        np.testing.assert_allclose(whole[1][np.ix_(tokens, tokens)], weights[4 + w].mean(0), rtol=1e-5)


def test_what_a_shift_brings_together_stays_apart():
    (down, across), (height, width), grid = (1, 2), (2, 4), (4, 8)
    windows = of_windows(
        None, attention((4, 1, 8, 8), windows=((height, width), (down, across), grid)), None, ()
    ).windows
    together = windows.region[:, :, None] == windows.region[:, None, :]
    for tokens, seen in zip(windows.tokens, together, strict=True):
        y, x = np.divmod(tokens, grid[1])
        near = abs(y[:, None] - y) < height  # else they are at opposite borders
        np.testing.assert_array_equal(seen, near & (abs(x[:, None] - x) < width))


def test_rollout_is_the_product_of_layers_with_residuals():
    chain = [layer(5, 5, (2, 2), 1, slice(0, 1))] * 3
    weights = [rows(2, 3, 5, 5) for _ in chain]
    expected = np.eye(5)
    for a in weights:
        expected = (0.5 * a.mean(1) + 0.5 * np.eye(5)) @ expected
    flow = maps.flow(chain, weights)
    np.testing.assert_allclose(flow, expected, rtol=1e-5)
    np.testing.assert_allclose(flow.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(maps.rollout(chain, weights), expected[:, 0, 1:].reshape(2, 2, 2), rtol=1e-5)


def test_rollout_stays_inside_the_last_stage():
    chain = [layer(16, 16, (4, 4)), layer(4, 4, (2, 2), stage=1), layer(4, 4, (2, 2), stage=1)]
    weights = [rows(1, 2, 16, 16), rows(1, 2, 4, 4), rows(1, 2, 4, 4)]
    alone = maps.rollout(chain[1:], weights[1:])
    np.testing.assert_array_equal(maps.rollout(chain, weights), alone)
    np.testing.assert_allclose(alone.sum((1, 2)), 1, rtol=1e-6)


@pytest.mark.parametrize("own_key", [True, False])
def test_rollout_with_class_attention(own_key):
    chain = [layer(4, 4, (2, 2)), *[layer(1, 4 + own_key, (2, 2), int(own_key), slice(0, 1))] * 2]
    weights = [rows(2, 3, 4, 4), rows(2, 3, 1, 4 + own_key), rows(2, 3, 1, 4 + own_key)]
    patches = 0.5 * weights[0].mean(1) + 0.5 * np.eye(4)
    of_itself, of_patches = np.ones((2, 1)), np.zeros((2, 4))
    for a in weights[1:]:
        row = a.mean(1)[:, 0]
        own = row[:, :1] if own_key else 0
        of_patches = (0.5 + 0.5 * own) * of_patches + 0.5 * row[:, int(own_key) :]
        of_itself = (0.5 + 0.5 * own) * of_itself
    expected = np.einsum("bn,bnm->bm", of_patches, patches)
    flow = maps.flow(chain, weights)
    np.testing.assert_allclose(flow[:, 0], np.concatenate([of_itself, expected], 1), rtol=1e-5)
    np.testing.assert_allclose(flow.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(maps.rollout(chain, weights), expected.reshape(2, 2, 2), rtol=1e-5)


def test_rollout_with_a_pooling_query_keeps_nothing_of_it():
    chain = [layer(5, 5, (2, 2), 1, slice(1, None)), layer(1, 5, (2, 2), 1, slice(0, 1), residual=False)]
    weights = [rows(2, 3, 5, 5), rows(2, 3, 1, 5)]
    expected = weights[1].mean(1) @ (0.5 * weights[0].mean(1) + 0.5 * np.eye(5))
    np.testing.assert_allclose(maps.flow(chain, weights)[:, 0, 1:], expected[:, 0], rtol=1e-5)
    np.testing.assert_allclose(maps.rollout(chain, weights), expected[:, 0, 1:].reshape(2, 2, 2), rtol=1e-5)


def test_negative_weights_of_mixed_heads_count_as_zero():
    matrix = maps.matrix(layer(1, 3, (1, 3)), np.array([[[[-0.5, 0.3, 0.1]]]], np.float32))
    np.testing.assert_allclose(matrix, [[[0, 0.75, 0.25]]], rtol=1e-6)


# Spread


def test_the_published_estimate_is_the_plain_formula():
    p = rows(2, 3, 7, 9).astype(np.float64)
    expected = np.mean(-np.log(9 * p + 1e-12).sum(-1) / 9, axis=-1)
    np.testing.assert_allclose(spread.published_divergence(p), expected, rtol=1e-5)


def test_the_masked_entry_adds_its_epsilon_and_nothing_else():
    """65 tokens that attend evenly to all but themselves: uniform, but for an estimate that is 0.41 nats."""
    one = layer(65, 65, (8, 8), 1)
    masked = Layer(attention((1, 1, 65, 65), lsa=locality("mask")), (8, 8), 1, slice(0, 1), "class token")
    logits = np.where(np.eye(65, dtype=bool), -np.inf, 0.0)[None, None].astype(np.float32)
    weights = jax.nn.softmax(logits, axis=-1)
    estimate = (27.631021 - 64 * np.log(65 / 64)) / 65
    assert estimate == pytest.approx(0.4098, abs=1e-4)
    np.testing.assert_allclose(spread.published_divergence(weights), estimate, rtol=1e-4)
    np.testing.assert_allclose(spread.divergence(logits, masked.allowed), 0, atol=1e-6)
    np.testing.assert_allclose(spread.entropy(logits, masked.allowed), 1, rtol=1e-6)
    # Without a mask the two are one number.
    logits = RNG.normal(size=(2, 3, 65, 65)).astype(np.float32)
    estimate = spread.published_divergence(jax.nn.softmax(logits, axis=-1))
    np.testing.assert_allclose(spread.divergence(logits, one.allowed), estimate, rtol=1e-4)


def test_divergence_and_entropy_over_the_allowed_keys():
    """Also where weights underflow: logits 300 apart."""
    logits = 60 * RNG.normal(size=(4, 2, 6, 6))
    region = np.array([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]])
    windows = Windows(np.arange(12).reshape(2, 6), region)
    lsa = locality("both", -987654321.0)
    one = Layer(attention((2, 2, 6, 6), lsa=lsa), (2, 6), 0, slice(None), "who", windows=windows)
    divergences, entropies = np.zeros((4, 2)), np.zeros((4, 2))
    for b, h in np.ndindex(4, 2):
        kl, shares = [], []
        for i in range(6):
            keys = [j for j in range(6) if j != i and region[b % 2][i] == region[b % 2][j]]
            log_p = logits[b, h, i, keys]
            log_p = log_p - log_p.max() - np.log(np.exp(log_p - log_p.max()).sum())
            kl.append(np.mean(-np.log(len(keys)) - log_p))
            if len(keys) > 1:
                shares.append(-(np.exp(log_p) * log_p).sum() / np.log(len(keys)))
        divergences[b, h], entropies[b, h] = np.mean(kl), np.mean(shares)
    logits = logits.astype(np.float32)
    np.testing.assert_allclose(spread.divergence(logits, one.allowed), divergences, rtol=1e-4)
    np.testing.assert_allclose(spread.entropy(logits, one.allowed), entropies, rtol=1e-3, atol=1e-6)


def test_a_mask_that_masks_nothing_leaves_nothing_out():
    one = Layer(attention((1, 1, 4, 4), lsa=locality("both", -1e-9)), (2, 2), 0, slice(None), "who")
    assert one.allowed.all()


# Pictures


def test_overlay_is_half_rainbow_half_image():
    picture = np.full((8, 8, 3), 200, np.uint8)
    seen = pictures.overlay(picture, np.array([[0.0, 1.0], [0.5, 0.0]]))
    violet, red = np.array([127.5, 0, 255]), np.array([255, 0, 0])  # matplotlib's ends of its rainbow
    np.testing.assert_allclose(seen[0, 0], np.round(100 + violet / 2), atol=1)
    np.testing.assert_allclose(seen[0, -1], np.round(100 + red / 2), atol=1)
    # Twice the map is the same picture, and the inverted map another: attention is red, not violet.
    np.testing.assert_array_equal(pictures.overlay(picture, np.array([[3.0, 5.0], [4.0, 3.0]])), seen)
    assert (pictures.overlay(picture, -np.array([[0.0, 1.0], [0.5, 0.0]])) != seen).any()
    even = pictures.overlay(picture, np.full((2, 2), 0.25))
    assert (even == even[0, 0]).all()


def test_maps_are_resized_bilinearly_before_they_are_scaled():
    scaled = pictures.scaled(np.array([[0.0, 4.0]]), (1, 8))
    np.testing.assert_allclose(scaled[0], [0, 0, 1 / 8, 3 / 8, 5 / 8, 7 / 8, 1, 1])


def test_pictures_are_what_was_there_before_normalisation():
    pixels = RNG.integers(0, 256, (2, 5, 4, 3), np.uint8)
    for text in ("value_range(-1, 1)", "vgg_value_range"):
        preprocess = pp.parse(f"decode|{text}")
        prepared = networks.prepare(preprocess, [{"image": image} for image in pixels], ["a", "b"])
        shown = networks.as_pictures(prepared, value_scale.after(preprocess))
        np.testing.assert_array_equal(shown, pixels)
    assert (networks.as_pictures(prepared, None) != pixels).any()  # by extremes, where the scale is not known


# Looking


def test_a_scanned_model_shows_what_the_looped_one_does():
    fields = dict(num_classes=10, depth=3, lsa="both", head_zeroinit=False)
    loop, scan = models.create("vit_mu8", **fields), models.create("vit_mu8", scan=True, **fields)
    batch = RNG.normal(size=(3, 16, 16, 3)).astype(np.float32)
    variables = jax.jit(loop.init)(jax.random.key(0), batch)
    one = look(networks.Network("loop", loop, variables, batch, batch), ("cls", "rollout"))
    stacked = {"params": loop_to_scan(variables["params"])}
    other = look(networks.Network("scan", scan, stacked, batch, batch), ("cls", "rollout"))
    for method in ("cls", "rollout"):
        np.testing.assert_allclose(one.maps[method], other.maps[method], atol=1e-6)
    for name in ("divergence", "published", "entropy", "temperature"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-4)
    np.testing.assert_allclose(one.temperature, 4.0, rtol=1e-6)


def test_images_in_parts_are_those_in_one(monkeypatch):
    from vitjax.analysis.attention import look as look_module

    model = models.create("vit_mu8", num_classes=10)
    batch = RNG.normal(size=(5, 16, 16, 3)).astype(np.float32)
    network = networks.Network("w", model, jax.jit(model.init)(jax.random.key(0), batch), batch, batch)
    whole = look(network, ("cls", "heads"))
    monkeypatch.setattr(look_module, "MOST_BYTES", 2 * 8 * 2 * 5 * 5)
    parts = look(network, ("cls", "heads"))
    assert len(parts.answers) == 5 and parts.maps["heads"].shape == (5, 2, 2, 2)
    np.testing.assert_allclose(parts.maps["cls"], whole.maps["cls"], atol=1e-6)
    np.testing.assert_allclose(parts.divergence, whole.divergence, rtol=1e-5)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of three steps with LSA and averages."""
    workdir = tmp_path_factory.mktemp("runs") / "sl <b>vit"
    given = ("model.lsa=both", "model.depth=2", "model.width=16", "input.batch_size=16")
    settings = ("total_steps=3", "report=False", "ema={'decay': 0.5}")
    code = train(
        [
            "--config=configs/quickstart.py",
            f"--workdir={workdir}",
            *(f"--config.{word}" for word in (*given, *settings)),
        ]
    )
    assert code == 0
    return workdir


def test_the_tool_side_by_side(workdir, tmp_path, capsys):
    args = ["--workdir", str(workdir), f"{workdir}:ema_params", "--images", "data:test", "--count", "3"]
    assert main([*args, "--out", str(tmp_path / "out")]) == 0
    assert "encoderblock_1, mean over the patches, 2 attention layers" in capsys.readouterr().out
    text, page = check(tmp_path / "out" / "attention.html")
    for expected in (
        "sl <b>vit:ema_params",
        "encoderblock_1 (1 of 0 to 1)",
        "Learned temperature",
        "KL divergence from uniform attention",
        "the paper's estimate",
        "Heads of one layer",
    ):
        assert expected in text, expected
    # 3 images: in two sections each with two maps, in one two sheets of heads.
    assert sum(link.startswith("data:") for link in page.links) == 3 * (3 + 3 + 2)
    names = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert names == ["attention.png", "divergence.png", "entropy.png", "temperature.png"]
    found = sorted((tmp_path / "out" / "maps").iterdir())
    assert len(found) == 3 * 3 * 2
    assert all(min(cv2.imread(str(path)).shape[:2]) >= 160 for path in found)


def test_files_of_a_folder_and_weights_of_a_file(workdir, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.jpg", "c.png"):
        cv2.imwrite(str(folder / name), RNG.integers(0, 256, (20, 24, 3), np.uint8))
    assert main(["--workdir", str(workdir), "--images", str(folder), "--count", "2", "--method", "cls"]) == 0
    assert sorted(path.name[:7] for path in (workdir / "attention" / "maps").iterdir()) == [
        "000_cls",
        "001_cls",
    ]
    config = json.loads((workdir / "config.json").read_text())["model"]
    model = models.create(config.pop("name"), num_classes=10, **config)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    weights.save(tmp_path / "w.npz", weights.load(str(workdir), params).params)
    text = "vit_mu4,width=16,depth=2,num_heads=4,pool='gap',lsa='both'"
    out = tmp_path / "of_file"
    args = [
        "--model",
        text,
        "--weights",
        str(tmp_path / "w.npz"),
        "--pp",
        "decode|resize(16)|value_range(-1, 1)",
    ]
    assert main([*args, "--images", str(folder / "a.png"), "--method", "cls", "--out", str(out)]) == 0
    capsys.readouterr()
    name = next(pathlib.Path(out, "maps").iterdir())
    ours = next((workdir / "attention" / "maps").glob("000_cls*"))
    assert cv2.imread(str(name)).shape == cv2.imread(str(ours)).shape


def test_mistakes_are_told_in_one_sentence(workdir, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    run = ["--workdir", str(workdir)]
    model = ["--model", "vit_mu8", "--weights", "w.npz"]
    for args, expected in (
        ([*run, "--images", str(tmp_path / "empty")], "the folder holds no images"),
        ([*run, "--images", str(tmp_path / "nothing.png")], "there is no such file or folder"),
        ([*run, "--images", str(tmp_path / "broken.png")], "broken.png: "),
        ([*run, "--images", "data:test", "--layer", "2"], "--layer 2: sl <b>vit has 2 attention layers"),
        ([*run, "--images", "data:test", "x.png"], "one data:SPLIT alone"),
        ([*run, "--images", "data:test", "--method", "cl"], "Did you mean 'cls'"),
        ([*run, "--images", "data:test", "--count", "0"], "--count 0 must be 1 or more"),
        ([*run, "--images", "data:test", "--pp", "decode"], "a model takes float"),
        ([*run, *model, "--images", "x.png"], "either --workdir, or --model"),
        (["--model", "vit_mu8", "--images", "x.png"], "--model and --weights go together"),
        ([*model, "--images", "x.png"], "--model needs --pp"),
        ([*model, "--pp", "decode", "--images", "data:test"], "means the data set of a run"),
        (["--model", "vit_mu8,gap", *model[2:], "--pp", "decode", "--images", "x"], "cannot be read"),
        (
            ["--workdir", str(tmp_path / "run"), "--images", "x.png"],
            "not the folder of a run with a checkpoint",
        ),
        (["--workdir", str(tmp_path / "none"), "--images", "x.png"], "there is no such file or folder"),
        (run, "--images"),
    ):
        assert main(args) == 2, args
        error = capsys.readouterr().err
        assert error.startswith("error: ") and expected in error, (args, error)


def test_images_of_several_sizes_are_refused(tmp_path):
    for name, side in (("a.png", 10), ("b.png", 12)):
        cv2.imwrite(str(tmp_path / name), np.zeros((side, side, 3), np.uint8))
    examples = images.read([str(tmp_path)], 9, None)
    described = networks.of_file("vit_mu8", "w.npz", "decode|value_range(-1, 1)")
    with pytest.raises(UserError, match=r"images of 2 sizes, such as \(10, 10, 3\) and \(12, 12, 3\)"):
        networks.load(described, examples.examples, examples.names)
