"""Makes `t2t/*.npz`: small T2T-ViTs with random weights, as the official code computes them.

python tests/goldens/make_t2t.py CHECKOUT, with torch installed and a checkout of yitu-opensource/T2T-ViT at
0f63dc9. Made with torch 2.13.0. What that code takes from timm 0.3.4 is stood in for here: nothing of it
takes part in inference. The form is that of the other files (README.md): numbers exact in float32, results of
float64, for which the Performer's casts to float32 are switched off.
"""

import json
import pathlib
import sys
import types

import numpy as np
import torch

FOLDER = pathlib.Path(__file__).parent / "t2t"
SOURCE = "yitu-opensource/T2T-ViT@0f63dc9"
CASES = {  # the image's side is that of three splits, 7/4/2, 3/2/1 and 3/2/1, and an odd number of tokens
    "t2t_performer": dict(tokens_type="performer", img_size=48, token_dim=10, mlp_ratio=2.0),
    "t2t_transformer": dict(
        tokens_type="transformer", img_size=32, token_dim=6, mlp_ratio=3.0, qkv_bias=True, qk_scale=24**-0.5
    ),
}


def official(checkout: str) -> types.ModuleType:
    """The module `models.t2t_vit` of the official code, without timm."""
    timm = {name: types.ModuleType(name) for name in ("timm", "timm.models")}
    timm["timm.models.helpers"] = helpers = types.ModuleType("helpers")
    timm["timm.models.registry"] = registry = types.ModuleType("registry")
    timm["timm.models.layers"] = layers = types.ModuleType("layers")
    helpers.load_pretrained = None
    registry.register_model = lambda function: function
    layers.trunc_normal_ = torch.nn.init.trunc_normal_
    layers.DropPath = None  # made only with a rate above zero
    models = types.ModuleType("models")  # its `__init__` would import what is not needed
    models.__path__ = [str(pathlib.Path(checkout) / "models")]
    sys.modules.update(timm | {"models": models})
    from models import t2t_vit

    return t2t_vit


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """float64, every parameter but the positions away from where it starts, and exact in float32."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name == "pos_embed":
                continue
            spread = 0.2 if tensor.ndim < 2 else tensor.shape[-1] ** -0.5
            if name.endswith(".w"):  # far from orthogonal, so that a model that draws its own is found out
                spread = 0.5
            start = 1.0 if tensor.ndim == 1 and name.endswith("weight") else 0.0
            tensor.copy_(start + spread * torch.randn(tensor.shape))
    return model.double().eval()


def make(t2t_vit: types.ModuleType, name: str, seed: int) -> None:
    """Writes one file."""
    torch.manual_seed(seed)
    kwargs = {"embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5, **CASES[name]}
    model = randomised(t2t_vit.T2T_ViT(**kwargs))
    arrays = {f"param/{key}": tensor.numpy().astype(np.float32) for key, tensor in model.state_dict().items()}
    image = torch.randn(2, 3, kwargs["img_size"], kwargs["img_size"]).double().requires_grad_()
    seen = {}
    for place in ("tokens_to_token", "tokens_to_token.attention1", "blocks.0", "norm"):
        model.get_submodule(place).register_forward_hook(
            lambda module, inputs, out, place=place: seen.update({place: out})
        )
    logits = model(image)
    cotangent = torch.randn(logits.shape).double()
    (logits * cotangent).sum().backward()
    arrays |= {"input": single(image), "cotangent": single(cotangent), "grad_input": single(image.grad)}
    arrays |= {f"grad/{key}": single(p.grad) for key, p in model.named_parameters() if p.grad is not None}
    arrays |= {f"act/{place}": single(out[:1]) for place, out in seen.items()}
    arrays["logits"] = logits.detach().numpy()
    config = {"family": "t2t_vit", "kwargs": kwargs, "source": SOURCE, "torch": torch.__version__}
    np.savez_compressed(FOLDER / f"{name}.npz", config=json.dumps(config), **arrays)


def single(tensor: torch.Tensor) -> np.ndarray:
    """The numbers in float32."""
    return tensor.detach().numpy().astype(np.float32)


if __name__ == "__main__":
    code = official(sys.argv[1])
    torch.Tensor.float = lambda self: self
    for number, case in enumerate(CASES):
        make(code, case, number)
