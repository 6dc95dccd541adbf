"""Options of XLA for single jitted functions, where its defaults are not the fastest."""

import functools
from typing import Any

import jax

# What XLA:CPU hands to YNNPACK: reductions only. In float32 its own (Eigen's) matrix products are 10-25 %
# faster than YNNPACK's on the shapes of ViTs; its own reductions are slower. In bfloat16 and int8 YNNPACK's
# products are far faster than its own, so functions with those are left alone.
_FLOAT32_ON_CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


def options(model: Any) -> dict[str, str]:
    """Returns `compiler_options` of `jax.jit` for functions that run `model` on jax's default devices.

    They depend on the dtype of its matrix products, which the model tells by its field `dtype`. Options
    change the order of additions inside a product, nothing else.
    """
    float32 = getattr(model, "dtype", None) == "float32"
    return dict(_FLOAT32_ON_CPU) if float32 and jax.default_backend() == "cpu" and _known() else {}


@functools.cache
def _known() -> bool:
    """Whether this XLA has the options: they are experimental, and an unknown one would stop the run."""
    try:
        jax.jit(lambda: 0, compiler_options=_FLOAT32_ON_CPU).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
