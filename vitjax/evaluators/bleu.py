"""BLEU of a model's own translations of one split."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitjax import errors
from vitjax.decoding import beam as beam_search
from vitjax.decoding import conventions, greedy
from vitjax.evaluators import Context, corpus_scores, inputs

SHORTEST = 16  # tokens of the narrowest batch; wider ones have twice as many each


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
          sentences: how many are translated at a time; it affects only speed and memory.
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
        conventions.get(convention)
        self.beam, self.alpha, self.convention, self.extra = beam, alpha, convention, extra
        self.options, self.split_compounds = dict(lowercase=lowercase, tokenize=tokenize), compound_split
        corpus_scores.bleu(["a"], [["a"]], **self.options)  # what cannot be scored is better known now
        if compound_split:
            corpus_scores.compound_split_bleu(["a"], [["a"]], language=text.languages[1])
        self.name, self.samples, self.language = f"{data}[{split}]", samples, text.languages[1]
        pairs = text.open_pairs(data, split)
        if not len(pairs):
            raise errors.UserError(f"{self.name} has no sentence to translate.")
        self.sources, self.references = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        self.length = text.length
        self.tokens, self.cut = self._encode([text.clean(line) for line in self.sources], self.length)
        self.sharding = inputs.batch_sharding(context)
        self.sentences = inputs.whole_shares(sentences, context.mesh, self.sharding)
        self.notes: list[str] = []
        self.documents: dict[str, str] = {}
        self._decode_step = inputs.replicated_jit(self._decode, context)

    def run(self, train_state: Any) -> Iterator[tuple[str, float]]:
        """Translates the split and yields its scores."""
        hypotheses = self.translate(*inputs.weights(train_state, use_ema=self.use_ema))
        scores = {
            "bleu": corpus_scores.bleu(hypotheses, [self.references], **self.options),
            "chrf": corpus_scores.chrf(hypotheses, [self.references], lowercase=self.options["lowercase"]),
        }
        if self.split_compounds:
            scores["compound_split_bleu"] = corpus_scores.compound_split_bleu(
                hypotheses, [self.references], language=self.language
            )
        self.notes = [f"{self.name}: {score.formatted} {score.signature}" for score in scores.values()]
        if self.cut:
            self.notes.append(f"{self.name}: {self.cut} sources were cut to config.text.length tokens")
        self.documents = {
            "scores.json": self._summary(scores, hypotheses),
            "translations.txt": "".join(f"{line}\n" for line in hypotheses),
        }
        for name, score in scores.items():
            yield name, score.value
        if self.cut:
            yield "cut", float(self.cut)

    def translate(self, params: Any, model_state: Any) -> list[str]:
        """The likeliest translation of each source, in their order; an empty source has an empty one."""
        hypotheses = [""] * len(self.tokens)
        batches = list(self._batches())
        for done, (rows, width) in enumerate(batches, 1):
            with jax.set_mesh(self.mesh):
                seqs = self._decode_step(params, model_state, self._batch(rows, width))
            for row, sequence in zip(rows, jax.device_get(seqs), strict=False):
                # A line break within a translation would put all lines behind it in the wrong place.
                hypotheses[row] = " ".join(self.vocabulary.decode(sequence).splitlines())
            if self.progress:
                self.progress(done, len(batches))
        return hypotheses

    def _encode(self, lines: Sequence[str], length: int) -> tuple[list[np.ndarray], int]:
        """Tokens with an end, and how many had to be cut to `length`; no token for an empty line."""
        end = np.array([self.vocabulary.eos], np.int32)
        whole = self.vocabulary.encode(lines)
        cut = [np.concatenate([each[: length - 1], end]) if len(each) else each for each in whole]
        return cut, sum(len(each) >= length for each in whole)

    def _batches(self) -> Iterator[tuple[np.ndarray, int]]:
        """Numbers of sentences that are translated together, and the width of their batch, one of few."""
        lengths = np.array([len(each) for each in self.tokens])
        widths = SHORTEST * 2 ** np.ceil(np.log2(np.maximum(lengths, 1) / SHORTEST)).clip(0).astype(int)
        widths = np.minimum(widths, self.length)
        order = np.argsort(lengths, kind="stable")
        for width in np.unique(widths[lengths > 0]):
            alike = order[(widths[order] == width) & (lengths[order] > 0)]
            for start in range(0, len(alike), self.sentences):
                yield alike[start : start + self.sentences], int(width)

    def _batch(self, rows: np.ndarray, width: int) -> dict[str, jax.Array]:
        """The batch of these sentences on the mesh, filled up with rows of an end alone."""
        tokens = np.full((self.sentences, width), self.vocabulary.pad, np.int32)
        tokens[:, 0] = self.vocabulary.eos
        lengths = np.ones(self.sentences, np.int32)
        for place, row in enumerate(rows):
            lengths[place] = len(self.tokens[row])
            tokens[place, : lengths[place]] = self.tokens[row]
        limits = np.where(np.arange(self.sentences) < len(rows), lengths + self.extra, 0).astype(np.int32)
        segments = (np.arange(width) < lengths[:, None]).astype(np.int32)
        arrays = {"inputs": tokens, "inputs_segments": segments, "limits": limits}
        return {
            key: jax.make_array_from_callback(
                value.shape, self.sharding, lambda index, value=value: value[index]
            )
            for key, value in arrays.items()
        }

    def _decode(self, params: Any, model_state: Any, batch: dict[str, jax.Array]) -> jax.Array:
        """The best hypothesis of each row, tokens `[B, L]`."""
        variables, model = {"params": params, **model_state}, self.task.model
        rows, width = batch["inputs"].shape
        longest = width + self.extra
        encoded = model.apply(variables, batch["inputs"], segments=batch["inputs_segments"], method="encode")
        cache = model.apply(variables, encoded, batch["inputs_segments"], longest, method="start_cache")
        step = lambda tokens, cache: model.apply(variables, tokens, cache, method="decode_step")
        common = dict(
            batch=rows,
            vocab_size=len(self.vocabulary),
            bos=self.vocabulary.bos,
            eos=self.vocabulary.eos,
            pad=self.vocabulary.pad,
            max_length=longest,
            limits=jnp.asarray(batch["limits"]),
        )
        if not self.beam:
            return greedy.search(step, cache, **common).seqs[:, 0]
        found = beam_search.search(
            step, cache, beam=self.beam, alpha=self.alpha, convention=self.convention, **common
        )
        return found.seqs[:, 0]

    def _summary(self, scores: dict[str, corpus_scores.Score], hypotheses: Sequence[str]) -> str:
        count = min(self.samples, len(hypotheses))
        chosen = [i * len(hypotheses) // count for i in range(count)]
        how = dict(beam=self.beam, alpha=self.alpha, convention=self.convention) if self.beam else "greedy"
        summary = {
            "data": self.name,
            "search": how,
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
