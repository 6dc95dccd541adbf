"""Damaged, foreign and hostile files: refused by name, nothing executed, memory bounded."""

import io
import json
import os
import pathlib
import pickle
import sys
import tracemalloc
import types
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from conftest import drawn, same, shapes

from vitjax.errors import UserError
from vitjax.weights import load, save
from vitjax.weights.timm_names import to_timm
from vitjax.weights.tree import flatten


@pytest.fixture(autouse=True)
def bounded():
    """No test here may take more than a few megabytes."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6


def refused(path, told):
    with pytest.raises(UserError, match=told) as raised:
        load(path, shapes())
    assert pathlib.Path(path).name in str(raised.value)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 2500


class Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


# Any file.


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"x", "begins with b'x', so it is none of npz, safetensors"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "begins with .*HDF.* none of npz"),
        (b"PK\x03\x04" + bytes(100), "truncated or damaged"),
        (b"\xff" * 8 + b"{" + bytes(100), "declares a header of 18,446,744,073,709,551,615 bytes"),
    ],
)
def test_foreign_files(tmp_path, content, told):
    (tmp_path / "weights.npz").write_bytes(content)
    refused(tmp_path / "weights.npz", told)


def test_folders_and_missing_files(tmp_path):
    (tmp_path / "weights").mkdir()
    refused(tmp_path / "weights", "There is no checkpoint at")
    refused(tmp_path / "weigths", "there is no such file")
    with pytest.raises(UserError, match="weigths': there is no such file"):
        load(f"{tmp_path}/weigths:img", shapes())
    save(tmp_path / "weights/model.safetensors", drawn(shapes()), names="timm")
    same(load(tmp_path / "weights", shapes()).params, drawn(shapes()))


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_every_truncation(tmp_path, params, suffix):
    save(tmp_path / f"whole.{suffix}", params, names="timm")
    whole = (tmp_path / f"whole.{suffix}").read_bytes()
    for share in (0.00002, 0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999, 1 - 1 / len(whole)):
        (tmp_path / "cut").write_bytes(whole[: max(1, int(share * len(whole)))])
        refused(tmp_path / "cut", "truncated|damaged|begins with|no safetensors")


@pytest.mark.parametrize("packed", [False, True])
def test_a_flipped_bit_in_an_npz(tmp_path, params, packed):
    (np.savez_compressed if packed else np.savez)(tmp_path / "a.npz", **flatten(params))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    refused(tmp_path / "a.npz", "damaged")


# npz.


def header(shape, descr="<f4"):
    """The header of an npy member."""
    f = io.BytesIO()
    np.lib.format.write_array_header_1_0(f, {"shape": shape, "fortran_order": False, "descr": descr})
    return f.getvalue()


def with_member(path, params, name, content, compression=zipfile.ZIP_STORED):
    """A sound npz, but for one member."""
    arrays = flatten(params)
    arrays.pop(name, None)
    np.savez(path, **arrays)
    with zipfile.ZipFile(path, "a", compression) as opened:
        opened.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (header((2_500_000_000,)) + bytes(8), "'cls' .* declares 10,000,000,000 bytes .* holds 8"),
        (header((1, 1, 31)) + bytes(128), "declares 124 bytes of numbers but holds 128"),
        (header((10**30, 0)), "does not fit the model.*cls is .* there"),
        (header((-1, -32)) + bytes(128), "'cls' .* declares the shape"),
        (header((1, 1, 32), "|O") + b"x", "'cls' .* pickled Python objects"),
        (header((1, 1, 32), [("a", "|O")]) + b"x", "'cls' .* pickled Python objects"),
        (header((1, 1, 32), "<c8") + bytes(256), "cls is complex64, no float"),
        (header((1, 1, 32), "<U1") + bytes(128), "cls is <U1, no float"),
        (header((1, 1, 32), "|V2") + bytes(63), "declares 64 bytes"),
        (header((1, 1, 32), [("a", "u1"), ("b", "u1")]) + bytes(64), "cls is .*, no float"),
        (b"not numpy at all", "'cls' .* no array of numpy's format"),
        (b"\x93NUMPY\x03\x00" + bytes(100), "'cls' .* no array of numpy's format"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "declares a header of 4,294,967,295 bytes"),
        (b"\x93NUMPY\x01\x00\x10\x00__import__('os') ", "'cls' .* header that cannot be understood"),
        (b"\x93NUMPY\x01\x00\xff\x00{", "'cls' .* header that cannot be understood"),
        (b"\x93NUMPY\x01\x00\x00\x20" + b"(" * 0x2000, "'cls' .* header that cannot be understood"),
        (b"", "'cls' .* no array of numpy's format"),
    ],
)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_that_lie(tmp_path, params, content, told, compression):
    refused(with_member(tmp_path / "a.npz", params, "cls", content, compression), told)


def test_pickles_in_an_npz_are_not_run(tmp_path, params):
    trap = np.array([Trap(tmp_path / "sprung")], dtype=object)
    np.savez(tmp_path / "a.npz", **flatten(params) | {"cls": trap})
    refused(tmp_path / "a.npz", "'cls' .* pickled Python objects")
    assert not (tmp_path / "sprung").exists()
    np.load(tmp_path / "a.npz", allow_pickle=True)["cls"]  # the trap does work
    assert (tmp_path / "sprung").exists()


def test_a_zip_bomb(tmp_path, params):
    """A gigabyte of zeros in a megabyte, in the one entry whose size need not be the model's."""
    big = 8_000_000  # positions
    zeros = header((1, big, 32)) + bytes(1 << 20)
    tracemalloc.stop()  # slows zlib down, and what makes the bomb does not count
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as opened:
        with opened.open("pos_embedding.npy", "w", force_zip64=True) as f:
            f.write(zeros[: -(1 << 20)])
            for _ in range(big * 128 >> 20):
                f.write(bytes(1 << 20))
            f.write(bytes(big * 128 % (1 << 20)))
        for name, array in flatten(params).items():
            if name != "pos_embedding":
                opened.writestr(f"{name}.npy", header(array.shape) + array.tobytes())
    tracemalloc.start()
    refused(tmp_path / "a.npz", "'pos_embedding' .* declares 1,024,000,000 bytes, packed")


