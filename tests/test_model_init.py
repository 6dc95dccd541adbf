"""Starting from weights: official files, and runs of one's own with another head or resolution."""

import jax
import numpy as np
import pytest

from vitjax import config, experiment, models, weights
from vitjax.check import check
from vitjax.errors import UserError
from vitjax.preemption import Preempted
from vitjax.train import train


def load(spec, **overrides):
    return config.load(spec, {key.replace("__", "."): str(value) for key, value in overrides.items()})


def transfer(source, res=32, **overrides):
    spec = f"configs/transfer.py:vit_mu8,weights={source},data=digits,res={res},batch=16,steps=4,warmup=1"
    return load(spec, **{"input__workers": 0, "report": False, **overrides})


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A file in the naming of the published AugReg files, for another head and resolution."""
    model = models.create("vit_mu8", num_classes=7)
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), shapes)
    path = tmp_path_factory.mktemp("official") / "mu_8.npz"
    weights.save(path, params, names="augreg")
    return path, params


def test_the_backbone_is_the_files_and_the_head_is_new(official):
    path, params = official
    run = experiment.build(transfer(path))
    told = []
    state = run.init_state(told.append)
    block = ("Transformer", "encoderblock_0", "MlpBlock_0", "Dense_0", "kernel")
    ours, theirs = state.params, params
    for key in block:
        ours, theirs = ours[key], theirs[key]
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(state.params["cls"], params["cls"])
    assert state.params["pos_embedding"].shape == (1, 17, 32)  # 4x4 and the class token, from 2x2
    np.testing.assert_array_equal(state.params["pos_embedding"][:, 0], params["pos_embedding"][:, 0])
    corners = np.asarray(state.params["pos_embedding"])[0, [1, 4, 13, 16]]
    np.testing.assert_allclose(corners, params["pos_embedding"][0, 1:], rtol=1e-6)
    assert state.params["head"]["kernel"].shape == (32, 10) and not np.any(state.params["head"]["kernel"])
    assert "2x2" in told[0] and "4x4" in told[0] and "head/kernel" in told[0]


def test_loaded_parameters_go_where_the_mesh_wants_them_and_into_the_average(official):
    path, params = official
    rules = ((r".*Dense_0/kernel", (None, "model")),)
    mesh = (("data", 4), ("model", 2))
    run = experiment.build(transfer(path, mesh=mesh, sharding=rules, ema__decay=0.9))
    state = run.init_state()
    kernel = state.params["Transformer"]["encoderblock_0"]["MlpBlock_0"]["Dense_0"]["kernel"]
    assert kernel.sharding.spec == jax.P(None, "model")
    jax.tree.map(np.testing.assert_array_equal, state.ema_params, state.params)
    np.testing.assert_array_equal(state.ema_params["embedding"]["kernel"], params["embedding"]["kernel"])


def test_a_run_of_ones_own_is_as_good_a_start(official, tmp_path, capsys):
    path, _ = official
    train(transfer(path), tmp_path / "first", Preempted())
    assert "left as initialised" in capsys.readouterr().out
    second = transfer(tmp_path / "first", res=48, num_classes=12)  # another head, another resolution
    train(second, tmp_path / "second", Preempted())
    assert "4x4 resized to 6x6" in capsys.readouterr().out
    # Going on takes the checkpoint, not the weights, which may be gone by now.
    (tmp_path / "first").rename(tmp_path / "gone")
    train(second, tmp_path / "second", Preempted())
    assert "training is complete" in capsys.readouterr().out


def test_weights_can_be_evaluated_without_training(official, tmp_path, capsys):
    from vitjax.train import evaluate

    path, _ = official
    assert evaluate(transfer(path), tmp_path) == 0
    assert "step 0 val/prec@1" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"holds no checkpoint.*model_init\.weights"):
        evaluate(load("configs/quickstart.py"), tmp_path)


def test_check_reads_the_weights(official, capsys):
    check(transfer(official[0]))
    assert "starting weights:\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model_init__dont_load": "()"}, r"head/kernel.*\[32, 7\].*\[32, 10\].*dont_load"),
        ({"model_init__weights": "nowhere.npz"}, r"config\.model_init.*nowhere\.npz"),
        ({"model__depth": 2}, "missing.*encoderblock_1"),
        ({"model_init__posemb": "bicubicc"}, "Did you mean 'bicubic'"),
        ({"model_init__dontload": "()"}, "Did you mean 'dont_load'"),
    ],
)
def test_what_does_not_fit_is_told(official, overrides, message):
    with pytest.raises(UserError, match=message):
        experiment.build(transfer(official[0], **overrides)).init_state()


def test_a_string_alone_names_the_weights(official):
    c = load("configs/quickstart.py", model_init=official[0])
    with pytest.raises(UserError, match="does not fit the model"):
        experiment.build(c).init_state()
