"""DeiT: "Training data-efficient image transformers & distillation through attention".

arXiv 2012.12877, Table 9 and the official code (facebookresearch/deit), as published:

    python -m vitjax.main --config configs/deit.py:deit_s16 --workdir W
    python -m vitjax.main --config configs/deit.py:deit_b16_distilled,teacher=regnety_16gf,\\
        teacher_weights=regnety_160-a5fe301d.pth,epochs=1000 --workdir W
    python -m vitjax.main --config configs/deit.py:deit_b16,res=384,init=runs/deit_b16 --workdir W
    python -m vitjax.main --config configs/deit.py:deit_b16,data=cifar100,init=runs/deit_b16 --workdir W

and as a stand-in that two cores carry in minutes, 20 epochs of digits at 64 pixels, taught by a narrow
ResNet-18 that comes with this file (configs/teacher.py made it):

    python -m vitjax.main \\
        --config configs/deit.py:deit_ti16_distilled,data=digits,teacher=resnet18 --workdir W

Arguments (defaults first):
  model    deit_ti16 | deit_s16 | deit_b16, each also with `_distilled`, or any name of the registry
  data     i1k (ImageNet through TFDS); cifar10, cifar100, flowers, cars, inat18, inat19, the paper's transfer
           sets; digits, or any source: folder:PATH, arrays:PATH, tfds:NAME
  source   where a data set named above is to be had instead of TFDS, which has no inat19: folder:PATH
  teacher  None; a name of the registry, with teacher_weights; or the workdir of a run. The paper's is
           regnety_16gf with the official file regnety_160-a5fe301d.pth.
  teacher_weights  file of the teacher's weights; for digits and resnet18 or vit_ti16 the one beside this file
  distill  token for a `_distilled` model, hard for others | soft, with the paper's temperature 3 and weight
           0.1
  init     None; weights to fine-tune: a file, or the workdir of a run. On i1k this is the recipe for 384
           pixels: constant rate, no stochastic depth, and without a teacher the mean of both heads is
           trained. On a transfer set it is what the author gave for that set, or for the one most like it.
  res      224; 64 for digits. 384 as in the paper, with `init`
  epochs   300 on i1k, in the paper 1000 too for distilled models; 30 to fine-tune there (the paper has 25);
           1000 on other sets of the paper, 360 to fine-tune on iNaturalist; 20 for digits, 100 for other
           sources
  batch    1024, 512 to fine-tune; 768 on transfer sets; 48 for other sources
  lr       5e-4 for a batch of 512, and linear in the batch; 1e-3 for digits; to fine-tune, see PLANS
  decay_dist  official: the distillation token decays like a weight | timm: it does not (timm 1.x)
  eval_ema    False; True: evaluate the averaged parameters, too. The paper reports the others.
  dtype    float32 | bfloat16: compute type; parameters are float32 always
  classes  number of labels, for other sources: as many as the source has
  train    split to train on, for other sources, and
  val      split to evaluate on; see configs/augreg.py
"""

import pathlib
import re
import types
from typing import Any

from ml_collections import ConfigDict

from configs import common

Section = dict[str, Any]

# Data sets of the paper: source, splits, labels (Table 6). Flowers trains on both of its smaller splits.
DATA: dict[str, Section] = {
    "i1k": dict(data="tfds:imagenet2012", train="train", val="validation", classes=1000),
    "cifar10": dict(data="tfds:cifar10", train="train", val="test", classes=10),
    "cifar100": dict(data="tfds:cifar100", train="train", val="test", classes=100),
    "flowers": dict(data="tfds:oxford_flowers102", train="train+validation", val="test", classes=102),
    "cars": dict(data="tfds:cars196:2.1.0", train="train", val="test", classes=196),
    "inat18": dict(data="tfds:i_naturalist2018", train="train", val="validation", classes=8142),
    "inat19": dict(data=None, train="train", val="val", classes=1010),
}

# Table 9: lr is for a batch of `base`; min_lr and warmup_lr do not grow with it.
SCRATCH = dict(epochs=300, batch=1024, lr=5e-4, base=512, wd=0.05, drop_path=0.1, erasing=0.25)
# README_deit.md: with min_lr = lr the cosine is constant; the model is in eval mode: no stochastic depth.
FINETUNE = SCRATCH | dict(epochs=30, batch=512, lr=5e-6, min_lr=5e-6, wd=1e-8, drop_path=0.0)

