"""BinaryViT and its ladder: "Pushing Binary Vision Transformers Towards Convolutional Models".

arXiv 2306.16678 and the official code (Phuoc-Hoan-Le/BinaryViT), as published: from scratch in one stage, by
the answers of a full-precision DeiT-S alone. First that teacher, then students of it:

    python -m vitjax.main --config configs/deit.py:binaryvit_teacher_s16,batch=512 --workdir runs/teacher
    python -m vitjax.main --config configs/binaryvit.py:binaryvit_s,teacher=runs/teacher --workdir W
    python -m vitjax.main --workdir W --config configs/binaryvit.py:binary_deit_s16_gap,teacher=deit_s16,\\
        teacher_weights=FILE

and as a stand-in that two cores carry in minutes, digits at 64 pixels, taught by a narrow ViT that comes with
this file (configs/teacher.py made it):

    python -m vitjax.main --config configs/binaryvit.py:binaryvit_ti,data=digits,teacher=vit_ti16 --workdir W

docs/binary.md has the rows of the ladder, and what the diagnostics mean.

Arguments (defaults first):
  model    binaryvit_s; binaryvit_s_star, binaryvit_ti; the rows before it, binary_deit_s16 and the same with
           _gap, _branches, _affine; or any model of the registry, with precision= for those of full precision
  teacher  workdir of a run; or a name of the registry, with teacher_weights
  teacher_weights  file of the teacher's weights; for digits and vit_ti16 the one beside this file
  data     i1k (ImageNet through TFDS); digits; or any source: folder:PATH, arrays:PATH, tfds:NAME
  distill  teacher_only; mixup: with mixup, and a tenth of the loss on labels, which the official code can
           and no published script does; none: labels alone, smoothed by 0.1, without a teacher
  precision  None: as the model has it; binary | w1a32 | w32a1 | float
  size     published; small: the rows of the ladder at a sixth of DeiT-S's width and a quarter of its depth,
           for res=32 or 64: DeiT has a grid of 8x8, the pyramid begins with 32x32 (SMALL below)
  res      224; 64 for digits, 32 for size=small
  epochs   300; 20 for digits, 30 for size=small
  batch    512; 32 for digits, 64 for size=small
  lr       5e-4 for a batch of 512, and linear in the batch; 1e-3 for digits and size=small
  clip     None: latent weights are not clipped, as published; 1: to [-1, 1], beyond which no gradient comes
  layers   False; True: diagnostics of each layer, too
  classes  number of labels, for other sources: as many as the source has
  train    split to train on, for other sources, and
  val      split to evaluate on; see configs/augreg.py
"""

import re
import types
from typing import Any

from ml_collections import ConfigDict

from configs import common, deit

Section = dict[str, Any]

# Latent weights of binary layers by name, here and with `precision` in any Transformer; downsampling of the
# starred network has none, but is called alike.
LATENT = r".*/(dense|conv|query|key|value|out|Dense_[01])/kernel"

# Rows of the ladder at a size for two cores; as in the paper, the pyramid is about as large as the others.
SMALL: dict[str, Section] = {
    "binary_deit": dict(width=64, depth=3, mlp_dim=256, num_heads=4),
    "binaryvit": dict(
        width=(10, 20, 40, 80),
        depth=(1, 1, 1, 1),
        mlp_dim=(80, 160, 160, 320),
        num_heads=(1, 2, 4, 8),
        reduction=(8, 4, 1, 1),
    ),
}
GRIDS = {"binary_deit": 8, "binaryvit": 32}  # patches of a side; DeiT's 14 and the pyramid's 56 at 224 pixels

