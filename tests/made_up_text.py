"""Pairs of two made-up languages: the second turns the order of words, and the words, of the first round."""

import gzip

import numpy as np

NOUNS = ["tavo", "miru", "solen", "pakka", "ordi", "hesti", "luma", "kivo"]
VERBS = ["sees", "bakes", "lifts", "paints"]
ADJECTIVES = ["red", "öld", "grand", "tiny", "wet"]


def pairs(count, seed=0):
    """`[(source, target)]`, 3 to 12 words on either side."""
    rng = np.random.default_rng(seed)
    return [sentence(rng) for _ in range(count)]


def sentence(rng):
    phrase = lambda: [*rng.choice(ADJECTIVES, rng.integers(0, 4)).tolist(), str(rng.choice(NOUNS))]
    words = [*phrase(), str(rng.choice(VERBS)), *phrase(), "and", *phrase()][: rng.integers(3, 13)]
    return " ".join(words).capitalize() + ".", " ".join(word[::-1] + "ß" for word in words[::-1]) + "!"


def write(folder, count=300, *, compressed=False):
    """Writes `train`, `val`, `test` as Multi30k lies, in languages `aa` and `bb`; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (split, size) in enumerate({"train": count, "val": 20, "test": 10}.items()):
        both = pairs(size, number)
        for side, language in enumerate(("aa", "bb")):
            text = "".join(pair[side] + "\n" for pair in both).encode()
            path = folder / f"{split}.{language}"
            if compressed:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(text))
            else:
                path.write_bytes(text)
    return folder
