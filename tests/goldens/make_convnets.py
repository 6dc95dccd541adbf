"""Makes `timm/small_*.npz`: small ResNets, a RegNetY and a BiT with random weights, as timm computes them.

python tests/goldens/make_convnets.py, with torch and timm installed. Versions the files were made with: torch
2.13.0, timm 1.0.31. The form is that of the other files (README.md): numbers exact in float32, results of
float64. The images are of odd sizes, and there are both kinds of units.
"""

import json
import pathlib

import numpy as np
import timm.layers
import timm.models.regnet
import timm.models.resnet
import timm.models.resnetv2
import torch

FOLDER = pathlib.Path(__file__).parent / "timm"
CLASSES = 5


def resnet():
    """Basic units; the given files have bottlenecks."""
    kwargs = {"layers": [1, 2, 1, 1], "channels": [4, 6, 8, 10]}
    model = timm.models.resnet.ResNet(timm.models.resnet.BasicBlock, num_classes=CLASSES, **kwargs)
    return model, kwargs, ("layer1", "layer2", "layer3", "layer4")


def regnet():
    """Groups of two widths: those of the first stage are as narrow as the stage."""
    kwargs = {"depth": 6, "w0": 8, "wa": 6.2, "wm": 1.6, "group_size": 12, "se_ratio": 0.25}
    model = timm.models.regnet.RegNet(timm.models.regnet.RegNetCfg(**kwargs), num_classes=CLASSES)
    return model, kwargs, ("s1", "s2", "s3", "s4")


def resnetv2():
    """A BiT of two stages."""
    kwargs = {"layers": [1, 1], "channels": [128, 128], "stem_chs": 32}
    model = timm.models.resnetv2.ResNetV2(
        stem_type="fixed",
        num_classes=CLASSES,
        conv_layer=lambda *args, **kwargs: timm.layers.StdConv2d(*args, eps=1e-8, **kwargs),
        **kwargs,
    )
    return model, kwargs, ("stages.0", "stages.1", "norm")


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """float64, every parameter and statistic well away from where it starts, and exact in float32."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.6)
            elif tensor.is_floating_point():
                spread = 0.2 if tensor.ndim < 2 else tensor[0].numel() ** -0.5
                start = 1.0 if tensor.ndim == 1 and name.endswith("weight") else 0.0
                tensor.copy_(start + spread * torch.randn(tensor.shape))
    return model.double().eval()


def make(family: str, image_size: tuple[int, int], seed: int) -> None:
    """Writes one file."""
    torch.manual_seed(seed)
    model, kwargs, maps = {"resnet": resnet, "regnet": regnet, "resnetv2": resnetv2}[family]()
    model = randomised(model)
    arrays = {f"param/{name}": tensor.numpy() for name, tensor in model.state_dict().items()}
    arrays = {name: a.astype(np.float32) if a.ndim else a for name, a in arrays.items()}  # exact
    image = torch.randn(4, 3, *image_size).double().requires_grad_()
    seen = {}
    keep = lambda name: lambda module, inputs, out: seen.update({name: out}) if not module.training else None
    for name in maps:
        model.get_submodule(name).register_forward_hook(keep(name))
    features = model.forward_features(image)
    pre_logits, logits = model.forward_head(features, pre_logits=True), model.forward_head(features)
    cotangent = torch.randn(logits.shape).double()
    (logits * cotangent).sum().backward()
    arrays |= {"input": single(image), "cotangent": single(cotangent), "grad_input": single(image.grad)}
    arrays |= {f"grad/{name}": single(parameter.grad) for name, parameter in model.named_parameters()}
    arrays |= {f"act/{name}": single(out[:1]) for name, out in seen.items()}
    arrays |= {"logits": logits.detach().numpy(), "pre_logits": pre_logits.detach().numpy().reshape(4, -1)}
    if buffers := dict(model.named_buffers()):
        arrays["train_logits"] = model.train()(image).detach().numpy()
        arrays |= {f"train_buffer/{name}": single(buffer) for name, buffer in buffers.items()}
    num_params = sum(parameter.numel() for parameter in model.parameters())
    kwargs["num_classes"] = CLASSES
    config = {"family": family, "kwargs": kwargs, "num_params": num_params, "timm": timm.__version__}
    np.savez_compressed(FOLDER / f"small_{family}.npz", config=json.dumps(config), **arrays)


def single(tensor: torch.Tensor) -> np.ndarray:
    """The numbers in float32; counters as they are."""
    array = tensor.detach().numpy()
    return array.astype(np.float32) if array.dtype == np.float64 else array


if __name__ == "__main__":
    make("resnet", (37, 45), 0)
    make("regnet", (41, 35), 1)
    make("resnetv2", (27, 33), 2)
