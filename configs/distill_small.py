"""Distillation at a size that two cores carry: a narrow ResNet-18, and a small DeiT that learns from it.

First the teacher, then students; `data` is any source of small images, such as Fashion-MNIST's four files:

    python -m vitjax.main --config configs/distill_small.py:resnet18,data=arrays:PATH --workdir runs/teacher
    python -m vitjax.main --config configs/distill_small.py:token,data=arrays:PATH,teacher=runs/teacher \\
        --workdir runs/token

configs/sweeps/distill_small.py runs all forms of distillation with several seeds.

Arguments (defaults first):
  what     none: a DeiT from labels alone | soft | hard: "usual" distillation on the class token | token: with
           a distillation token and a head of its own | resnet18: the teacher
  teacher  workdir of the teacher's run; needed by soft, hard and token
  data     digits, or any source: folder:PATH, arrays:PATH, tfds:NAME
  train    split to train on, `train`; scarce data is where a teacher with a convolution's priors helps
  val      split to evaluate on, `test`
  res      28     patch  7     epochs  30     batch  64
"""

from ml_collections import ConfigDict

from configs import common

LABELS = "onehot({num_classes}, key='label', key_result='labels')|keep('image', 'labels')"
# Strengths of the paper (section 5.2; soft distillation with its textbook normalisation, by images).
KINDS = {
    "none": None,
    "soft": dict(kind="soft", alpha=0.1, temperature=3.0, kl_mean="batch"),
    "hard": dict(kind="hard", alpha=0.5),
    "token": dict(kind="token", alpha=0.5),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config of the run that the argument string describes."""
    args = common.parse_arg(
        arg,
        what="none",
        teacher=None,
        data="digits",
        train="train",
        val="test",
        res=28,
        patch=7,
        epochs=30,
        batch=64,
    )
    config = ConfigDict()
    config.seed = 0
    config.total_epochs = args.epochs
    crop = f"random_crop({args.res}, padding={args.res // 14})"
    mirror = "" if args.data == "digits" else "|flip_lr"  # mirrored they are none
    to_model = f"value_range(-1, 1)|{LABELS}"
    config.input = dict(
        data=args.data,
        split=args.train,
        pp=f"decode|resize({args.res})|{crop}{mirror}|{to_model}",
        batch_size=args.batch,
    )
    labels = dict(loss="softmax_xent", label_smoothing=0.1)
    if args.what == "resnet18":
        config.model = dict(name="resnet18", stem="small", widths=(16, 32, 64, 128))
        config.task = dict(name="classify", **labels)
        config.optax_name = "sgd"
        config.optax = dict(momentum=0.9, nesterov=True, weight_decay=1e-4)
        config.lr = 0.05
    else:
        kind = common.choose("what", args.what, KINDS)
        head = "_distilled" if args.what == "token" else ""
        config.model = dict(name=f"deit_mu{args.patch}{head}", width=64, depth=4, mlp_dim=256, num_heads=4)
        if kind is None:
            config.task = dict(name="classify", **labels)
        else:
            if not args.teacher:
                raise ValueError(f"{args.what} needs a teacher: give teacher=WORKDIR of its run.")
            config.task = dict(name="distill", teacher=dict(weights=str(args.teacher)), **kind, **labels)
        config.optax_name = "scale_by_adam"
        config.lr = 1e-3
        config.wd = 5e-5
        config.grad_clip_norm = 1.0
    config.schedule = dict(decay_type="cosine", warmup_percent=0.1)

    pp = f"decode|resize({args.res})|{to_model}"
    config.evals = dict(val=dict(type="accuracy", data=args.data, split=args.val, pp=pp, log_percent=0.25))
    config.best_metric = "val/prec@1"
    config.log_training_steps = 50
    config.ckpt_percent = 0.5
    return config
