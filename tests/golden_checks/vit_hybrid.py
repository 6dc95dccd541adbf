"""Hybrids of ResNet and ViT against timm: forward, feature maps and other intermediates, gradients."""

from golden_checks import checks
from golden_checks.vit import compare, fields
from vitjax.models.hybrid import HybridViT


@checks(lambda config: config.get("family") == "vit_hybrid")
def check_hybrid(config, arrays):
    kwargs = dict(config["kwargs"])
    kwargs.pop("img")
    resnet = {
        "resnet_units": tuple(kwargs.pop("layers")),
        "resnet_widths": tuple(channels // 4 for channels in kwargs.pop("channels")),
        "root_width": kwargs.pop("stem_chs"),
        "patch_size": kwargs.pop("patch"),
        "resnet_numerics": "timm",
    }
    compare(HybridViT(**fields(kwargs), **resnet), arrays)
