"""A bounded reader of GGUF headers: every count and length is checked against the file before it is believed.

A node reads the header of each shard in its cache at start-up, and such files may come from anywhere. The `gguf` package parses element by element
in Python, which takes seconds for a vocabulary of 128k tokens and has no bounds; here large arrays are only walked over and stay in the file.
Files are read, not mapped: one that shrinks under our hands is an error rather than a SIGBUS.

Source: ggml's docs/gguf.md, versions 2 and 3, and the checks of ggml/src/gguf.cpp.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from shardnet.errors import GgufError
from shardnet.inference.gguf.cursor import (
    MAX_ARRAY,
    MAX_STRING_BYTES,
    MAX_STRINGS,
    SCALARS,
    U64,
    Cursor,
    ValueType,
    opened,
)
from shardnet.inference.gguf.element_types import GGML_TYPES

__all__ = [
    "SCALARS",
    "Buffer",
    "GgufField",
    "GgufHeader",
    "GgufTensor",
    "GgufValue",
    "Origin",
    "StreamedData",
    "TensorData",
    "ValueType",
    "padded",
    "parse_gguf_header",
    "read_gguf_header",
    "read_leading_fields",
]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MOST_ALIGNMENT = 1 << 20

MAX_FIELDS = 4096
MAX_TENSORS = 200_000
MAX_KEY_BYTES = 1024
MAX_TENSOR_NAME_BYTES = 63  # ggml keeps names in 64 bytes
MAX_DIMS = 4
MAX_LAYERS = 10_000
_ARRAY_HEAD = 12  # element type and count, before an array's elements

INLINE_BYTES = 64 << 10
"""Values up to this size (all scalars, per-layer arrays, chat templates) are kept with the header; vocabularies stay in the file."""
INLINE_IN_ALL_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class GgufValue:
    """A metadata value with its type: what a writer needs. `element` is the type of an array's elements."""

    type: ValueType
    value: Any
    element: ValueType | None = None


@dataclass(frozen=True, slots=True)
class GgufField:
    """One metadata value. `start` and `end` are file offsets of the value without its type tag; an array's include element type and count."""

    key: str
    type: ValueType
    start: int
    end: int
    element: ValueType | None
    count: int
    path: Path
    inline: bytes | None

    def raw(self) -> bytes:
        """Returns: the value's bytes as they stand in the file. Raises: GgufError if the file has changed since."""
        if self.inline is not None:
            return self.inline
        with opened(self.path) as (descriptor, _size):
            data = os.pread(descriptor, self.end - self.start, self.start)
        if len(data) != self.end - self.start:
            raise GgufError(f"{self.path} became shorter while it was read")
        return data

    def read(self) -> Any:
        """Returns: the value: int, float, bool, str, or a list of those."""
        return _decode(self, self.raw())


Buffer = bytes | memoryview


class TensorData(Protocol):
    """Where a tensor's bytes come from when they do not stand in a file as they are: converted, quantised, or asked of another machine."""

    def pieces(self, tensor: GgufTensor) -> Iterator[Buffer]:
        """Yield the tensor's `nbytes` in order; a piece stays as it is until the next but one is asked for.

        Called by one thread at a time, for tensors in the order in which they are written. Raises: ShardnetError, OSError.
        """
        ...


