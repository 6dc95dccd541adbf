"""Sentence pairs: parallel text files, tables, TFDS. `open_pairs` is the door."""

import bisect
import functools
import gzip
import itertools
import json
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vitjax.data import splits
from vitjax.errors import UserError, nearest

USAGES = {
    "multi30k": "multi30k:DIR",
    "text": "text:SOURCE_FILE,TARGET_FILE",
    "tsv": "tsv:FILE",
    "jsonl": "jsonl:FILE",
    "tfds": "tfds:NAME/CONFIG[:VERSION][@DIR]",
}
# Short names of data sets of TFDS, and the languages they have.
SHORT = {
    "wmt14_de_en": ("tfds:wmt14_translate/de-en", ("de", "en")),
    "wmt14_fr_en": ("tfds:wmt14_translate/fr-en", ("fr", "en")),
}
_GZIP = b"\x1f\x8b"


class Pairs(Sequence[tuple[str, str]]):
    """Sentence pairs `(source, target)`, both stripped of white space at the ends, otherwise as they are.

    An empty line is an empty sentence: pairs stay aligned with the files.

    Attributes:
      name: what messages call them.
      languages: of source and target.
    """

    name: str
    languages: tuple[str, str]

    def describe(self, index: int) -> str:
        """Where a pair stands, for messages."""
        return f"pair {index} of {self.name}"


class FilePairs(Pairs):
    """Two lists of lines of equal length."""

    def __init__(self, name: str, languages: tuple[str, str], sources: Sequence[str], targets: Sequence[str]):
        self.name, self.languages = name, languages
        self._sources, self._targets = sources, targets

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        return self._sources[index].strip(), self._targets[index].strip()


class RecordPairs(Pairs):
    """Pairs of a source whose examples are pairs, such as a prepared TFDS data set."""

    def __init__(self, languages: tuple[str, str], records: Any):
        self.name, self.languages, self._records = records.name, languages, records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        try:
            source, target = self._records[index]
        except OSError as error:
            raise UserError(f"{self.describe(index)} cannot be read: {error}.") from error
        return source.strip(), target.strip()


class SomePairs(Pairs):
    """The pairs `[start, stop)` of one or more, one after another."""

    def __init__(self, name: str, pieces: Sequence[tuple[Pairs, int, int]]):
        self.name, self.languages = name, pieces[0][0].languages
        self._pieces = pieces
        self._ends = list(itertools.accumulate(stop - start for _, start, stop in pieces))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        pairs, index = self._locate(index)
        return pairs[index]

    def _locate(self, index: int) -> tuple[Pairs, int]:
        index = index + len(self) if index < 0 else index
        if not 0 <= index < len(self):
            raise IndexError(f"{index} is not in [0, {len(self)}) of {self.name}")
        which = bisect.bisect_right(self._ends, index)
        pairs, _, stop = self._pieces[which]
        return pairs, stop - (self._ends[which] - index)

    def describe(self, index: int) -> str:
        """Where a pair stands."""
        pairs, index = self._locate(index)
        return pairs.describe(index)


class Lines(Sequence[str]):
    """The lines of a text, held as its bytes: tens of millions of them cost what the file costs.

    Lines end at "\\n" and nowhere else, so a line counts as one for every program that counts so.
    """

    def __init__(self, data: bytes):
        self._data = data
        ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
        self._ends = ends if data.endswith(b"\n") or not data else np.append(ends, len(data))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start = self._ends[index - 1] + 1 if index else 0
        return self._data[start : self._ends[index]].decode()


def open_pairs(spec: str, split: str = "train", languages: Sequence[str] = ("en", "de")) -> Pairs:
    """Opens sentence pairs.

    Args:
      spec: `multi30k:DIR` (files `SPLIT.LANGUAGE[.gz]`), `text:SOURCE_FILE,TARGET_FILE`, `tsv:FILE`,
        `jsonl:FILE`, `tfds:NAME/CONFIG[:VERSION][@DIR]`, or `wmt14_de_en`, `wmt14_fr_en`. Files are UTF-8,
        plain or gzip. Where their names say `{split}` there is a split for each file that is found in its
        place; otherwise the one split is called `train`.
      split: a split or a sum of slices of splits (see `vitjax.data.splits`).
      languages: of source and target. A table whose first line names languages is read by these names, one
        of two columns is taken to have the source first; lines of a JSONL file are objects by language, or
        have one as `translation`.

    Returns:
      `Pairs`, in the order of the files.

    Raises:
      UserError: for an unknown kind, split or language pair, and files that are missing, damaged, of unequal
        length or not UTF-8.
    """
    pair = _two_languages(languages)
    spec = SHORT.get(spec, (spec,))[0]
    kind, _, argument = spec.partition(":")
    if kind not in USAGES or not argument:
        form = f" It should have the form {USAGES[kind]!r}." if kind in USAGES else ""
        raise UserError(
            f"data={spec!r} are no sentence pairs.{form or nearest(kind, [*USAGES, *SHORT])} Kinds: "
            f"{', '.join([*USAGES.values(), *SHORT])}."
        )
    available = _KINDS[kind](argument, pair)
    pieces = splits.parse(split, available)
    opened = {each: available[each]() for each in dict.fromkeys(piece.name for piece in pieces)}
    parts = [(opened[piece.name], *piece.bounds(len(opened[piece.name]))) for piece in pieces]
    if len(parts) == 1 and parts[0][1:] == (0, len(parts[0][0])):
        return parts[0][0]
    return SomePairs(f"{spec}:{split}", parts)


