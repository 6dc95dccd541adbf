"""CaiT: "Going deeper with Image Transformers", arXiv 2103.17239.

The recipe of DeiT (configs/deit.py) for 400 epochs, with a rate of stochastic depth for each size:

    python -m vitjax.main --config configs/cait.py:cait_s24 --workdir W
    python -m vitjax.main --config configs/cait.py:cait_m36,res=384,init=runs/cait_m36 --workdir W

Fine-tuning at 384 or 448 pixels is as the author told it for M48 in issue 108 of facebookresearch/deit. The
code that trained the models was never published: what neither the paper nor the author says is DeiT's. The
models with an upsilon were taught by a RegNetY-16GF and have a single head: teacher=regnety_16gf with its
weights, distill=hard. Pictures are evaluated whole: shorter side to `res`, and the central square of it.

Arguments are those of configs/deit.py, but for `decay_dist`; otherwise:
  model    cait_xxs24 | cait_xxs36, cait_xs24, cait_xs36, cait_s24, cait_s36, cait_s48, cait_m24, cait_m36,
           cait_m48, or a size and any other depth
  epochs   400 on i1k; 60 to fine-tune there
  batch    256 to fine-tune on i1k
"""

from ml_collections import ConfigDict

from configs import common, deit

# Stochastic depth, the same rate in every block; 0.1 for other depths. M48 has 0.3 when it is fine-tuned.
DROP_PATH = {
    "cait_xxs24": 0.05,
    "cait_xxs36": 0.1,
    "cait_xs24": 0.05,
    "cait_xs36": 0.1,
    "cait_s24": 0.1,
    "cait_s36": 0.2,
    "cait_s48": 0.3,
    "cait_m24": 0.2,
    "cait_m36": 0.3,
    "cait_m48": 0.4,
}
SCRATCH = dict(epochs=400)
FINETUNE = dict(epochs=60, batch=256, base=256, lr=5e-6, wd=0.05)
FINETUNE |= dict(shape=dict(decay_type="timm_step", rate=0.5, every_epochs=10))
ARGUMENTS = {key: value for key, value in deit.ARGUMENTS.items() if key != "decay_dist"}


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config of the run that the argument string describes."""
    args = common.parse_arg(arg, **(ARGUMENTS | dict(model="cait_xxs24")))
    args.res = args.res or (64 if args.data == "digits" else 224)
    plan = deit.plan(args) | dict(drop_path=DROP_PATH.get(args.model, 0.1))
    if args.data == "i1k":
        plan |= FINETUNE if args.init else SCRATCH
        plan |= {key: getattr(args, key) for key in ("epochs", "batch", "lr") if getattr(args, key)}
    if args.init and args.model == "cait_m48":
        plan["drop_path"] = 0.3
    return deit.build(args, plan, eval_res=args.res)
