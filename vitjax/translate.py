"""The command line: `python -m vitjax.translate --workdir W < in.txt > out.txt`.

Line N of the output is the translation of line N of the input, always: an empty line stays empty, and one
that is too long is cut, named and counted. What is not a translation goes to standard error.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any

import ml_collections

from vitjax import files
from vitjax.errors import UserError
from vitjax.host_memory import jax_runs_on_cpu, keep_freed_memory
from vitjax.main import Parser, keep_compiled_programs, set_matmul_precision

if TYPE_CHECKING:
    from vitjax.decoding.translator import Translation, Translator

WINDOW = 1024  # lines that are sorted by length together
REPORT_SECONDS = 10.0  # between two lines on progress, where standard error is no terminal
EPILOG = """\
examples:
  python -m vitjax.translate --workdir runs/small < test.en > test.de
  python -m vitjax.translate --workdir runs/small --beam 5 --alpha 1 --convention fairseq < test.en > test.de
  python -m vitjax.translate --workdir runs/base --average 5 --input test.en --output test.de
  python -m vitjax.translate --workdir runs/small --n_best 4 < test.en     line number, score, text
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns 0; 2 for a mistake of the user's own; as shells have it, 130 after Ctrl-C, and 141 if nobody reads
    the output any more.
    """
    try:
        return run(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Python would try once more to write what is left when it ends, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def run(argv: Sequence[str]) -> int:
    """Parses the command line, restores the model and translates."""
    args = parse(argv)
    with contextlib.ExitStack() as opened:
        source = opened.enter_context(open_input(args.input))
        keep_compiled_programs()
        if jax_runs_on_cpu():
            keep_freed_memory()
        translator = open_translator(args)
        out = sys.stdout.buffer
        if args.output:
            out = opened.enter_context(files.replacing(args.output))
        window = args.window or (1 if source.isatty() else WINDOW)
        translate(translator, read_lines(source, args.on_error), out, window=window, n_best=args.n_best)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(prog="python -m vitjax.translate", epilog=EPILOG, allow_abbrev=False,
                    description="Translates lines of text with the model of a workdir.",
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add("--workdir", required=True, type=pathlib.Path, metavar="DIR", help="of the run that was trained")
    add("--input", metavar="FILE", help="lines of UTF-8 (default: standard input)")
    add("--output", metavar="FILE", help="appears when all is done (default: standard output, as it comes)")
    add(
        "--checkpoint",
        default="newest",
        metavar="WHICH",
        help="newest, best (by config.best_metric) or a step",
    )
    add(
        "--average", type=int, default=1, metavar="N", help="mean of the parameters of the last N checkpoints"
    )
    add("--greedy", action="store_true", help="the likeliest token at every step, and no beam")
    add("--beam", type=int, default=4, help="hypotheses that are followed (default: 4)")
    add("--alpha", type=float, default=0.6, help="exponent of the length penalty (default: 0.6)")
    add("--convention", default="tensor2tensor", help="tensor2tensor (default) or fairseq, see docs")
    add(
        "--stop", help="when a search is done: worst, best, full or never (default: as the convention has it)"
    )
    add("--extra_length", type=int, default=50, metavar="N", help="tokens a translation may have more (50)")
    add("--n_best", type=int, default=0, metavar="N", help="the N best, one a line with number and score")
    add("--batch_tokens", type=int, default=4096, metavar="N", help="tokens of sources in a batch (4096)")
    add("--window", type=int, metavar="N", help=f"lines sorted together (default: {WINDOW}; typed in: 1)")
    add("--on_error", default="raise", choices=("raise", "replace"), help="at a line that is no UTF-8")
    args = parser.parse_args(argv)
    for name in ("average", "batch_tokens", "window"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: 1 or more.")
    if args.n_best < 0 or args.n_best > (1 if args.greedy else args.beam):
        raise UserError(f"--n_best {args.n_best}: at most as many as there are beams (--beam {args.beam}).")
    return args


def open_input(path: str | None) -> Any:
    """Bytes of the input as a context."""
    if path is None:
        return contextlib.nullcontext(sys.stdin.buffer)
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"--input {path!r}: {error.strerror or error}.") from error


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the input: its text, and whether bytes of it were replaced."""

    text: str
    replaced: bool = False


