"""The published collection of "How to train your ViT?": how its files are named and which ones to take.

A pre-training run and a fine-tuning of it are named

    B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0
    B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.03-res_384

and their files the same with `.npz`. The study is nine models x three data settings x 28 recipes = 756 runs;
B/8 joined later with three runs on ImageNet-21k. Each was fine-tuned 34 times at 224 and, except B/8, at 384.

Sources: arXiv 2106.10270; README, `vit_jax_augreg.ipynb` and `checkpoint.py` of
google-research/vision_transformer; `vit.py` of google-research/big_vision; timm 1.0.31's tables of models.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from vitjax.errors import UserError, nearest

# Our registry names of the models, and the collection's.
MODELS = {
    "vit_ti16": "Ti_16",
    "vit_s32": "S_32",
    "vit_s16": "S_16",
    "vit_b32": "B_32",
    "vit_b16": "B_16",
    "vit_b8": "B_8",
    "vit_l16": "L_16",
    "r_ti16": "R_Ti_16",
    "r26_s32": "R26_S_32",
    "r50_l32": "R50_L_32",
}
# The collection's names of the augmentation presets, and those of the paper, of big_vision and of
# configs/augreg.py. That the shift is so is inferred: the index lists the names on the left in order, and the
# best B/32 run of the paper's Figure 4, light2, is called light1 there.
PAPER_PRESETS = {
    "none": "none",
    "light0": "light1",
    "light1": "light2",
    "medium1": "medium1",
    "medium2": "medium2",
    "strong1": "strong1",
    "strong2": "strong2",
}
DATA = (("i1k", 300), ("i21k", 30), ("i21k", 300))  # with epochs
LR = 0.001
WEIGHT_DECAYS = (0.1, 0.03)
DROPOUTS = (0.0, 0.1)  # dropout and stochastic depth go together
# data set: (steps, learning rates) of its fine-tunings; file names have thousands of steps, rounded down
FINE_TUNINGS = {
    "imagenet2012": ((20_000,), (0.01, 0.03)),
    "cifar100": ((2_500, 10_000), (0.001, 0.003, 0.01, 0.03)),
    "resisc45": ((2_500, 10_000), (0.001, 0.003, 0.01, 0.03)),
    "oxford_iiit_pet": ((500, 2_500), (0.001, 0.003, 0.01, 0.03)),
    "kitti": ((500, 2_500), (0.001, 0.003, 0.01, 0.03)),
}
RESOLUTIONS = (224, 384)


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """What was done to a pre-trained model on a second data set."""

    data: str
    steps: int
    lr: float
    res: int

    def __str__(self) -> str:
        return f"{self.data}-steps_{self.steps // 1000}k-lr_{self.lr}-res_{self.res}"


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the study; `str(run)` is its name, the file's without `.npz`.

    `aug` is the collection's name of the preset (`PAPER_PRESETS` has the paper's); `dropout` is also the rate
    of stochastic depth.
    """

    model: str
    data: str
    epochs: int
    aug: str
    wd: float
    dropout: float
    lr: float = LR
    fine_tuning: FineTuning | None = None

    def __str__(self) -> str:
        name = (
            f"{self.model}-{self.data}-{self.epochs}ep-lr_{self.lr}-aug_{self.aug}-wd_{self.wd}"
            f"-do_{self.dropout}-sd_{self.dropout}"
        )
        return f"{name}--{self.fine_tuning}" if self.fine_tuning else name


def _i21k(model: str, aug: str, wd: float, dropout: float = 0.0) -> Run:
    return Run(model, "i21k", 300, aug, wd, dropout)


def _i1k(model: str, aug: str, wd: float, dropout: float) -> Run:
    return Run(model, "i1k", 300, aug, wd, dropout)


