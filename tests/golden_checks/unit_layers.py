"""Single layers against timm's: outputs and gradients, batch norm in training, activations, pools, rates."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from golden_checks import below, checks
from golden_checks.vit import compare_gradients, compare_one
from vitjax.layers.attention import MultiHeadDotProductAttention, TalkingHeadsAttention
from vitjax.layers.batch_norm import BatchNorm
from vitjax.layers.convolution import Conv
from vitjax.layers.drop_path import linear_rates, uniform_rates
from vitjax.layers.group_norm import group_norm
from vitjax.layers.mlp import MlpBlock
from vitjax.layers.norm import LayerNorm
from vitjax.layers.pooling import max_pool
from vitjax.layers.squeeze_excite import SqueezeExcite
from vitjax.layers.weight_standardization import StdConv
from vitjax.weights.timm_names import CONV, SAME, from_timm, linear, out, projections, to_timm


def is_unit_layers(config):
    cases = config.get("cases")
    return isinstance(cases, list) and bool(cases) and all(set(case) == {"name", "note"} for case in cases)


@checks(is_unit_layers)
def check_layers(config, arrays):
    sections = {case["name"]: case["note"] for case in config["cases"]}
    for name, note in sections.items():
        check_layer(name, note, below(arrays, f"{name}/"))
    others = {key.split("/")[0] for key in arrays} - sections.keys()
    assert others <= OTHERS.keys(), f"Nothing checks the sections {sorted(others - OTHERS.keys())}."
    for name in others:
        OTHERS[name](below(arrays, f"{name}/"))


# Tables for parameters that have no module in front of their names: ours are those of a module `x`.
ATTENTION = {
    **projections("qkv", "x", ("query", "key", "value")),
    **out("proj", "x"),
    **linear("proj_l", "x/proj_l"),
    **linear("proj_w", "x/proj_w"),
}
CLASS_ATTENTION = {
    **projections("q", "x", ("query",)),
    **projections("k", "x", ("key",)),
    **projections("v", "x", ("value",)),
    **out("proj", "x"),
}
MLP = {**linear("fc1", "x/Dense_0"), **linear("fc2", "x/Dense_1")}
NORM = {
    "weight": (SAME, "x/scale"),
    "bias": (SAME, "x/bias"),
    "running_mean": (SAME, "x/mean"),
    "running_var": (SAME, "x/var"),
}
CONVOLUTION = {"weight": (CONV, "x/kernel")}


def squeeze_excite(reduce, expand):
    """The table of squeeze and excitation, whose two convolutions have these names."""
    return {
        f"{theirs}.{of}": (layout, f"x/{ours}/{name}")
        for theirs, ours in ((reduce, "reduce"), (expand, "expand"))
        for of, layout, name in (("weight", CONV, "kernel"), ("bias", SAME, "bias"))
    }


def layer_of(name, heads, arrays):
    """The function `(params, x) -> y` of ours for one section, and the table of its names."""
    apply = lambda module: lambda params, x: module.apply({"params": params}, x)
    epsilon = float(found[1]) if (found := re.search(r"(\d(?:\.\d+)?e-\d+)$", name)) else None
    kind = re.match(r"[a-z]+(?:_(?:heads|attention|same|sym|regnet|efficientnet|eval))?", name)[0]
    weight = arrays.get("param/weight")
    if kind.startswith(("stdconv", "conv")):
        features, _, size, _ = weight.shape
        stride = round(arrays["x"].shape[-1] / arrays["y"].shape[-1])
        padding = "same" if kind.endswith("_same") else "symmetric"
    match kind:
        case "attention":
            return apply(MultiHeadDotProductAttention(heads)), ATTENTION
        case "talking_heads":
            return apply(TalkingHeadsAttention(heads)), ATTENTION
        case "class_attention":
            module = MultiHeadDotProductAttention(heads)
            return lambda params, x: module.apply({"params": params}, x[:, :1], x), CLASS_ATTENTION
        case "mlp":
            gelu = re.fullmatch(r"mlp_gelu_(erf|tanh)", name)[1]
            return apply(MlpBlock(len(arrays["param/fc1.bias"]), gelu=gelu)), MLP
        case "layernorm":
            return apply(LayerNorm(epsilon)), NORM
        case "groupnorm":
            assert name == "groupnorm32_1e-5"
            return apply(group_norm("timm", "x")), NORM
        case "stdconv" | "stdconv_same":
            assert epsilon == 1e-8
            return apply(StdConv(features, size, stride, "timm", padding=padding)), CONVOLUTION
        case "conv_same" | "conv_sym":
            return apply(Conv(features, size, stride, padding=padding)), CONVOLUTION
        case "se_regnet":
            return apply(SqueezeExcite(len(arrays["param/fc1.bias"]), nn.relu)), squeeze_excite("fc1", "fc2")
        case "se_efficientnet":
            table = squeeze_excite("conv_reduce", "conv_expand")
            return apply(SqueezeExcite(len(arrays["param/conv_reduce.bias"]), nn.silu)), table
        case "bn_eval":
            module = BatchNorm(epsilon)
            stats = {name: arrays[f"param/running_{name}"] for name in ("mean", "var")}
            only = lambda params: {name: params[name] for name in ("scale", "bias")}
            return lambda params, x: module.apply({"params": only(params), "batch_stats": stats}, x), NORM
    raise AssertionError(f"Nothing checks the section {name!r}.")


def check_layer(name, note, arrays):
    heads = int(found[1]) if (found := re.match(r"heads (\d+)", note)) else 1
    function, table = layer_of(name, heads, arrays)
    params = from_timm(without_counter(below(arrays, "param/")), num_heads=heads, table=table)
    y, pull = jax.vjp(function, params["x"], ours(arrays["x"]))
    grads, grad_x = pull(ours(arrays["cotangent"]))
    compare_one(f"{name}/y", theirs(y), arrays["y"])
    references = below(arrays, "grad/")
    grads = {k: grad for k, grad in to_timm({"x": grads}, table=table).items() if k in references}
    compare_gradients({**references, "x": arrays["grad_x"]}, {**grads, "x": theirs(grad_x)})


def check_bn_train(arrays):
    """One step in training: output, gradients, and the running statistics after it."""
    states = [without_counter(below(arrays, f"{when}/")) for when in ("before", "after")]
    before, after = (from_timm(state, num_heads=1, table=NORM)["x"] for state in states)

    def function(params, x):
        variables = {"params": params, "batch_stats": {k: before[k] for k in ("mean", "var")}}
        return BatchNorm().apply(variables, x, train=True, mutable=["batch_stats"])

    params = {k: jnp.asarray(before[k], jnp.float32) for k in ("scale", "bias")}
    y, pull, updated = jax.vjp(function, params, ours(arrays["x"]), has_aux=True)
    grads, grad_x = pull(ours(arrays["cotangent"]))
    compare_one("bn_train/y", theirs(y), arrays["y"])
    for name, statistic in updated["batch_stats"].items():
        compare_one(f"bn_train/after/{name}", np.asarray(statistic), after[name])
    grads = {"weight": grads["scale"], "bias": grads["bias"], "x": theirs(grad_x)}
    compare_gradients({**below(arrays, "grad/"), "x": arrays["grad_x"]}, grads)


def check_activations(arrays):
    functions = {
        "gelu_erf": lambda x: jax.nn.gelu(x, approximate=False),
        "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
        "silu": nn.silu,
    }
    x = jnp.asarray(arrays["x"])
    for name in arrays.keys() - {"x"}:
        compare_one(f"act/{name}", functions[name](x), arrays[name])


def check_pools(arrays):
    functions = {
        "max3s2_sym": max_pool,
        "max3s2_same": lambda x: nn.max_pool(x, (3, 3), (2, 2), "SAME"),
        "max3s2_fixed": lambda x: max_pool(x, border=0.0),
    }
    for name in (name for name in arrays if not name.startswith("x_")):
        kind, _, size = name.rpartition("_")
        compare_one(f"pool/{name}", theirs(functions[kind](ours(arrays[f"x_{size}"]))), arrays[name])


def check_drop_path(arrays):
    rules = {"linear": linear_rates, "uniform": uniform_rates}
    for name, reference in arrays.items():
        rule, rate, depth = re.fullmatch(r"(linear|uniform)_([\d.]+)_depth(\d+)", name).groups()
        np.testing.assert_allclose(rules[rule](float(rate), int(depth)), reference, rtol=1e-6, atol=1e-9)


OTHERS = {
    "act": check_activations,
    "pool": check_pools,
    "bn_train": check_bn_train,
    "drop_path": check_drop_path,
}


def ours(array):
    """NHWC of maps; anything else as it is."""
    return jnp.asarray(array.transpose(0, 2, 3, 1) if array.ndim == 4 else array, jnp.float32)


def theirs(array):
    """The inverse of `ours`."""
    array = np.asarray(array)
    return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array


def without_counter(state):
    """The state without the number of batches seen, which nothing here has a use for."""
    return {name: array for name, array in state.items() if name != "num_batches_tracked"}
