"""ReActNet in its two steps, and plain Bi-Real Net.

"ReActNet" (arXiv 2003.03488), "Bi-Real Net" (arXiv 1808.00278) and their official code (liuzechun/ReActNet,
liuzechun/Bi-Real-net), as published. Step 1 has binary activations and real weights, step 2 goes on from its
checkpoint with both binary; each learns from a ResNet-34's answers alone:

    python -m vitjax.main --workdir runs/step1 \\
        --config configs/reactnet.py:reactnet_a,step=1,teacher_weights=FILE
    python -m vitjax.main --workdir runs/step2 \\
        --config configs/reactnet.py:reactnet_a,step=2,init=runs/step1,teacher_weights=FILE

and Bi-Real Net in one step from the labels:

    python -m vitjax.main --config configs/reactnet.py:bireal_resnet18 --workdir W

On digits, with the teacher that comes with configs/deit.py, minutes on two cores:

    python -m vitjax.main --config configs/reactnet.py:react_resnet18,step=1,data=digits --workdir runs/step1
    python -m vitjax.main --workdir runs/step2 \\
        --config configs/reactnet.py:react_resnet18,step=2,init=runs/step1,data=digits

docs/binary.md says where this departs from the released code.

Arguments (defaults first):
  model    reactnet_a; react_resnet18, react_resnet34, bireal_resnet18, bireal_resnet34
  step     None; 1 | 2 for ReActNet, which needs one; Bi-Real Net has none
  init     None; the workdir of step 1, which step 2 needs; init=none lets step 2 begin from scratch
  teacher  resnet34, for digits resnet18: a name of the registry, with teacher_weights; or a run's workdir
  teacher_weights  file of the teacher's weights; for digits and resnet18 the one beside configs/deit.py
  data     i1k (ImageNet through TFDS); digits; or any source: folder:PATH, arrays:PATH, tfds:NAME
  res      224; 64 for digits
  epochs   128 for ReActNet, or 256; 256 for Bi-Real Net; 20 for digits
  batch    256 for reactnet_a, 512 for others; 32 for digits
  lr       with 128 epochs 1.25e-3 for a batch of 256 (reactnet_a) or 2.5e-3 for 512; with others than 128,
           5e-4 and 1e-3; linear in the batch
  decay    of step 1, the L2 penalty inside Adam: kernels: of convolutions; released: of the shifts before
           signs and around PReLUs, too, which the released code takes for convolutions
  widths   published; small: a quarter, for digits and small images
  clip     None: latent weights are not clipped, as published; 1: to [-1, 1], beyond which no gradient comes
  layers   False; True: diagnostics of each layer, too
  classes  number of labels, for other sources: as many as the source has
  train    split to train on, for other sources, and
  val      split to evaluate on; see configs/augreg.py
"""

import types
from typing import Any

from ml_collections import ConfigDict

from configs import common, deit

Section = dict[str, Any]

# Base batch, and learning rates for it: of 128 epochs and of other lengths.
MOBILENET = dict(batch=256, lr={128: 1.25e-3}, lr_long=5e-4, epochs=128)
RESNET = dict(batch=512, lr={128: 2.5e-3}, lr_long=1e-3, epochs=128)
BIREAL = dict(batch=512, lr={}, lr_long=1e-3, epochs=256)
MODELS: dict[str, Section] = {
    "reactnet_a": MOBILENET,
    "react_resnet18": RESNET,
    "react_resnet34": RESNET,
    "bireal_resnet18": BIREAL,
    "bireal_resnet34": BIREAL,
}
# Latent weights of binary convolutions, by name; those of the root and of shortcuts are not binary.
LATENT = r"block\d+/(unit\d+/)?conv(\dx\d(_\d)?)?/kernel"
DECAYED = {"kernels": r".*conv.*/kernel", "released": r".*(conv.*/kernel|move.*)"}

