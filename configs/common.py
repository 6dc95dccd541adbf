"""What config files share: the argument string after the colon, and the usual splits of a small source.

`configs/augreg.py:vit_s32,aug=light1,epochs=30` - the first bare word is the model, then `key=value`.
"""

import difflib
import pathlib
import types
from typing import Any

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def parse_arg(arg: str | None, **spec: Any) -> types.SimpleNamespace:
    """Parses an argument string against `name=default` pairs.

    The first bare word fills the first entry of the spec; later ones are flags and mean True. A value takes
    the type of its default; with None as default it is a number if it looks like one. `None` is allowed.

    Raises:
      ValueError: an unknown key, a repeated one, or a value of the wrong type.
    """
    values, first = dict(spec), next(iter(spec))
    seen: set[str] = set()
    for position, piece in enumerate(piece.strip() for piece in (arg or "").split(",") if piece.strip()):
        key, equals, text = piece.partition("=")
        if not equals:
            key, text = (first, piece) if position == 0 and key not in spec else (key, "true")
        if key not in spec:
            close = difflib.get_close_matches(key, list(spec), n=1, cutoff=0.5)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"unknown argument {key!r}.{hint} Arguments: {', '.join(spec)}.")
        if key in seen:
            raise ValueError(f"argument {key!r} is given twice.")
        seen.add(key)
        values[key] = _convert(key, text, spec[key])
    return types.SimpleNamespace(**values)


def _convert(key: str, text: str, default: Any) -> Any:
    if text == "None":
        return None
    kind = type(default)
    try:
        if default is None:
            return _number(text)
        if kind is bool:
            if text.lower() not in TRUE + FALSE:
                raise ValueError
            return text.lower() in TRUE
        return kind(text)
    except ValueError:
        raise ValueError(
            f"argument {key}={text} must be of type {kind.__name__}, like {default!r}."
        ) from None


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def choose(what: str, value: Any, table: dict) -> Any:
    """Returns `table[value]`, or raises a ValueError that lists what there is."""
    if value not in table:
        close = difflib.get_close_matches(str(value), [str(key) for key in table], n=1, cutoff=0.4)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown {what} {value!r}.{hint} Known: {', '.join(map(str, table))}.")
    return table[value]


def usual_splits(data: str) -> tuple[str, str]:
    """Returns the splits of a source to train on and to evaluate on: `("train", "test")` for most.

    A folder has `train` beside the first of `val`, `validation` and `test` that is there; without any of them
    nine tenths of it are to train on and the last one is held out.
    """
    kind, _, path = data.partition(":")
    if kind != "folder":
        return "train", "test"
    root = pathlib.Path(path).expanduser()
    held_out = [name for name in ("val", "validation", "test") if (root / name).is_dir()]
    if held_out and (root / "train").is_dir():
        return "train", held_out[0]
    return "train[:90%]", "train[90%:]"


def arg(**values: Any) -> dict[str, Any]:
    """big_vision's `add(lr=0.1, **arg(res=448))`: in a `sweep(add)`, sets arguments of the config file."""
    odd = [f"{key}={value}" for key, value in values.items() if "," in str(value)]
    if odd:
        raise ValueError(f"argument {odd[0]}: an argument cannot hold a comma.")
    return {"config_arg": ",".join(f"{key}={value}" for key, value in values.items()), **values}
