"""CaiT against timm: forward, intermediates of both stages, gradients."""

from golden_checks import checks
from golden_checks.vit import compare, fields
from vitjax.models.cait import CaiT
from vitjax.weights.timm_cait_names import CAIT


@checks(lambda config: config.get("family") == "cait")
def check_cait(config, arrays):
    kwargs = dict(config["kwargs"])
    class_depth = kwargs.pop("depth_token_only", 2)
    compare(CaiT(**fields({"init_values": 1e-4, **kwargs}), class_depth=class_depth), arrays, CAIT)
