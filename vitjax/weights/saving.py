"""Our parameters as files: npz and safetensors, by our names, the AugReg collection's or timm's."""

import json
import os
import pathlib
import zipfile
from collections.abc import Collection, Mapping
from typing import Any, BinaryIO

import numpy as np

from vitjax import files
from vitjax.errors import UserError, nearest
from vitjax.weights import (
    binaryvit_names,
    flax_names,
    pit_names,
    reactnet_names,
    spt_lsa_names,
    swin_names,
    timm_cait_names,
    timm_cnn_names,
    timm_names,
)
from vitjax.weights.stored import is_float
from vitjax.weights.tree import flatten, is_stacked, nest, of_block

FORMATS = ("npz", "safetensors")
NAMES = ("vitjax", "augreg", "timm", "spt_lsa")


def save(
    path: str | os.PathLike, params: Mapping[str, Any], *, format: str | None = None, names: str = "vitjax"
) -> None:
    """Writes parameters, in float32, to a file that appears whole or not at all.

    `load` gives them back bit for bit, and equal parameters make equal files.

    Args:
      path: what is there is replaced.
      params: nested, blocks in a loop or stacked; of a network with batch statistics, those among the
        parameters (`variables.join`).
      format: `npz` or `safetensors`; by default what the path ends in.
      names: `vitjax`: our own, which are those of Linen and big_vision, blocks as they are. `augreg`: those
        of the AugReg collection, from before Linen. `timm`: PyTorch names and layouts. `spt_lsa`: the same,
        as the official code of the small-dataset paper has them. All but the first have their blocks in a
        loop. Whether positions have an entry for the class token is left as it is.

    Raises:
      UserError: a wrong format or naming, no name for a parameter there, no float32, or no room on the disk.
    """
    format = check(path, format, names)
    arrays = _named(flatten(params), names)
    write = _write_npz if format == "npz" else _write_safetensors
    with files.replacing(path) as file:
        write(file, arrays, {"format": "pt"} if names in ("timm", "spt_lsa") else {})


def check(path: str | os.PathLike, format: str | None, names: str) -> str:
    """Returns the format. UserError if it, or the naming, is none that can be written."""
    format = pathlib.Path(path).suffix.removeprefix(".") if format is None else format
    for key, value, valid in (("format", format, FORMATS), ("names", names, NAMES)):
        if value not in valid:
            raise UserError(
                f"{key}={value!r}, for {os.fspath(path)!r}, is none of {', '.join(valid)}."
                f"{nearest(value, valid)}"
            )
    return format


def _named(params: Mapping[str, Any], names: str) -> dict[str, np.ndarray]:
    flat = {name: _float32(name, array) for name, array in params.items()}
    if names == "vitjax":
        return flat
    if binary := reactnet_names.layout(flat):
        raise UserError(f"names={names!r} has none for a {binary}: names='vitjax' has.")
    loop: dict[str, np.ndarray] = {}
    for name, array in flat.items():
        if is_stacked(name):
            loop |= {of_block(name, i): part for i, part in enumerate(array)}
        else:
            loop[name] = array
    if names == "timm":
        return timm_names.to_timm(nest(loop), table=_table(loop))
    if names == "spt_lsa":
        return timm_names.to_timm(nest(loop), table=_spt_lsa_table(loop), whose="SPT_LSA_ViT")
    if binaryvit_names.is_ours(loop):
        raise UserError("A BinaryViT has no names in 'augreg': write it with names='vitjax'.")
    if timm_cnn_names.table_of(loop) or swin_names.is_ours(loop) or pit_names.is_ours(loop):
        raise UserError("names='augreg' are those of Vision Transformers; this network has them in 'timm'.")
    return {flax_names.to_augreg(name): array for name, array in loop.items()}


def _table(params: Collection[str]) -> timm_names.Table:
    """The names that timm has for this kind of network; a hybrid may have but the root of its ResNet."""
    if binaryvit_names.is_ours(params):
        raise UserError("A BinaryViT has no names in timm: write it with names='vitjax'.")
    if timm_cait_names.is_ours(params):
        return timm_cait_names.CAIT
    if swin_names.is_ours(params):
        return swin_names.TIMM
    if pit_names.is_ours(params):
        return pit_names.timm_table_of(params)
    if table := timm_cnn_names.table_of(params):
        return table
    if any(name.startswith("block1/") for name in params):
        return timm_names.HYBRID
    return timm_names.ROOT_HYBRID if "conv_root/kernel" in params else timm_names.VIT


def _spt_lsa_table(params: Collection[str]) -> timm_names.Table:
    """The names that the official code of the small-dataset paper has for this kind of network."""
    if pit_names.is_ours(params):
        return pit_names.released_table_of(params)
    if swin_names.is_ours(params):
        return swin_names.released(params)
    return spt_lsa_names.table_of(params)


def _float32(name: str, leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)
    if not is_float(array.dtype) or array.dtype.itemsize > 4:
        raise UserError(f"The parameter {name} is {array.dtype}; files of weights hold float32.")
    return array.astype(np.float32, copy=False)


def _write_npz(file: BinaryIO, arrays: Mapping[str, np.ndarray], _: Mapping[str, str]) -> None:
    with zipfile.ZipFile(file, "w") as opened:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))  # no clock: equal files
            with opened.open(member, "w", force_zip64=True) as f:
                np.lib.format.write_array(f, np.asarray(array, order="C"), allow_pickle=False)


def _write_safetensors(file: BinaryIO, arrays: Mapping[str, np.ndarray], about: Mapping[str, str]) -> None:
    header: dict[str, Any] = {"__metadata__": dict(about)} if about else {}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned in the file
    file.write(len(text).to_bytes(8, "little") + text)
    for array in arrays.values():
        file.write(np.ascontiguousarray(array, "<f4").data)
