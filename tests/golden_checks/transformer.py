"""The original Transformer against PyTorch: forward, losses, gradients, eight steps of training, the cache.

Parameters have PyTorch's names; padding is compared nowhere, since no real position depends on it.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np

from golden_checks import below, checks
from golden_checks.vit import compare_gradients
from vitjax import losses, optim
from vitjax.layers.attention import MultiHeadDotProductAttention
from vitjax.layers.position import concatenated_sinusoid, sinusoid
from vitjax.models.transformer import Transformer
from vitjax.weights.tree import flatten

# Of the largest entry or 1. An independent float32 implementation was off by 1e-6 in losses.
FORWARD = 1e-5
LOSS = 3e-6
GRADIENT = 1e-4
# After eight steps. The file says what PyTorch itself reaches in float32; ours may be so many times that.
TRAINING = 10

_POSITIONS = {"interleaved": "interleaved", "concat": "concatenated"}


def is_model(config):
    return "num_encoder_layers" in config and "activation" in config


def build(config, attention_bias):
    """The model that a file describes."""
    return Transformer(
        num_classes=config["vocab_size"],
        width=config["d_model"],
        depth=config["num_encoder_layers"],
        decoder_depth=config["num_decoder_layers"],
        mlp_dim=config["d_ff"],
        num_heads=config["num_heads"],
        norm=config["norm"],
        final_norm=config["final_norm"],
        positions=_POSITIONS[config["positional_encoding"]],
        scale_embedding=config["scale_embeddings"],
        activation=config.get("activation", "relu"),
        attention_bias=attention_bias,
        dropout=0.0,
        norm_epsilon=config["layer_norm_eps"],
    )


def to_ours(arrays, heads):
    """PyTorch's parameters, or their gradients, in our names and layouts; a flat dict."""
    out = {}
    for name, array in arrays.items():
        out |= _to_ours(name, np.asarray(array), heads)
    return out


def _to_ours(name, array, heads):
    if name == "embed.weight":
        return {"embedding/embedding": array}
    if final := re.fullmatch(r"(encoder|decoder)\.norm\.(weight|bias)", name):
        return {f"{final[1]}_norm/{_of_norm(final[2])}": array}
    stack, number, part, *rest = name.removesuffix(".weight").replace(".layers.", ".", 1).split(".")
    layer = f"{stack}_{number}"
    if part.startswith("norm"):
        norms = ["self_attention", *(["cross_attention"] if stack == "decoder" else []), "mlp"]
        return {f"{layer}/{norms[int(part[4:]) - 1]}_norm/{_of_norm(''.join(rest) or 'weight')}": array}
    if part.startswith("linear"):
        dense = f"{layer}/mlp/Dense_{int(part[6:]) - 1}"
        return {f"{dense}/bias": array} if rest else {f"{dense}/kernel": array.T}
    attention = f"{layer}/{ {'self_attn': 'self_attention', 'multihead_attn': 'cross_attention'}[part] }"
    if rest[0] == "out_proj":
        if rest[1:]:
            return {f"{attention}/out/bias": array}
        return {f"{attention}/out/kernel": array.T.reshape(heads, -1, len(array))}
    thirds = dict(zip(("query", "key", "value"), np.split(array, 3), strict=True))
    if rest[0] == "in_proj_bias":
        return {f"{attention}/{of}/bias": third.reshape(heads, -1) for of, third in thirds.items()}
    return {
        f"{attention}/{of}/kernel": third.T.reshape(third.shape[1], heads, -1) for of, third in thirds.items()
    }


def _of_norm(name):
    return {"weight": "scale", "bias": "bias"}[name]


def nested(flat):
    tree = {}
    for name, leaf in flat.items():
        *path, last = name.split("/")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[last] = jnp.asarray(leaf, jnp.float32)
    return tree


def parameters(arrays, config, attention_bias, prefix="param/"):
    """Those of a file. Without biases of attention, those of the file must be zero."""
    flat = to_ours(below(arrays, prefix), config["num_heads"])
    if not attention_bias:
        assert all(not flat[name].any() for name in flat if _is_attention_bias(name))
        flat = {name: leaf for name, leaf in flat.items() if not _is_attention_bias(name)}
    return nested(flat)


def _is_attention_bias(name):
    return re.search(r"_attention/\w+/bias$", name) is not None


def segments(tokens, config):
    return (np.asarray(tokens) != config["pad_id"]).astype(np.int32)


def apply(model, params, src, tgt_in, tgt, config):
    return model.apply(
        {"params": params},
        src,
        tgt_in,
        inputs_segments=segments(src, config),
        targets_segments=segments(tgt, config),
    )


