"""Makes `goldens/`: small ViTs with random weights, as timm and transformers save them and compute them.

python tests/weights/make_goldens.py, with torch, timm and transformers installed. Versions the files were
made with: torch 2.13.0, timm 1.0.31, transformers 5.23.0.

`NAME.safetensors` is the file; `NAME.npz` holds `image32` and `image48` (NHWC) and the logits of the model
for each, for the larger after the reference's own code has resized the position embedding.
"""

import pathlib

import numpy as np
import safetensors.torch
import timm.layers
import timm.models.vision_transformer
import torch
import transformers

FOLDER = pathlib.Path(__file__).parent / "goldens"


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Moves every parameter well away from where it starts, so that none could be left out unseen."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.2 if parameter.ndim < 2 or "weight" not in name else parameter[0].numel() ** -0.5
            parameter.add_(torch.randn(parameter.shape) * spread)
    return model.eval()


def keep(name: str, logits) -> None:
    """Writes images and logits."""
    images = {size: torch.randn(1, 3, size, size) for size in (32, 48)}
    with torch.no_grad():
        results = {f"logits{size}": logits(image).numpy() for size, image in images.items()}
    images = {f"image{size}": image.permute(0, 2, 3, 1).numpy() for size, image in images.items()}
    np.savez(FOLDER / f"{name}.npz", **images, **results)


def of_timm() -> None:
    """A ViT of timm, GELU exact."""
    torch.manual_seed(0)
    make = lambda size: timm.models.vision_transformer.VisionTransformer(
        img_size=size, patch_size=8, embed_dim=24, depth=2, num_heads=3, mlp_ratio=2, num_classes=5
    )
    model, larger = randomised(make(32)), make(48).eval()
    state = {n: p.contiguous() for n, p in model.state_dict().items()}
    safetensors.torch.save_file(state, FOLDER / "timm.safetensors")
    larger.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(state, larger))
    keep("timm", lambda image: (model if image.shape[-1] == 32 else larger)(image))


def of_transformers() -> None:
    """A ViTForImageClassification of transformers, GELU exact, norms with 1e-12."""
    torch.manual_seed(1)
    config = transformers.ViTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=48,
        image_size=32,
        patch_size=8,
        num_labels=5,
    )
    model = randomised(transformers.ViTForImageClassification(config))
    model.save_pretrained(FOLDER / "transformers")
    (FOLDER / "transformers/model.safetensors").rename(FOLDER / "transformers.safetensors")
    (FOLDER / "transformers/config.json").unlink()
    (FOLDER / "transformers").rmdir()
    keep("transformers", lambda image: model(image, interpolate_pos_encoding=True).logits)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    of_timm()
    of_transformers()