def read_lines(stream: Iterable[bytes], on_error: str = "raise") -> Iterator[Line]:
    """Lines without their ends. UserError, or U+FFFD for each bad byte if `on_error` is "replace"."""
    for number, raw in enumerate(stream, start=1):
        raw = raw.removesuffix(b"\n")
        try:
            yield Line(raw.decode())
        except UnicodeDecodeError as error:
            if on_error == "raise":
                raise UserError(
                    f"line {number} of the input is no UTF-8: byte {error.start + 1} of it is "
                    f"0x{raw[error.start]:02x}. Convert the file (iconv -t UTF-8), or add --on_error replace."
                ) from error
            yield Line(raw.decode(errors="replace"), replaced=True)


def translate(
    translator: "Translator", lines: Iterator[Line], out: IO[bytes], *, window: int = WINDOW, n_best: int = 0
) -> "Tally":
    """Writes the translation of each line to `out`, in order, one window after another."""
    tally = Tally()
    while taken := list(itertools.islice(lines, window)):
        for line, found in zip(taken, translator([line.text for line in taken]), strict=True):
            tally.count(line, found)
            out.write(shown(tally.lines, found, n_best).encode())
        out.flush()
        tally.report()
    tally.finish()
    return tally


def shown(number: int, found: "Translation", n_best: int) -> str:
    """A translation as it is written: a line; with `n_best`, lines `number, score, text` split by tabs."""
    if not n_best:
        return f"{found.texts[0]}\n"
    best = list(zip(found.scores, found.texts, strict=True))[:n_best]
    return "".join(f"{number}\t{score:.6f}\t{text}\n" for score, text in best)


class Tally:
    """What has been translated so far, told on standard error."""

    def __init__(self):
        self.lines = self.empty = self.cut = self.replaced = self.endless = 0
        self._start = self._told = time.monotonic()
        self._live = sys.stderr.isatty()

    def count(self, line: Line, found: "Translation") -> None:
        """Takes one line, and names it if it was cut."""
        self.lines += 1
        self.empty += not found.tokens
        self.cut += found.cut
        self.replaced += line.replaced
        self.endless += not found.ended
        if found.cut:
            self._say(
                f"warning: line {self.lines} has {found.tokens} tokens, more than the model was trained on: "
                "its end was cut off before it was translated. Split it into sentences."
            )

    def report(self) -> None:
        """Tells how far it is: in place on a terminal, elsewhere a line every ten seconds."""
        now = time.monotonic()
        if self._live:
            print(f"\r{self._rate(now)} ", end="", file=sys.stderr, flush=True)
        elif now - self._told >= REPORT_SECONDS:
            self._told = now
            self._say(self._rate(now))

    def finish(self) -> None:
        """Tells the counts."""
        counts = {
            "empty": self.empty,
            "cut": self.cut,
            "with bytes replaced": self.replaced,
            "that came to no end within their limit": self.endless,
        }
        told = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
        self._say(self._rate(time.monotonic()) + (f"; {told}" if told else ""))

    def _rate(self, now: float) -> str:
        return f"translated {self.lines:,} lines, {self.lines / max(now - self._start, 1e-9):.1f} a second"

    def _say(self, text: str) -> None:
        print(("\r" if self._live else "") + text, file=sys.stderr, flush=True)


def open_translator(args: argparse.Namespace) -> "Translator":
    """The translator that the workdir holds. UserError if it is none of a run on text."""
    config = read_config(args.workdir)
    set_matmul_precision(config)

    import jax

    from vitjax import config as config_lib
    from vitjax import models
    from vitjax.data.text.section import Text, open_vocabulary_of
    from vitjax.decoding.decoder import Decoder, Search, learned_positions
    from vitjax.decoding.translator import Translator

    if config.get("text") is None:
        raise UserError(f"{str(args.workdir)!r} is no run on text: its config has no section 'text'.")
    text = Text(**config_lib.bind(Text, config_lib.plain(config.text), "text"))
    vocabulary = open_vocabulary_of(args.workdir)
    options = config_lib.plain(config.model)
    model = models.create(options.pop("name"), num_classes=len(vocabulary), **options)
    if not hasattr(model, "decode_step"):
        raise UserError(
            f"{str(args.workdir)!r} holds a {type(model).__name__}, which cannot decode: name the workdir of "
            "a translation run."
        )
    search = Search(
        method="greedy" if args.greedy else "beam",
        beam=args.beam,
        alpha=args.alpha,
        convention=args.convention,
        stop=args.stop,
        extra_length=args.extra_length,
        longest=learned_positions(model),
    )
    variables, described = read_variables(args, config, vocabulary)
    print(f"{' -> '.join(text.languages)}: {described}", file=sys.stderr)
    decode, variables = jax.jit(Decoder(model, vocabulary, search)), jax.device_put(variables)
    return Translator(
        lambda inputs: decode(variables, inputs),
        vocabulary,
        longest=text.length,
        clean=text.clean,
        batch_tokens=args.batch_tokens,
    )