def _two_languages(languages: Sequence[str]) -> tuple[str, str]:
    if len(languages) != 2 or languages[0] == languages[1] or isinstance(languages, str):
        raise UserError(f"languages={languages!r} must be two, of source and target, such as ('en', 'de').")
    return languages[0], languages[1]


Opener = Callable[[], Pairs]


def _multi30k(argument: str, languages: tuple[str, str]) -> dict[str, Opener]:
    folder = pathlib.Path(argument).expanduser()
    if not folder.is_dir():
        raise UserError(f"data='multi30k:{argument}': there is no folder {str(folder)!r}.")
    found: dict[str, dict[str, pathlib.Path]] = {}
    for path in sorted(folder.iterdir()):
        if match := re.fullmatch(r"(?P<split>[\w-]+)\.(?P<language>[a-z]{2,3})(\.gz)?", path.name):
            found.setdefault(match["language"], {}).setdefault(match["split"], path)
    _check_languages(f"multi30k:{argument}", languages, found)
    source, target = (found[language] for language in languages)
    return {
        split: functools.partial(_open_files, f"multi30k:{split}", languages, source[split], target[split])
        for split in source
        if split in target
    }


def _check_languages(data: str, languages: tuple[str, str], there: Any) -> None:
    if lacking := [language for language in languages if language not in there]:
        raise UserError(
            f"data={data!r} has no {' and no '.join(map(repr, lacking))}: it has "
            f"{', '.join(map(repr, sorted(there))) or 'nothing'}. Set config.text.languages to two of these."
        )


def _text(argument: str, languages: tuple[str, str]) -> dict[str, Opener]:
    patterns = argument.split(",")
    if len(patterns) != 2:
        raise UserError(f"data='text:{argument}' should have the form {USAGES['text']!r}, with one comma.")
    source, target = map(_files, patterns)
    if set(source) != set(target):
        raise UserError(
            f"data='text:{argument}': {patterns[0]!r} gives the splits {', '.join(source)}, {patterns[1]!r} "
            f"the splits {', '.join(target)}. Both sides must have the same."
        )
    return {
        split: functools.partial(_open_files, f"text:{path.name}", languages, path, target[split])
        for split, path in source.items()
    }


def _tsv(argument: str, languages: tuple[str, str]) -> dict[str, Opener]:
    return _table(argument, languages, _open_tsv)


def _jsonl(argument: str, languages: tuple[str, str]) -> dict[str, Opener]:
    return _table(argument, languages, _open_jsonl)


def _table(argument: str, languages: tuple[str, str], read: Callable) -> dict[str, Opener]:
    return {split: functools.partial(read, path, languages) for split, path in _files(argument).items()}


def _files(pattern: str) -> dict[str, pathlib.Path]:
    """Files by split: those that `{split}` in the pattern stands for, or the one file as `train`."""
    path = pathlib.Path(pattern.strip()).expanduser()
    if "{split}" not in path.name:
        return {"train": path}
    before, _, after = path.name.partition("{split}")
    found = {}
    for each in sorted(path.parent.iterdir()) if path.parent.is_dir() else ():
        name = each.name[len(before) : len(each.name) - len(after)]
        if each.name == before + name + after and re.fullmatch(r"[\w-]+", name):
            found[name] = each
    if not found:
        raise UserError(f"there is no file like {str(path)!r}, with the name of a split for {{split}}.")
    return found