# Not in the paper. The author in issue 45 of facebookresearch/deit (CIFAR-10, cars: SGD) ...
SGD = SCRATCH | dict(epochs=1000, batch=768, base=768, lr=0.01, wd=1e-4, drop_path=0.0, erasing=0.0)
SGD |= dict(sgd=True)
# ... in issue 144 of facebookresearch/dino (CIFAR-100 with ViT-B: AdamW) ...
ADAMW = SCRATCH | dict(epochs=1000, batch=768, base=768, lr=5e-6)
# ... and in issues 105 and 141 (iNaturalist).
INAT = SCRATCH | dict(epochs=360, batch=768, base=768, lr=7.5e-5, erasing=0.1)
# Of flowers nothing is known; like cars it is small and fine-grained. Other sources count as iNaturalist.
PLANS = {"i1k": FINETUNE, "cifar10": SGD, "cifar100": ADAMW, "flowers": SGD, "cars": SGD}
PLANS |= {"inat18": INAT, "inat19": INAT}
SMALL = dict(epochs=100, batch=48)

# The teachers for digits, trained by configs/teacher.py: a ResNet-18 of an eleventh of the usual width, and a
# ViT-Ti of a sixth of it and a third of the depth.
DIGITS_TEACHERS: dict[str, Section] = {
    "resnet18": dict(widths=(6, 12, 24, 48)),
    "vit_ti16": dict(width=32, depth=4, mlp_dim=128, num_heads=2, pool="gap"),
}

LABELS = "onehot({num_classes}, key='label', key_result='labels')|keep('image', 'labels')"

