"""No, soft, hard and token distillation of a small DeiT from a ResNet-18, three seeds each: 12 trials.

    python -m vitjax.main --config configs/distill_small.py:resnet18 --workdir runs/teacher
    python -m vitjax.sweep run --sweep configs/sweeps/distill_small.py:runs/teacher --workdir W

With Fashion-MNIST (the four IDX files of https://github.com/zalandoresearch/fashion-mnist in a folder), both
get `data=arrays:PATH`, and `train=train[:10000]` if data is to be scarce.

Arguments (defaults first):
  teacher  runs/teacher: workdir of the teacher's run
  data     digits, or any source that configs/distill_small.py takes
  train    train     val  test     epochs  30
  kinds    none+soft+hard+token
  seeds    3: how many, from 0 on
"""

from configs import common
from vitjax.sweep import grid


def get_sweep(arg: str | None = None) -> grid.Sweep:
    """Returns the grid that the argument string describes."""
    args = common.parse_arg(
        arg,
        teacher="runs/teacher",
        data="digits",
        train="train",
        val="test",
        epochs=30,
        kinds="none+soft+hard+token",
        seeds=3,
    )
    common_args = f"data={args.data},train={args.train},val={args.val},epochs={args.epochs}"
    return grid.Sweep(
        config=f"configs/distill_small.py:{common_args},teacher={args.teacher}",
        points=grid.args(what=args.kinds.split("+")),
        seeds=range(args.seeds),
        name=f"distillation, {args.data.rpartition('/')[2]}",
    )
