"""Greedy and beam search of small trained Transformers, and length penalties."""

import jax
import jax.numpy as jnp
import numpy as np

from golden_checks import below, checks
from golden_checks.transformer import build, parameters
from vitjax.decoding import beam, conventions, greedy

# Sums of log-probabilities in float32. The reference's own JAX pass was 3e-6 away; twice that.
SCORES = dict(rtol=0, atol=6e-6)
PENALTIES = dict(rtol=5e-7, atol=0)  # a power in float32


def is_search(config):
    return {"max_new_tokens", "d_model", "bos_id", "eos_id", "pad_id"} <= set(config)


@checks(is_search)
def check_searches(config, arrays):
    """Every result that is in the file, and each of them with the early stop and without."""
    settings = config.get("settings", ())
    for setting in settings:
        name = f"beam{setting['beam']}_alpha{setting['alpha']}"
        for stop in ("worst", "never"):
            found = decode(config, arrays, beam=setting["beam"], alpha=setting["alpha"], stop=stop)
            compare(found, below(arrays, f"{name}/"))
        best = decode(config, arrays, beam=setting["beam"], alpha=setting["alpha"], stop="best")
        np.testing.assert_array_equal(best.seqs[:, 0], arrays[f"{name}/seqs"][:, 0])
    if "greedy/seqs" in arrays:
        found = decode(config, arrays, beam=None)
        np.testing.assert_array_equal(found.seqs[:, 0], arrays["greedy/seqs"])
        np.testing.assert_allclose(found.logp[:, 0], arrays["greedy/logp"], **SCORES)
    if "truncated/seqs" in arrays:
        rows, limit = arrays["truncated/rows"], config["truncated_max_new_tokens"]
        found = decode(config, arrays, beam=config["truncated_beam"], alpha=0.6, limit=limit)
        found = jax.tree.map(lambda x: x[rows], found)
        np.testing.assert_array_equal(found.seqs, arrays["truncated/seqs"])
        np.testing.assert_allclose(found.logp, arrays["truncated/logp"], **SCORES)
        np.testing.assert_array_equal(found.scores, found.logp)
    if "best/seqs" in arrays:
        check_exhaustive(config, below(arrays, "best/"), arrays)
    assert settings or {"greedy/seqs", "truncated/seqs", "best/seqs"} & set(arrays)


def check_exhaustive(config, best, arrays):
    """The true optimum: by the beam that is known to find it, and all of the best by the widest."""
    smallest = arrays["smallest_beam_finding_best"]
    for width in np.unique(smallest).tolist():
        found = decode(config, arrays, beam=width, alpha=config["alpha"])
        rows = smallest == width
        np.testing.assert_array_equal(found.seqs[rows, 0], best["seqs"][rows, 0])
        np.testing.assert_allclose(found.scores[rows, 0], best["scores"][rows, 0], **SCORES)
    # Wide enough never to lose a prefix that any of the best begins with.
    wide = decode(config, arrays, beam=512, alpha=config["alpha"])
    compare(jax.tree.map(lambda x: x[:, : best["seqs"].shape[1]], wide), best)


def compare(found, expected):
    np.testing.assert_array_equal(found.seqs, expected["seqs"])
    np.testing.assert_allclose(found.scores, expected["scores"], **SCORES)
    np.testing.assert_allclose(found.logp, expected["logp"], **SCORES)


def decode(config, arrays, *, limit=None, **options):
    """What the search finds for the file's sources; greedy with `beam=None`."""
    model, src = build(config, attention_bias=True), jnp.asarray(arrays["src"])
    most = limit or config["max_new_tokens"]
    sizes = dict(batch=len(src), vocab_size=config["vocab_size"], max_length=most)
    sizes |= {name: config[f"{name}_id"] for name in ("pad", "eos", "bos")}

    @jax.jit
    def run(params):
        variables, segments = {"params": params}, (src != config["pad_id"]).astype(jnp.int32)
        encoded = model.apply(variables, src, segments=segments, method="encode")
        cache = model.apply(variables, encoded, segments, most, method="start_cache")
        step = lambda tokens, cache: model.apply(variables, tokens, cache, method="decode_step")
        if options["beam"] is None:
            return greedy.search(step, cache, **sizes)
        return beam.search(step, cache, **sizes, **options)

    with jax.default_matmul_precision("highest"):
        return jax.device_get(run(parameters(arrays, config, attention_bias=True)))


def length_penalties(arrays):
    """Every `lp_alphaA` of a table, for the lengths beside it."""
    lengths = jnp.asarray(arrays["lp_lengths"], jnp.int32)
    tables = below(arrays, "lp_alpha")
    assert tables
    for alpha, expected in tables.items():
        found = conventions.gnmt_penalty(lengths, float(alpha))
        np.testing.assert_allclose(found, expected, **PENALTIES)
