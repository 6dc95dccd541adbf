"""DeiT: Vision Transformers for ImageNet-1k alone, with and without a distillation token; DeiT III.

Sources: "Training data-efficient image transformers & distillation through attention" (arXiv 2012.12877),
"DeiT III: Revenge of the ViT" (arXiv 2204.07118) and facebookresearch/deit.
"""

import re
from typing import Any

import flax.linen as nn

from vitjax.errors import UserError
from vitjax.models.vit import SIZES, ViT

# What the official models are besides their size. Their layers are PyTorch's.
DEIT = {"gelu": "erf", "initialisation": "deit", "head_zeroinit": False}
# LayerScale begins at 1e-6 as in timm's models; the official code has 1e-4 where nothing else is said.
DEIT3 = {**DEIT, "layer_scale": 1e-6, "posemb_layout": "big_vision", "drop_path_uniform": True}


class DistilledViT(ViT):
    """A `ViT` with a distillation token behind the class token and a head of its own for it.

    `out` has the logits of both heads always, `logits_class` and `logits_dist` `[B, num_classes]`. `logits`
    is their mean, except in training, where it is `logits_class`: there the loss is the task's to put
    together. (The mean of logits is what the official code takes; the paper speaks of adding softmax
    outputs.) `head_input` is `[B, 2, D]`, both tokens; `pre_logits` `[B, D]`, their mean.

    Fields:
      average_heads: train on the mean of both heads, too, as the official fine-tuning at 384 pixels does.
    """

    average_heads: bool = False

    def __post_init__(self):
        """Refuses bad values where the model is made, not inside the first trace."""
        if self.pool != "tok":
            raise UserError(
                f"pool={self.pool!r} has no place in a distilled model: its heads read the class token and "
                "the distillation token, pool='tok'."
            )
        super().__post_init__()

    @property
    def tokens_in_front(self) -> tuple[str, ...]:
        """Names of the tokens before those of the patches, in their order."""
        return ("cls", "dist")

    @property
    def distilled(self) -> bool:
        """There is a second head, to be taught by a teacher."""
        return True

    def pool_tokens(self, x):
        """Takes class and distillation token of `[B, N, D]`: `[B, 2, D]`."""
        return x[:, :2]

    def classify(self, x, train) -> dict[str, Any]:
        """Returns the logits of both heads, and those of the model as a whole."""
        one, other = self.head(x[:, 0], "head"), self.head(x[:, 1], "head_dist")
        logits = one if train and not self.average_heads else (one + other) / 2
        return {"pre_logits": x.mean(1), "logits_class": one, "logits_dist": other, "logits": logits}


def names() -> tuple[str, ...]:
    """The published models; any other size and patch of a ViT goes by such a name as well."""
    deit = tuple(f"deit_{size}16{head}" for head in ("", "_distilled") for size in ("ti", "s", "b"))
    return *deit, *(f"deit3_{size}16" for size in ("s", "m", "b", "l")), "deit3_h14"


def configure(name: str) -> tuple[type[nn.Module], dict[str, Any]] | None:
    """Returns the class and the fields that a name stands for; None for any other name.

    Names are `deit_{size}{patch}`, the same with `_distilled` behind it, and `deit3_{size}{patch}`.
    """
    match = re.fullmatch(r"(?:deit_(\w+?)([1-9]\d*)(_distilled)?|deit3_(\w+?)([1-9]\d*))", name)
    if match is None or (match[1] or match[4]) not in SIZES:
        return None
    width, depth, mlp_dim, num_heads = SIZES[match[1] or match[4]]
    return DistilledViT if match[3] else ViT, {
        "width": width,
        "depth": depth,
        "mlp_dim": mlp_dim,
        "num_heads": num_heads,
        "patch_size": int(match[2] or match[5]),
        **(DEIT if match[1] else DEIT3),
    }
