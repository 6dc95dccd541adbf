"""Translation from scratch: "Attention Is All You Need", arXiv 1706.03762.

    python -m vitjax.main --config configs/translate.py:base,data=wmt14_de_en --workdir W
    python -m vitjax.main --config configs/translate.py:small,data=multi30k:DIR --workdir W
    python -m vitjax.average --workdir W --last 10
    python -m vitjax.translate --workdir W/averaged < in.txt > out.txt

docs/translation.md has the recipes as tables, and says what is not as published.

Arguments (defaults first):
  model      base; big, or another row of Table 3 (a_h1 ... e): the recipe of the paper, section 5. Rows D-ls0
             and D-ls2 are smoothing=0.0 and 0.2.
             small: the recipe for small data (LividWo/Revisit-MMT), for 29,000 pairs of Multi30k
  data       wmt14_de_en | wmt14_fr_en, as TFDS has prepared them; or any sentence pairs: multi30k:DIR,
             tsv:FILE, jsonl:FILE
  source     en: the language translated from. For data with a short name the other of its two is the target.
  target     de; fr where data is wmt14_fr_en
  steps      length: 100,000 of base, 300,000 of big, 8,000 of small
  batch      rows in a batch: 104 of 256 tokens on either side hold about the 25,000 of the paper, 128 of 64
             the 8,192 of the small recipe
  length     tokens of a row: 256, of small 64; longer sentences are left out of training
  vocab      pieces of the joint vocabulary: 37,000, for French 32,000, of small 10,000
  dropout    that of the model: 0.1, of big 0.3, but 0.1 for French; of small 0.3
  smoothing  0.1: label smoothing
  form       uniform; the form of label smoothing, see vitjax/losses.py
  warmup     steps: 4,000, of small 2,000
  lr         the peak: (width * warmup)^-0.5 as published, of small 5e-3
  lower      False; True: lower-case all text. Scores then ignore case
  fast       False; True: small for two cores: 2,000 steps of 64 rows with a warmup of 400 steps, dropout 0.1.
             An hour if a step takes two seconds, which is an estimate; nothing of it is tuned
  dtype      float32 | bfloat16: compute type; parameters are float32 always
"""

import types
from typing import Any

from ml_collections import ConfigDict

from configs import common

Section = dict[str, Any]
LANGUAGES = {"wmt14_de_en": ("en", "de"), "wmt14_fr_en": ("en", "fr")}
WIDTHS = {"big": 1024, "c_d256": 256, "c_d1024": 1024}  # all others of Table 3 have 512

PAPER: Section = dict(batch=104, length=256, vocab=37_000, warmup=4_000)
# Length, and what is averaged: base 5 checkpoints written 1,500 steps (10 minutes) apart, big 20.
SIZES: dict[str, Section] = {
    "base": PAPER | dict(steps=100_000, every=dict(ckpt_steps=1_500), keep=5),
    "big": PAPER | dict(steps=300_000, every=dict(ckpt_steps=600), keep=20),
    "small": dict(
        batch=128, length=64, vocab=10_000, warmup=2_000, steps=8_000, lr=5e-3,
        every=dict(ckpt_epochs=1), keep=10,
    ),
}  # fmt: skip
FAST: Section = dict(batch=64, warmup=400, steps=2_000, dropout=0.1, lr=5e-3)


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config of the run that the argument string describes."""
    args = common.parse_arg(
        arg,
        model="base",
        data="wmt14_de_en",
        source=None,
        target=None,
        steps=None,
        batch=None,
        length=None,
        vocab=None,
        dropout=None,
        smoothing=0.1,
        form="uniform",
        warmup=None,
        lr=None,
        lower=False,
        fast=False,
        dtype="float32",
    )
    size = recipe(args)
    languages = languages_of(args)
    small = args.model == "small"

    config = ConfigDict()
    config.seed = 0
    config.total_steps = size["steps"]
    config.text = dict(
        languages=languages, vocab_size=size["vocab"], kind="bpe", length=size["length"], lower=args.lower
    )
    config.input = dict(
        data=args.data, split="train", pp="token_weights", batch_size=size["batch"], workers=0
    )
    config.model = dict(name=f"transformer_{args.model}", dtype=args.dtype)
    if "dropout" in size:
        config.model.dropout = size["dropout"]
    config.task = dict(name="translate", label_smoothing=args.smoothing, smoothing=args.form)

    config.optax_name = "scale_by_adam"
    config.optax = dict(b1=0.9, b2=0.98, eps=1e-8 if small else 1e-9)
    config.lr = size["lr"]
    # The small recipe's is fairseq's: the first update has the rate of no update done.
    form = dict(ahead=0, warmup_lr=1e-7) if small else {}
    config.schedule = dict(decay_type="inverse_sqrt", warmup_steps=size["warmup"], **form)
    if small:
        config.grad_clip_norm = 25.0

    config.evals = evals(args, size, small)
    config.best_metric = "min:val/perplexity"
    config.keep_last = size["keep"]
    config.update(size["every"])
    config.log_training_steps = 100
    config.report = False  # its page shows pictures
    return config


def recipe(args: types.SimpleNamespace) -> Section:
    """The numbers of the model's recipe, those that the arguments give in their places."""
    size = dict(SIZES.get(args.model, SIZES["base"]))
    if args.fast:
        if args.model != "small":
            raise ValueError("fast is a form of small: write small,fast.")
        size |= FAST
    if args.data == "wmt14_fr_en":
        size |= dict(vocab=32_000)
        if args.model == "big":
            size |= dict(dropout=0.1)  # section 6.1
    given = ("steps", "batch", "length", "vocab", "dropout", "warmup", "lr")
    size |= {key: getattr(args, key) for key in given if getattr(args, key) is not None}
    return dict(lr=(WIDTHS.get(args.model, 512) * size["warmup"]) ** -0.5) | size


def languages_of(args: types.SimpleNamespace) -> tuple[str, str]:
    """Source and target."""
    known = LANGUAGES.get(args.data, ("en", "de"))
    source = args.source or known[0]
    others = [language for language in known if language != source]
    return source, args.target or others[0]


def evals(args: types.SimpleNamespace, size: Section, small: bool) -> Section:
    """Perplexity while training, BLEU at the end; the small recipe's beam is fairseq's."""
    val, test = ("val", "test_2016_flickr") if args.data.startswith("multi30k:") else ("validation", "test")
    if args.data.startswith(("text:", "tsv:", "jsonl:")) and "{split}" not in args.data:
        val, test = "train[99%:]", "train[99%:]"
    often = dict(log_epochs=1) if small else dict(log_steps=5_000)
    perplexity = dict(type="perplexity", data=args.data, split=val, **often)
    search = dict(beam=5, alpha=1.0, convention="fairseq") if small else dict(beam=4, alpha=0.6)
    bleu = dict(type="bleu", data=args.data, split=test, lowercase=args.lower, **search)
    return dict(val=perplexity, test=bleu)