# The run to take for each model. ImageNet-21k: README of vision_transformer. ImageNet-1k: timm's choice.
RECOMMENDED = {
    "i21k": {
        "vit_ti16": _i21k("Ti_16", "none", 0.03),
        "vit_s32": _i21k("S_32", "none", 0.1),
        "vit_s16": _i21k("S_16", "light1", 0.03),
        "vit_b32": _i21k("B_32", "light1", 0.1),
        "vit_b16": _i21k("B_16", "medium1", 0.1),
        "vit_b8": _i21k("B_8", "medium2", 0.1),
        "vit_l16": _i21k("L_16", "strong1", 0.1),
        "r_ti16": _i21k("R_Ti_16", "none", 0.03),
        "r26_s32": _i21k("R26_S_32", "light1", 0.1),
        "r50_l32": _i21k("R50_L_32", "medium1", 0.1, 0.1),
    },
    "i1k": {
        "vit_s16": _i1k("S_16", "medium2", 0.1, 0.0),
        "vit_b32": _i1k("B_32", "medium2", 0.1, 0.1),
        "vit_b16": _i1k("B_16", "strong2", 0.1, 0.1),
    },
}
# B/8's runs. Three are counted; public code names only these two.
B_8 = (_i21k("B_8", "medium1", 0.1), RECOMMENDED["i21k"]["vit_b8"])


def short_names() -> dict[str, Run]:
    """The recommended runs by short name: ours (`vit_b16`, `vit_b16-i1k`) and big_vision's vanity names."""
    names = {}
    for data, runs in RECOMMENDED.items():
        names |= {f"{name}-{data}": run for name, run in runs.items()}
    names |= RECOMMENDED["i21k"]
    names |= {
        f"howto-i21k-{run.model.replace('_', '/')}": run
        for name, run in RECOMMENDED["i21k"].items()
        if name.startswith("vit")
    }
    return names


def find(name: str) -> Run:
    """The run that a full name, with or without `.npz`, or a short name means.

    A fine-tuning may follow a short name too: `vit_b16--imagenet2012-steps_20k-lr_0.03-res_384`. A name
    outside the collection is a UserError that says which part of it is wrong and what is nearest.
    """
    upstream, separator, fine_tuning = name.removesuffix(".npz").partition("--")
    run = short_names().get(upstream) or _parse_upstream(name, upstream)
    if not separator:
        return run
    return dataclasses.replace(run, fine_tuning=_parse_fine_tuning(name, fine_tuning, run))


def upstream_runs() -> Iterator[Run]:
    """The 756 pre-training runs of the study, and the two of B/8 whose names are known."""
    models = [model for model in MODELS.values() if model != "B_8"]
    for model, (data, epochs), aug, wd, dropout in itertools.product(
        models, DATA, PAPER_PRESETS, WEIGHT_DECAYS, DROPOUTS
    ):
        yield Run(model, data, epochs, aug, wd, dropout)
    yield from B_8


def fine_tunings(run: Run) -> Iterator[Run]:
    """What a pre-training run was fine-tuned to: 34 at either resolution; B/8 at 224 only.

    One of them all, on ImageNet at 384 with lr 0.03, is missing from the published index.
    """
    for res in RESOLUTIONS[:1] if run.model == "B_8" else RESOLUTIONS:
        for data, (steps, lrs) in FINE_TUNINGS.items():
            for step, lr in itertools.product(steps, lrs):
                yield dataclasses.replace(run, fine_tuning=FineTuning(data, step, lr, res))


def _parse_upstream(name: str, upstream: str) -> Run:
    fields = upstream.split("-")
    if len(fields) != 8:
        known = {**dict.fromkeys(short_names()), **{str(run): None for run in upstream_runs()}}
        raise UserError(
            f"{name!r} is no name of the AugReg collection.{nearest(upstream, known)} Names are short, like "
            f"'vit_b16' or 'vit_b16-i1k' ({', '.join(MODELS)}), or whole, like "
            f"'{RECOMMENDED['i21k']['vit_b16']}'."
        )
    model = _field(name, fields[0], "{}", MODELS.values())
    data = _field(name, fields[1], "{}", ("i1k", "i21k"))
    epochs = int(_field(name, fields[2], "{}ep", (epochs for of, epochs in DATA if of == data)))
    lr = float(_field(name, fields[3], "lr_{}", (LR,)))
    aug = _field(name, fields[4], "aug_{}", PAPER_PRESETS)
    wd = float(_field(name, fields[5], "wd_{}", WEIGHT_DECAYS))
    dropout = float(_field(name, fields[6], "do_{}", DROPOUTS))
    _field(name, fields[7], "sd_{}", (dropout,))
    if model == "B_8" and (data, epochs) != ("i21k", 300):
        raise UserError(f"{name!r}: the collection has B_8 only as B_8-i21k-300ep.")
    return Run(model, data, epochs, aug, wd, dropout, lr)


