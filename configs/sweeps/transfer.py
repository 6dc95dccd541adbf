"""The fine-tunings of "How to train your ViT?" (arXiv 2106.10270, section 3.5): 34 at each of 2 resolutions.

    python -m vitjax.sweep run --sweep configs/sweeps/transfer.py:vit_s16 --workdir W

ImageNet at two learning rates; CIFAR-100, Resisc45, Pets and Kitti at four learning rates and two lengths.
Every model of the collection was fine-tuned so, which gave its 51,000 files.

Arguments (defaults first):
  model    vit_b16, or any other name of the registry
  weights  as in configs/transfer.py: by default the recommended file of `model`
  res      224+384, or one of them
  data     the five; or some, joined by +
"""

from configs import common
from vitjax.sweep import grid

RATES = (0.001, 0.003, 0.01, 0.03)
# learning rates, lengths
DATA = {
    "imagenet2012": ((0.01, 0.03), (20_000,)),
    "cifar100": (RATES, (2_500, 10_000)),
    "resisc45": (RATES, (2_500, 10_000)),
    "oxford_iiit_pet": (RATES, (500, 2_500)),
    "kitti": (RATES, (500, 2_500)),
}


def get_sweep(arg: str | None = None) -> grid.Sweep:
    """Returns the grid that the argument string describes."""
    args = common.parse_arg(arg, model="vit_b16", weights=None, res="224+384", data="+".join(DATA))
    points: tuple[grid.Point, ...] = ()
    for name in args.data.split("+"):
        rates, lengths = common.choose("data", name, DATA)
        points += grid.product(grid.args(data=(name,), lr=rates, steps=lengths))
    weights = f",weights={args.weights}" if args.weights else ""
    return grid.Sweep(
        config=f"configs/transfer.py:{args.model}{weights}",
        points=grid.product(grid.args(res=[int(res) for res in args.res.split("+")]), points),
        name=f"transfer of {args.model}",
    )
