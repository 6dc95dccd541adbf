"""Products of binary operands as those of any matrices: the reference, and every gradient."""

import jax.numpy as jnp


def dense_matmul(a, b):
    """Multiplies `a` `[..., M, K]` by `b` `[..., K, N]`; see `vitjax.kernels.binary_matmul`.

    Exact on any device: -1, 0 and 1 are so in every format, and sums of up to 2^24 of them in float32.
    """
    result = result_dtype(a, b)
    a, b = of_one_dtype(a, b)
    if b.ndim > 2:
        return jnp.matmul(a, b, preferred_element_type=result)
    # All rows of `a` as one matrix, as in layers.dense.
    y = jnp.matmul(a.reshape(-1, a.shape[-1]), b, preferred_element_type=result)
    return y.reshape(*a.shape[:-1], b.shape[-1])


def result_dtype(a, b):
    """Dtype of the product: float32 at least, since bfloat16 holds the integers up to 256 only."""
    return jnp.promote_types(jnp.promote_types(a.dtype, b.dtype), jnp.float32)


def of_one_dtype(a, b):
    """Both operands in the wider one's dtype."""
    dtype = jnp.promote_types(a.dtype, b.dtype)
    return a.astype(dtype), b.astype(dtype)
