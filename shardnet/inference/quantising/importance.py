"""Importance matrices: how much each column of a weight matrix matters, measured by llama.cpp's `llama-imatrix` on some text.

Reads both formats: a GGUF (`general.type` imatrix, sums and counts by expert) and the binary one of before. Every length is checked before it is
believed. Refuses to know what the numbers are used for.

Source: llama.cpp of llama-cpp-python 0.3.36, common/imatrix-loader.cpp and tools/quantize/quantize.cpp, `load_imatrix`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardnet.errors import GgufError
from shardnet.inference.gguf.cursor import opened
from shardnet.inference.gguf.element_types import GGML_F32
from shardnet.inference.gguf.header import MAGIC, GgufTensor, read_gguf_header

SUMS, COUNTS = ".in_sum2", ".counts"
MAX_BYTES = 4 << 30
MAX_ENTRIES = 200_000
MAX_NAME_BYTES = 1024
MAX_VALUES = 1 << 28
NEEDED_KEYS = ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")

Columns = NDArray[np.float32]


@dataclass(frozen=True)
class ImportanceMatrix:
    """`columns`: tensor name -> float32, (row length) or (number of experts x row length). `sha256` of the file that it was read from."""

    path: Path
    sha256: str
    columns: Mapping[str, Columns]

    def of(self, tensor: GgufTensor) -> Columns | None:
        """Returns: float32, (number of matrices, row length), for a tensor of one matrix or a stack of experts; None if the file says nothing of it.

        Raises: GgufError if it is of another size. Embeddings excepted: they are looked up, so what is said of them is of no use.
        """
        found = self.columns.get(tensor.name)
        if found is None:
            return None
        n_matrices = tensor.shape[2] if len(tensor.shape) > 2 else 1
        if found.size == tensor.shape[0] * n_matrices:
            return found.reshape(n_matrices, tensor.shape[0])
        if tensor.name in ("token_embd.weight", "per_layer_token_embd.weight"):
            return None
        raise GgufError(
            f"{self.path} is not of this model: it says {found.size} numbers of {tensor.name}, which has {tensor.shape[0] * n_matrices} columns"
        )


def read_importance(path: Path) -> ImportanceMatrix:
    """Read an importance matrix in either format.

    Raises: UsageError if there is no such file; GgufError if it is none, is cut off, or holds numbers that are not finite.
    """
    with opened(path) as (descriptor, size):
        if size > MAX_BYTES:
            raise GgufError(f"{path} is too large for an importance matrix: {size} bytes")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(size)
    columns = _read_gguf(path, data) if data[:4] == MAGIC else _read_binary(path, data)
    for name, values in columns.items():
        if not np.isfinite(values).all():
            raise GgufError(f"{path} cannot be used: what it says of {name} is not finite")
    if not columns:
        raise GgufError(f"{path} is an importance matrix that says nothing of any tensor")
    return ImportanceMatrix(path, hashlib.sha256(data).hexdigest(), columns)


def _read_gguf(path: Path, data: bytes) -> dict[str, Columns]:
    header = read_gguf_header(path)
    missing = [key for key in NEEDED_KEYS if key not in header.fields]
    if missing:
        raise GgufError(f"{path} is no importance matrix: it has no {missing[0]}")
    tensors = {tensor.name: tensor for tensor in header.tensors}
    names = {name.removesuffix(SUMS) for name in tensors if name.endswith(SUMS)}
    names |= {name.removesuffix(COUNTS) for name in tensors if name.endswith(COUNTS)}
    columns: dict[str, Columns] = {}
    for name in sorted(names):
        pair = [tensors.get(name + suffix) for suffix in (SUMS, COUNTS)]
        sums, counts = (_floats(path, data, tensor, name) for tensor in pair)
        if sums.size % counts.size:
            raise GgufError(f"{path} is damaged: {sums.size} sums and {counts.size} counts of {name}")
        by_expert, times = sums.reshape(counts.size, -1), np.rint(counts)[:, None]
        # An expert that no token was sent to: all its columns matter alike.
        means = np.divide(by_expert, times, out=np.ones_like(by_expert), where=times > 0)
        columns[name] = means.reshape(-1)
    return columns


def _floats(path: Path, data: bytes, tensor: GgufTensor | None, name: str) -> Columns:
    if tensor is None or tensor.ggml_type != GGML_F32:
        raise GgufError(f"{path} is damaged: it needs sums and counts of {name}, both in F32")
    return np.frombuffer(data, "<f4", tensor.n_elements, tensor.offset).astype(np.float32, copy=False)


def _read_binary(path: Path, data: bytes) -> dict[str, Columns]:
    """`int32 entries`, then for each: `int32 length, name, int32 calls, int32 values, float32s`. What follows them is about the text."""
    reader = _Binary(path, data)
    count = reader.number(1, MAX_ENTRIES)
    columns: dict[str, Columns] = {}
    for _ in range(count):
        name = reader.take(reader.number(1, MAX_NAME_BYTES)).split(b"\0")[0].decode(errors="replace")
        calls = reader.number(-1 << 31, 1 << 31)
        n_values = reader.number(1, MAX_VALUES)
        sums = np.frombuffer(reader.take(4 * n_values), "<f4").astype(np.float32, copy=False)
        columns[name] = sums / np.float32(calls) if calls > 0 else sums
    return columns


class _Binary:
    """A position in the old format's bytes."""

    def __init__(self, path: Path, data: bytes) -> None:
        self._path, self._data, self._at = path, data, 0

    def take(self, count: int) -> bytes:
        start, self._at = self._at, self._at + count
        if self._at > len(self._data):
            raise GgufError(f"{self._path} is no importance matrix, or it is cut off: fetch it again")
        return self._data[start : self._at]

    def number(self, least: int, most: int) -> int:
        (value,) = struct.unpack("<i", self.take(4))
        if not least <= value <= most:
            raise GgufError(f"{self._path} is no importance matrix: neither a GGUF nor of the older format")
        return int(value)
