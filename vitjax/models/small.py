"""The reduced networks of "Vision Transformer for Small-Size Datasets" (arXiv 2112.13492), as released.

Five architectures, each plain, with shifted patch tokenization (SPT), with locality self-attention (LSA), or
with both: `small_vit`, `s_vit`, `l_vit`, `sl_vit`. They are those of aanna0701/SPT_LSA_ViT, whose counts were
published, and smaller than the originals of the same name. Patches are for images of 32 pixels; for the 64 of
Tiny-ImageNet they have twice the side, and T2T-ViT, which has no patches, has three soft splits (`splits=3`).
All begin as the official code has them begin. Its stochastic depth belongs to the recipe and not to the name:
say `drop_path=0.1`, which ViT, CaiT and PiT have in all blocks.
"""

import re
from typing import Any, NamedTuple

import flax.linen as nn

from vitjax.models.cait import CaiT
from vitjax.models.pit import PiT
from vitjax.models.swin import Swin
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
            initialisation="small_datasets",
            drop_path_uniform=True,
        ),
        dict(spt="diagonal"),
        dict(lsa="both", lsa_mask=-987654321.0),
    ),
    "cait": Network(
        CaiT,
        dict(
            width=192,
            depth=24,
            mlp_dim=384,
            num_heads=4,
            head_dim=64,
            patch_size=4,
            qkv_bias=False,
            norm_epsilon=1e-5,
            initialisation="small_datasets",
            layer_scale="by_index",
            mixing_bias=False,
            class_talking_heads=True,
            class_keys="patches",
            class_dropout=True,
        ),
        dict(spt="diagonal"),
        dict(lsa="both", lsa_mask=-1e-9),
    ),
    "pit": Network(
        PiT,
        dict(
            width=(96, 192, 384),
            depth=(2, 6, 4),
            mlp_dim=(192, 384, 768),
            num_heads=(2, 4, 8),
            head_dim=48,
            patch_size=2,
            qkv_bias=False,
            posemb_layout="augreg",
            pooling="depthwise_pointwise",
            norm_epsilon=1e-5,
            initialisation="small_datasets",
            drop_path_uniform=True,
        ),
        dict(spt="diagonal", spt_pooling=True),
        dict(lsa="both"),
    ),
    # With the position embedding that the release always has: abs_pos=False is the network whose parameters
    # the paper counts.
    "swin": Network(
        Swin,
        dict(
            width=96,
            depths=(2, 6, 4),
            num_heads=(3, 6, 12),
            window=4,
            patch_size=2,
            mlp_ratio=2.0,
            abs_pos=True,
            initialisation="torch",
        ),
        dict(spt="diagonal", spt_pooling=True),
        dict(lsa="both"),
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


def at_64_pixels(network: str) -> Fields:
    """What changes for images of 64 pixels: patches have twice the side, a T2T-ViT one more soft split."""
    fields = NETWORKS[network].fields
    if "splits" in fields:
        return {"splits": fields["splits"] + 1}
    return {"patch_size": 2 * fields["patch_size"]}


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