def read_config(workdir: pathlib.Path) -> ml_collections.ConfigDict:
    """The config that a run left in its workdir."""
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"--workdir {str(workdir)!r} is no workdir of a run: there is no config.json in it.")
    try:
        return ml_collections.ConfigDict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{str(path)!r} is not the config of a run: {error}.") from error


def read_variables(
    args: argparse.Namespace, config: ml_collections.ConfigDict, vocabulary: Any
) -> tuple[dict[str, Any], str]:
    """Variables of the chosen checkpoints, and where they are from. The moving average, where there is one.

    Raises:
      UserError: there are no such checkpoints, or they are of another vocabulary.
    """
    import jax
    import numpy as np

    from vitjax import checkpoint_files
    from vitjax.checkpoint import load_params

    paths = chosen(args, config)
    try:
        record = checkpoint_files.read_record(paths[-1])
    except checkpoint_files.DamagedError as error:
        raise UserError(
            f"The checkpoint {paths[-1]} is damaged: {error}. Take another with --checkpoint STEP."
        ) from error
    trained_with = record["fingerprint"].get("text.vocabulary.checksum")
    if trained_with not in (None, vocabulary.checksum):
        raise UserError(
            f"{str(args.workdir / 'vocabulary.model')!r} is not the vocabulary that the checkpoint "
            f"{paths[-1]} was trained with: its checksum is {vocabulary.checksum[:12]}, and was "
            f"{trained_with[:12]}. Put back the file of that run; with another every word would be taken for "
            "another one."
        )
    roots = {name.split("/")[0] for name in record["leaves"]}
    key, state = ("ema_params", "ema_model_state") if "ema_params" in roots else ("params", "model_state")
    trees = [load_params(path, key) for path in paths]
    mean = lambda *leaves: np.mean(leaves, axis=0, dtype=np.float64).astype(leaves[0].dtype)
    params = trees[0] if len(trees) == 1 else jax.tree.map(mean, *trees)
    beside = load_params(paths[-1], state) if state in roots else {}
    steps = ", ".join(path.name for path in paths)
    return {"params": params, **beside}, f"{key} of step {steps} of {args.workdir}"


def chosen(args: argparse.Namespace, config: ml_collections.ConfigDict) -> list[Any]:
    """The folders of the checkpoints that are asked for, the newest last."""
    from vitjax import checkpoint_files

    folder = checkpoint_files.absolute(args.workdir / "checkpoints")
    there = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    steps = sorted(int(name) for name in there if name.isdecimal())
    listed = f"there are steps {', '.join(map(str, steps))}" if steps else "there are none"
    if not steps:
        raise UserError(f"{str(args.workdir)!r} holds no checkpoint to translate with: train there first.")
    if args.average > 1:
        if args.checkpoint != "newest":
            raise UserError(f"--average {args.average} takes the newest: leave out --checkpoint.")
        if len(steps) < args.average:
            raise UserError(
                f"--average {args.average}: {listed} in {folder}. A run keeps more with config.keep_last, or "
                "config.keep_ckpt_steps."
            )
        return [folder / str(step) for step in steps[-args.average :]]
    if args.checkpoint == "newest":
        return [folder / str(steps[-1])]
    if args.checkpoint == "best":
        return [best_of([folder / str(step) for step in steps], config.to_dict().get("best_metric"))]
    if args.checkpoint not in map(str, steps):
        raise UserError(f"--checkpoint {args.checkpoint}: newest, best, or a step; {listed} in {folder}.")
    return [folder / args.checkpoint]


def best_of(paths: Sequence[Any], best_metric: str | None) -> Any:
    """The checkpoint with the best value of `config.best_metric`; of equals the newer."""
    from vitjax import checkpoint_files

    if not best_metric:
        raise UserError("--checkpoint best: the run has no config.best_metric to tell which that is.")
    mode, _, name = best_metric.rpartition(":")
    found = []
    for path in paths:
        with contextlib.suppress(checkpoint_files.DamagedError):
            value = checkpoint_files.read_record(path)["metrics"].get(name)
            if value is not None and value == value:  # which NaN is not
                found.append((-value if mode == "min" else value, int(path.name), path))
    if not found:
        raise UserError(f"--checkpoint best: no checkpoint has a value of {name!r} (config.best_metric).")
    return max(found)[2]


if __name__ == "__main__":
    sys.exit(main())