def _parse_fine_tuning(name: str, text: str, run: Run) -> FineTuning:
    fields = text.split("-")
    if len(fields) != 4:
        raise UserError(
            f"{name!r}: what follows the two dashes must be like "
            f"'imagenet2012-steps_20k-lr_0.03-res_384', not {text!r}."
        )
    data = _field(name, fields[0], "{}", FINE_TUNINGS)
    all_steps, lrs = FINE_TUNINGS[data]
    thousands = {str(steps // 1000): steps for steps in all_steps}
    steps = thousands[_field(name, fields[1], "steps_{}k", thousands)]
    lr = float(_field(name, fields[2], "lr_{}", lrs))
    res = int(_field(name, fields[3], "res_{}", RESOLUTIONS[:1] if run.model == "B_8" else RESOLUTIONS))
    return FineTuning(data, steps, lr, res)


def _field(name: str, found: str, form: str, valid) -> str:
    """The value in a field of a name. `form` is what surrounds it; one that is not valid is a UserError."""
    fields = {form.format(value): str(value) for value in valid}
    if found in fields:
        return fields[found]
    preset = found.removeprefix("aug_")
    renamed = {paper: ours for ours, paper in PAPER_PRESETS.items()}
    if form == "aug_{}" and preset in renamed:
        raise UserError(
            f"{name!r}: the collection has no {found!r}; "
            f"the paper's {preset} is called {renamed[preset]} there."
        )
    raise UserError(
        f"{name!r}: the collection has no {found!r} there.{nearest(found, fields)} "
        f"Valid are: {', '.join(fields)}."
    )


# What timm converted to PyTorch's layout and keeps on the Hugging Face hub, as `timm/REPOSITORY` with a file
# model.safetensors: its models, the recipe of the pre-training, and the learning rate of the fine-tuning to
# ImageNet (20k steps), None where it is the pre-trained model itself. Only four of the recommended runs are
# among them. From timm 1.0.31's own table; rows marked ? stand in that table only, while of the others a
# listing of the repository's files or commits was seen too.
_ON_HUB: Sequence[tuple[str, str, tuple[str, float, float], float | None]] = (
    ("vit_tiny_patch16_224.augreg_in21k", "Ti_16-i21k", ("none", 0.03, 0.0), None),
    ("vit_small_patch32_224.augreg_in21k", "S_32-i21k", ("light1", 0.03, 0.0), None),
    ("vit_small_patch16_224.augreg_in21k", "S_16-i21k", ("light1", 0.03, 0.0), None),  # ?
    ("vit_base_patch32_224.augreg_in21k", "B_32-i21k", ("medium1", 0.03, 0.0), None),
    ("vit_base_patch16_224.augreg_in21k", "B_16-i21k", ("medium1", 0.1, 0.0), None),
    ("vit_base_patch8_224.augreg_in21k", "B_8-i21k", ("medium1", 0.1, 0.0), None),
    ("vit_large_patch16_224.augreg_in21k", "L_16-i21k", ("medium1", 0.1, 0.1), None),
    ("vit_tiny_r_s16_p8_224.augreg_in21k", "R_Ti_16-i21k", ("none", 0.03, 0.0), None),  # ?
    ("vit_small_r26_s32_224.augreg_in21k", "R26_S_32-i21k", ("medium2", 0.03, 0.0), None),
    ("vit_large_r50_s32_224.augreg_in21k", "R50_L_32-i21k", ("medium2", 0.1, 0.0), None),
    ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", "Ti_16-i21k", ("none", 0.03, 0.0), 0.03),
    ("vit_tiny_patch16_384.augreg_in21k_ft_in1k", "Ti_16-i21k", ("none", 0.03, 0.0), 0.03),  # ?
    ("vit_small_patch32_224.augreg_in21k_ft_in1k", "S_32-i21k", ("light1", 0.03, 0.0), 0.03),
    ("vit_small_patch32_384.augreg_in21k_ft_in1k", "S_32-i21k", ("light1", 0.03, 0.0), 0.03),
    ("vit_small_patch16_224.augreg_in21k_ft_in1k", "S_16-i21k", ("light1", 0.03, 0.0), 0.03),  # ?
    ("vit_small_patch16_384.augreg_in21k_ft_in1k", "S_16-i21k", ("light1", 0.03, 0.0), 0.03),  # ?
    ("vit_base_patch32_224.augreg_in21k_ft_in1k", "B_32-i21k", ("medium1", 0.03, 0.0), 0.03),
    ("vit_base_patch32_384.augreg_in21k_ft_in1k", "B_32-i21k", ("light1", 0.1, 0.0), 0.03),  # ?
    ("vit_base_patch16_224.augreg_in21k_ft_in1k", "B_16-i21k", ("medium1", 0.1, 0.0), 0.01),
    ("vit_base_patch16_384.augreg_in21k_ft_in1k", "B_16-i21k", ("medium1", 0.1, 0.0), 0.01),  # ?
    ("vit_base_patch8_224.augreg_in21k_ft_in1k", "B_8-i21k", ("medium1", 0.1, 0.0), 0.01),
    ("vit_large_patch16_224.augreg_in21k_ft_in1k", "L_16-i21k", ("medium1", 0.1, 0.1), 0.01),  # ?
    ("vit_large_patch16_384.augreg_in21k_ft_in1k", "L_16-i21k", ("medium1", 0.1, 0.1), 0.01),
    ("vit_tiny_r_s16_p8_224.augreg_in21k_ft_in1k", "R_Ti_16-i21k", ("none", 0.03, 0.0), 0.03),  # ?
    ("vit_tiny_r_s16_p8_384.augreg_in21k_ft_in1k", "R_Ti_16-i21k", ("none", 0.03, 0.0), 0.03),  # ?
    ("vit_small_r26_s32_224.augreg_in21k_ft_in1k", "R26_S_32-i21k", ("light0", 0.03, 0.1), 0.03),  # ?
    ("vit_small_r26_s32_384.augreg_in21k_ft_in1k", "R26_S_32-i21k", ("medium2", 0.03, 0.0), 0.03),  # ?
    ("vit_large_r50_s32_224.augreg_in21k_ft_in1k", "R50_L_32-i21k", ("medium1", 0.1, 0.1), 0.01),
    ("vit_large_r50_s32_384.augreg_in21k_ft_in1k", "R50_L_32-i21k", ("medium2", 0.1, 0.0), 0.01),
    ("vit_small_patch16_224.augreg_in1k", "S_16-i1k", ("medium2", 0.1, 0.0), 0.01),
    ("vit_small_patch16_384.augreg_in1k", "S_16-i1k", ("medium2", 0.1, 0.0), 0.01),  # ?
    ("vit_base_patch32_224.augreg_in1k", "B_32-i1k", ("medium2", 0.1, 0.1), 0.01),
    ("vit_base_patch32_384.augreg_in1k", "B_32-i1k", ("medium2", 0.1, 0.1), 0.01),  # ?
    ("vit_base_patch16_224.augreg_in1k", "B_16-i1k", ("strong2", 0.1, 0.1), 0.01),
    ("vit_base_patch16_384.augreg_in1k", "B_16-i1k", ("strong2", 0.1, 0.1), 0.01),  # ?
)


def on_hub() -> dict[Run, str]:
    """The runs that timm re-hosts, converted, on the Hugging Face hub: run -> repository of `timm`."""
    found = {}
    for repository, model_and_data, (aug, wd, dropout), lr in _ON_HUB:
        model, data = model_and_data.split("-")
        res = int(repository.partition(".")[0].rpartition("_")[2])
        fine_tuning = FineTuning("imagenet2012", 20_000, lr, res) if lr else None
        found[Run(model, data, 300, aug, wd, dropout, fine_tuning=fine_tuning)] = repository
    return found
