"""Convolution by groups, as it is written for a CPU and as it is for accelerators."""

import jax
import numpy as np
import pytest

from vitjax.layers.convolution import convolve


@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_groups_apart_are_the_grouped_convolution(monkeypatch, padding):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 7, 8, 12)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 4, 6)).astype(np.float32)
    programs, results = [], []
    for backend in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        # A function of its own each time: traces are kept by function.
        by_groups = lambda x, kernel: convolve(x, kernel, stride=2, padding=padding, groups=3)
        programs.append(str(jax.make_jaxpr(by_groups)(x, kernel)))
        results.append(by_groups(x, kernel))
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-5)
    assert [program.count("= conv_general_dilated") for program in programs] == [3, 1]
    assert "feature_group_count=3" in programs[1]
