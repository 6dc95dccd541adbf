"""PiT's pooling of tokens: which filter makes which channel, where the border is, mistakes.

Its values and gradients are those of timm and of the official code (`tests/test_goldens.py`).
"""

import jax
import numpy as np
import pytest

from vitjax.errors import UserError
from vitjax.layers.token_pooling import DepthwisePooling

KEY = jax.random.key(0)


def test_outputs_of_a_channel_lie_together_and_the_border_is_zero():
    tokens = np.zeros((1, 15, 2), np.float32)
    tokens[0, 7] = 1, 10  # the middle of 3x5
    kernel = np.zeros((3, 3, 1, 6), np.float32)
    kernel[:, :, 0] = np.arange(9).reshape(3, 3, 1) + 100 * np.arange(1, 7)
    params = {"depthwise": {"kernel": kernel, "bias": np.full(6, 0.5, np.float32)}}
    pooled = DepthwisePooling(6).apply({"params": params}, tokens, (3, 5))
    assert pooled.shape == (1, 6, 6)  # 2x3
    # Output (0, 1) looks at rows -1 to 1 and columns 1 to 3: the middle is its bottom centre, place 7.
    channels = np.array([1, 1, 1, 10, 10, 10])
    np.testing.assert_allclose(pooled[0, 1], 0.5 + channels * (7 + 100 * np.arange(1, 7)))
    np.testing.assert_allclose(pooled[0, 4], 0.5 + channels * (1 + 100 * np.arange(1, 7)))
    np.testing.assert_array_equal(pooled[0, [0, 2, 3, 5]], 0.5)


def test_tokens_in_front_have_a_layer_of_their_own():
    layer = DepthwisePooling(8, pointwise=True)
    tokens = np.zeros((1, 2 + 4, 4), np.float32)
    shapes = jax.eval_shape(lambda tokens: layer.init(KEY, tokens, (2, 2)), tokens)["params"]
    assert {name: leaf["kernel"].shape for name, leaf in shapes.items()} == {
        "depthwise": (3, 3, 1, 8),
        "pointwise": (8, 8),
        "cls": (4, 8),
    }


def test_widths_that_are_no_multiple_are_refused():
    with pytest.raises(UserError, match="cannot make 6 channels of 4"):
        DepthwisePooling(6).init(KEY, np.zeros((1, 4, 4), np.float32), (2, 2))
