"""Packed pairs as a source: every pair once, nothing lost in silence; and the vocabulary of a run."""

import functools
import pickle
import sys
import types

import made_up_text
import numpy as np
import pytest

from vitjax.data.text import packing
from vitjax.data.text.pairs import FilePairs
from vitjax.data.text.section import Text, open_vocabulary_of
from vitjax.data.text.source import PackedPairs, Tokens, encode
from vitjax.data.text.vocabulary import Vocabulary
from vitjax.errors import UserError

LENGTH = 80


def made_up(both=None):
    both = made_up_text.pairs(120) if both is None else both
    return FilePairs("made up", ("aa", "bb"), *map(list, zip(*both, strict=True)))


@functools.cache
def vocabulary():
    return Vocabulary.train([line for pair in made_up() for line in pair], 100)


@functools.cache
def packed(seed=0):
    return PackedPairs(made_up(), vocabulary(), LENGTH, seed=seed)


def texts(source, index):
    """The pairs of a row, read back from its tokens."""
    row = source[index]
    of = lambda side, k: vocabulary().decode(row[side][row[f"{side}_segments"] == k])
    return [(of("inputs", k), of("targets", k)) for k in range(1, row["inputs_segments"].max() + 1)]


def test_every_pair_is_in_the_row_that_it_is_said_to_be_in():
    source, all_pairs, found = packed(), made_up(), []
    for index in range(len(source)):
        numbers = source.pairs_of(index)
        assert texts(source, index) == [all_pairs[number] for number in numbers.tolist()]
        found += numbers.tolist()
    assert sorted(found) == list(range(120)) and len(source) < 100
    assert source.num_classes == 100 and source.describe(0).startswith("row 0 of made up (pairs ")
    with pytest.raises(IndexError):
        source[len(source)]


def test_rows_are_packed_once_for_a_seed():
    rows = lambda source: [source.pairs_of(i).tolist() for i in range(len(source))]
    again = pickle.loads(pickle.dumps(PackedPairs(made_up(), vocabulary(), LENGTH)))
    assert rows(again) == rows(packed()) != rows(packed(seed=1))
    for key in packing.KEYS:
        assert (again[3][key] == packed()[3][key]).all()


def test_a_pair_to_a_row():
    source = PackedPairs(made_up(), vocabulary(), LENGTH, packed=False)
    assert len(source) == 120 and texts(source, 5) == [made_up()[5]]
    ids = [vocabulary().encode([side])[0] for side in made_up()[5]]
    for key, value in packing.one_row(*ids, LENGTH, vocabulary()).items():
        assert (source[5][key] == value).all()


def test_what_is_left_out_is_counted():
    both = made_up_text.pairs(16)
    both[3], both[4] = ("", both[3][1]), (both[4][0], "")
    both[7] = (both[7][0] * 40, both[7][1])
    exactly = "tavo " * 100
    size = len(vocabulary().encode([exactly.strip()])[0])
    both += [(exactly.strip(), "x")]
    kept = PackedPairs(made_up(both), vocabulary(), size + 1)
    assert kept.counts == (17, 2, 1) and 16 in np.concatenate([kept.pairs_of(i) for i in range(len(kept))])
    source = PackedPairs(made_up(both), vocabulary(), size)
    assert source.counts == (17, 2, 2)
    assert "2 of 17 pairs (11.76%) left out: a side has no text" in source.notes[1]
    assert f"2 of 17 pairs (11.76%) left out: more than config.text.length = {size}" in source.notes[2]
    with pytest.raises(UserError, match="is left of 17: 2 have an empty side, 15 are longer"):
        PackedPairs(made_up(both), vocabulary(), 2)


def test_padding_is_reported():
    source = packed()
    rows = [source[i] for i in range(len(source))]
    real = [sum((row[f"{side}_segments"] > 0).sum() for row in rows) for side in ("inputs", "targets")]
    padding = 1 - sum(real) / (2 * LENGTH * len(rows))
    assert source.tokens == tuple(real) and abs(source.padding - padding) < 1e-9
    assert abs(source.units_per_example - real[1] / len(rows)) < 1e-9
    about = source.about["text"]
    assert about["rows"] == len(rows) and abs(about["padding"] - padding) < 1e-6
    assert (about["pairs"], about["source_tokens"], about["target_tokens"]) == (120, *real)
    assert f"{padding:.1%} padding" in source.notes[0] and len(source.notes) == 1


