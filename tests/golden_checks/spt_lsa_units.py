"""Single modules of aanna0701/SPT_LSA_ViT: shifted views, SPT of images and tokens, attention.

Names are those of a module `x`, here and there.
"""

import jax
import numpy as np

from golden_checks import below, checks
from golden_checks.small_vit import GRADIENT, compare_all_close
from golden_checks.unit_layers import ours, theirs
from golden_checks.vit import compare_gradients
from vitjax.layers.attention import MultiHeadDotProductAttention, TalkingHeadsAttention
from vitjax.layers.locality import locality
from vitjax.layers.shifted_patches import ShiftedPatchTokenization, shifted_views, shifts_of
from vitjax.layers.token_pooling import ShiftedPatchPooling
from vitjax.weights.spt_lsa_names import attention, head_mixes, spt_pooling
from vitjax.weights.timm_names import from_timm, to_timm


def of_module(*names):
    return checks(lambda config: config.get("module") in names)


@of_module("PatchShifting")
def check_views(config, arrays):
    shifts = shifts_of((config["patch_size"],) * 2, 0.5)
    assert shifts == (config["shift"],) * 2
    out, pull = jax.vjp(lambda image: shifted_views(image, shifts), ours(arrays["input"]))
    np.testing.assert_array_equal(theirs(out), arrays["output"])  # numbers are moved, none is computed
    (grad,) = pull(ours(arrays["cotangent"]))
    compare_gradients({"input": arrays["grad_input"]}, {"input": theirs(grad)}, GRADIENT)


@of_module("ShiftedPatchTokenization")
def check_spt(config, arrays):
    width, size = config["dim"], config["merging_size"]
    if config["is_pe"]:
        tokenization = ShiftedPatchTokenization(width, (size, size))

        def apply(params, image):
            grid = tokenization.apply({"params": params}, image)
            return grid.reshape(len(grid), -1, width)
    else:
        assert size == 2
        pooling = ShiftedPatchPooling(width)
        apply = lambda params, x: pooling.apply({"params": params}, x, (config["grid"],) * 2)
    compare_unit(apply, arrays, spt_pooling("x", "x"))


@of_module("vit.Attention", "pit.Attention")
def check_vit_attention(config, arrays):
    single = config["heads"] == 1 and config["dim_head"] == config["dim"]
    module = MultiHeadDotProductAttention(
        config["heads"], False, head_dim=config["dim_head"], locality=lsa(config), out_projection=not single
    )
    compare_attention(module, arrays, {"to_qkv": ("query", "key", "value")}, "attention_weights")


@of_module("cait.Attention")
def check_cait_attention(config, arrays):
    module = TalkingHeadsAttention(
        config["heads"], False, head_dim=config["dim_head"], locality=lsa(config), mixing_bias=False
    )
    compare_attention(module, arrays, {"to_q": ("query",), "to_kv": ("key", "value")}, "unmixed_weights")


def lsa(config):
    """What the unit has of LSA; CaiT's class attention has no mask."""
    if not config["is_LSA"]:
        return locality("none")
    mask = config["mask_value"]
    return locality("temperature") if mask is None else locality("both", float(mask))


def compare_attention(module, arrays, kinds, weights):
    """Holds an attention against one file, and the weights that it sows by that name."""
    table = attention("x", "x", kinds) | head_mixes("x", "x")
    variables = {"params": parameters(arrays, table, module.num_heads)}
    attend = jax.jit(lambda *inputs: module.apply(variables, *inputs, mutable=["intermediates"]))
    with jax.default_matmul_precision("highest"):
        _, sown = attend(*inputs_of(arrays).values())
    compare_all_close("attn", sown["intermediates"][weights][0], arrays["attn"])
    apply = lambda params, *inputs: module.apply({"params": params}, *inputs)
    compare_unit(apply, arrays, table, module.num_heads)


def parameters(arrays, table, num_heads):
    state = {f"x.{name}": array for name, array in below(arrays, "param/").items()}
    return from_timm(state, num_heads=num_heads, table=table).get("x", {})


def inputs_of(arrays):
    """The input and, of a class attention, its context, by the names that gradients have."""
    names = ["input", *(name for name in arrays if name.startswith("extra/"))]
    return {f"grad_{name}": ours(arrays[name]) for name in names}


def compare_unit(apply, arrays, table, num_heads=1):
    """Holds `apply(params, *inputs)` against one file: output, gradients of parameters and inputs."""

    @jax.jit
    def run(cotangent, *arguments):
        y, pull = jax.vjp(apply, *arguments)
        return y, pull(cotangent)

    inputs, params = inputs_of(arrays), parameters(arrays, table, num_heads)
    with jax.default_matmul_precision("highest"):
        y, (grads, *grad_inputs) = run(ours(arrays["cotangent"]), params, *inputs.values())
    compare_all_close("output", y, arrays["output"])
    found = {name.removeprefix("x."): grad for name, grad in to_timm({"x": grads}, table=table).items()}
    compare_gradients(below(arrays, "grad/"), found, GRADIENT)
    of_inputs = {name: theirs(grad) for name, grad in zip(inputs, grad_inputs, strict=True)}
    compare_gradients({name: arrays[name] for name in inputs}, of_inputs, GRADIENT)
