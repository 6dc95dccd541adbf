"""How the parameters of a Vision Transformer begin, one code base's choices together."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

Initializer = nn.initializers.Initializer


def torch_default(fan_in: int) -> tuple[Initializer, Initializer]:
    """Kernel and bias as PyTorch draws those of a Linear or convolution: both uniform in ±1/sqrt(fan_in)."""
    limit = fan_in**-0.5

    def uniform(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return uniform, uniform


def lecun_normal(fan_in: int) -> tuple[Initializer, Initializer]:
    """Kernel and bias as Flax draws those of a Dense or convolution: lecun-normal and zero."""
    del fan_in  # the initialiser reads it off the shape
    return nn.initializers.lecun_normal(), nn.initializers.zeros


@dataclasses.dataclass(frozen=True)
class Initialisation:
    """Initialisers; norms begin at (1, 0), and biases that are not named here at 0.

    Attributes:
      kernel: of the linear layers in attention and MLP, seen as `[D, E]` matrices.
      mlp_bias: of both layers of the MLP.
      patch: from the fan-in of the patch embedding to the initialisers of its kernel and bias.
      token: of the tokens that are put before the patches.
      position_std: deviation of a learned position embedding; None: that of its layout.
      head: of the head's kernel where it does not begin at zero.
      bias: from the fan-in to the initialiser of every bias of a linear layer; None: as said above.
      head_mix: of the kernels that mix talking heads; None: as `kernel`.
      stacked: how many projections of equal size the code base draws as one matrix with that of query, key
        and value: they count in its fan-out.
      conv: the same as `patch` of convolutions, also of a patch embedding that is one in the code base; None:
        it is `patch`.
    """

    kernel: Initializer
    mlp_bias: Initializer
    patch: Callable[[int], tuple[Initializer, Initializer]]
    token: Initializer
    position_std: float | None
    head: Initializer
    bias: Callable[[int], Initializer] | None = None
    head_mix: Initializer | None = None
    stacked: tuple[int, int, int] = (1, 1, 1)
    conv: Callable[[int], tuple[Initializer, Initializer]] | None = None

    def bias_of(self, fan_in: int, otherwise: Initializer = nn.initializers.zeros) -> Initializer:
        """Returns what draws the bias of a linear layer with so many inputs; `otherwise` without `bias`."""
        return otherwise if self.bias is None else self.bias(fan_in)

    def conv_of(self, fan_in: int) -> tuple[Initializer, Initializer]:
        """Returns what draws kernel `[k, k, C, D]` and bias of a convolution with that fan-in."""
        return (self.conv or self.patch)(fan_in)


AUGREG = Initialisation(  # google-research/vision_transformer and big_vision
    kernel=nn.initializers.xavier_uniform(),
    mlp_bias=nn.initializers.normal(1e-6),
    patch=lecun_normal,
    token=nn.initializers.zeros,
    position_std=None,
    head=nn.initializers.lecun_normal(),
)

# facebookresearch/deit: normal with deviation 0.02 throughout. Theirs is truncated, but at ±2, which is 100
# deviations and never met. Only the patch embedding is left as PyTorch makes it.
_NORMAL = nn.initializers.normal(0.02)
DEIT = Initialisation(
    kernel=_NORMAL,
    mlp_bias=nn.initializers.zeros,
    patch=torch_default,
    token=_NORMAL,
    position_std=0.02,
    head=_NORMAL,
)

# Every linear layer as PyTorch makes it: PiT, and the reduced Swin of aanna0701/SPT_LSA_ViT, have no
# initialisation of their own for them.
_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # in ±1/sqrt(fan_in)
TORCH = Initialisation(
    kernel=_UNIFORM,
    mlp_bias=nn.initializers.zeros,
    patch=torch_default,
    token=_NORMAL,
    position_std=0.02,
    head=_UNIFORM,
    bias=lambda fan_in: torch_default(fan_in)[1],
)

# aanna0701/SPT_LSA_ViT: xavier-normal matrices, truncated nowhere; a patch embedding is a matrix as well.
_XAVIER_NORMAL = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")


def _xavier_normal_matrix(fan_in: int) -> tuple[Initializer, Initializer]:
    """Kernel, drawn as `[fan_in, D]` whatever its shape, and bias of a Linear."""

    def kernel(key, shape, dtype=jnp.float32):
        return _XAVIER_NORMAL(key, (fan_in, shape[-1]), dtype).reshape(shape)

    return kernel, nn.initializers.zeros


SMALL_DATASETS = Initialisation(
    kernel=_XAVIER_NORMAL,
    mlp_bias=nn.initializers.zeros,
    patch=_xavier_normal_matrix,
    token=nn.initializers.normal(1.0),
    position_std=1.0,
    head=_XAVIER_NORMAL,
    head_mix=nn.initializers.normal(1.0),
    stacked=(3, 3, 3),
    conv=lambda fan_in: (_XAVIER_NORMAL, nn.initializers.zeros),
)
# Its CaiT has one Linear for queries and one for keys and values.
SMALL_DATASETS_CAIT = dataclasses.replace(SMALL_DATASETS, stacked=(1, 2, 2))

# tensor2tensor's Transformer, and google/flax's example of one. It has no patches nor tokens of its own; its
# embedding is `layers.embedding`'s.
TENSOR2TENSOR = dataclasses.replace(AUGREG, mlp_bias=nn.initializers.zeros)

INITIALISATIONS = {"augreg": AUGREG, "deit": DEIT, "torch": TORCH, "small_datasets": SMALL_DATASETS}