def test_large_vocabularies_need_wider_numbers():
    ids = np.array([70_000, 1], np.int32)

    class Large:
        eos = 69_999
        encode = staticmethod(lambda lines: [ids for _ in lines])
        __len__ = staticmethod(lambda: 70_001)

    source, _ = encode(made_up(), Large())
    assert source.flat.dtype == np.uint32 and source.flat[:3].tolist() == [70_000, 1, 69_999]
    assert encode(made_up(), vocabulary())[0].flat.dtype == np.uint16


def test_taking_sentences():
    tokens = Tokens(np.arange(9, dtype=np.uint16), np.array([2, 5, 9]))
    taken = tokens.take(np.array([2, 0]))
    assert taken.flat.tolist() == [5, 6, 7, 8, 0, 1] and taken.ends.tolist() == [4, 6]


def test_lower_case_goes_before_the_vocabulary():
    text = Text(("aa", "bb"), vocab_size=60, length=LENGTH, lower=True)
    learnt = text.open_vocabulary(made_up())
    assert not any(learnt.piece(number).strip("▁")[:1].isupper() for number in range(4, 60))
    source = text.open_rows(made_up(), learnt)
    row, pair = source[0], made_up()[source.pairs_of(0)[0]]
    assert learnt.decode(row["inputs"][row["inputs_segments"] == 1]) == pair[0].lower() != pair[0]


def test_the_workdir_keeps_the_vocabulary(tmp_path):
    text = Text(("aa", "bb"), vocab_size=60)
    text.open_vocabulary(made_up(), tmp_path / "other", store=False)
    assert not (tmp_path / "other").exists()
    first = text.open_vocabulary(made_up(), tmp_path / "run")
    assert open_vocabulary_of(tmp_path / "run").checksum == first.checksum
    other = made_up(made_up_text.pairs(50, seed=9))
    assert text.open_vocabulary(other).checksum != first.checksum
    assert text.open_vocabulary(other, tmp_path / "run").checksum == first.checksum
    with pytest.raises(UserError, match=r"has 60 pieces, but config.text.vocab_size = 70"):
        Text(("aa", "bb"), vocab_size=70).open_vocabulary(made_up(), tmp_path / "run")
    with pytest.raises(UserError, match=r"has no vocabulary\.model"):
        open_vocabulary_of(tmp_path)


def test_a_vocabulary_can_be_named(tmp_path):
    vocabulary().write(tmp_path / "my.model")
    text = Text(vocabulary=str(tmp_path / "my.model"))
    for _ in range(2):
        assert text.open_vocabulary(made_up(), tmp_path / "run").checksum == vocabulary().checksum
    Vocabulary.train([line for pair in made_up() for line in pair], 70).write(tmp_path / "my.model")
    with pytest.raises(UserError, match=r"my\.model' is another than .*vocabulary\.model"):
        text.open_vocabulary(made_up(), tmp_path / "run")


def test_few_pairs_may_teach_the_vocabulary():
    lines = list(Text(("aa", "bb"), vocab_pairs=3)._lines(made_up()))
    assert lines == [line for number in (0, 40, 80) for line in made_up()[number]]
    with_gaps = made_up([("a", ""), (" ", "b")])
    assert list(Text(("aa", "bb"))._lines(with_gaps)) == ["a", "b"]


def test_values_out_of_range():
    for options, message in (
        (dict(kind="word"), "config.text.kind = 'word' must be one of bpe, unigram"),
        (dict(length=1), "config.text.length = 1"),
        (dict(vocab_pairs=0), "config.text.vocab_pairs = 0"),
    ):
        with pytest.raises(UserError, match=message):
            Text(**options)


def test_without_sentencepiece(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UserError, match=r"pip install 'vitjax\[translate\]'"):
        Vocabulary.train(["a"], 10)


def test_tfds_pairs_are_read_by_language():
    from vitjax.data.text.pairs import RecordPairs, _pair_of

    feature = lambda text: types.SimpleNamespace(bytes_list=types.SimpleNamespace(value=[text]))
    record = {"de": feature("Löwe ".encode()), "en": feature(b"lion")}
    assert _pair_of("en", "de", record) == ("lion", "Löwe ")

    class Records(list):
        name = "tfds:wmt"

        def __getitem__(self, index):
            if index == 1:
                raise OSError("damaged record")
            return _pair_of("de", "en", record)

    found = RecordPairs(("de", "en"), Records([0, 1]))
    assert found[0] == ("Löwe", "lion")
    with pytest.raises(UserError, match="pair 1 of tfds:wmt cannot be read: damaged record"):
        found[1]
