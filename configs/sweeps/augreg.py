"""The grid of "How to train your ViT?" (arXiv 2106.10270, section 3.3): every pre-training run of the study.

    python -m vitjax.sweep list --sweep configs/sweeps/augreg.py
    python -m vitjax.sweep run --sweep configs/sweeps/augreg.py:data=i21k-300 --workdir W --executor slurm

Nine models x seven augmentation presets x dropout and stochastic depth off or on x two weight decays: 252
trials for each of the three data settings, 756 in all.

Arguments (defaults first):
  data    i1k-300 | i21k-30 | i21k-300: data and epochs as in the paper; or any source that configs/augreg.py
          takes (digits, folder:PATH, ...)
  models  the nine; or some, joined by + (vit_s16+vit_b16)
  augs    the seven; or some, joined by +
  regs    0.0+0.1      wds  0.1+0.03
  epochs  those of the data setting
  seeds   1: how many seeds, from 0 on
"""

from configs import common
from vitjax.sweep import grid

MODELS = (
    "r_ti16",
    "vit_ti16",
    "vit_s32",
    "vit_s16",
    "vit_b32",
    "r26_s32",
    "vit_b16",
    "vit_l16",
    "r50_l32",
)
PRESETS = ("none", "light1", "light2", "medium1", "medium2", "strong1", "strong2")
DATA = {"i1k-300": ("i1k", 300), "i21k-30": ("i21k", 30), "i21k-300": ("i21k", 300)}


def get_sweep(arg: str | None = None) -> grid.Sweep:
    """Returns the grid that the argument string describes."""
    args = common.parse_arg(
        arg,
        data="i1k-300",
        models="+".join(MODELS),
        augs="+".join(PRESETS),
        regs="0.0+0.1",
        wds="0.1+0.03",
        epochs=None,
        seeds=1,
    )
    data, epochs = DATA.get(args.data, (args.data, None))
    epochs = args.epochs or epochs
    return grid.Sweep(
        config=f"configs/augreg.py:data={data}" + (f",epochs={epochs}" if epochs else ""),
        points=grid.args(
            model=args.models.split("+"),
            aug=args.augs.split("+"),
            reg=[float(reg) for reg in args.regs.split("+")],
            wd=[float(wd) for wd in args.wds.split("+")],
        ),
        seeds=range(args.seeds),
        name=f"augreg {args.data}",
    )