def test_a_member_that_unpacks_to_less_than_it_declares(tmp_path, params):
    content = header((1, 1, 32)) + bytes(100)
    path = with_member(tmp_path / "a.npz", params, "cls", content, zipfile.ZIP_DEFLATED)
    whole = bytearray(path.read_bytes())
    entry = whole.rindex(b"PK\x01\x02")  # of the central directory; the last one
    assert int.from_bytes(whole[entry + 24 : entry + 28], "little") == len(content)
    whole[entry + 24 : entry + 28] = (len(content) + 28).to_bytes(4, "little")
    path.write_bytes(whole)
    refused(path, "truncated or damaged .*'cls.npy' unpacks to less")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_in_an_npz(tmp_path, params):
    with_member(tmp_path / "a.npz", params, "cls", header((1, 1, 32)) + bytes(128))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as opened:
        opened.writestr("cls.npy", header((1, 1, 32)) + bytes(128))
    refused(tmp_path / "a.npz", "holds 'cls' twice")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as opened:
        opened.writestr("evil\x1b[2J" * 100, b"")
    refused(tmp_path / "b.npz", r"^'evil\?\[2J")
    with zipfile.ZipFile(tmp_path / "c.npz", "w", zipfile.ZIP_BZIP2) as opened:
        opened.writestr("cls.npy", header((1, 1, 32)) + bytes(128))
    refused(tmp_path / "c.npz", "'cls' .* packed in a way")
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as opened:
        opened.writestr("a.npy", b"")
    content = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(content[: content.index(b"PK\x01\x02")])
    refused(tmp_path / "d.npz", "truncated or damaged")


# safetensors.


def safetensors_file(path, about, size, padding=b""):
    text = json.dumps(about).encode() if isinstance(about, dict) else about
    text += padding
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    return path


def tensor(begin, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("about", "size", "told"),
    [
        ({"a": tensor(0, 8), "b": tensor(4, 12)}, 12, "'b' .* overlaps"),
        ({"a": tensor(0, 8), "b": tensor(0, 8)}, 8, "overlaps"),
        ({"a": tensor(0, 8), "b": tensor(12, 20)}, 20, "'b' .* leaves a hole"),
        ({"a": tensor(4, 12)}, 12, "'a' .* leaves a hole"),
        ({"a": tensor(0, 8)}, 12, "4 bytes that belong to no tensor"),
        ({"a": tensor(0, 8)}, 4, "'a' .* ends at byte 8 of 4: the file is truncated"),
        ({"a": tensor(0, 10**10, (2_500_000_000,))}, 8, "ends at byte 10,000,000,000 of 8"),
        ({"a": tensor(0, 8, (3,))}, 8, "'a' .* declares F32.*which is not its size"),
        ({"a": tensor(8, 0)}, 8, "which is not its size"),
        ({"a": tensor(0, 8, (-2,))}, 8, "'a' .* declares shape"),
        ({"a": tensor(0, 8, (-1, -2))}, 8, "'a' .* declares shape"),
        ({"a": tensor(-8, 0)}, 8, "'a' .* declares shape"),
        ({"a": tensor(0, 8, (2.0,))}, 8, "'a' .* declares shape"),
        ({"a": tensor(0, 8, (True, 2))}, 8, "'a' .* declares shape"),
        ({"a": tensor(0, 8) | {"data_offsets": [0, 8, 8]}}, 8, "'a' .* data_offsets"),
        ({"a": tensor(0, 8) | {"data_offsets": None}}, 8, "'a' .* data_offsets"),
        ({"a": tensor(0, 8, (8,), "F8_E4M3")}, 8, "'a' .* has dtype 'F8_E4M3'"),
        ({"a": tensor(0, 8, (8,), ["F32"])}, 8, "'a' .* has dtype"),
        ({"a": 3}, 0, "'a' .* described by no JSON object"),
        ({"a\x1b" * 200: 3}, 0, r"^'a\?a\?"),
        ({}, 0, "holds no arrays"),
        (b"{" * 100_000, 0, "no JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", 0, "no JSON"),
        (b"{\xff}", 0, "no JSON"),
        (b'{"a": {"shape": [2], "shape": [3]}}', 0, "holds 'shape' twice"),
        (b'{"a": 1, "a": 2}', 0, "holds 'a' twice"),
    ],
)
def test_safetensors_headers_that_lie(tmp_path, about, size, told):
    refused(safetensors_file(tmp_path / "a", about, size), told)


