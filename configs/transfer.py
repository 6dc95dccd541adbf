"""Transfer: fine-tuning pre-trained weights as in "How to train your ViT?", arXiv 2106.10270, section 3.5.

SGD with momentum (bfloat16 accumulator), no weight decay, no dropout, no RandAugment or mixup, batches of
512, gradients clipped at 1.0, a cosine schedule after a linear warmup, softmax cross-entropy, and a head that
starts at zero:

    python -m vitjax.main --config configs/transfer.py:vit_b16,data=cifar100,lr=0.01 --workdir W
    python -m vitjax.main --config configs/transfer.py:vit_s32,weights=runs/s32,data=folder:pics --workdir W

Arguments (defaults first):
  model    vit_b16, or any other name of the registry
  weights  the recommended ImageNet-21k file of `model`; a name of the AugReg collection (augreg:NAME), a
           file, or the workdir of a vitjax run, whose head and resolution may be others
  data     cifar100 | cifar10, imagenet2012, oxford_iiit_pet, oxford_flowers102, resisc45, kitti (all through
           TFDS), vtab:TASK, digits, or any source: folder:PATH, arrays:PATH, tfds:NAME
  res      384; the study also has 224. The position embedding is resampled
  steps    the longer of the two lengths that the study gives the data set; 500 for other sources
  warmup   steps of linear warmup: as the study has it for these steps, a tenth of others
  lr       as big_vision found it best for the data set, 0.01 where it says nothing
  crop     inception: crop of 5-100 % of the area, evaluation on the image squashed to a square (the code
           behind the paper) | resmall: short side to 7/6 res, random crop | resize: likewise, both sides;
           these two are evaluated on the central crop (big_vision)
  batch    512; 64 for other sources
  dtype    float32 | bfloat16: compute type; parameters are float32 always
  classes  number of labels, as many as the source has
  train    split to train on, and
  val      split to evaluate on, for other sources; see configs/augreg.py
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common

# Section 3.5 and Table 4: splits (train, evaluations), steps, labels. The learning rate is that of
# big_vision's configs/transfer.py, where it names one.
DATA: dict[str, dict[str, Any]] = {
    "imagenet2012": dict(
        data="tfds:imagenet2012",
        train="train[:99%]",
        evals={"minival": "train[99%:]", "val": "validation"},
        classes=1000,
        steps=(20_000,),
        lr=0.03,
    ),
    "cifar10": dict(
        data="tfds:cifar10",
        train="train[:98%]",
        evals={"val": "train[98%:]", "test": "test"},
        classes=10,
        steps=(2_500, 10_000),
        lr=0.003,
    ),
    "cifar100": dict(
        data="tfds:cifar100",
        train="train[:98%]",
        evals={"val": "train[98%:]", "test": "test"},
        classes=100,
        steps=(2_500, 10_000),
        lr=0.01,
    ),
    "resisc45": dict(
        data="tfds:resisc45",
        train="train[:60%]",
        evals={"val": "train[60%:80%]", "test": "train[80%:]"},
        classes=45,
        steps=(2_500, 10_000),
        lr=0.01,
    ),
    "kitti": dict(
        data="vtab:kitti",
        train="train",
        evals={"val": "val", "test": "test"},
        classes=4,
        steps=(500, 2_500),
        lr=0.01,
    ),
    "oxford_iiit_pet": dict(
        data="tfds:oxford_iiit_pet",
        train="train[:90%]",
        evals={"val": "train[90%:]", "test": "test"},
        classes=37,
        steps=(500, 2_500),
        lr=0.003,
    ),
    "oxford_flowers102": dict(
        data="tfds:oxford_flowers102",
        train="train[:90%]",
        evals={"val": "train[90%:]", "test": "test"},
        classes=102,
        steps=(500, 2_500),
        lr=0.003,
    ),
}
WARMUP = {500: 100, 2_500: 200, 10_000: 500, 20_000: 500}
CROPS = {
    "inception": "decode_jpeg_and_inception_crop({res})",
    "resmall": "decode|resize_small({large})|random_crop({res})",
    "resize": "decode|resize({large})|random_crop({res})",
}


VTAB_SPLITS = ("trainval", "test")  # for final numbers; tune on train and val, or train800 and val200


def other(args: Any) -> dict[str, Any]:
    """What `DATA` says of the study's data sets, for a source of one's own."""
    train, val = VTAB_SPLITS if args.data.startswith("vtab:") else common.usual_splits(args.data)
    evals = {"val": args.val or val}
    return dict(data=args.data, train=args.train or train, evals=evals, classes=None, steps=(500,), lr=0.01)


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the fine-tuning config that the argument string describes."""
    args = common.parse_arg(
        arg,
        model="vit_b16",
        weights=None,
        data="cifar100",
        res=384,
        steps=None,
        warmup=None,
        lr=None,
        crop="inception",
        batch=None,
        dtype="float32",
        classes=None,
        train=None,
        val=None,
    )
    known = args.data in DATA
    data = DATA[args.data] if known else other(args)
    crop = common.choose("crop", args.crop, CROPS)
    steps = args.steps or data["steps"][-1]
    large = args.res * 7 // 6  # 448 for 384

    config = ConfigDict()
    config.seed = 0
    config.total_steps = steps
    if args.classes or data["classes"]:
        config.num_classes = args.classes or data["classes"]

    to_model = (
        "value_range(-1, 1)|onehot({num_classes}, key='label', key_result='labels')|keep('image', 'labels')"
    )
    config.input = dict(
        data=data["data"],
        split=data["train"],
        pp=f"{crop.format(res=args.res, large=large)}|flip_lr|{to_model}",
        batch_size=args.batch or (512 if known else 64),
        workers=0 if args.data == "digits" else -1,
    )
    config.model = dict(name=args.model, pool="tok", dtype=args.dtype)
    config.model_init = dict(weights=args.weights or f"augreg:{args.model}", dont_load=("head/.*",))
    config.task = dict(name="classify", loss="softmax_xent")

    config.optax_name = "big_vision.momentum_hp"
    config.optax = dict(momentum=0.9, dtype="bfloat16")
    config.lr = args.lr or data["lr"]
    config.wd = 0.0
    warmup = WARMUP.get(steps, steps // 10) if args.warmup is None else args.warmup
    config.schedule = dict(decay_type="cosine", warmup_steps=warmup)
    config.grad_clip_norm = 1.0

    whole = f"resize({args.res})" if args.crop == "inception" else None
    eval_pp = f"decode|{whole or f'resize_small({large})|central_crop({args.res})'}|{to_model}"
    config.evals = {
        name: dict(
            type="accuracy",
            data=data["data"],
            split=split,
            pp=eval_pp,
            loss="softmax_xent",
            log_percent=0.2,
        )
        for name, split in data["evals"].items()
    }
    config.log_training_steps = 50 if known else 10
    config.ckpt_steps = 1_000 if known else 100
    return config
