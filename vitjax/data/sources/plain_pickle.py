"""Pickles of plain data, read without unpickling: nothing is looked up by name and nothing is called.

A pickle is a program for a stack machine. `load_dict` runs the few instructions that numbers, strings, lists,
dicts and NumPy arrays of numbers are written with, by Python 2 as well as 3, and makes the arrays itself. Any
other instruction and any other name ends the reading, so that a file from somewhere else can do no harm.
"""

import pickletools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

# The names in pickles of NumPy arrays, and of bytes written by Python 3 for Python 2.
_ARRAY = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
_NAMES = (*_ARRAY, "numpy ndarray", "numpy dtype", "_codecs encode")
_DTYPE = re.compile(r"[|<>=]?[biuf][1248]")

# Instructions that put their argument on the stack, and those that put a constant there.
_ARGUMENTS = (
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "SHORT_BINSTRING",
    "BINSTRING",
    "BINUNICODE",
)
_ARGUMENTS += ("SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8")
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class _Name(str):
    """A name of a module's attribute, which is never looked up."""


class _Type:
    """A dtype in the making: the byte order comes after its name."""

    def __init__(self, code: Any):
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise ValueError(f"it has an array of {code!r}, not of numbers")
        self.dtype = np.dtype(code)

    def build(self, state: Any) -> None:
        """Takes `(version, byte order, ...)`."""
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array in the making: it begins empty and is then given its state."""

    def __init__(self):
        self.array: np.ndarray | None = None

    def build(self, state: Any) -> None:
        """Takes `(version, shape, dtype, column-major, bytes)`."""
        _, shape, kind, column_major, data = state
        values = np.frombuffer(_bytes(data), kind.dtype)
        self.array = values.reshape(shape, order="F" if column_major else "C")


def load_dict(data: bytes) -> dict[str, Any]:
    """Returns the dict in a pickle, its keys as strings; arrays are read-only.

    Strings of Python 2 become `str`, byte for byte (Latin-1).

    Raises:
      ValueError: what is in it beside plain data, or what is damaged; nothing in it has been run.
    """
    try:
        value = _run(pickletools.genops(data))
    except (IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is no whole pickle of plain data ({type(error).__name__}: {error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not a dict")
    return {_key(key): item.array if isinstance(item, _Array) else item for key, item in value.items()}


def _key(key: Any) -> str:
    return key.decode("latin-1") if isinstance(key, bytes) else str(key)


def _bytes(data: Any) -> bytes:
    if isinstance(data, str):
        return data.encode("latin-1")
    if not isinstance(data, bytes):
        raise ValueError(f"it has an array of {type(data).__name__}, not of numbers")
    return data


def _run(program: Iterator[tuple[Any, Any, int | None]]) -> Any:
    """Runs a pickle's instructions and returns what they leave on the stack."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for instruction, argument, _ in program:
        match instruction.name:
            case name if name in _ARGUMENTS:
                stack.append(argument)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "PROTO" | "FRAME":
                pass
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case "MARK":
                marks.append(len(stack))
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                items = tuple(stack.pop() for _ in range(int(name[-1])))
                stack.append(items[::-1])
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS":
                items = since_mark()
                stack[-1].extend(items)
            case "SETITEM":
                item, key = stack.pop(), stack.pop()
                stack[-1][key] = item
            case "SETITEMS":
                items = since_mark()
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "GLOBAL":
                stack.append(_allowed(argument))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(_allowed(f"{module} {attribute}"))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_made(stack.pop(), arguments))
            case "BUILD":
                state = stack.pop()
                stack[-1].build(state)
            case "STOP":
                return stack.pop()
            case name:
                raise ValueError(f"it has the instruction {name}, which plain data has no need of")
    raise ValueError("it ends too early")


def _allowed(name: str) -> _Name:
    if name not in _NAMES:
        raise ValueError(f"it asks for {name.replace(' ', '.')!r}, which plain data has no need of")
    return _Name(name)


def _made(name: Any, arguments: Any) -> Any:
    """What a call of `name` would have made; only names that stand for data have a meaning."""
    if isinstance(name, _Name) and name in _ARRAY:
        return _Array()
    if isinstance(name, _Name) and name == "numpy dtype":
        return _Type(arguments[0])
    if isinstance(name, _Name) and name == "_codecs encode" and arguments[1] == "latin1":
        return arguments[0].encode("latin-1")
    raise ValueError(f"it calls {str(name)!r}, which plain data has no need of")
