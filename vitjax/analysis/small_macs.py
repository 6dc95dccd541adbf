"""What the reduced networks cost as their paper counts it: `python -m vitjax.analysis.small_macs`.

Prints multiply-accumulates, computed from our models of `models.small`, beside the published numbers ("Vision
Transformer for Small-Size Datasets", arXiv 2112.13492, and the README of its official code give them in
millions; these are exact, from the counters of the authors' development repository, aanna0701/SPM_LMSA_ViT).

The paper's convention is one image of 64x64 pixels and 200 classes. Matrix products and convolutions count as
everywhere, a LayerNorm one for each number that it normalises; biases, softmax, GELU, LayerScale, LSA's scale
and mask, and averages count nothing. Beyond that the authors' counters differ from what the networks compute,
which `EXTRAS` follows, from the model's sizes:

- ViT: the linear patch embedding counts for the class token, too; SPT does not. The final norm counts for the
  class token alone.
- CaiT: mixes of heads count nothing. Class layers count as if their norms and MLP ran over as many tokens as
  there are patches, and as if the class token had a key and a value.
- PiT: the linear patch embedding counts as if patches had twice the side (those of the original PiT overlap);
  SPT does not.
- T2T: the projection behind the attention of a token layer counts from the width of the layer's input, not
  from that of its heads. The final norm counts without the class token.
- Swin: no difference.
"""

import argparse
import math
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vitjax import models
from vitjax.analysis.costs import layer_norms, multiply_accumulates
from vitjax.models.small import NETWORKS, at_64_pixels

SIZE, CLASSES = 64, 200
CHANNELS = 3


class Row(NamedTuple):
    """A line of the published table."""

    name: str
    published: int
    fields: Mapping[str, Any] = types.MappingProxyType({})

    @property
    def network(self) -> str:
        """Which of the five it is."""
        return self.name.split("_")[1]

    @property
    def described(self) -> str:
        """The name and, of the paper's rows "w/o S_pool", the field that makes it one."""
        return " ".join([self.name, *(f"{field}={value}" for field, value in self.fields.items())])


PUBLISHED = (
    Row("small_vit", 189_784_512),
    Row("sl_vit", 199_246_272),
    Row("small_cait", 613_766_848),
    Row("sl_cait", 623_265_472),
    Row("small_t2t", 642_982_912),
    Row("sl_t2t", 671_405_056),
    Row("small_pit", 279_186_048),
    Row("sl_pit", 280_427_136, {"spt_pooling": False}),
    Row("sl_pit", 322_912_896),
    Row("small_swin", 242_267_136),
    Row("sl_swin", 247_022_592, {"spt_pooling": False}),
    Row("sl_swin", 284_918_784),
)


def count(row: Row) -> int:
    """The row's multiply-accumulates in the paper's convention, computed from our model."""
    fields = {**at_64_pixels(row.network), **row.fields}
    if "scan" in NETWORKS[row.network].module.__dataclass_fields__:
        fields["scan"] = True  # quicker to trace, and as many
    model: Any = models.create(row.name, num_classes=CLASSES, **fields)
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, CHANNELS), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    logits = lambda variables, image: model.apply(variables, image)[0]
    _, out = jax.eval_shape(model.apply, variables, image)
    as_computed = multiply_accumulates(logits, variables, image) + layer_norms(logits, variables, image)
    return as_computed + EXTRAS[row.network](model, variables["params"], out)


def _vit(model: Any, params: Any, out: Any) -> int:
    del params
    return _embedding_of_a_patch(model, model.width) - _final_norm_of_patches(out)


def _cait(model: Any, params: Any, out: Any) -> int:
    del params
    patches = math.prod(out["stem"].shape[1:3])
    mixes = 2 * model.num_heads**2 * patches * (model.depth * patches + model.class_depth)
    norms_and_mlp = (patches - 1) * (2 * model.width + 2 * model.width * model.mlp_dim)
    key_and_value = 2 * model.width * model.num_heads * model.head_dim
    return model.class_depth * (norms_and_mlp + key_and_value) - mixes


def _pit(model: Any, params: Any, out: Any) -> int:
    del params
    patches = math.prod(out["stem"].shape[1:3])
    return (2 * 2 - 1) * patches * _embedding_of_a_patch(model, model.width[0])


def _t2t(model: Any, params: Any, out: Any) -> int:
    extra = -model.width
    for i, tokens in enumerate(out["token_maps"]):
        (width,) = params["tokens_to_token"][f"token_layer_{i}"]["LayerNorm_0"]["scale"].shape
        extra += math.prod(tokens.shape[1:3]) * (width - model.token_dim) * model.token_dim
    return extra


def _embedding_of_a_patch(model: Any, width: int) -> int:
    return math.prod(model.stride) * CHANNELS * width if model.spt == "none" else 0


def _final_norm_of_patches(out: Any) -> int:
    _, tokens, width = out["encoded"].shape
    return (tokens - 1) * width


# (model, its parameters, what it returns), the last two by shape, to what the authors' counters add.
EXTRAS: dict[str, Callable[[Any, Any, Any], int]] = {
    "vit": _vit,
    "cait": _cait,
    "pit": _pit,
    "swin": lambda model, params, out: 0,
    "t2t": _t2t,
}


def rows() -> list[Row]:
    """The published rows of the networks that there are."""
    return [row for row in PUBLISHED if row.network in NETWORKS]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; the exit code is 1 if a number is not the published one."""
    parser = argparse.ArgumentParser(
        prog="python -m vitjax.analysis.small_macs",
        description=f"Multiply-accumulates of the reduced networks, {SIZE}x{SIZE} pixels, {CLASSES} classes.",
    )
    parser.parse_args(argv)
    print(f"{'network':28} {'computed':>13} {'published':>13} {'MFLOPs':>7}")
    agree = True
    for row in rows():
        counted = count(row)
        agree = agree and counted == row.published
        print(f"{row.described:28} {counted:13,} {row.published:13,} {row.published / 1e6:7.1f}")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
