"""The published MAC table of the reduced networks, and the count of what LayerNorms normalise."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from vitjax.analysis import small_macs
from vitjax.analysis.costs import layer_norms, multiply_accumulates
from vitjax.analysis.small_macs import PUBLISHED, count, main, rows
from vitjax.layers.encoder import Encoder
from vitjax.layers.norm import LayerNorm
from vitjax.models.small import NETWORKS


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.described)
def test_counts_are_the_published_ones(row):
    assert count(row) == row.published


def test_every_network_has_its_row():
    assert {row.network for row in rows()} == NETWORKS.keys() <= small_macs.EXTRAS.keys()
    assert [round(row.published / 1e6, 1) for row in PUBLISHED] == [
        189.8, 199.2, 613.8, 623.3, 643.0, 671.4, 279.2, 280.4, 322.9, 242.3, 247.0, 284.9
    ]  # fmt: skip


def test_the_table_says_so_if_a_number_differs(monkeypatch, capsys):
    row = PUBLISHED[0]
    monkeypatch.setattr(small_macs, "rows", lambda: [row])
    assert main([]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.split() == ["small_vit", "189,784,512", "189,784,512", "189.8"]
    monkeypatch.setattr(small_macs, "rows", lambda: [row._replace(published=1)])
    assert main([]) == 1


class Normed(nn.Module):
    """Two norms, of which the outputs depend on one; and products, which are no norms."""

    @nn.compact
    def __call__(self, x):
        """Returns `[B, N, 3]`."""
        LayerNorm(name="unused")(x)
        return nn.Dense(3)(LayerNorm()(x))


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("remat", [None, "nothing_saveable"])
def test_layer_norms_are_counted_where_they_are_used(scan, remat):
    x = jnp.ones((2, 5, 8))
    encoder = Encoder(3, fields={"num_heads": 2, "mlp_dim": 4}, scan=scan, remat=remat)
    for module, expected in ((Normed(), 2 * 5 * 8), (encoder, (2 * 3 + 1) * 2 * 5 * 8)):
        variables = jax.eval_shape(module.init, jax.random.key(0), x)
        forward = lambda variables, of=module: jax.tree.leaves(of.apply(variables, x))[0]
        assert layer_norms(forward, variables) == expected
        assert multiply_accumulates(forward, variables) > 0
