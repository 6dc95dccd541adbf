"""T2T-ViT against the official code: outputs, intermediates, gradients."""

import jax
import jax.numpy as jnp
import numpy as np

from golden_checks import below, checks
from golden_checks.small_t2t import POSITIONS, in_our_form
from golden_checks.vit import compare_gradients, compare_one, forward_and_gradient
from vitjax.layers.position import sinusoid
from vitjax.models.t2t import T2TViT
from vitjax.weights.t2t_names import T2T, T2T_PERFORMER, T2T_TRANSFORMER
from vitjax.weights.timm_names import to_timm
from vitjax.weights.variables import join, split


def fields(kwargs):
    """Translates arguments of the official `T2T_ViT` into fields of ours."""
    kwargs = dict(kwargs)
    kwargs.pop("img_size")
    width, scale = kwargs.pop("embed_dim"), kwargs.pop("qk_scale", None)
    assert scale in (None, width**-0.5)
    ours = {
        "width": width,
        "mlp_dim": int(width * kwargs.pop("mlp_ratio", 4.0)),
        "token_layer": kwargs.pop("tokens_type", "performer"),
        "qk_scale": "head_dim" if scale is None else "width",
    }
    for same in ("depth", "num_heads", "num_classes", "token_dim", "qkv_bias"):
        if same in kwargs:
            ours[same] = kwargs.pop(same)
    assert not kwargs, f"The check does not know the arguments {kwargs}."
    return ours


@checks(lambda config: config.get("family") == "t2t_vit")
def check_t2t(config, arrays):
    model = T2TViT(**fields(config["kwargs"]))
    image = jnp.asarray(arrays["input"].transpose(0, 2, 3, 1))
    state = below(arrays, "param/")
    positions = state.pop(POSITIONS)
    np.testing.assert_allclose(sinusoid(*positions.shape[1:]), positions, rtol=0, atol=2e-7)
    made = jax.eval_shape(model.init, jax.random.key(0), image)
    params, frozen = split(in_our_form(state, join(made["params"], made), T2T), made)
    bound = Bound(model, frozen)
    cotangent = arrays["cotangent"].astype(np.float32)
    value, grads, grad_image = forward_and_gradient(
        bound, params, image, lambda out: jnp.sum(out["logits"] * cotangent)
    )
    maps, stem = value["token_maps"][0], value["stem"]
    compare_one("logits", value["logits"], arrays["logits"])
    as_tokens = lambda x: x[:1].reshape(1, -1, x.shape[-1])
    places = {"tokens_to_token": stem, "tokens_to_token.attention1": maps}
    places |= {"blocks.0": value["tokens"][0], "norm": value["encoded"]}
    for place, ours in places.items():
        compare_one(place, as_tokens(ours), arrays[f"act/{place}"])
    table = T2T_PERFORMER if model.token_layer == "performer" else T2T_TRANSFORMER
    grads = {**to_timm(grads, table=table), "input": np.asarray(grad_image).transpose(0, 3, 1, 2)}
    compare_gradients({**below(arrays, "grad/"), "input": arrays["grad_input"]}, grads)


class Bound:
    """A model together with the variables that are not trained, applied to parameters alone."""

    def __init__(self, model, frozen):
        self.model, self.frozen = model, frozen

    def apply(self, variables, image, **kwargs):
        """The model's own `apply`."""
        return self.model.apply({**variables, **self.frozen}, image, **kwargs)
