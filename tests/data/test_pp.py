"""The preprocessing language: parsing, the split into host and device, errors, plumbing ops."""

import inspect
import pickle
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax.data import pp
from vitjax.errors import UserError

TRAIN = (
    "decode_jpeg_and_inception_crop(224)|flip_lr|randaug(2, 15)|value_range(-1, 1)"
    "|onehot(1000, key='label', key_result='labels')|keep('image', 'labels')|mixup(0.2)"
)


def host(string, example, seed=0):
    return pp.parse(string).host(example, np.random.default_rng(seed))


def test_longest_device_suffix_runs_on_the_device():
    parsed = pp.parse(TRAIN)
    assert len(parsed.host.ops) == 3
    assert len(parsed.device.ops) == 4
    image = np.full((300, 200, 3), 7, np.uint8)
    example = parsed.host({"image": image, "label": np.int32(3)}, np.random.default_rng(0))
    assert example["image"].dtype == np.uint8 and example["image"].shape == (224, 224, 3)


def test_empty_pieces_and_strings():
    for string in ("", None, "|", " | |"):
        parsed = pp.parse(string)
        assert parsed.host({"x": 1}, np.random.default_rng(0)) == {"x": 1}
        assert parsed.device.ops == []
    assert len(pp.parse("decode||flip_lr|").host.ops) == 2


def test_separator_inside_quotes():
    example = host("copy('a|b', \"it's|c\")|resize(2)", {"a|b": 1, "image": np.zeros((2, 2, 3), np.uint8)})
    assert example["it's|c"] == 1
    assert pp.parse(r"copy('a\'|b', 'c')").device({"a'|b": 5}, _key())["c"] == 5


def test_host_does_not_change_the_example_it_is_given():
    example = {"image": np.zeros((4, 4, 3), np.uint8)}
    host("central_crop(2)|value_range|copy('image', 'x')|flip_lr", example)
    assert list(example) == ["image"] and example["image"].dtype == np.uint8


def test_device_ops_work_on_the_host_where_a_host_op_follows():
    string = "value_range|vgg_value_range(key='other')|onehot(4, key='label')|onehot(4, key='many')|resize(2)"
    example = {
        "image": np.full((4, 4, 3), 255, np.uint8),
        "other": np.zeros((4, 4, 3), np.uint8),
        "label": np.int32(2),
        "many": np.asarray([0, 3]),
        "name": b"file",
        "nested": {"a": 1},
    }
    result = host(string, example)
    assert pp.parse(string).device.ops == []
    np.testing.assert_array_equal(result["image"], np.ones((2, 2, 3), np.float32))
    np.testing.assert_array_equal(result["label"], [0, 0, 1, 0])
    np.testing.assert_array_equal(result["many"], [1, 0, 0, 1])
    assert result["name"] == b"file" and result["nested"] == {"a": 1}


def test_keys():
    image = np.zeros((4, 4, 3), np.uint8)
    assert host("resize(2, key='a')", {"a": image})["a"].shape == (2, 2, 3)
    both = host("resize(2, inkey='a', outkey='b')", {"a": image})
    assert both["a"].shape == (4, 4, 3) and both["b"].shape == (2, 2, 3)
    with pytest.raises(UserError, match=r"key 'imag'.*it has 'image'.*Did you mean 'image'"):
        host("flip_lr(key='imag')", {"image": image})


@pytest.mark.parametrize(
    ("string", "message"),
    [
        ("decod", "no preprocessing op 'decod'.*Did you mean 'decode'.*Known: .*value_range"),
        ("resize(224, metod='area')", "'resize' has no argument 'metod'.*Did you mean 'method'"),
        ("flip_lr(p=0.5)", "'flip_lr' has no argument 'p'"),
        ("resize", "missing a required argument: 'size'"),
        ("flip_lr(1, 2)", "too many positional"),
        ("resize(size)", "Cannot read 'resize\\(size\\)'"),
        ("resize(__import__('os').getcwd())", "Cannot read"),
        ("resize(**{'size': 3})", "Cannot read"),
        ("resize(224", "Cannot read"),
        ("3", "Cannot read"),
        ("resize('224')", "resize\\('224'\\).*: size='224' must be"),
        ("resize(2, method='blinear')", "Did you mean 'bilinear'"),
        ("inception_crop(224, area_min=0)", "area_min=0"),
        ("inception_crop(224, area_min='5')", "area_min='5'.*not supported"),
        ("value_range('a')", "value_range\\('a'\\)"),
        ("decode(channels=2)", "channels=2"),
        ("onehot(0)", "depth=0"),
        ("mixup(-1)", "p=-1"),
        ("mixup(0.2)|flip_lr", "'mixup\\(0.2\\)' works on the whole batch.*'flip_lr'.*follows.*to the end"),
        ("randaug(2, 15, compat='torch')", "compat='torch'"),
        ("randaug(1.5)", "num_layers=1.5"),
        ("value_range(in_max=0)", "must differ"),
        ("pad_to_shape([3], where='left')", "where='left'"),
        ("lookup('/nowhere.txt')", "/nowhere.txt"),
        ("choice(0.5, key='a')", "n=0.5"),
        ("choice()", "key="),
        ("no_such_package.op", "'no_such_package' cannot be imported"),
        ("vitjax.errors.op", "no preprocessing op 'vitjax.errors.op'"),
        (5, "must be a string"),
    ],
)
def test_mistakes_are_told_in_one_paragraph(string, message):
    with pytest.raises(UserError, match=message) as error:
        pp.parse(string)
    assert "\n" not in str(error.value)


