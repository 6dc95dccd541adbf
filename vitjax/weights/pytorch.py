"""PyTorch's own files, through its weights-only loader: they are pickles, and nothing else may open them."""

import contextlib
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vitjax.errors import UserError
from vitjax.weights.stored import BFLOAT16, Archive, Stored, printable


@contextlib.contextmanager
def open_pytorch(path: str) -> Iterator[Archive]:
    """Opens a state dict, or nested dicts of them: their keys are joined by `/`.

    Raises:
      UserError: torch is not installed, or its weights-only loader refuses the file.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise UserError(
            f"{path!r} is a PyTorch file, a pickle, which only PyTorch's weights-only loader may open: pip"
            " install torch, or save the weights as safetensors."
        ) from e
    try:
        # Only the zip format can be mapped.
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as e:  # whatever it is, the file is not opened in any other way
        # What PyTorch says is not told: it goes on to advise opening the file in spite of it.
        raise UserError(
            f"PyTorch's weights-only loader refuses {path!r} ({type(e).__name__}), and nothing else here"
            " opens it: it is damaged, or holds more than tensors. Save its state dict as safetensors."
        ) from e
    entries: dict[str, Stored] = {}
    if isinstance(found, Mapping):
        for name, tensor in _tensors(found):
            entries[name] = _entry(torch, path, name, tensor)
    if not entries:
        raise UserError(f"{path!r} holds no dict of tensors. Save a state dict.")
    yield Archive(path, "PyTorch", entries)


def _tensors(tree: Mapping[Any, Any], prefix: str = "", depth: int = 8) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            if depth:  # a pickle can hold a dict that holds itself
                yield from _tensors(value, f"{prefix}{key}/", depth - 1)
        elif hasattr(value, "untyped_storage"):
            yield f"{prefix}{key}", value


def _entry(torch: Any, path: str, name: str, tensor: Any) -> Stored:
    kind = str(tensor.dtype).removeprefix("torch.")
    try:
        dtype = BFLOAT16 if kind == "bfloat16" else np.dtype(kind)
    except TypeError:
        dtype = None
    if dtype is None or tensor.layout != torch.strided:
        raise UserError(
            f"{printable(name)} in {path!r} is a tensor of {kind}, {tensor.layout}: not supported."
        )

    def fill(buffer):
        buffer[:] = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()

    return Stored(name, tuple(tensor.shape), dtype, fill)