def mean_loss(logits, tgt, config, smoothing):
    """Over the tokens that are no padding."""
    labels = jax.nn.one_hot(tgt, config["vocab_size"])
    each = losses.softmax_xent(logits, labels, label_smoothing=smoothing, reduction=False)
    return (each * segments(tgt, config)).sum() / segments(tgt, config).sum()


def off_target(config):
    """The uniform smoothing that is the same as eps / (V - 1) on every other token."""
    size = config["vocab_size"]
    return config["label_smoothing"] * size / (size - 1)


@checks(is_model)
def check_model(config, arrays):
    src, tgt, tgt_in = (arrays[name] for name in ("src", "tgt", "tgt_in"))
    model = build(config, attention_bias=True)
    params = parameters(arrays, config, attention_bias=True)
    shapes = jax.eval_shape(model.init, jax.random.key(0), src, tgt_in)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)

    def run(params):
        logits, out = apply(model, params, src, tgt_in, tgt, config)
        smoothed = {
            "nll": mean_loss(logits, tgt, config, 0.0),
            "loss": mean_loss(logits, tgt, config, config["label_smoothing"]),
            "loss_offtarget": mean_loss(logits, tgt, config, off_target(config)),
        }
        return smoothed, out

    @jax.jit
    def both(params):
        smoothed, pull, out = jax.vjp(run, params, has_aux=True)
        one = lambda name: pull({key: jnp.float32(key == name) for key in smoothed})[0]
        return smoothed, out, one("loss"), one("loss_offtarget")

    with jax.default_matmul_precision("highest"):
        smoothed, out, grads, grads_offtarget = both(params)
    compare_forward(config, arrays, out)
    for name, value in smoothed.items():
        assert abs(float(value) - arrays[name]) <= LOSS * max(1, abs(arrays[name])), name
    for prefix, found in (("grad/", grads), ("grad_offtarget/", grads_offtarget)):
        references = to_ours(below(arrays, prefix), config["num_heads"])
        ours = {name: np.asarray(leaf) for name, leaf in flatten(found).items()}
        if not any(map(_is_attention_bias, references)):
            ours = {name: leaf for name, leaf in ours.items() if not _is_attention_bias(name)}
        compare_gradients(references, ours, GRADIENT)
    if config["attention_bias"] == "zero":
        model, params = build(config, False), parameters(arrays, config, False)
        without, _ = jax.jit(lambda params: apply(model, params, src, tgt_in, tgt, config))(params)
        compare_real("logits", without, arrays["logits"], segments(tgt, config))


def compare_forward(config, arrays, out):
    """Compares logits and all intermediates of the file; one without a place fails."""
    places = {"act/src_embed": out["inputs_embedded"], "act/tgt_embed": out["targets_embedded"]}
    places |= {f"act/enc_layer_{i}": x for i, x in enumerate(out["encoder_tokens"])}
    places |= {f"act/dec_layer_{i}": x for i, x in enumerate(out["decoder_tokens"])}
    places |= {"act/enc_out": out["encoded"], "act/dec_out": out["decoded"], "logits": out["logits"]}
    assert {name for name in arrays if name.startswith("act/")} <= set(places)
    for name, ours in places.items():
        tokens = arrays["src" if re.match("act/(src|enc)", name) else "tgt"]
        compare_real(name, ours, arrays[name], segments(tokens, config))


def compare_real(name, ours, reference, real):
    """Compares `[B, N, ...]` where `real` `[B, N]` is not 0."""
    assert ours.shape == reference.shape
    error = np.abs(np.asarray(ours) - reference)[real > 0].max()
    assert error <= FORWARD * max(1, np.abs(reference[real > 0]).max()), f"{name} is off by {error:.1e}"


