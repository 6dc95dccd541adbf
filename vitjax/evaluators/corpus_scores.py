"""Scores of translations against references: sacreBLEU's BLEU and chrF, and the BLEU of old papers.

A BLEU says little without its signature: which tokens are counted, whether case matters, how zeros are
smoothed. So every score comes with one. All are scores of a corpus: n-gram counts are summed over the
sentences and then combined; a mean of sentence scores is something else.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from vitjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Score:
    """One score of a corpus.

    Attributes:
      value: from 0 to 100.
      formatted: the score as its library prints it, precisions and lengths included.
      signature: what was measured.
    """

    value: float
    formatted: str
    signature: str


def bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]], **options: Any) -> Score:
    """sacreBLEU's corpus BLEU (Post 2018, arXiv 1804.08771) of detokenised text.

    Args:
      hypotheses: one line a sentence.
      references: one or more lists of as many lines.
      **options: of `sacrebleu.metrics.BLEU`: `lowercase`, `tokenize` (`13a` by default, as WMT has it),
        `smooth_method` and so on.

    Raises:
      UserError: lists of unequal length, an unknown option, or sacreBLEU is not installed.
    """
    _check_lengths(hypotheses, references)
    return _score(bleu_metric(**options), hypotheses, references)


def chrf(hypotheses: Sequence[str], references: Sequence[Sequence[str]], **options: Any) -> Score:
    """sacreBLEU's chrF2 (Popovic 2015): the F-score of character n-grams. Arguments are those of `bleu`."""
    _check_lengths(hypotheses, references)
    return _score(_sacrebleu().CHRF(**options), hypotheses, references)


def bleu_metric(**options: Any) -> Any:
    """The `sacrebleu.metrics.BLEU` of these options; raises UserError as `bleu` does."""
    try:
        return _sacrebleu().BLEU(**options)
    except (TypeError, ValueError, AssertionError, KeyError) as error:
        raise UserError(f"sacreBLEU does not know the options {options}: {error}.") from error


def compound_split_bleu(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, language: str = "de"
) -> Score:
    """Tokenised BLEU with hyphenated compounds split, in which "Attention Is All You Need" reports EN-DE.

    Both sides are Moses-tokenised (sacremoses), their compounds split (`compound_split`), and scored as
    `multi-bleu.perl` does: blanks separate tokens, case matters, nothing is smoothed (tensor2tensor,
    `utils/get_ende_bleu.sh`). It is about half a point to a point above `bleu` for the same text, and is only
    to be compared with figures made in the same way.
    """
    _check_lengths(hypotheses, references)
    tokens = _moses(language)
    prepared = [[compound_split(tokens(line)) for line in lines] for lines in (hypotheses, *references)]
    metric = bleu_metric(tokenize="none", smooth_method="none", force=True)
    score = _score(metric, prepared[0], prepared[1:])
    return dataclasses.replace(score, signature=f"{score.signature}|moses:{language}|compounds:split")


def compound_split(line: str) -> str:
    """Makes hyphens within words tokens of their own: `a-b` becomes `a ##AT##-##AT## b`.

    Left to right and without overlap, as the regular expression of the original does it: of the hyphens
    around a single character only the first is split.
    """
    return re.sub(r"(\S)-(\S)", r"\1 ##AT##-##AT## \2", line)


def _score(metric: Any, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    found = metric.corpus_score(list(hypotheses), [list(lines) for lines in references])
    return Score(float(found.score), str(found), str(metric.get_signature()))


def _check_lengths(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    lengths = [len(lines) for lines in references]
    if not lengths or any(length != len(hypotheses) for length in lengths) or not hypotheses:
        raise UserError(
            f"{len(hypotheses)} translations cannot be scored against references of {lengths} lines: there "
            "must be as many, and one at least."
        )


def _sacrebleu() -> Any:
    try:
        import sacrebleu.metrics
    except ImportError as error:
        raise UserError("BLEU needs sacreBLEU: pip install 'vitjax[translate]'.") from error
    return sacrebleu.metrics


def _moses(language: str) -> Any:
    """`line -> tokens joined by blanks`, as Moses' scripts for punctuation and tokens do it."""
    try:
        from sacremoses import MosesPunctNormalizer, MosesTokenizer
    except ImportError as error:
        raise UserError("compound_split=True needs sacremoses: pip install 'vitjax[translate]'.") from error
    tokenizer, punctuation = MosesTokenizer(language), MosesPunctNormalizer(language)
    return lambda line: tokenizer.tokenize(punctuation.replace_unicode_punct(line), return_str=True)