@runtime_checkable
class StreamedData(TensorData, Protocol):
    """Bytes that come from afar: they can be had from the middle on, and come sooner if it is known which are wanted next."""

    def pieces_from(self, tensor: GgufTensor, start: int) -> Iterator[Buffer]:
        """Yield the tensor's bytes from its byte `start` on; otherwise as `pieces`."""
        ...

    def expect(self, reads: Sequence[tuple[GgufTensor, int]]) -> None:
        """Take note of what will be read, in order: tensors, and the byte of each from which on. It takes the place of what was noted before."""
        ...

    def samples(self, wanted: Sequence[tuple[GgufTensor, int, int]]) -> list[bytes]:
        """Returns: for each (tensor, start, end) those bytes of the tensor. Raises: as `pieces`."""
        ...


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: `shape` in ggml's order (row length first), `offset` in bytes from the start of `path`; with `data`, they come from there."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    offset: int
    nbytes: int
    path: Path
    data: TensorData | None = None

    @property
    def type_name(self) -> str:
        """Returns: Q4_0, F32, ..."""
        return GGML_TYPES[self.ggml_type].name

    @property
    def n_elements(self) -> int:
        """Returns: number of weights."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Origin:
    """A file elsewhere that a model is read from: where it is, and which version of it, as far as is known there."""

    place: str
    version: str


@dataclass(frozen=True)
class GgufHeader:
    """The header of one GGUF file, or of all the files of one model that llama.cpp split by size (`layout.read_model`).

    Or of a GGUF that is nowhere yet: made of the files `paths` as `recipe` says, with tensors whose `data` make their bytes. Or of one that is
    not on this machine: then `origins` stand in place of `paths`, and `path` is only what people call it.
    """

    path: Path
    version: int
    fields: dict[str, GgufField]
    tensors: tuple[GgufTensor, ...]
    file_bytes: int
    paths: tuple[Path, ...]
    alignment: int = DEFAULT_ALIGNMENT
    recipe: str = ""
    origins: tuple[Origin, ...] = ()

    @property
    def is_made(self) -> bool:
        """Returns: whether it is nowhere yet, so that llama.cpp cannot open it: some tensor's bytes are made when they are asked for."""
        return any(tensor.data is not None for tensor in self.tensors)

    @cached_property
    def _decoded(self) -> dict[str, Any]:
        return {}

    def get(self, key: str, default: Any = None) -> Any:
        """Returns: the decoded value of a key, or `default`."""
        field = self.fields.get(key)
        if field is None:
            return default
        if field.inline is None:
            return field.read()
        if key not in self._decoded:
            self._decoded[key] = field.read()
        return self._decoded[key]

    @property
    def architecture(self) -> str:
        """Returns: `general.architecture`. Raises: GgufError if there is none."""
        name = self.get("general.architecture")
        if not isinstance(name, str) or not name:
            raise GgufError(f"{self.path} has no general.architecture: it is no language model")
        return name

    def arch(self, suffix: str, default: Any = None) -> Any:
        """Returns: the value of `{architecture}.{suffix}`."""
        return self.get(f"{self.architecture}.{suffix}", default)

    @property
    def n_layers(self) -> int:
        """Returns: `{architecture}.block_count`, MTP layers included. Raises: GgufError if it is missing or absurd."""
        count = self.arch("block_count")
        if not isinstance(count, int) or not 0 < count <= MAX_LAYERS:
            raise GgufError(f"{self.path} has no usable {self.architecture}.block_count")
        return count


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and check the header of one GGUF file.

    Raises: UsageError if there is no such file; GgufError if it is not a GGUF, is cut off, or contradicts itself.
    """
    with opened(path) as (descriptor, size):
        return parse_gguf_header(Cursor(descriptor, size, path))


def parse_gguf_header(reader: Cursor) -> GgufHeader:
    """Read the header that a cursor stands before; afterwards it stands behind it. Raises: GgufError as `read_gguf_header`."""
    version, n_tensors, n_fields = _read_start(reader)
    fields = _read_fields(reader, n_fields)
    alignment = _alignment(fields, reader)
    entries = [_read_tensor(reader) for _ in range(n_tensors)]
    tensors = _place_tensors(reader, entries, alignment)
    return GgufHeader(reader.path, version, fields, tensors, reader.size, (reader.path,), alignment)


def read_leading_fields(path: Path, most: int) -> dict[str, Any]:
    """Read no more than the first metadata values of a file: quick whatever the size of its vocabulary, and no proof that the rest is sound.

    Returns: key -> decoded value of at most `most` fields. Raises: as `read_gguf_header`.
    """
    with opened(path) as (descriptor, size):
        reader = Cursor(descriptor, size, path)
        _version, _n_tensors, n_fields = _read_start(reader)
        fields = _read_fields(reader, min(n_fields, most))
        return {key: field.read() for key, field in fields.items() if field.inline is not None}


def _read_start(reader: Cursor) -> tuple[int, int, int]:
    """Returns: (version, number of tensors, number of metadata fields)."""
    path = reader.path
    if reader.size < 24:
        raise GgufError(f"{path} is not a GGUF: it has only {reader.size} bytes; fetch it again")
    magic = reader.between(reader.skip(4), 4)
    if magic != MAGIC:
        raise GgufError(f"{path} is not a GGUF: it begins with {magic!r}, not with {MAGIC!r}")
    version = reader.u32()
    if version not in VERSIONS:
        hint = " (big-endian files are not supported)" if version in (2 << 24, 3 << 24) else ""
        raise GgufError(f"{path} is a GGUF of version {version}; versions 2 and 3 can be read{hint}")
    n_tensors, n_fields = reader.u64(), reader.u64()
    if n_tensors > MAX_TENSORS or n_fields > MAX_FIELDS:
        raise reader.fail(f"{n_tensors} tensors and {n_fields} metadata fields")
    return version, n_tensors, n_fields


def _read_fields(reader: Cursor, n_fields: int) -> dict[str, GgufField]:
    fields: dict[str, GgufField] = {}
    kept = 0
    for _ in range(n_fields):
        field = _read_field(reader, min(INLINE_BYTES, INLINE_IN_ALL_BYTES - kept))
        kept += len(field.inline or b"")
        if field.key in fields:
            raise reader.fail(f"metadata key {field.key!r} stands twice")
        fields[field.key] = field
    return fields


def _read_field(reader: Cursor, most_inline: int) -> GgufField:
    key = reader.name(MAX_KEY_BYTES)
    kind = reader.value_type()
    start, element, count = reader.at, None, 1
    if kind == ValueType.STRING:
        length = reader.u64()
        if length > MAX_STRING_BYTES:
            raise reader.fail(f"a string of {length} bytes for {key!r}")
        reader.skip(length)
    elif kind == ValueType.ARRAY:
        element, count = reader.value_type(), reader.u64()
        if element == ValueType.ARRAY:
            raise reader.fail(f"an array of arrays for {key!r}")
        if count > (MAX_STRINGS if element == ValueType.STRING else MAX_ARRAY):
            raise reader.fail(f"an array of {count} elements for {key!r}")
        if element == ValueType.STRING:
            reader.skip_strings(count)
        else:
            reader.skip(count * SCALARS[element].size)
    else:
        reader.skip(SCALARS[kind].size)
    inline = reader.between(start, reader.at) if reader.at - start <= most_inline else None
    return GgufField(key, kind, start, reader.at, element, count, reader.path, inline)


def _alignment(fields: dict[str, GgufField], reader: Cursor) -> int:
    field = fields.get("general.alignment")
    if field is None:
        return DEFAULT_ALIGNMENT
    if field.type != ValueType.UINT32:
        raise reader.fail("general.alignment is not a uint32")
    value = int(field.read())
    if not 0 < value <= MOST_ALIGNMENT or value & (value - 1):
        raise reader.fail(f"general.alignment is {value}, which is no power of two up to {MOST_ALIGNMENT}")
    return value


Entry = tuple[str, tuple[int, ...], int, int]  # name, shape, type, offset


def _read_tensor(reader: Cursor) -> Entry:
    name = reader.name(MAX_TENSOR_NAME_BYTES)
    n_dims = reader.u32()
    if not 1 <= n_dims <= MAX_DIMS:
        raise reader.fail(f"tensor {name!r} has {n_dims} dimensions")
    shape = struct.unpack_from(f"<{n_dims}Q", *reader.take(8 * n_dims))
    return name, shape, reader.u32(), reader.u64()


def _place_tensors(reader: Cursor, entries: list[Entry], alignment: int) -> tuple[GgufTensor, ...]:
    """Check that the tensors' data follow each other without gap or overlap, as llama.cpp demands, and end inside the file."""
    data_start = padded(reader.at, alignment)
    tensors: list[GgufTensor] = []
    names: set[str] = set()
    expected, end = 0, 0
    for name, shape, number, offset in entries:
        if name in names:
            raise reader.fail(f"tensor {name!r} stands twice")
        names.add(name)
        kind = GGML_TYPES.get(number)
        if kind is None:
            raise reader.fail(f"tensor {name!r} has the unknown type {number}")
        elements = prod(shape)
        if not 0 < elements <= 1 << 50 or shape[0] % kind.block:
            raise reader.fail(f"tensor {name!r} of type {kind.name} has the impossible shape {shape}")
        if offset != expected:
            raise reader.fail(f"the data of tensor {name!r} are at {offset}, where {expected} is due")
        nbytes = elements // kind.block * kind.block_bytes
        tensors.append(GgufTensor(name, shape, number, data_start + offset, nbytes, reader.path))
        end = data_start + offset + nbytes
        expected += padded(nbytes, alignment)
    if end > reader.size:
        raise GgufError(
            f"{reader.path} is truncated: {end - reader.size} of {end} bytes are missing; fetch it again",
            missing_bytes=end - reader.size,
        )
    return tuple(tensors)


def padded(count: int, alignment: int = DEFAULT_ALIGNMENT) -> int:
    """Returns: `count` rounded up to a multiple of `alignment`."""
    return -(-count // alignment) * alignment


def _decode(field: GgufField, data: bytes) -> Any:
    if field.type == ValueType.STRING:
        return data[8:].decode(errors="replace")
    if field.type != ValueType.ARRAY:
        return SCALARS[field.type].unpack(data)[0]
    if field.element is not None and field.element != ValueType.STRING:
        return list(struct.unpack_from(f"<{field.count}{SCALARS[field.element].format[-1]}", data, _ARRAY_HEAD))
    strings, at = [], _ARRAY_HEAD
    for _ in range(field.count):
        (length,) = U64.unpack_from(data, at)
        strings.append(data[at + 8 : at + 8 + length].decode(errors="replace"))
        at += 8 + length
    return strings