def _open_files(
    name: str, languages: tuple[str, str], source: pathlib.Path, target: pathlib.Path
) -> FilePairs:
    sources, targets = Lines(read_text(source)), Lines(read_text(target))
    if len(sources) != len(targets):
        raise UserError(
            f"{str(source)!r} has {len(sources):,} lines and {str(target)!r} has {len(targets):,}: line n of "
            "the one must be the translation of line n of the other."
        )
    return FilePairs(name, languages, sources, targets)


def _open_tsv(path: pathlib.Path, languages: tuple[str, str]) -> FilePairs:
    lines = Lines(read_text(path))
    header = [word.strip().lower() for word in lines[0].split("\t")] if lines else []
    named = bool(set(languages) & set(header))
    if named:
        _check_languages(f"tsv:{path}", languages, header)
    columns = [header.index(language) for language in languages] if named else [0, 1]
    width = len(header) if named else 2
    both = []
    for number, line in enumerate(itertools.islice(lines, int(named), None), int(named) + 1):
        cells = line.rstrip("\r").split("\t")
        if len(cells) != width:
            raise UserError(
                f"{str(path)!r}, line {number}: {len(cells)} columns, not {width}, separated "
                "by tabs: source and target, or those that a first line names by language."
            )
        both.append([cells[column] for column in columns])
    return FilePairs(f"tsv:{path.name}", languages, *_sides(both))


def _open_jsonl(path: pathlib.Path, languages: tuple[str, str]) -> FilePairs:
    both = []
    for number, line in enumerate(Lines(read_text(path)), 1):
        try:
            record = json.loads(line)
            record = record.get("translation", record)
            pair = [record[language] for language in languages]
            if not all(isinstance(side, str) for side in pair):
                raise TypeError("a sentence is no string")
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{str(path)!r}, line {number} is not like "
                f'{{"{languages[0]}": "...", "{languages[1]}": "..."}} '
                f'(or that as "translation"): {type(error).__name__} {error}.'
            ) from error
        both.append(pair)
    return FilePairs(f"jsonl:{path.name}", languages, *_sides(both))


def _sides(both: list[list[str]]) -> tuple[list[str], list[str]]:
    return [pair[0] for pair in both], [pair[1] for pair in both]


def _tfds(argument: str, languages: tuple[str, str]) -> Mapping[str, Opener]:
    from vitjax.data.sources import tfds

    data = f"tfds:{argument}"
    prepared = tfds.find(data, argument, _how_to_prepare)
    _check_languages(data, languages, list(prepared.info.features.keys()))
    available = tfds.open_splits(prepared, functools.partial(_pair_of, *languages), ())
    return {split: functools.partial(_open_records, languages, opener) for split, opener in available.items()}


def _open_records(languages: tuple[str, str], opener: Callable[[], Any]) -> RecordPairs:
    return RecordPairs(languages, opener())


def _pair_of(source: str, target: str, features: Mapping[str, Any]) -> Any:
    one = lambda language: features[language].bytes_list.value[0].decode()
    return one(source), one(target)


def _how_to_prepare(name: str, data_dir: pathlib.Path) -> str:
    from vitjax.data.sources import tfds

    return (
        f"Prepare it once with `{tfds.build_command(name, data_dir)}`, which takes `pip install tensorflow`, "
        "and fetches gigabytes, or name the same text as files, one sentence a line, plain or .gz: "
        "data='text:train.en.gz,train.de.gz'."
    )


_KINDS = {"multi30k": _multi30k, "text": _text, "tsv": _tsv, "jsonl": _jsonl, "tfds": _tfds}


def read_text(path: pathlib.Path) -> bytes:
    """The UTF-8 text of a file, plain or gzip, whatever its name, without a byte order mark.

    Raises:
      UserError: it is missing, a damaged archive, or not UTF-8; then the message names the line.
    """
    try:
        data = path.read_bytes()
        if data.startswith(_GZIP):
            data = gzip.decompress(data)
    except FileNotFoundError as error:
        there = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"there is no file {str(path)!r}.{nearest(path.name, there)}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{str(path)!r} cannot be read: {error}. Fetch it again.") from error
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{str(path)!r}, line {line} is not UTF-8 (byte 0x{data[error.start]:02x}: {error.reason}). "
            "Convert the file, for example with iconv -f LATIN1 -t UTF-8."
        ) from error
    return data.removeprefix(b"\xef\xbb\xbf")


def sides(pairs: Pairs, chunk: int = 20_000) -> Iterator[tuple[list[str], list[str]]]:
    """The sources and targets of pairs, so many at a time."""
    for start in range(0, len(pairs), chunk):
        both = pairs[start : start + chunk]
        yield [source for source, _ in both], [target for _, target in both]
