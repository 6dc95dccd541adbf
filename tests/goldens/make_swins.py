"""Makes `timm/small_swin.npz`: a small Swin with random weights, as timm computes it.

python tests/goldens/make_swins.py, with torch and timm installed. Versions the file was made with: torch
2.13.0, timm 1.0.31. The form is that of the other files (README.md): numbers exact in float32, results of
float64. The image is twice as wide as high, so that the last map, 4x8, has one window down and two across,
which shift across only.
"""

import json
import pathlib

import numpy as np
import timm
import timm.models.swin_transformer
import torch

FOLDER = pathlib.Path(__file__).parent / "timm"
KWARGS = {
    "img_size": (32, 64),
    "patch_size": 2,
    "embed_dim": 8,
    "depths": (1, 2, 2),
    "num_heads": (2, 2, 4),
    "window_size": 4,
    "mlp_ratio": 2.0,
    "num_classes": 5,
}


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """float64, every parameter well away from where it starts, and exact in float32."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            table = name.endswith("bias_table")
            spread = 0.5 if table else 0.2 if tensor.ndim < 2 else tensor[0].numel() ** -0.5
            start = 1.0 if tensor.ndim == 1 and name.endswith("weight") else 0.0
            tensor.copy_(start + spread * torch.randn(tensor.shape))
    return model.double().eval()


def single(tensor: torch.Tensor) -> np.ndarray:
    """The numbers in float32."""
    return tensor.detach().numpy().astype(np.float32)


def make() -> None:
    """Writes the file."""
    torch.manual_seed(0)
    model = randomised(timm.models.swin_transformer.SwinTransformer(**KWARGS))
    image = torch.randn(2, 3, *KWARGS["img_size"]).double().requires_grad_()
    features = model.forward_features(image)
    pre_logits, logits = model.forward_head(features, pre_logits=True), model.forward_head(features)
    cotangent = torch.randn(logits.shape).double()
    (logits * cotangent).sum().backward()
    arrays = {f"param/{name}": single(tensor) for name, tensor in model.state_dict().items()}
    arrays |= {f"grad/{name}": single(parameter.grad) for name, parameter in model.named_parameters()}
    arrays |= {"input": single(image), "cotangent": single(cotangent), "grad_input": single(image.grad)}
    arrays |= {"features": single(features), "logits": logits.detach().numpy()}
    arrays |= {"pre_logits": pre_logits.detach().numpy()}
    num_params = sum(parameter.numel() for parameter in model.parameters())
    config = {"family": "swin", "kwargs": KWARGS, "num_params": num_params, "timm": timm.__version__}
    np.savez_compressed(FOLDER / "small_swin.npz", config=json.dumps(config), **arrays)


if __name__ == "__main__":
    make()
