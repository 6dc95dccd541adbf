"""Makes `timm/small_pit_distilled.npz`: a small PiT with random weights, as timm computes it.

python tests/goldens/make_pits.py, with torch and timm installed; versions, form and ranges as in
`make_convnets.py`. Patches overlap, maps have odd sides and are not square, and channels are pooled by two
filters each and by three. `make` writes one without the distillation token just as well.
"""

import json

import numpy as np
import timm.models.pit
import torch
from make_convnets import CLASSES, FOLDER, randomised, single

KWARGS = {
    "patch_size": 8,
    "stride": 4,
    "base_dims": [4, 4, 8],
    "depth": [1, 2, 1],
    "heads": [2, 4, 6],
    "mlp_ratio": 2.5,
    "num_classes": CLASSES,
}


def make(name: str, image_size: tuple[int, int], distilled: bool, seed: int) -> None:
    """Writes one file."""
    torch.manual_seed(seed)
    kwargs = {**KWARGS, "img_size": image_size, "distilled": distilled}
    model = randomised(timm.models.pit.PoolingVisionTransformer(**kwargs))
    image = torch.randn(3, 3, *image_size).double().requires_grad_()
    seen = {}
    for layer, module in model.named_modules():
        if layer == "patch_embed" or layer.rpartition(".")[0].endswith(".blocks"):
            module.register_forward_hook(lambda module, inputs, out, layer=layer: seen.update({layer: out}))
    features = model.forward_features(image)
    arrays = {f"act/{layer}": single(out[:1] if out.ndim == 4 else out) for layer, out in seen.items()}
    pre_logits, logits = model.forward_head(features, pre_logits=True), model.forward_head(features)
    arrays |= gradients(model, image, {"cotangent": logits}, "grad")
    arrays["grad_input"] = single(image.grad)
    if distilled:
        model.train().set_distilled_training()
        one, other = model.forward_head(model.forward_features(image))
        heads = {"train_cotangent": one, "train_cotangent_dist": other}
        arrays |= gradients(model, image, heads, "grad_train")
        arrays |= {"train_logits": one.detach().numpy(), "train_logits_dist": other.detach().numpy()}
    arrays |= {f"param/{key}": single(tensor) for key, tensor in model.state_dict().items()}
    arrays |= {"input": single(image), "features": single(features)}
    arrays |= {"logits": logits.detach().numpy(), "pre_logits": pre_logits.detach().numpy()}
    num_params = sum(parameter.numel() for parameter in model.parameters())
    config = {"family": "pit", "kwargs": kwargs, "num_params": num_params, "timm": timm.__version__}
    np.savez_compressed(FOLDER / f"{name}.npz", config=json.dumps(config), **arrays)


def gradients(model, image, outputs, prefix):
    """The gradient of the sum of all outputs' products with random numbers, which are returned, too."""
    model.zero_grad()
    cotangents = {key: torch.randn(out.shape).float().double() for key, out in outputs.items()}
    sum((out * cotangents[key]).sum() for key, out in outputs.items()).backward()
    arrays = {key: single(tensor) for key, tensor in cotangents.items()}
    return arrays | {f"{prefix}/{name}": single(p.grad) for name, p in model.named_parameters()}


if __name__ == "__main__":
    make("small_pit_distilled", (40, 32), True, 0)
