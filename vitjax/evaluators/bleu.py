"""BLEU of a model's own translations of one split."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from vitjax import errors
from vitjax.decoding.decoder import Decoder, Search, learned_positions
from vitjax.decoding.translator import Translation, Translator
from vitjax.evaluators import Context, corpus_scores, inputs


class Bleu:
    """sacreBLEU and chrF of translations of a whole split, detokenised, against the references as they are.

    Each sentence is translated by itself and once; sentences of like length go together. After `run`:

    - `notes` are lines for the log, with the signatures without which a BLEU says nothing;
    - `documents` are texts to be kept beside the metrics: `scores.json` with scores, signatures and a few
      examples, and `translations.txt`, one line a sentence, to be scored again by whoever wants to.
    """

    metrics = ("bleu", "chrf")

    def __init__(
        self,
        context: Context,
        *,
        data: str,
        split: str,
        sentences: int = 64,
        beam: int = 4,
        alpha: float = 0.6,
        convention: str = "tensor2tensor",
        extra: int = 50,
        lowercase: bool = False,
        tokenize: str = "13a",
        compound_split: bool = False,
        samples: int = 5,
        use_ema: bool = False,
    ):
        """Opens the split.

        Args:
          context: what the run provides.
          data: sentence pairs, as `config.input.data`.
          split: theirs, such as "test_2016_flickr".
          sentences: how many of the longest are translated at a time, of shorter ones more; it affects only
            speed and memory.
          beam: hypotheses a sentence; 4 in the paper. 0 for greedy search.
          alpha: exponent of the length penalty; 0.6 in the paper.
          convention: a name of `vitjax.decoding.conventions`; fairseq's length penalty is another function.
          extra: a translation has at most so many tokens more than its source, 50 in the paper.
          lowercase: whether case is ignored.
          tokenize: sacreBLEU's: `13a`, `intl`, `none`, ...
          compound_split: yield `compound_split_bleu` besides, the tokenised BLEU of the paper's EN-DE.
          samples: examples in `scores.json`, spread over the split.
          use_ema: evaluate the averaged parameters.
        """
        self.task, self.mesh, self.progress, self.use_ema = (
            context.task,
            context.mesh,
            context.progress,
            use_ema,
        )
        text, self.vocabulary = inputs.text_of(context, "bleu")
        for key, value, least in (("sentences", sentences, 1), ("beam", beam, 0), ("extra", extra, 1)):
            if value < least:
                raise errors.UserError(f"{key}={value}: {least} or more.")
        self.options, self.split_compounds = dict(lowercase=lowercase, tokenize=tokenize), compound_split
        corpus_scores.bleu(["a"], [["a"]], **self.options)  # what cannot be scored is better known now
        if compound_split:
            corpus_scores.compound_split_bleu(["a"], [["a"]], language=text.languages[1])
        self.name, self.samples, self.language = f"{data}[{split}]", samples, text.languages[1]
        pairs = text.open_pairs(data, split)
        if not len(pairs):
            raise errors.UserError(f"{self.name} has no sentence to translate.")
        self.sources, self.references = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        self.longest, self.clean = text.length, text.clean
        search = Search(
            method="beam" if beam else "greedy", beam=beam or 1, alpha=alpha, convention=convention,
            extra_length=extra, longest=learned_positions(context.task.model),
        )  # fmt: skip
        self.search, self.sentences = search, sentences
        decoder = Decoder(context.task.model, self.vocabulary, search)
        self.sharding = inputs.batch_sharding(context)
        self._decode_step = inputs.replicated_jit(
            lambda params, model_state, tokens: decoder({"params": params, **model_state}, tokens), context
        )
        self.notes: list[str] = []
        self.documents: dict[str, str] = {}

    def run(self, train_state: Any) -> Iterator[tuple[str, float]]:
        """Translates the split and yields its scores."""
        translations = self.translate(*inputs.weights(train_state, use_ema=self.use_ema))
        hypotheses = [translation.texts[0] for translation in translations]
        cut = sum(translation.cut for translation in translations)
        scores = {
            "bleu": corpus_scores.bleu(hypotheses, [self.references], **self.options),
            "chrf": corpus_scores.chrf(hypotheses, [self.references], lowercase=self.options["lowercase"]),
        }
        if self.split_compounds:
            scores["compound_split_bleu"] = corpus_scores.compound_split_bleu(
                hypotheses, [self.references], language=self.language
            )
        self.notes = [f"{self.name}: {score.formatted} {score.signature}" for score in scores.values()]
        if cut:
            self.notes.append(f"{self.name}: {cut} sources were cut to config.text.length tokens")
        self.documents = {
            "scores.json": self._summary(scores, hypotheses),
            "translations.txt": "".join(f"{line}\n" for line in hypotheses),
        }
        for name, score in scores.items():
            yield name, score.value
        if cut:
            yield "cut", float(cut)

    def translate(self, params: Any, model_state: Any) -> list[Translation]:
        """The translation of each source, in their order; an empty source has an empty one."""

        def decode(tokens: np.ndarray) -> Any:
            with jax.set_mesh(self.mesh):
                placed = jax.make_array_from_callback(
                    tokens.shape, self.sharding, lambda index: tokens[index]
                )
                return self._decode_step(params, model_state, placed)

        translate = Translator(
            decode,
            self.vocabulary,
            longest=self.longest,
            clean=self.clean,
            batch_tokens=self.sentences * self.longest,
            share=inputs.whole_shares(1, self.mesh, self.sharding),
        )
        return translate(self.sources, self.progress)

    def _summary(self, scores: dict[str, corpus_scores.Score], hypotheses: Sequence[str]) -> str:
        count = min(self.samples, len(hypotheses))
        chosen = [i * len(hypotheses) // count for i in range(count)]
        summary = {
            "data": self.name,
            "search": dataclasses.asdict(self.search),
            "scores": {
                name: dict(score=score.value, signature=score.signature, formatted=score.formatted)
                for name, score in scores.items()
            },
            "samples": [
                dict(
                    line=i + 1,
                    source=self.sources[i],
                    reference=self.references[i],
                    translation=hypotheses[i],
                )
                for i in chosen
            ],
        }
        return json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