ARGUMENTS: Section = dict(
    model="reactnet_a",
    step=None,
    init=None,
    teacher=None,
    teacher_weights=None,
    data="i1k",
    res=None,
    epochs=None,
    batch=None,
    lr=None,
    decay="kernels",
    widths="published",
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
    check_step(args)
    data = deit.data_set(types.SimpleNamespace(**vars(args), source=None))
    res = lengths["res"]
    config = ConfigDict()
    config.seed = 0
    config.total_epochs = lengths["epochs"]
    if args.classes or data["classes"]:
        config.num_classes = args.classes or data["classes"]

    mirror = "" if args.data == "digits" else "|flip_lr"  # mirrored they are none
    to_model = f"vgg_value_range|{deit.LABELS}"
    config.input = dict(
        data=data["data"],
        split=data["train"],
        pp=f"decode|random_resized_crop({res}, method='pillow_bilinear'){mirror}|{to_model}",
        batch_size=lengths["batch"],
        workers=-1 if args.data == "i1k" else 0,
    )
    config.model = dict(name=args.model, precision="w32a1" if args.step == 1 else "binary", **narrow(args))
    if args.init not in (None, "none"):
        config.model_init = dict(weights=str(args.init))
    config.task = task(args)

    config.optax_name = "adam_l2"
    config.optax = dict(b1=0.9, b2=0.999, eps=1e-8)
    if args.step == 1:
        config.optax.update(weight_decay=1e-5, decayed=common.choose("decay", args.decay, DECAYED))
    config.lr, config.lr_base_batch = lengths["lr"], lengths["base"]
    config.schedule = dict(decay_type="epoch_linear")
    if args.clip is not None:
        config.weight_clips = ((LATENT, float(args.clip)),)
    config.diagnostics = dict(layers=args.layers)

    to_eval = f"resize_small({res * 8 // 7}, 'pillow_bilinear', rounding='down')"
    to_eval += f"|central_crop({res}, rounding='even')"
    often = dict(log_epochs=5) if args.data == "i1k" else dict(log_percent=0.2)
    pp = f"decode|{to_eval}|{to_model}"
    config.evals = dict(val=dict(type="accuracy", data=data["data"], split=data["val"], pp=pp, **often))
    config.best_metric = "val/prec@1"
    config.log_training_steps = 50 if args.data == "i1k" else 20
    config.ckpt_steps = 1_000 if args.data == "i1k" else 100
    return config


def plan(args: types.SimpleNamespace) -> Section:
    """Lengths and rates of the run."""
    known = common.choose("model", args.model, MODELS)
    chosen = dict(epochs=known["epochs"], batch=known["batch"], base=known["batch"], res=224)
    if args.data == "digits":
        chosen |= dict(epochs=20, batch=32, base=32, res=64)
    chosen |= {key: getattr(args, key) for key in ("epochs", "batch", "res") if getattr(args, key)}
    return chosen | dict(lr=args.lr or known["lr"].get(chosen["epochs"], known["lr_long"]))


def check_step(args: types.SimpleNamespace) -> None:
    """Refuses steps that do not go with the model, and a second step without a first."""
    if is_bireal(args):
        if args.step or args.init:
            raise ValueError(f"{args.model} is trained in one step: leave step and init out.")
        return
    common.choose("step", args.step, {1: None, 2: None})
    if args.step == 1 and args.init:
        raise ValueError("step=1 begins from scratch: leave init out, or give step=2.")
    if args.step == 2 and args.init is None:
        raise ValueError(
            "step=2 goes on from step 1: give init=WORKDIR of its run, or init=none to begin from scratch."
        )


def is_bireal(args: types.SimpleNamespace) -> bool:
    """Whether the model is a plain Bi-Real Net, which learns from labels."""
    return args.model.startswith("bireal")


def narrow(args: types.SimpleNamespace) -> Section:
    """Fields of the model for `widths=small`."""
    if not common.choose("widths", args.widths, {"published": False, "small": True}):
        return {}
    if args.model == "reactnet_a":
        return dict(root_width=8, widths=(16, 32, 32, 64, 64, *[128] * 6, 256, 256))
    return dict(widths=(16, 32, 64, 128))


def task(args: types.SimpleNamespace) -> Section:
    """What is learnt: the teacher's answers (the "distributional loss"); of Bi-Real Net the labels."""
    if is_bireal(args):
        if args.teacher or args.teacher_weights:
            raise ValueError(f"{args.model} learns from labels: leave teacher and teacher_weights out.")
        return dict(name="classify", loss="softmax_xent", label_smoothing=0.1)
    name = args.teacher or ("resnet18" if args.data == "digits" else "resnet34")
    section = deit.teacher(types.SimpleNamespace(**{**vars(args), "teacher": name}))
    converted = dict(convert=True) if "model" not in section else {}
    return dict(name="distill", kind="teacher_only", teacher=dict(section, **converted))
