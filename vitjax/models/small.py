"""The reduced networks of "Vision Transformer for Small-Size Datasets" (arXiv 2112.13492), as released.

Five architectures, each plain, with shifted patch tokenization (SPT), with locality self-attention (LSA), or
with both: `small_vit`, `s_vit`, `l_vit`, `sl_vit`. They are those of aanna0701/SPT_LSA_ViT, whose counts were
published, and smaller than the originals of the same name. Patches are for images of 32 pixels; for the 64 of
Tiny-ImageNet they have twice the side, and T2T-ViT, which has no patches, three soft splits (`splits=3`).
"""

import re
from typing import Any, NamedTuple

import flax.linen as nn

from vitjax.models.t2t import T2TViT
from vitjax.models.vit import ViT

Fields = dict[str, Any]


class Network(NamedTuple):
    """One of the five: its class, its fields, and what SPT and LSA add to them."""

    module: type[nn.Module]
    fields: Fields
    spt: Fields
    lsa: Fields


NETWORKS: dict[str, Network] = {
    "vit": Network(
        ViT,
        dict(
            width=192,
            depth=9,
            mlp_dim=384,
            num_heads=12,
            patch_size=4,
            qkv_bias=False,
            gelu="erf",
            norm_epsilon=1e-5,
            head_zeroinit=False,
            drop_path_uniform=True,
        ),
        dict(spt="diagonal"),
        dict(lsa="both", lsa_mask=-987654321.0),
    ),
    "t2t": Network(
        T2TViT,
        dict(
            width=256,
            depth=12,
            mlp_dim=512,
            num_heads=4,
            splits=2,
            token_layer="transformer",
            inner_residual=True,
            unused_norm=True,
        ),
        dict(spt="diagonal"),
        dict(lsa="both"),
    ),
}

# The letters before the name, and whether the network has SPT and LSA.
VARIANTS = {"small": (False, False), "s": (True, False), "l": (False, True), "sl": (True, True)}


def names() -> tuple[str, ...]:
    """All networks in all variants."""
    return tuple(f"{variant}_{network}" for network in NETWORKS for variant in VARIANTS)


def configure(name: str) -> tuple[type[nn.Module], Fields] | None:
    """Returns the class and the fields that `{variant}_{network}` stands for; None for any other name."""
    match = re.fullmatch(r"([a-z]+)_([a-z0-9]+)", name)
    if match is None or match[1] not in VARIANTS or match[2] not in NETWORKS:
        return None
    network, (spt, lsa) = NETWORKS[match[2]], VARIANTS[match[1]]
    return network.module, network.fields | (network.spt if spt else {}) | (network.lsa if lsa else {})