@checks(lambda config: "adam_b1" in config and "num_encoder_layers" in config)
def check_training(config, arrays):
    model = build(config, attention_bias=False)
    params = parameters(arrays, config, attention_bias=False)
    adam = dict(b1=config["adam_b1"], b2=config["adam_b2"], eps=config["adam_eps"])
    optimizer = optim.create(params, total_steps=config["steps"], lr=1.0, optax=adam)
    state = optimizer.init(params)
    step_number = np.arange(1, config["steps"] + 1)
    warmup, factor = config["warmup_steps"], config["lr_factor"] * config["d_model"] ** -0.5
    rates = factor * np.minimum(step_number**-0.5, step_number * warmup**-1.5)
    np.testing.assert_allclose(rates, arrays["learning_rates"], rtol=1e-12)

    @jax.jit
    def step(params, state, rate, src, tgt_in, tgt):
        def loss(params):
            logits, _ = apply_traced(params, src, tgt_in, tgt)
            each = losses.softmax_xent(
                logits,
                jax.nn.one_hot(tgt, config["vocab_size"]),
                label_smoothing=config["label_smoothing"],
                reduction=False,
            )
            real = (tgt != config["pad_id"]).astype(jnp.float32)
            return (each * real).sum() / real.sum()

        value, grads = jax.value_and_grad(loss)(params)
        norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(grads)))
        updates, state = optimizer.update(grads, state, params)
        return value, norm, jax.tree.map(lambda p, u: p + rate * u, params, updates), state

    def apply_traced(params, src, tgt_in, tgt):
        real = lambda tokens: (tokens != config["pad_id"]).astype(jnp.int32)
        return model.apply(
            {"params": params}, src, tgt_in, inputs_segments=real(src), targets_segments=real(tgt)
        )

    allowed = TRAINING * float(arrays["float32_max_loss_diff"])
    with jax.default_matmul_precision("highest"):
        for i, rate in enumerate(rates):
            batch = (arrays[name][i] for name in ("src", "tgt_in", "tgt"))
            value, norm, params, state = step(params, state, np.float32(rate), *batch)
            assert abs(float(value) - arrays["losses"][i]) <= max(allowed, LOSS)
            np.testing.assert_allclose(norm, arrays["grad_norms"][i], rtol=1e-4)
    final = flatten(parameters(arrays, config, False, "param_final/"))
    allowed = max(TRAINING * float(arrays["float32_max_param_diff"]), LOSS)
    for name, leaf in flatten(params).items():
        assert np.abs(np.asarray(leaf) - np.asarray(final[name])).max() <= allowed, name


@checks(lambda config: "settings" in config and "num_encoder_layers" in config)
def check_cache(config, arrays):
    """Greedy decoding through the cache: the same tokens, and the distribution of every step."""
    model = build(config, attention_bias=True)  # zero at first, perhaps, but trained
    variables = {"params": parameters(arrays, config, attention_bias=True)}
    src, sequences = arrays["src"], arrays["greedy/seqs"]
    real, length = segments(src, config), sequences.shape[1]
    assert length == config["max_new_tokens"]

    @jax.jit
    def start(src, real):
        encoded = model.apply(variables, src, segments=real, method="encode")
        return model.apply(variables, encoded, real, length, method="start_cache")

    step = jax.jit(lambda tokens, cache: model.apply(variables, tokens, cache, method="decode_step"))
    cache, tokens = start(src, real), np.full(len(src), config["bos_id"], np.int32)
    live = np.ones(len(src), bool)
    for t in range(length):
        logits, cache = step(tokens, cache)
        log_probs = np.asarray(jax.nn.log_softmax(logits))
        error = np.abs(log_probs - arrays["greedy/step_log_probs"][:, t])[live]
        assert error.size == 0 or error.max() <= FORWARD * 10
        tokens = log_probs.argmax(-1).astype(np.int32)
        np.testing.assert_array_equal(tokens[live], sequences[live, t])
        live &= tokens != config["eos_id"]


@checks(lambda config: "layout" in config and "cases" in config)
def check_head_sizes(config, arrays):
    """Attention whose values have another size a head than its keys, masked."""
    for i, case in enumerate(config["cases"]):
        array = lambda name, i=i: arrays[f"{i}/{name}"]
        names = {"query": "wq", "key": "wk", "value": "wv", "out": "wo"}
        params = {ours: {"kernel": array(theirs)} for ours, theirs in names.items()}
        attention = MultiHeadDotProductAttention(
            case["num_heads"], False, head_dim=case["d_k"], value_head_dim=case["d_v"], out_bias=False
        )
        y, sown = attention.apply(
            {"params": params}, array("x_q"), array("x_kv"), mask=array("mask"), mutable=["intermediates"]
        )
        np.testing.assert_allclose(y, array("out"), atol=FORWARD)
        weights = sown["intermediates"]["attention_weights"][0]
        np.testing.assert_allclose(weights, array("weights"), atol=FORWARD)


def check_positions(arrays):
    """Position embeddings `pe_{kind}_{length}x{width}`."""
    kinds = {"interleaved": sinusoid, "concat": concatenated_sinusoid}
    tables = [key for key in arrays if key.startswith("pe_")]
    assert tables
    for key in tables:
        _, kind, sizes = key.split("_")
        ours = kinds[kind](*map(int, sizes.split("x")))[0]
        np.testing.assert_allclose(ours, arrays[key], atol=1e-6, rtol=0)
