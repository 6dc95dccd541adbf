"""The questions of configs/sweeps/augreg.py at a size that two cores carry: a shallow and a deep small ViT on
small images, three augmentation presets, dropout and stochastic depth off or on, two seeds: 24 trials.

    python -m vitjax.sweep run --sweep configs/sweeps/augreg_small.py --workdir W --parallel 2

With Fashion-MNIST (the four IDX files of https://github.com/zalandoresearch/fashion-mnist in a folder):

    ... --sweep configs/sweeps/augreg_small.py:arrays:PATH,train=train[:2000],val=test[:2000]

Pixel amounts of RandAugment are scaled to the image (`full_size`), everything else is the study's recipe.

Arguments (defaults first):
  data    digits, or any source that configs/augreg.py takes
  train   split to train on, `train`; a part of it makes data scarce, as ImageNet-1k is for large models
  val     split to evaluate on, `test`
  res     28     patch  7     batch  64     steps  2000
  depths  2+6: numbers of blocks; the width is 64 with 4 heads
  augs    none+light2+medium2       regs  0.0+0.1      seeds  2: how many, from 0 on
"""

from configs import common
from vitjax.sweep import grid


def get_sweep(arg: str | None = None) -> grid.Sweep:
    """Returns the grid that the argument string describes."""
    args = common.parse_arg(
        arg,
        data="digits",
        train="train",
        val="test",
        res=28,
        patch=7,
        batch=64,
        steps=2000,
        depths="2+6",
        augs="none+light2+medium2",
        regs="0.0+0.1",
        seeds=2,
    )
    source = f"data={args.data},train={args.train},val={args.val}"
    return grid.Sweep(
        config=f"configs/augreg.py:vit_mu{args.patch},{source},res={args.res},batch={args.batch},full_size=224",
        points=grid.product(
            grid.keys({"model.depth": [int(depth) for depth in args.depths.split("+")]}),
            grid.args(
                aug=args.augs.split("+"),
                reg=[float(reg) for reg in args.regs.split("+")],
            ),
        ),
        seeds=range(args.seeds),
        overrides={
            "total_steps": args.steps,
            "model.width": 64,
            "model.mlp_dim": 256,
            "model.num_heads": 4,
            "input.workers": 0,
            "evals.val.log_percent": 0.25,
            "ckpt_percent": 0.5,
            "log_training_steps": 50,
        },
        name=f"augreg small, {args.data.rpartition('/')[2]}",
    )
