"""The smallest models of each kind: one head, two heads, batch statistics."""

import flax.linen as nn
import jax.numpy as jnp

from vitjax.layers.batch_norm import BatchNorm


class OneHead(nn.Module):
    """A linear classifier."""

    num_classes: int

    @nn.compact
    def __call__(self, image, train=False):
        return nn.Dense(self.num_classes, name="head")(image.reshape(len(image), -1)), {}


class TwoHeads(nn.Module):
    """The contract of a distilled model."""

    num_classes: int
    average_heads: bool = False

    @property
    def distilled(self):
        return True

    @nn.compact
    def __call__(self, image, train=False):
        x = image.reshape(len(image), -1)
        heads = nn.Dense(self.num_classes, name="head")(x), nn.Dense(self.num_classes, name="head_dist")(x)
        logits = heads[0] if train and not self.average_heads else (heads[0] + heads[1]) / 2
        return logits, {"logits_class": heads[0], "logits_dist": heads[1]}


class Normed(nn.Module):
    """One convolution with batch norm."""

    num_classes: int

    @nn.compact
    def __call__(self, image, train=False):
        x = nn.Conv(4, (3, 3), (2, 2), name="conv")(image.astype(jnp.float32))
        x = nn.relu(BatchNorm(name="bn")(x, train=train))
        return nn.Dense(self.num_classes, name="head")(x.mean((1, 2))), {}
