"""A network to learn from: any of the registry, from scratch, on a data set of one's own.

Momentum SGD for convolutions, Adam and mixup for Transformers; cosine after a short warm-up, label smoothing,
random crops. For ImageNet there are published teachers; see configs/deit.py. The student names the workdir:

    python -m vitjax.main --config configs/teacher.py:resnet18,data=folder:pics --workdir runs/teacher
    python -m vitjax.main --workdir runs/student \\
        --config configs/deit.py:deit_ti16_distilled,data=folder:pics,teacher=runs/teacher

The teachers of digits that come with configs/deit.py and configs/binaryvit.py were made by, here the first,

    python -m vitjax.main --config configs/teacher.py:resnet18,data=digits --workdir runs/digits_teacher
    python -c "from vitjax import checkpoint, weights; from vitjax.weights.variables import join; \\
        read = lambda key: checkpoint.load_params('runs/digits_teacher/checkpoints', key); \\
        weights.save('digits_resnet18.safetensors', join(read('params'), read('model_state')))"

It answers 97.8 % of the held-out digits right, vit_ti16 96.7 %.

Arguments (defaults first):
  model    resnet18, on digits an eleventh as wide; vit_ti16, on digits a sixth as wide and a third as deep;
           or any name of the registry
  data     digits, or any source: folder:PATH, arrays:PATH, tfds:NAME
  epochs   100; 30 for digits, 40 with Transformers
  batch    64
  lr       0.1, for Transformers 2e-3, for a batch of 64, and linear in the batch
  res      224; 64 for digits
  dtype    float32 | bfloat16: compute type; parameters are float32 always
  classes  number of labels, as many as the source has
  train    split to train on, and
  val      split to evaluate on; see configs/augreg.py
"""

import re

from ml_collections import ConfigDict

from configs import common, deit

TRANSFORMERS = r"(vit|deit|cait|pit|swin|t2t|small|s|l|sl|r\d*|binaryvit_teacher)_"


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config of a teacher's training."""
    args = common.parse_arg(
        arg,
        model="resnet18",
        data="digits",
        epochs=None,
        batch=64,
        lr=None,
        res=None,
        dtype="float32",
        classes=None,
        train=None,
        val=None,
    )
    digits = args.data == "digits"
    res = args.res or (64 if digits else 224)
    train, val = common.usual_splits(args.data)

    config = ConfigDict()
    config.seed = 0
    if args.classes:
        config.num_classes = args.classes

    to_model = f"vgg_value_range|{deit.LABELS}"
    transformer = bool(re.match(TRANSFORMERS, args.model))
    mixup = "|mixup(0.2)" if transformer else ""  # without it, a ViT learns 1,437 digits by heart
    crop = f"resize({res * 9 // 8})|random_crop({res})" if digits else f"inception_crop({res})|flip_lr"
    config.total_epochs = args.epochs or ((40 if transformer else 30) if digits else 100)
    config.input = dict(
        data=args.data,
        split=args.train or train,
        pp=f"decode|{crop}|{to_model}{mixup}",
        batch_size=args.batch,
        workers=0 if digits else -1,
    )
    narrow = deit.DIGITS_TEACHERS.get(args.model, {}) if digits else {}
    config.model = dict(name=args.model, **narrow, dtype=args.dtype)
    config.task = dict(name="classify", loss="softmax_xent", label_smoothing=0.1)

    if transformer:
        config.optax_name = "scale_by_adam"
        config.lr, config.wd, config.grad_clip_norm = args.lr or 2e-3, 1e-4, 1.0
        if narrow:
            # Enlarged digits repeat each number of a patch 64 times in three channels. Adam moves all these
            # weights alike: patches would outgrow their positions, and what is learnt would not generalise.
            config.lr_mults = (("embedding/kernel", 0.01), ("pos_embedding", 30.0))
    else:
        config.optax_name = "sgd"
        config.optax = dict(momentum=0.9, nesterov=True, weight_decay=5e-5)
        config.lr = args.lr or 0.1
    config.lr_base_batch = 64
    config.schedule = dict(decay_type="cosine", warmup_percent=0.05)

    pp = f"decode|resize_small({res * 8 // 7})|central_crop({res})|{to_model}"
    config.evals = dict(
        val=dict(type="accuracy", data=args.data, split=args.val or val, pp=pp, log_percent=0.2)
    )
    config.best_metric = "val/prec@1"
    config.log_training_steps = 10
    config.ckpt_percent = 0.2
    return config
