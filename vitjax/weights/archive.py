"""Which kind of file it is, told by what it holds: names and suffixes lie, first bytes seldom do."""

import contextlib
import pathlib
import zipfile
from collections.abc import Iterator

from vitjax.errors import UserError
from vitjax.weights.npz import open_npz
from vitjax.weights.pytorch import open_pytorch
from vitjax.weights.safetensors_file import open_safetensors
from vitjax.weights.stored import Archive, from_array
from vitjax.weights.tree import flatten
from vitjax.weights.variables import COLLECTIONS

CHECKPOINT = "vitjax checkpoint"
# Where a checkpoint has what belongs to a subtree of parameters.
_BESIDE = {
    key: tuple(f"{state}/{collection}" for collection in COLLECTIONS)
    for key, state in (("params", "model_state"), ("ema_params", "ema_model_state"))
}
KNOWN = "npz, safetensors, a PyTorch file or a folder of vitjax checkpoints"


@contextlib.contextmanager
def open_archive(path: pathlib.Path, key: str) -> Iterator[Archive]:
    """Opens a file of weights, or a folder of vitjax checkpoints, of which it takes the subtree `key`.

    Raises:
      UserError: it is missing, empty, of no known kind, damaged, or made to do harm.
    """
    if path.is_dir():
        file = path / "model.safetensors"  # what Hugging Face's save_pretrained leaves
        if not file.is_file():
            yield _checkpoint(path, key)
            return
        path = file
    try:
        with open(path, "rb") as f:
            start = f.read(9)
        opener = _opener(path, start)
        with opener(str(path)) as archive:
            if not archive.entries:
                raise UserError(f"{str(path)!r} holds no arrays.")
            yield archive
    except OSError as e:
        raise UserError(f"Cannot read {str(path)!r}: {e.strerror or e}.") from e


def _opener(path: pathlib.Path, start: bytes):
    if not start:
        raise UserError(f"{str(path)!r} is empty: what wrote it was cut short. Fetch it again.")
    if (
        start[8:] == b"{"
    ):  # first, since the length before it may be any bytes; the others never have it there
        return open_safetensors
    if start.startswith(b"PK\x03\x04"):
        return open_pytorch if _is_pytorch(path) else open_npz
    if start.startswith(b"\x80"):  # how a pickle begins; PyTorch's oldest format is one
        return open_pytorch
    raise UserError(f"{str(path)!r} begins with {start[:8]!r}, so it is none of {KNOWN}.")


def _is_pytorch(path: pathlib.Path) -> bool:
    try:
        with zipfile.ZipFile(path) as opened:
            return any(name.rpartition("/")[2] == "data.pkl" for name in opened.namelist())
    except zipfile.BadZipFile:
        return False  # `open_npz` says what is wrong


def _checkpoint(path: pathlib.Path, key: str) -> Archive:
    from vitjax.checkpoint import load_params  # costs the import of Orbax

    inside = path / "checkpoints"
    params = flatten(load_params(inside if inside.is_dir() else path, key, beside=_BESIDE.get(key, ())))
    return Archive(str(path), CHECKPOINT, {n: from_array(n, array) for n, array in params.items()})