ARGUMENTS: Section = dict(
    model="binaryvit_s",
    teacher=None,
    teacher_weights=None,
    data="i1k",
    distill="teacher_only",
    precision=None,
    size="published",
    res=None,
    epochs=None,
    batch=None,
    lr=None,
    clip=None,
    layers=False,
    classes=None,
    train=None,
    val=None,
)


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config of the run that the argument string describes."""
    args = common.parse_arg(arg, **ARGUMENTS)
    lengths = plan(args)
    data = deit.data_set(types.SimpleNamespace(**vars(args), source=None))
    res = lengths["res"]
    config = ConfigDict()
    config.seed = 0
    config.total_epochs = lengths["epochs"]
    if args.classes or data["classes"]:
        config.num_classes = args.classes or data["classes"]

    config.input = dict(
        data=data["data"],
        split=data["train"],
        pp=train_pp(args, res),
        batch_size=lengths["batch"],
        workers=-1 if args.data == "i1k" else 0,
    )
    config.model = dict(name=args.model, **fields(args, res))
    config.task = task(args)

    config.optax_name = "scale_by_adam"
    config.optax = dict(b1=0.9, b2=0.999, eps=1e-8)
    config.lr, config.lr_base_batch = lengths["lr"], lengths["base"]
    # timm's scheduler is set after each epoch to its number: the first two run at the peak.
    config.schedule = dict(decay_type="timm_cosine", min_lr=1e-5)
    if args.clip is not None:
        config.weight_clips = ((LATENT, float(args.clip)),)
    config.diagnostics = dict(layers=args.layers)

    # The shorter side is resized to 8/7 of the crop, 256 for 224.
    to_eval = f"resize_small({res * 8 // 7}, 'pillow_bicubic', rounding='down')"
    to_eval += f"|central_crop({res}, rounding='even')"
    if args.size == "small":
        to_eval = f"resize({res})"
    pp = f"decode|{to_eval}|vgg_value_range|{deit.LABELS}"
    often = dict(log_epochs=5) if args.data == "i1k" else dict(log_percent=0.2)
    config.evals = dict(val=dict(type="accuracy", data=data["data"], split=data["val"], pp=pp, **often))
    config.best_metric = "val/prec@1"
    config.log_training_steps = 50 if args.data == "i1k" else 20
    config.ckpt_steps = 1_000 if args.data == "i1k" else 100
    return config


def plan(args: types.SimpleNamespace) -> Section:
    """Lengths and rates of the run."""
    chosen: Section = dict(epochs=300, batch=512, lr=5e-4, base=512, res=224)
    if common.choose("size", args.size, {"published": False, "small": True}):
        chosen |= dict(epochs=30, batch=64, lr=1e-3, base=64, res=32)
    elif args.data == "digits":
        chosen |= dict(epochs=20, batch=32, lr=1e-3, base=32, res=64)
    given = {key: getattr(args, key) for key in ("epochs", "batch", "lr", "res") if getattr(args, key)}
    return chosen | given


def fields(args: types.SimpleNamespace, res: int) -> Section:
    """Fields of the model that the arguments change."""
    chosen = {} if args.precision is None else dict(precision=args.precision)
    if args.size == "published":
        return chosen
    kind = re.match("binary_deit|binaryvit(?!_teacher)", args.model)
    if kind is None:
        raise ValueError(f"size=small is for binaryvit_... and binary_deit_..., not for {args.model!r}.")
    if res not in (32, 64):
        raise ValueError(f"size=small is for res=32 or res=64, not for res={res}.")
    return dict(**SMALL[kind[0]], patch_size=res // GRIDS[kind[0]], **chosen)


def train_pp(args: types.SimpleNamespace, res: int) -> str:
    """The augmentation as published, crops and mirrored images; small images are padded and cropped."""
    crop = f"random_resized_crop({res}, method='pillow_bilinear')"
    if args.size == "small":
        crop = f"resize({res})|random_crop({res}, padding={res // 8})"
    mirror = "" if args.data == "digits" else "|flip_lr"  # mirrored they are none
    mixup = "|mixup(0.8)" if args.distill == "mixup" else ""
    return f"decode|{crop}{mirror}|vgg_value_range|{deit.LABELS}{mixup}"


def task(args: types.SimpleNamespace) -> Section:
    """What is learnt: the teacher's answers."""
    kinds: Section = {
        "teacher_only": dict(kind="teacher_only"),
        "mixup": dict(kind="soft_xent", alpha=0.9),
        "none": None,
    }
    kind = common.choose("distill", args.distill, kinds)
    if kind is None:
        return dict(name="classify", loss="softmax_xent", label_smoothing=0.1)
    if not args.teacher:
        raise ValueError(
            "the loss is the teacher's answers and nothing else, so it needs a teacher: give teacher=WORKDIR "
            "of its run or teacher=NAME with teacher_weights=FILE, or distill=none for labels alone."
        )
    return dict(name="distill", teacher=teacher(args), **kind)


def teacher(args: types.SimpleNamespace) -> Section:
    """The section `task.teacher`. It sees the student's images, brought to its size and range if need be."""
    section = deit.teacher(args)
    return dict(section, convert=True) if "model" not in section else section
