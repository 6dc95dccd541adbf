import types

import jax

from vitjax import compiler


def test_options_are_for_float32_on_the_cpu_and_known_to_this_xla(monkeypatch):
    model = types.SimpleNamespace(dtype="float32")
    options = compiler.options(model)
    assert options
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2
    assert compiler.options(types.SimpleNamespace(dtype="bfloat16")) == {}
    assert compiler.options(object()) == {}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiler.options(model) == {}


def test_options_that_this_xla_does_not_know_are_left_out(monkeypatch):
    monkeypatch.setattr(compiler, "_FLOAT32_ON_CPU", {"xla_cpu_no_such_option": "1"})
    compiler._known.cache_clear()
    try:
        assert compiler.options(types.SimpleNamespace(dtype="float32")) == {}
    finally:
        compiler._known.cache_clear()
