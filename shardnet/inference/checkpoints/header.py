"""The header of one SafeTensors file, checked in full before anything else opens the file.

Eight bytes of length, that much JSON, then data: no holes, no overlap, covered to the last byte. The `safetensors` package checks much of
this too, but says so in the words of its parser and does not name the file. Refuses to know other files and what the tensors are for.

Source: safetensors' README, "Format", and its `SafeTensors::read_metadata`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from shardnet.errors import CheckpointError
from shardnet.inference.checkpoints.dtypes import NUMPY_DTYPES
from shardnet.inference.checkpoints.json_files import is_count, parse_json_object
from shardnet.inference.gguf.cursor import opened

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_DIMS = 8
MAX_ELEMENTS = 1 << 50
LENGTH_BYTES = 8
METADATA = "__metadata__"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor: `shape` in numpy's order (C order, rows first), `offset` in bytes from the start of `path`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    path: Path

    @property
    def n_elements(self) -> int:
        """Returns: number of weights."""
        return prod(self.shape)

    @property
    def n_rows(self) -> int:
        """Returns: length of the first dimension; a scalar is one row."""
        return self.shape[0] if self.shape else 1


@dataclass(frozen=True, slots=True)
class SafeTensorsHeader:
    """What one file promises. `tensors` stand in the order of their data; `changed_ns` is the file's time of change when it was read."""

    path: Path
    tensors: tuple[StoredTensor, ...]
    metadata: dict[str, str]
    file_bytes: int
    changed_ns: int


def read_safetensors_header(path: Path) -> SafeTensorsHeader:
    """Read and check the header of one file.

    Raises: UsageError if there is no such file; CheckpointError if it is no SafeTensors file, is cut off, contradicts
    itself, or holds a dtype that is not taken.
    """
    with opened(path) as (descriptor, size):
        if size < LENGTH_BYTES + 2:
            raise CheckpointError(f"{path} is no SafeTensors file: it has only {size} bytes; fetch it again")
        length = int.from_bytes(os.pread(descriptor, LENGTH_BYTES, 0), "little")
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{path} is no SafeTensors file: its header would have {length} bytes, and {MAX_HEADER_BYTES} are the most"
            )
        if LENGTH_BYTES + length > size:
            raise CheckpointError(
                f"{path} is truncated: its header ends at byte {LENGTH_BYTES + length}, the file at {size}; fetch it again"
            )
        data = os.pread(descriptor, length, LENGTH_BYTES)
        changed_ns = os.fstat(descriptor).st_mtime_ns
    if not data.startswith(b"{"):
        raise CheckpointError(f"{path} is no SafeTensors file: its header begins with {data[:8]!r}, not with '{{'")
    entries = parse_json_object(data, f"the header of {path}")
    metadata = entries.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"the header of {path} is damaged: its {METADATA} are not all text")
    start = LENGTH_BYTES + length
    tensors = sorted((_tensor(path, name, entry, start) for name, entry in entries.items()), key=_place)
    _check_cover(path, tensors, start, size)
    return SafeTensorsHeader(path, tuple(tensors), metadata, size, changed_ns)


def _place(tensor: StoredTensor) -> tuple[int, int]:
    return tensor.offset, tensor.nbytes


def _tensor(path: Path, name: str, entry: Any, start: int) -> StoredTensor:
    def damaged(what: str) -> CheckpointError:
        return CheckpointError(f"the header of {path} is damaged: tensor {name!r} {what}; fetch it again")

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise damaged("is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in NUMPY_DTYPES:
        raise CheckpointError(
            f"tensor {name!r} in {path} has the dtype {str(dtype)[:40]}, which is not taken (taken are {', '.join(NUMPY_DTYPES)}): "
            "convert the checkpoint to BF16 first"
        )
    if not isinstance(shape, list) or not all(is_count(length) for length in shape) or len(shape) > MAX_DIMS:
        raise damaged(f"has the impossible shape {shape}")
    if (
        prod(max(length, 1) for length in shape) > MAX_ELEMENTS
    ):  # an empty tensor may not claim more either: numpy could not shape it
        raise damaged(f"has the impossible shape {shape}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(is_count(offset) for offset in offsets):
        raise damaged(f"has the impossible data_offsets {offsets}")
    nbytes = prod(shape) * NUMPY_DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != nbytes:
        raise damaged(
            f"of dtype {dtype} and shape {shape} needs {nbytes} bytes, and has bytes {offsets[0]} to {offsets[1]}"
        )
    return StoredTensor(name, dtype, tuple(shape), start + offsets[0], nbytes, path)


def _check_cover(path: Path, tensors: list[StoredTensor], start: int, size: int) -> None:
    """Each tensor must begin where the one before it ended, and the last end with the file."""
    due = start
    for tensor in tensors:
        if tensor.offset != due:
            fault = "overlap those of the one before it" if tensor.offset < due else "leave a hole before them"
            raise CheckpointError(
                f"the header of {path} is damaged: the data of tensor {tensor.name!r} {fault} (at {tensor.offset - start}, due at {due - start})"
            )
        due += tensor.nbytes
    if due > size:
        raise CheckpointError(
            f"{path} is truncated: {due - size} of {due} bytes are missing; fetch it again", missing_bytes=due - size
        )
    if due < size:
        raise CheckpointError(f"{path} is damaged: {size - due} bytes behind its last tensor belong to none")
