"""From lines of text to lines of text, with a model that spells its source backwards."""

import io
import json
import pathlib
import subprocess
import sys

import copying
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax import translate
from vitjax.decoding.decoder import Decoder, Search
from vitjax.decoding.translator import Translator, one_line
from vitjax.errors import UserError


@pytest.fixture(scope="session")
def words():
    return copying.vocabulary()


@pytest.fixture(scope="session")
def workdir(words, tmp_path_factory):
    return copying.leave_a_run(tmp_path_factory.mktemp("copying") / "run", words)


@pytest.fixture
def command(workdir, monkeypatch, capsys):
    """Runs the command line: `(bytes of input, *arguments) -> (exit code, lines of output, messages)`."""

    def run(text, *arguments, workdir=workdir):
        stdin = io.TextIOWrapper(io.BytesIO(text))
        monkeypatch.setattr(sys, "stdin", stdin)
        written = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        monkeypatch.setattr(sys, "stdout", written)
        code = translate.main(["--workdir", str(workdir), *arguments])
        return code, written.buffer.getvalue().decode(), capsys.readouterr().err

    return run


def test_line_n_of_the_output_is_of_line_n_of_the_input(command, words):
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(copying.WORDS, rng.integers(0, 4))) for _ in range(40)]
    lines[3] = lines[11] = ""
    lines[-1] = "ab"  # which no line break follows
    code, out, told = command("\n".join(lines).encode(), "--window", "16", "--batch_tokens", "64")
    assert code == 0
    assert out == "".join(copying.backwards(words, line) + "\n" for line in lines)
    assert f"{lines.count('')} empty" in told and "translated 40 lines" in told


def test_a_line_that_is_too_long_is_cut_named_and_counted(command, words):
    long = " ".join(["abc"] * 30)
    code, out, told = command(f"ab\n{long}\nba".encode())
    kept = words.encode([long])[0][:11]  # and its end: 12 tokens
    assert code == 0
    assert (
        out
        == f"{copying.backwards(words, 'ab')}\n{words.decode(kept[::-1])}\n{copying.backwards(words, 'ba')}\n"
    )
    tokens = len(words.encode([long])[0]) + 1
    assert f"line 2 has {tokens} tokens" in told and "; 1 cut" in told


def test_bad_bytes_are_named_by_line_or_replaced(command):
    code, out, told = command(b"ab\nb\xffa\n")
    assert (code, out) == (2, "")
    assert "line 2 of the input is no UTF-8: byte 2 of it is 0xff" in told and "--on_error replace" in told
    code, out, told = command(b"ab\nb\xffa\n", "--on_error", "replace")
    assert code == 0 and out.count("\n") == 2 and "1 with bytes replaced" in told


def test_n_best_come_with_number_and_score(command, words):
    code, out, _ = command(b"ab\n\nca\n", "--n_best", "3", "--beam", "3")
    rows = [line.split("\t") for line in out.splitlines()]
    assert code == 0
    assert [row[0] for row in rows] == ["1", "1", "1", "2", "3", "3", "3"]
    assert rows[0][2] == copying.backwards(words, "ab") and rows[3][1:] == ["0.000000", ""]
    scores = [float(row[1]) for row in rows]
    assert scores[:3] == sorted(scores[:3], reverse=True) and scores[0] < 0


def test_greedy_and_files(command, words, tmp_path):
    (tmp_path / "in").write_text("ab ba\nca\n")
    paths = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    code, out, _ = command(b"", "--greedy", *paths)
    assert (code, out) == (0, "")
    expected = [copying.backwards(words, line) for line in ("ab ba", "ca")]
    assert (tmp_path / "out").read_text().splitlines() == expected


def test_nothing_in_nothing_out(command):
    code, out, told = command(b"")
    assert (code, out) == (0, "") and "translated 0 lines" in told


@pytest.mark.parametrize(
    "arguments, steps, sure",
    [
        ([], "7", 7),
        (["--checkpoint", "3"], "3", 3),
        (["--checkpoint", "best"], "3", 3),
        (["--average", "2"], "3, 7", 5),
    ],
)
def test_which_parameters_it_is(workdir, words, arguments, steps, sure):
    args = translate.parse(["--workdir", str(workdir), *arguments])
    config = translate.read_config(workdir)
    config.best_metric = "val/bleu"
    variables, told = translate.read_variables(args, config, words)
    np.testing.assert_array_equal(variables["params"]["sure"], [sure])
    assert f"step {steps} of" in told


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--checkpoint", "4"], "there are steps 3, 7"),
        (["--checkpoint", "best"], "no config.best_metric"),
        (["--average", "3"], "there are steps 3, 7"),
        (["--average", "2", "--checkpoint", "3"], "leave out --checkpoint"),
        (["--average", "0"], "--average 0"),
        (["--beam", "0"], "beam=0"),
        (["--n_best", "5"], "--n_best 5"),
        (["--convention", "fairsek"], "Did you mean 'fairseq'"),
        (["--stop", "wurst"], "Did you mean 'worst'"),
        (["--extra_length", "-1"], "extra_length=-1"),
        (["--window", "0"], "--window 0"),
        (["--input", "/nowhere/in"], "No such file"),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(command, arguments, told):
    code, out, messages = command(b"ab\n", *arguments)
    assert (code, out) == (2, "")
    assert messages.startswith("error: ") and told in messages and messages.count("error") == 1


