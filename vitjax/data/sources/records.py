"""Files of records, read by index without TensorFlow: ArrayRecord and TFRecord."""

import concurrent.futures
import os
import pathlib
import struct
from typing import Any, Protocol

import numpy as np
from array_record.python import array_record_data_source

from vitjax.errors import UserError


class Records(Protocol):
    """`len(records)` and `records[i] -> bytes`; picklable."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> bytes: ...


class ArrayRecords:
    """The records of ArrayRecord shards, whose lengths are known; files are opened when first read."""

    def __init__(self, files: list[pathlib.Path], lengths: list[int]):
        self._files = [f"{file}[0:{length}]" for file, length in zip(files, lengths, strict=True)]
        self._length = sum(lengths)
        self._reader = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reader": None}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> bytes:
        if self._reader is None:
            self._reader = array_record_data_source.ArrayRecordDataSource(self._files)
        try:
            return self._reader[index]
        except RuntimeError as error:  # what the C++ reader raises for a damaged file
            raise OSError(f"damaged ArrayRecord file: {error}") from error


class TFRecords:
    """The records of TFRecord shards.

    A record stands after its length (uint64) and a checksum of that (uint32), and before its own checksum
    (uint32); see https://www.tensorflow.org/tutorials/load_data/tfrecord. There is no index, so opening
    reads the frame of every record once, a thread for each shard.
    """

    def __init__(self, files: list[pathlib.Path]):
        self._files = files
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            spans = list(pool.map(_tfrecord_spans, files))
        self._shard = np.repeat(np.arange(len(files)), [len(each) for each in spans])
        self._spans = np.concatenate(spans)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> bytes:
        start, length = self._spans[index]
        with open(self._files[self._shard[index]], "rb") as file:
            file.seek(start)
            return file.read(length)


def _tfrecord_spans(path: pathlib.Path) -> np.ndarray:
    """Start and length of the data of each record, int64 `[N, 2]`."""
    spans, end = [], os.path.getsize(path)
    with open(path, "rb") as file:
        at = 0
        while at < end:
            head = file.read(12)
            length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else end
            if at + 12 + length + 4 > end:
                raise UserError(
                    f"{path} is damaged or truncated at byte {at} of {end}. Fetch or prepare it again."
                )
            spans.append((at + 12, length))
            at += 12 + length + 4
            file.seek(at)
    return np.array(spans, np.int64).reshape(-1, 2)
