"""The vocabulary gives text back as it was, says which pieces are special, and is a function of its lines."""

import functools
import pickle

import made_up_text
import numpy as np
import pytest

from vitjax.data.text.vocabulary import Vocabulary
from vitjax.errors import UserError

LINES = [line for pair in made_up_text.pairs(200) for line in pair]


@functools.cache
def learnt(kind="bpe", size=60, **options):
    return Vocabulary.train(LINES, size, kind, **options)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_text_comes_back_as_it_was(kind):
    vocabulary = learnt(kind)
    assert len(vocabulary) == 60
    odd = ["Red  tavo.", "", "öld ", " wet", "tavo tavo tavo"]
    for line, ids in zip(LINES + odd, vocabulary.encode(LINES + odd), strict=True):
        assert ids.dtype == np.int32 and not set(ids.tolist()) & {vocabulary.unk, vocabulary.eos}
        assert vocabulary.decode(ids) == line


def test_pieces_join_what_occurs_often():
    ids = learnt(size=100).encode(["red tavo sees"])[0]
    assert len(ids) < 13 and "▁sees" in [learnt(size=100).piece(number) for number in ids]


def test_decoding_ends_at_the_first_end_and_drops_what_is_no_text():
    vocabulary = learnt()
    ids = vocabulary.encode(["red tavo"])[0].tolist()
    pad, eos, bos = vocabulary.pad, vocabulary.eos, vocabulary.bos
    assert len({pad, eos, bos, vocabulary.unk}) == 4
    assert vocabulary.decode([bos, *ids, eos, *ids, pad]) == "red tavo"
    assert vocabulary.decode([*ids[:1], pad, *ids[1:]]) == "red tavo" and vocabulary.decode([eos, *ids]) == ""
    with pytest.raises(UserError, match="piece 60 is none of the 60"):
        vocabulary.decode([60])


def test_text_cannot_spell_the_special_pieces():
    ids = learnt().encode(["</s> <s> <pad>"])[0]
    assert not set(ids.tolist()) & {learnt().pad, learnt().eos, learnt().bos}


def test_bytes_spell_what_the_text_did_not_have():
    line = "red 漢 tavo"
    assert learnt().decode(learnt().encode([line])[0]) != line
    vocabulary = learnt(size=320, byte_fallback=True)
    assert vocabulary.decode(vocabulary.encode([line])[0]) == line


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_same_lines_give_the_same_bytes(kind):
    again = Vocabulary.train(LINES, 60, kind)
    assert again.serialised == learnt(kind).serialised and again.checksum == learnt(kind).checksum
    assert Vocabulary.train(LINES[:100], 60, kind).checksum != again.checksum


def test_kept_and_sent_to_workers(tmp_path):
    learnt().write(tmp_path / "vocabulary.model")
    for other in (
        Vocabulary.read(tmp_path / "vocabulary.model"),
        Vocabulary.from_bytes(learnt().serialised),
        pickle.loads(pickle.dumps(learnt())),
    ):
        assert other.checksum == learnt().checksum and other.decode(other.encode([LINES[0]])[0]) == LINES[0]


def test_special_pieces_are_read_from_the_model():
    import io

    import sentencepiece

    def model(**ids):
        out = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(LINES),
            model_writer=out,
            vocab_size=60,
            model_type="bpe",
            minloglevel=2,
            **ids,
        )
        return out.getvalue()

    other = Vocabulary.from_bytes(model(pad_id=3, unk_id=0, bos_id=1, eos_id=2))
    assert (other.pad, other.eos, other.bos, other.unk) == (3, 2, 1, 0)
    assert other.decode([1, *other.encode(["red"])[0], 2, 5, 3]) == "red"
    with pytest.raises(UserError, match=r"file\.model has no piece for pad"):
        Vocabulary(model(), "file.model")


def test_what_cannot_be_a_vocabulary(tmp_path):
    for size in (30_000, 9, 1):
        with pytest.raises(UserError, match=f"vocab_size={size}"):
            Vocabulary.train(LINES, size)
    with pytest.raises(UserError, match="no text to learn"):
        Vocabulary.train([], 60)
    with pytest.raises(UserError, match=r"kind=.bpw.*Did you mean .bpe"):
        Vocabulary.train(LINES, 60, "bpw")
    for content in (b"", b"rubbish", learnt().serialised[:700]):
        (tmp_path / "x.model").write_bytes(content)
        with pytest.raises(UserError, match=r"x\.model"):
            Vocabulary.read(tmp_path / "x.model")
    with pytest.raises(UserError, match=r"none\.model.*No such file"):
        Vocabulary.read(tmp_path / "none.model")