ARGUMENTS: Section = dict(
    model="deit_ti16",
    data="i1k",
    source=None,
    teacher=None,
    teacher_weights=None,
    distill=None,
    init=None,
    res=None,
    epochs=None,
    batch=None,
    lr=None,
    decay_dist="official",
    eval_ema=False,
    dtype="float32",
    classes=None,
    train=None,
    val=None,
)


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config of the run that the argument string describes."""
    args = common.parse_arg(arg, **ARGUMENTS)
    args.res = args.res or (64 if args.data == "digits" else 224)
    lengths = plan(args)
    if args.data == "i1k":
        # Each process drew its own mixup: four of them for Ti and S, sixteen for B and to fine-tune.
        lengths |= dict(groups=4 if re.match("deit_(ti|s)16", args.model) and not args.init else 16)
    config = build(args, lengths, eval_res=int(args.res / 0.875))
    distilled = args.model.endswith("_distilled")
    if distilled and common.choose("decay_dist", args.decay_dist, {"official": True, "timm": False}):
        config.wd_mults = ((".*/kernel|dist", 1.0),)
    return config


def plan(args: types.SimpleNamespace) -> Section:
    """Lengths and rates of the run: those of training from scratch, or of fine-tuning on the data."""
    known = args.data in DATA
    if args.init:
        chosen = PLANS[args.data] if known else INAT | SMALL  # still for a batch of 768
    elif args.data == "i1k":
        chosen = SCRATCH
    elif known:  # CIFAR-10 from scratch: up to 7200 epochs in the paper, 1000 in issue 154
        chosen = SCRATCH | dict(epochs=1000, batch=768)
    else:
        chosen = SCRATCH | SMALL | dict(base=48)
    if args.data == "digits":
        chosen = chosen | dict(epochs=20) | ({} if args.init else dict(lr=1e-3))
    given = {key: getattr(args, key) for key in ("epochs", "batch", "lr") if getattr(args, key)}
    return chosen | given


def build(args: types.SimpleNamespace, plan: Section, eval_res: int) -> ConfigDict:
    """Returns the config of a plan; `eval_res` is the shorter side before the central crop of evaluation."""
    data = data_set(args)
    config = ConfigDict()
    config.seed = 0
    config.total_epochs = plan["epochs"]
    if args.classes or data["classes"]:
        config.num_classes = args.classes or data["classes"]

    config.input = dict(
        data=data["data"],
        split=data["train"],
        pp=train_pp(args, plan),
        batch_size=plan["batch"],
        workers=0 if args.data == "digits" else -1,
        repeats=3,
        # On ImageNet as published: 3 does not divide the batches of 1024 and 512.
        split_views=args.data == "i1k",
    )
    both_heads = args.model.endswith("_distilled") and args.init and not args.teacher
    config.model = dict(
        name=args.model,
        drop_path=plan["drop_path"],
        dtype=args.dtype,
        **(dict(average_heads=True) if both_heads else {}),
    )
    if args.init:
        keep_head = args.data == "i1k"
        config.model_init = dict(
            weights=str(args.init), dont_load=() if keep_head else ("head(_dist)?/.*",), posemb="bicubic"
        )
    config.task = task(args)

    # The weight decay here is multiplied by the schedule, not by lr: AdamW's is wd * lr, for the same batch.
    config.lr, config.lr_base_batch = plan["lr"], plan["base"]
    if plan.get("sgd"):
        config.optax_name = "sgd"
        config.optax = dict(momentum=0.9, nesterov=True, weight_decay=plan["wd"])
    else:
        config.optax_name = "scale_by_adam"
        config.optax = dict(b1=0.9, b2=0.999, eps=1e-8)
        config.wd = plan["wd"] * plan["lr"]
    short = plan["epochs"] < 30  # the slow first two epochs of the official clock would be much of it
    shape = plan.get("shape") or dict(decay_type="timm_cosine", min_lr=plan.get("min_lr", 1e-5))
    warmup = dict(warmup_epochs=1, per="step") if short else dict(warmup_epochs=5)
    config.schedule = dict(shape, warmup_lr=1e-6, **warmup)
    config.ema = dict(decay=0.99996)

    pp = f"decode|resize_small({eval_res}, method='pillow_bicubic', rounding='down')"
    pp += f"|central_crop({args.res}, rounding='even')|vgg_value_range|{LABELS}"
    often = dict(log_percent=0.2) if short else dict(log_epochs=5)
    val = dict(type="accuracy", data=data["data"], split=data["val"], pp=pp, **often)
    config.evals = dict(val=val) | (dict(val_ema=val | dict(use_ema=True)) if args.eval_ema else {})
    config.best_metric = "val/prec@1"
    config.log_training_steps = 50 if args.data in DATA else 10
    config.ckpt_steps = 1_000 if args.data in DATA else 100
    return config


def data_set(args: types.SimpleNamespace) -> Section:
    """Source, splits and number of labels."""
    if args.data in DATA:
        data = DATA[args.data] | ({"data": args.source} if args.source else {})
        if data["data"] is None:
            raise ValueError(f"data={args.data} is not in TFDS: give its folder, source=folder:PATH.")
        return data
    train, val = common.usual_splits(args.data)
    return dict(data=args.data, train=args.train or train, val=args.val or val, classes=None)


def train_pp(args: types.SimpleNamespace, plan: Section) -> str:
    """The augmentations of Table 9, in the official order."""
    # As official: images of 32 pixels and less are padded and cropped, not resized.
    crop = "random_crop({}, padding=4)" if args.res <= 32 else "random_resized_crop({})"
    ops = ["decode", crop.format(args.res)]
    if args.data != "digits":  # mirrored they are none
        ops.append("flip_lr")
    ops += ["timm_randaug('rand-m9-mstd0.5-inc1')", "vgg_value_range"]
    if plan["erasing"]:
        ops.append(f"random_erasing({plan['erasing']})")
    groups = f", groups={plan['groups']}" if "groups" in plan else ""
    return "|".join([*ops, LABELS, f"mixup_cutmix(mixup=0.8, cutmix=1.0{groups})"])


def task(args: types.SimpleNamespace) -> Section:
    """What is learnt: the labels, smoothed by 0.1, and with a teacher its answers, too."""
    labels = dict(loss="softmax_xent", label_smoothing=0.1)
    if not args.teacher:
        if args.teacher_weights or args.distill:
            given = "teacher_weights" if args.teacher_weights else "distill"
            raise ValueError(f"argument {given} needs a teacher: give teacher=NAME as well.")
        return dict(name="classify", **labels)
    kind = args.distill or ("token" if args.model.endswith("_distilled") else "hard")
    strength = {"soft": dict(alpha=0.1, temperature=3.0), "hard": dict(alpha=0.5), "token": dict(alpha=0.5)}
    return dict(
        name="distill",
        kind=kind,
        teacher=teacher(args),
        **common.choose("distill", kind, strength),
        **labels,
    )


def teacher(args: types.SimpleNamespace) -> Section:
    """The section `task.teacher`. It sees the student's images as they are, as in the official code."""
    name, weights = str(args.teacher), args.teacher_weights
    if pathlib.Path(name).is_dir():
        return dict(weights=name)
    model: Section = dict(name=name)
    if args.data == "digits" and name in DIGITS_TEACHERS and weights is None:
        model |= DIGITS_TEACHERS[name]
        weights = pathlib.Path(__file__).resolve().parent / "weights" / f"digits_{name}.safetensors"
    if weights is None:
        raise ValueError(
            f"teacher={name} is no workdir of a run, so it needs teacher_weights=FILE; train one with "
            f"configs/teacher.py:{name},data={args.data} and give teacher=ITS_WORKDIR."
        )
    return dict(model=model, weights=str(weights), input="vgg_value_range")