def test_another_vocabulary_is_refused(command, words, tmp_path):
    other = copying.leave_a_run(tmp_path / "other", words, steps=(1,))
    copying.Vocabulary.train(copying.LINES, 17).write(other / "vocabulary.model")
    code, out, told = command(b"ab\n", workdir=other)
    assert (code, out) == (2, "") and "is not the vocabulary that the checkpoint" in told


def test_a_workdir_without_text_checkpoint_or_config_is_refused(command, words, tmp_path):
    code, _, told = command(b"", workdir=tmp_path / "nothing")
    assert code == 2 and "no config.json" in told
    images = copying.leave_a_run(tmp_path / "images", words, text=None)
    code, _, told = command(b"", workdir=images)
    assert code == 2 and "no section 'text'" in told
    empty = copying.leave_a_run(tmp_path / "empty", words, steps=())
    code, _, told = command(b"", workdir=empty)
    assert code == 2 and "holds no checkpoint" in told
    (empty / "vocabulary.model").unlink()
    code, _, told = command(b"", workdir=empty)
    assert code == 2 and "vocabulary.model" in told
    (empty / "config.json").write_text("[")
    code, _, told = command(b"", workdir=empty)
    assert code == 2 and "is not the config of a run" in told


def test_a_reader_that_leaves_and_no_stack_trace(workdir):
    """`... | head -1`: the second window finds nobody who reads."""
    code = (
        "import sys; sys.path[:0] = [sys.argv.pop(1)]; from vitjax import translate; exit(translate.main())"
    )
    here = str(pathlib.Path(copying.__file__).parent)
    arguments = [sys.executable, "-c", code, here, "--workdir", str(workdir), "--window", "1", "--greedy"]
    run = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    run.stdout.close()
    run.stdin.write(b"ab\n" * 3)
    run.stdin.close()
    told = run.stderr.read().decode()
    assert run.wait() == 141
    assert "Traceback" not in told and "BrokenPipe" not in told


def test_ctrl_c_leaves_no_stack_trace(command, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(translate, "translate", interrupt)
    code, out, told = command(b"ab\n")
    assert (code, out) == (130, "") and told.endswith("interrupted\n")


def test_batches_have_few_shapes_and_hold_every_line_once(words):
    translator = Translator(lambda inputs: None, words, longest=40, batch_tokens=160)
    rng = np.random.default_rng(0)
    pieces = {i: np.arange(3, 3 + rng.integers(1, 60)) % 20 + 4 for i in rng.permutation(100).tolist()}
    seen, shapes = [], set()
    for rows, inputs in translator._batches(pieces):
        shapes.add(inputs.shape)
        seen += rows
        for index, row in zip(rows, inputs, strict=False):
            kept = pieces[index][:39]
            expected = [*kept, words.eos]
            assert row[: len(expected)].tolist() == expected and (row[len(expected) :] == words.pad).all()
        assert (inputs[len(rows) :] == words.pad).all()
    assert sorted(seen) == list(range(100))
    assert shapes <= {(10, 16), (8, 16), (1, 16), (5, 32), (1, 32), (4, 40), (1, 40)}


def test_a_search_knows_its_limits():
    assert Search().max_length(16) == 66
    assert Search(longest=20).max_length(16) == 20
    for wrong in (dict(method="beams"), dict(longest=0), dict(beam=0), dict(extra_length=-1), dict(stop="x")):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Search(**wrong)


def test_a_translation_is_one_line():
    assert one_line("a\nb\tc\rd") == "a b c d"


def test_what_comes_to_no_end_is_counted(words, capsys):
    decoder = Decoder(copying.Copying(len(words)), words, Search(method="greedy", extra_length=0, longest=3))
    variables = {"params": {"sure": jnp.ones(1)}}
    translator = Translator(lambda inputs: decoder(variables, inputs), words, longest=12)
    (found,) = translator(["abc cab abc"])
    assert not found.ended and not found.cut
    tally = translate.Tally()
    tally.count(translate.Line("abc"), found)
    tally.finish()
    assert "1 that came to no end" in capsys.readouterr().err


def test_config_json_is_read_as_it_was_written(workdir):
    config = translate.read_config(workdir)
    assert config.text.length == 12 == json.loads((workdir / "config.json").read_text())["text"]["length"]
