"""Parameters and batch statistics in one tree, and apart again."""

from vitjax.weights.variables import join, split


def test_there_and_back():
    params = {"bn1": {"scale": 1, "bias": 2}, "head": {"kernel": 3}}
    state = {"batch_stats": {"bn1": {"mean": 4, "var": 5}}}
    joined = join(params, state)
    assert joined == {"bn1": {"scale": 1, "bias": 2, "mean": 4, "var": 5}, "head": {"kernel": 3}}
    assert split(joined, state) == (params, state)
    assert split(join(params, {}), {}) == (params, {})
