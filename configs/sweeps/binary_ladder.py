"""BinaryViT's ladder at a size for two cores: five rows, three seeds each; and the last row with SPT and LSA.

    python -m vitjax.main --workdir runs/teacher \\
        --config configs/distill_small.py:resnet18,data=arrays:PATH,res=32
    python -m vitjax.sweep run --workdir W \\
        --sweep configs/sweeps/binary_ladder.py:runs/teacher,data=arrays:PATH

PATH is a folder with the four IDX files of Fashion-MNIST; `data=cifar10:PATH` takes CIFAR-10's archive. All
rows learn from the answers of the same full-precision teacher. What no paper has, the last row with shifted
patches and locality, each with the teacher and from labels alone, is

    ... --sweep configs/sweeps/binary_ladder.py:runs/teacher,data=arrays:PATH,what=locality --workdir W2

Arguments (defaults first):
  teacher  workdir of the teacher's run; for digits vit_ti16, which is among configs/weights
  what     ladder: the five rows | locality: the last row plain, with SPT, LSA and both, with and without the
           teacher
  data     digits, or any source that configs/binaryvit.py takes
  train    train; a part of it makes an epoch shorter     val  test
  res      32; 64 for locality: half a patch has to be a pixel at least
  epochs   30     batch  64     lr  1e-3
  seeds    3: how many, from 0 on
"""

from configs import common
from vitjax.sweep import grid

ROWS = ("binary_deit_ti16", "binary_deit_ti16_gap", "binary_deit_ti16_branches", "binary_deit_ti16_affine")
BEST = "binaryvit_ti"


def get_sweep(arg: str | None = None) -> grid.Sweep:
    """Returns the grid that the argument string describes."""
    args = common.parse_arg(
        arg,
        teacher=None,
        what="ladder",
        data="digits",
        train="train",
        val="test",
        res=None,
        epochs=30,
        batch=64,
        lr=1e-3,
        seeds=3,
    )
    teacher = args.teacher or ("vit_ti16" if args.data == "digits" else None)
    if teacher is None:
        raise ValueError(f"data={args.data} needs a teacher: give the workdir of its run, teacher=WORKDIR.")
    locality = common.choose("what", args.what, {"ladder": False, "locality": True})
    shared = dict(size="small", data=args.data, train=args.train, val=args.val, teacher=teacher)
    shared |= dict(epochs=args.epochs, batch=args.batch, lr=args.lr, res=args.res or (64 if locality else 32))
    return grid.Sweep(
        config="configs/binaryvit.py:" + ",".join(f"{key}={value}" for key, value in shared.items()),
        points=study_of_locality() if locality else grid.args(model=(*ROWS, BEST)),
        seeds=range(args.seeds),
        name=f"binary {args.what}, {args.data.rpartition('/')[2]}",
    )


def study_of_locality() -> tuple[grid.Point, ...]:
    """The last row without and with each part, taught and from labels alone."""
    return grid.product(
        grid.args(model=(BEST,), distill=("teacher_only", "none")),
        grid.keys({"model.spt": ("none", "diagonal"), "model.lsa": ("none", "both")}),
    )