def test_a_safetensors_header_of_absurd_length(tmp_path):
    path = tmp_path / "a"
    with open(path, "wb") as f:
        f.write((1 << 30).to_bytes(8, "little") + b"{")
        f.truncate(2 << 30)  # a hole: as large as it says, and nothing on the disk
    refused(path, "declares a header of 1,073,741,824 bytes")


def test_safetensors_whose_length_looks_like_a_pickle(tmp_path, params):
    """The low byte of the header's length is 0x80, which is how pickles begin."""
    save(tmp_path / "a", params, format="safetensors")
    content = (tmp_path / "a").read_bytes()
    length = int.from_bytes(content[:8], "little")
    padding = (0x80 - length) % 256
    text = content[8 : 8 + length] + b" " * padding
    (tmp_path / "a").write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    assert (tmp_path / "a").read_bytes()[0] == 0x80
    same(load(tmp_path / "a", shapes()).params, params)


def test_scalars_and_empty_tensors(tmp_path, params):
    extra = {"s": np.ones((), np.float32), "e": np.ones((0, 3), np.float32)}
    flat = {name: np.ascontiguousarray(array) for name, array in flatten(params).items()}
    safetensors.numpy.save_file(flat | extra, tmp_path / "a")
    np.savez(tmp_path / "b", **flat | extra)
    for name in ("a", "b.npz"):
        same(load(tmp_path / name, shapes(), dont_load=("s", "e")).params, params)
    stacked = {"Transformer/encoderblock/LayerNorm_0/scale": np.ones((10**7, 0), np.float32)}
    safetensors.numpy.save_file(flat | stacked, tmp_path / "a")
    refused(tmp_path / "a", "only in the file: .*encoderblock/LayerNorm_0/scale")


# PyTorch. The real loader is not needed to see what is asked of it.


class Tensor:
    """As much of a torch.Tensor as is used."""

    layout = "strided"

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, f"torch.{array.dtype}"

    untyped_storage = detach = contiguous = view = lambda self, *_: self

    def reshape(self, _):
        return self

    def numpy(self):
        return np.ascontiguousarray(self.array).reshape(-1).view(np.uint8)


@pytest.fixture
def torch(monkeypatch):
    """A torch whose loader returns, or raises, what is put into `found`."""
    fake = types.SimpleNamespace(found=None, asked=[], strided="strided", uint8=None)

    def load(path, **options):
        fake.asked.append(options)
        if isinstance(fake.found, Exception):
            raise fake.found
        return fake.found

    fake.load = load
    monkeypatch.setitem(sys.modules, "torch", fake)
    return fake


def legacy(path):
    path.write_bytes(pickle.dumps({"a": 1}, protocol=2))
    return path


def new(path):
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("archive/data.pkl", pickle.dumps(1))
    return path


@pytest.mark.parametrize("made", [legacy, new])
def test_pytorch_files_only_through_the_weights_only_loader(tmp_path, params, torch, made):
    state = {name: Tensor(array) for name, array in to_timm(params).items()}
    path = made(tmp_path / "a.npz")
    torch.found = state
    same(load(path, shapes()).params, params)
    torch.found = {"model": state, "epoch": 3, "optimizer": {"state": {0: {"m": Tensor(np.ones(3))}}}}
    loaded = load(path, shapes())
    same(loaded.params, params)
    assert "1 entries beside 'model/'" in loaded.report
    torch.found = {f"module.{name}": tensor for name, tensor in state.items()}
    same(load(path, shapes()).params, params)
    assert torch.asked == [{"map_location": "cpu", "weights_only": True, "mmap": made is new}] * 3


def test_pytorch_files_that_are_refused(tmp_path, torch):
    path = legacy(tmp_path / "a.pth")
    torch.found = pickle.UnpicklingError("re-running with `weights_only` set to `False` will work")
    with pytest.raises(UserError, match=r"weights-only loader refuses .*a.pth.*safetensors") as raised:
        load(path, shapes())
    assert "False" not in str(raised.value)
    itself = {}
    itself["a"] = itself
    for found in ([1, 2], {"a": 3}, itself):
        torch.found = found
        refused(path, "holds no dict of tensors")
    torch.found = {"blocks.0.a": Tensor(np.ones(3))}
    torch.found["blocks.0.a"].layout = "sparse"
    refused(path, "'blocks.0.a' .* not supported")


def test_pytorch_files_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "a.bin").write_bytes(pickle.dumps({"a": Trap(tmp_path / "sprung")}, protocol=4))
    refused(tmp_path / "a.bin", "PyTorch file, a pickle.*pip install torch")
    assert not (tmp_path / "sprung").exists()
