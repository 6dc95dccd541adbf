"""Plain, SPT, LSA and both on a part of a small data set, three seeds each: a study for two cores.

    python -m vitjax.sweep run --workdir W --parallel 2 \\
        --sweep "configs/sweeps/small_datasets.py:cifar10,source=cifar-10-python.tar.gz"

The recipe is that of configs/small_datasets.py, shortened; warmup and cosine keep their shares of it.

Arguments (defaults first):
  data      cifar10, or another of that config; `source` as there, None
  network   vit | cait | pit | swin | t2t
  variants  small+s+l+sl: plain, with SPT, with LSA, with both
  train     train[:5000]     val  None: the whole test set
  epochs    5, of three passes each
  seeds     3: how many, from 0 on
  on_device  True
"""

from configs import common
from vitjax.sweep import grid


def get_sweep(arg: str | None = None) -> grid.Sweep:
    """Returns the grid that the argument string describes."""
    args = common.parse_arg(
        arg,
        data="cifar10",
        source=None,
        network="vit",
        variants="small+s+l+sl",
        train="train[:5000]",
        val=None,
        epochs=5,
        seeds=3,
        on_device=True,
    )
    shared = dict(data=args.data, source=args.source, train=args.train, val=args.val, epochs=args.epochs)
    shared |= dict(on_device=args.on_device)
    return grid.Sweep(
        config="configs/small_datasets.py:" + ",".join(f"{key}={value}" for key, value in shared.items()),
        points=grid.args(model=[f"{variant}_{args.network}" for variant in args.variants.split("+")]),
        seeds=range(args.seeds),
        name=f"small data sets, {args.data} {args.train}",
    )