def test_pickles_as_its_string():
    parsed = pickle.loads(pickle.dumps(pp.parse("central_crop(2)|value_range")))
    example = parsed.host({"image": np.full((4, 4, 3), 255, np.uint8)}, np.random.default_rng(0))
    assert example["image"].shape == (2, 2, 3)
    np.testing.assert_array_equal(parsed.device({"image": example["image"][None]}, _key())["image"], 1)


def test_ops_of_a_module_outside(tmp_path, monkeypatch):
    (tmp_path / "outside_ops.py").write_text(
        textwrap.dedent("""
        from vitjax.data import pp

        @pp.register("blacken")
        @pp.on_key("image")
        def blacken():
            return lambda image, rng: image * 0
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert host("outside_ops.blacken", {"image": np.ones((2, 2, 3), np.uint8)})["image"].sum() == 0
        with pytest.raises(ValueError, match="registered already"):
            pp.register("blacken")(lambda: None)
    finally:
        pp._REGISTRY.pop("blacken", None)


def test_loading_data_does_not_import_jax():
    code = f"""
        import sys
        import numpy as np
        from vitjax.data import pp
        host = pp.parse({TRAIN!r}).host
        host({{"image": np.zeros((300, 200, 3), np.uint8), "label": np.int32(0)}}, np.random.default_rng(0))
        pp.parse("value_range|onehot(3, key='label')|keep('image')|flip_lr").host(
            {{"image": np.zeros((3, 3, 3), np.uint8), "label": 0}}, np.random.default_rng(0))
        assert "jax" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


# ---- Plumbing ops


def test_keep_and_drop_leave_the_pipelines_keys():
    example = {"image": 1, "label": 2, "_id": 3}
    assert pp.parse("keep('image')").device(example, _key()) == {"image": 1, "_id": 3}
    assert pp.parse("drop('image', '_id')").device(example, _key()) == {"label": 2, "_id": 3}
    with pytest.raises(UserError, match="Did you mean 'label'"):
        pp.parse("keep('labe')").device(example, _key())


def test_concat_reshape_squeeze():
    example = {"a": np.zeros((2, 3, 1)), "b": np.ones((2, 3, 2))}
    assert host("concat(['a', 'b'], 'c')", example)["c"].shape == (2, 3, 3)
    assert host("concat(['a', 'b'])", example)["a"].shape == (2, 3, 3)
    assert host("reshape((3, -1), key='b')", example)["b"].shape == (3, 4)
    assert host("squeeze_last_dim(key='a')", example)["a"].shape == (2, 3)


def test_flatten():
    example = {"a": {"b": 1, "c": [2, 3]}, "d": {"e": 4}}
    assert host("flatten", example) == {"a/b": 1, "a/c/0": 2, "a/c/1": 3, "d/e": 4}
    assert host("flatten(['d'])", example) == {"a": {"b": 1, "c": [2, 3]}, "d/e": 4}


@pytest.mark.parametrize(
    ("where", "expected"),
    [("after", [1, 2, 9, 9, 9]), ("before", [9, 9, 9, 1, 2]), ("both", [9, 1, 2, 9, 9])],
)
def test_pad_to_shape(where, expected):
    padded = host(f"pad_to_shape((5,), 9, {where!r}, key='x')", {"x": np.asarray([1, 2])})["x"]
    np.testing.assert_array_equal(padded, expected)


def test_pad_to_shape_keeps_an_axis_and_refuses_to_cut():
    assert host("pad_to_shape((None, 4), key='x')", {"x": np.zeros((3, 2))})["x"].shape == (3, 4)
    with pytest.raises(UserError, match="cannot be padded"):
        host("pad_to_shape((2,), key='x')", {"x": np.zeros(3)})


def test_setdefault():
    assert host("setdefault('x', 5)", {})["x"].dtype == np.int32
    np.testing.assert_array_equal(host("setdefault('x', 5)", {"x": np.zeros(0, np.int64)})["x"], [5])
    np.testing.assert_array_equal(host("setdefault('x', 5)", {"x": np.asarray([1, 2])})["x"], [1, 2])


def test_lookup(tmp_path):
    (tmp_path / "lines.txt").write_text("cat\ndog\n")
    (tmp_path / "pairs.txt").write_text("cat,7\ndog,9\n")
    np.savez(tmp_path / "names.npz", fnames=np.asarray(["cat", "dog"]))
    for arguments, expected in (("lines.txt'", 1), ("pairs.txt', sep=','", 9), ("names.npz'", 1)):
        string = f"lookup('{tmp_path}/{arguments}, key='x')"
        assert host(string, {"x": b"dog"})["x"] == expected
        np.testing.assert_array_equal(host(string, {"x": ["dog", "cow"]})["x"], [expected, -1])


def test_choice_takes_the_same_entries_of_all_keys():
    example = {"q": np.arange(10), "a": np.arange(10) * 2}
    seen = set()
    for seed in range(100):
        one = host("choice(key=['q', 'a'])", example, seed)
        assert one["a"] == 2 * one["q"]
        seen.add(int(one["q"]))
        some = host("choice([2, 4], inkey=['q', 'a'], outkey=['new_{key}', 'b'])", example, seed)
        assert 2 <= len(some["new_q"]) <= 4 and (np.diff(some["new_q"]) > 0).all()
        np.testing.assert_array_equal(some["b"], 2 * some["new_q"])
    assert seen == set(range(10))
    with pytest.raises(UserError, match="wants 11"):
        host("choice(11, key='q')", example)
    assert len(host("choice(11, key='q', fewer_ok=True)", example)["q"]) == 10
    with pytest.raises(UserError, match="equally many"):
        host("choice(key=['q', 'a'])", {"q": np.arange(3), "a": np.arange(4)})
    with pytest.raises(UserError, match="equally many"):
        host("choice(key='q')", {"q": np.int32(3)})


def _key():
    import jax

    return jax.random.key(0)


@pytest.fixture
def twin():
    """An op that inverts at random, with a form for the device."""

    @pp.register("invert_some")
    @pp.on_key("image")
    def invert_some(p=0.5):
        return lambda image, rng: 255 - image if rng.random() < p else image

    @pp.register_on_device("invert_some")
    @pp.on_key("image")
    def invert_some_on_device(p=0.5):
        def apply(images, rng):
            chosen = jax.random.bernoulli(rng, p, (len(images), 1, 1, 1))
            return jnp.where(chosen, 255 - images, images)

        return apply

    yield
    pp._REGISTRY.pop("invert_some")
    pp._ON_DEVICE.pop("invert_some")


def test_on_device_the_host_keeps_only_what_has_no_form_for_the_device(twin):
    """decode and resize run once; the op with a twin runs on the device, which the host would else run."""
    string = "decode|resize(4)|invert_some(1.0)|value_range(0, 1)"
    on_host, on_device = pp.parse(string), pp.parse(string, on_device=True)
    assert (len(on_host.host.ops), len(on_host.device.ops)) == (3, 1)
    assert (len(on_device.host.ops), len(on_device.device.ops)) == (2, 2)
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    out = on_device.device({"image": jnp.asarray(images)}, jax.random.key(0))["image"]
    np.testing.assert_allclose(out, (255 - images.astype(np.float32)) / 255, atol=1e-6)


def test_on_device_parts_pickle(twin):
    parsed = pickle.loads(pickle.dumps(pp.parse("decode|invert_some|value_range", on_device=True)))
    assert (len(parsed.host.ops), len(parsed.device.ops)) == (1, 2)


def test_on_device_an_op_that_draws_and_has_no_twin_is_refused_by_name():
    with pytest.raises(UserError, match=r"'color_jitter\(0.4\)' draws.*on_device=False.*value_range"):
        pp.parse("decode|color_jitter(0.4)|value_range", on_device=True)


def test_on_device_an_op_that_draws_stays_behind_those_without_a_twin(twin):
    with pytest.raises(UserError, match=r"'invert_some' draws.*'resize\(4\)'.*follows.*move 'resize\(4\)' b"):
        pp.parse("decode|invert_some|resize(4)|value_range", on_device=True)


def test_every_twin_takes_the_arguments_of_its_host_op():
    pp.parse("decode")  # loads all ops
    for name, factory in pp._ON_DEVICE.items():
        mine = inspect.signature(factory).parameters
        theirs = inspect.signature(pp._REGISTRY[name].factory).parameters
        assert [(p.name, p.default) for p in mine.values()] == [(p.name, p.default) for p in theirs.values()]
