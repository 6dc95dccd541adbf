"""EfficientNet in both flavours against timm."""

import re

from golden_checks import checks, convnet
from vitjax import models
from vitjax.weights.timm_cnn_names import EFFICIENTNET


@checks(lambda config: config.get("family") in ("efficientnet", "tf_efficientnet"))
def check_efficientnet(config, arrays):
    kwargs = dict(config["kwargs"])
    name = re.fullmatch(r"(?:tf_)?(efficientnet_\w+)", kwargs.pop("variant"))
    assert name, config
    model = models.create(
        name[1],
        num_classes=kwargs.pop("nc"),
        width_mult=kwargs.pop("cm"),
        depth_mult=kwargs.pop("dm"),
        numerics="tf" if kwargs.pop("tf") else "timm",
        dropout=0.0,
    )
    assert not kwargs, f"The check does not know timm's arguments {kwargs}."
    maps = {f"blocks.{i}": f"block{i + 1}" for i in range(7)}
    convnet.compare(model, EFFICIENTNET, arrays, maps, config["num_params"])
