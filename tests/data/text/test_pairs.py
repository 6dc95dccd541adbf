"""Sentence pairs out of every kind of file, aligned to the line, and what is said of files that are not."""

import gzip
import json

import made_up_text
import pytest

from vitjax.data.text.pairs import open_pairs
from vitjax.errors import UserError

LANGUAGES = ("aa", "bb")
PAIRS = made_up_text.pairs(30)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_folder_like_multi30k(tmp_path, compressed):
    folder = made_up_text.write(tmp_path / "m", 30, compressed=compressed)
    found = open_pairs(f"multi30k:{folder}", "train", LANGUAGES)
    assert list(found) == PAIRS and len(found) == 30 and found.languages == LANGUAGES
    assert found[-1] == PAIRS[-1] and found[3:5] == PAIRS[3:5]
    turned = open_pairs(f"multi30k:{folder}", "train", LANGUAGES[::-1])
    assert turned[4] == PAIRS[4][::-1]
    some = open_pairs(f"multi30k:{folder}", "train[:10%]+test+train[90%:]", LANGUAGES)
    assert list(some) == PAIRS[:3] + made_up_text.pairs(10, 2) + PAIRS[27:]
    assert some.describe(13).startswith("pair 27 of multi30k:train") and some[12:14][1] == PAIRS[27]
    with pytest.raises(IndexError):
        some[16]
    with pytest.raises(UserError, match=r"'tset'.*Did you mean 'test'"):
        open_pairs(f"multi30k:{folder}", "tset", LANGUAGES)
    with pytest.raises(UserError, match=r"no 'cc': it has 'aa', 'bb'.*config.text.languages"):
        open_pairs(f"multi30k:{folder}", "train", ("aa", "cc"))


def test_text_files(tmp_path):
    for side, name in enumerate(("x.en", "x.de.gz")):
        text = "".join(pair[side] + "\r\n" for pair in PAIRS).encode()
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else b"\xef\xbb\xbf" + text)
    assert list(open_pairs(f"text:{tmp_path}/x.en,{tmp_path}/x.de.gz")) == PAIRS
    with pytest.raises(UserError, match=r"there is no file .*x\.dee.*Did you mean 'x\."):
        open_pairs(f"text:{tmp_path}/x.en,{tmp_path}/x.dee")
    with pytest.raises(UserError, match="one comma"):
        open_pairs(f"text:{tmp_path}/x.en")


def test_splits_by_name(tmp_path):
    folder = made_up_text.write(tmp_path, 30)
    spec = f"text:{folder}/{{split}}.aa,{folder}/{{split}}.bb"
    assert list(open_pairs(spec, "train")) == PAIRS and len(open_pairs(spec, "val+test")) == 30
    (folder / "test.bb").unlink()
    with pytest.raises(UserError, match="Both sides must have the same"):
        open_pairs(spec, "train")
    with pytest.raises(UserError, match="no file like"):
        open_pairs(f"tsv:{folder}/x.{{split}}.tsv")


def test_lines_end_at_newlines_only(tmp_path):
    odd = ["a\u2028b", "c\x0bd\x0ce", "f\x85g\rh", "", "\u00a0i\t"]
    (tmp_path / "a").write_text("\n".join(odd), encoding="utf-8", newline="")
    (tmp_path / "b").write_text("1\n2\n3\n4\n5\n")
    found = list(open_pairs(f"text:{tmp_path}/a,{tmp_path}/b"))
    assert [target for _, target in found] == list("12345")
    assert [source for source, _ in found] == [line.strip() for line in odd]


def test_tables(tmp_path):
    two = tmp_path / "two.tsv"
    two.write_text("".join(f"{a}\t{b}\n" for a, b in PAIRS))
    assert list(open_pairs(f"tsv:{two}")) == PAIRS
    named = tmp_path / "named.tsv"
    named.write_text("id\tDE\ten\n" + "".join(f"{i}\t{b}\t{a}\n" for i, (a, b) in enumerate(PAIRS)))
    assert list(open_pairs(f"tsv:{named}")) == PAIRS
    with pytest.raises(UserError, match="no 'fr'"):
        open_pairs(f"tsv:{named}", languages=("en", "fr"))
    two.write_text("a\tb\nc\n")
    with pytest.raises(UserError, match=r"two\.tsv', line 2: 1 columns, not 2"):
        open_pairs(f"tsv:{two}")


def test_lines_of_json(tmp_path):
    path = tmp_path / "train.jsonl"
    records = [{"en": a, "de": b} for a, b in PAIRS]
    records[1::2] = [{"id": 1, "translation": record} for record in records[1::2]]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert list(open_pairs(f"jsonl:{tmp_path}/{{split}}.jsonl")) == PAIRS
    for line in ("{", "[1]", '{"en": "a"}', '{"en": "a", "de": 3}', "[" * 100_000):
        path.write_text('{"en": "a", "de": "b"}\n' + line + "\n")
        with pytest.raises(UserError, match=r"train\.jsonl', line 2 is not like"):
            open_pairs(f"jsonl:{path}")


def test_files_that_are_no_pairs(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("1\n2\n3\n")
    b.write_text("1\n2\n")
    with pytest.raises(UserError, match=r"a' has 3 lines and .*b' has 2"):
        open_pairs(f"text:{a},{b}")
    b.write_bytes(b"1\n2\n\xe4h\n")
    with pytest.raises(UserError, match=r"b', line 3 is not UTF-8 \(byte 0xe4"):
        open_pairs(f"text:{a},{b}")
    b.write_bytes(gzip.compress(b"1\n2\n3\n" * 100)[:-20])
    with pytest.raises(UserError, match="b' cannot be read"):
        open_pairs(f"text:{a},{b}")
    with pytest.raises(UserError, match="there is no folder"):
        open_pairs(f"multi30k:{tmp_path}/nowhere")
    with pytest.raises(UserError, match="holds no examples"):
        b.write_bytes(b"")
        open_pairs(f"text:{b},{b}")


@pytest.mark.parametrize(
    "spec, message",
    [
        ("multi30", "Did you mean 'multi30k'"),
        ("multi30k", "should have the form 'multi30k:DIR'"),
        ("digits", "are no sentence pairs.*wmt14_de_en"),
    ],
)
def test_names_that_are_no_pairs(spec, message):
    with pytest.raises(UserError, match=message):
        open_pairs(spec)


def test_two_languages():
    for languages in (("en",), ("en", "en"), "en"):
        with pytest.raises(UserError, match="must be two"):
            open_pairs("multi30k:x", languages=languages)
