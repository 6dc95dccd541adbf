"""Makes `timm/small_*efficientnet*.npz`: EfficientNets of seven thin blocks with random weights, by timm.

python tests/goldens/make_efficientnets.py; versions, form and ranges as in `make_convnets.py`. Some
sides of maps are even where a stride of 2 meets them, where TensorFlow's padding differs from PyTorch's.
"""

import json

import numpy as np
import timm.models.efficientnet
import torch
from make_convnets import CLASSES, FOLDER, randomised, single

TENSORFLOW = {"pad_type": "same", "bn_eps": 1e-3}


def make(variant: str, width_mult: float, depth_mult: float, image_size: tuple[int, int], seed: int) -> None:
    """Writes one file; `variant` is a name of timm's."""
    torch.manual_seed(seed)
    tf, lite = variant.startswith("tf_"), "lite" in variant
    generate = timm.models.efficientnet._gen_efficientnet
    if lite:
        generate = timm.models.efficientnet._gen_efficientnet_lite
    model = generate(variant, width_mult, depth_mult, num_classes=CLASSES, **(TENSORFLOW if tf else {}))
    model = randomised(model)
    image = torch.randn(3, 3, *image_size).double().requires_grad_()
    seen = {}
    for i, stage in enumerate(model.blocks):
        stage.register_forward_hook(
            lambda module, inputs, out, i=i: None if module.training else seen.update({i: out[:1]})
        )
    arrays = {f"param/{name}": single(tensor) for name, tensor in model.state_dict().items()}
    features = model.forward_features(image)
    pre_logits, logits = model.forward_head(features, pre_logits=True), model.forward_head(features)
    cotangent = torch.randn(logits.shape).double()
    (logits * cotangent).sum().backward()
    arrays |= {"input": single(image), "cotangent": single(cotangent), "grad_input": single(image.grad)}
    arrays |= {f"grad/{name}": single(parameter.grad) for name, parameter in model.named_parameters()}
    arrays |= {f"act/blocks.{i}": single(out) for i, out in seen.items()}
    arrays |= {"logits": logits.detach().numpy(), "pre_logits": pre_logits.detach().numpy()}
    arrays["train_logits"] = model.train()(image).detach().numpy()
    arrays |= {f"train_buffer/{name}": single(buffer) for name, buffer in model.named_buffers()}
    config = {
        "family": "tf_efficientnet" if tf else "efficientnet",
        "kwargs": {"variant": variant, "cm": width_mult, "dm": depth_mult, "tf": tf, "nc": CLASSES},
        "num_params": sum(parameter.numel() for parameter in model.parameters()),
        "timm": timm.__version__,
    }
    np.savez_compressed(FOLDER / f"small_{variant}.npz", config=json.dumps(config), **arrays)


if __name__ == "__main__":
    make("tf_efficientnet_b0", 0.1, 0.25, (36, 40), 0)
    make("efficientnet_lite0", 0.1, 0.25, (33, 40), 1)
