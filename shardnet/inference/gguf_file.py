"""A bounded reader of GGUF headers: every count and length is checked against the file before it is believed.

A node reads the header of each shard in its cache at start-up, and such files may come from anywhere. The `gguf` package parses element by element
in Python, which takes seconds for a vocabulary of 128k tokens and has no bounds; here large arrays are only walked over and stay in the file.

Source: ggml's docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import functools
import mmap
import os
import struct
from dataclasses import dataclass
from enum import IntEnum
from math import prod
from pathlib import Path
from typing import Any

from shardnet.errors import GgufError, UsageError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

MAX_FIELDS = 4096
MAX_TENSORS = 200_000
MAX_KEY_BYTES = 1024
MAX_STRING_BYTES = 16 << 20
"""Chat templates are long; nothing else is."""
MAX_ARRAY = 1 << 24
"""Elements: 64 times the largest vocabulary known."""
MAX_HEADER_BYTES = 1 << 30
MAX_DIMS = 4
MAX_ARRAY_DEPTH = 1


class ValueType(IntEnum):
    """GGUF metadata value types."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


SCALARS: dict[ValueType, struct.Struct] = {
    ValueType.UINT8: struct.Struct("<B"),
    ValueType.INT8: struct.Struct("<b"),
    ValueType.UINT16: struct.Struct("<H"),
    ValueType.INT16: struct.Struct("<h"),
    ValueType.UINT32: struct.Struct("<I"),
    ValueType.INT32: struct.Struct("<i"),
    ValueType.FLOAT32: struct.Struct("<f"),
    ValueType.BOOL: struct.Struct("<?"),
    ValueType.UINT64: struct.Struct("<Q"),
    ValueType.INT64: struct.Struct("<q"),
    ValueType.FLOAT64: struct.Struct("<d"),
}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class GgufValue:
    """A metadata value with its type: what a writer needs. `element` is the type of an array's elements."""

    type: ValueType
    value: Any
    element: ValueType | None = None


@dataclass(frozen=True, slots=True)
class GgufField:
    """Where one metadata value lies. `start` and `end` are file offsets of the value, without its type tag."""

    key: str
    type: ValueType
    start: int
    end: int
    element: ValueType | None = None
    count: int = 1
    path: Path = Path()

    def read(self) -> Any:
        """Returns: the value: int, float, bool, str, or a list of those."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            data = file.read(self.end - self.start)
        return _decode(self, data)

    def raw(self) -> bytes:
        """Returns: the value's bytes as they stand in the file."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.end - self.start)


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: `shape` in ggml's order (row length first), `offset` in bytes from the start of `path`."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    offset: int
    nbytes: int
    path: Path

    @property
    def type_name(self) -> str:
        """Returns: Q4_0, F32, ..."""
        return ggml_types()[self.ggml_type][2]

    @property
    def n_elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """The header of one GGUF file, or of the files of one model that llama.cpp split by size."""

    path: Path
    version: int
    fields: dict[str, GgufField]
    tensors: tuple[GgufTensor, ...]
    file_bytes: int
    paths: tuple[Path, ...] = ()

    @functools.cached_property
    def _small(self) -> dict[str, Any]:
        """Every scalar and short array, read once: what decisions are made from."""
        return {}

    def get(self, key: str, default: Any = None) -> Any:
        """Returns: the decoded value of a key, or `default`."""
        field = self.fields.get(key)
        if field is None:
            return default
        if key not in self._small:
            self._small[key] = field.read()
        return self._small[key]

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
        """Returns: `{architecture}.block_count`. Raises: GgufError if it is missing or absurd."""
        count = self.arch("block_count")
        if not isinstance(count, int) or not 0 < count <= 10_000:
            raise GgufError(f"{self.path} has no usable {self.architecture}.block_count")
        return count


@functools.cache
def ggml_types() -> dict[int, tuple[int, int, str]]:
    """Returns: ggml type -> (elements a block, bytes a block, name)."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    return {
        int(kind): (*GGML_QUANT_SIZES[kind], kind.name) for kind in GGMLQuantizationType if kind in GGML_QUANT_SIZES
    }


class _Reader:
    """A position in a mapped file that never leaves it."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path = data, path
        self.at = 0
        self.end = min(len(data), MAX_HEADER_BYTES)

    def fail(self, what: str) -> GgufError:
        return GgufError(f"{self.path} is not a usable GGUF: {what} (at byte {self.at})")

    def skip(self, count: int) -> int:
        """Move on by `count` bytes. Returns: where they start."""
        start = self.at
        if count < 0 or count > self.end - start:
            raise self.fail("its header is cut off")
        self.at = start + count
        return start

    def u32(self) -> int:
        return int(_U32.unpack_from(self.data, self.skip(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack_from(self.data, self.skip(8))[0])

    def string(self, most: int) -> str:
        length = self.u64()
        if length > most:
            raise self.fail(f"a string of {length} bytes")
        start = self.skip(length)
        try:
            return self.data[start : self.at].decode()
        except UnicodeDecodeError as error:
            raise self.fail("a name that is not UTF-8") from error

    def value_type(self) -> ValueType:
        number = self.u32()
        try:
            return ValueType(number)
        except ValueError:
            raise self.fail(f"unknown value type {number}") from None

    def skip_strings(self, count: int) -> None:
        """The hot loop of large vocabularies: length prefixes only."""
        data, at, end, unpack = self.data, self.at, self.end, _U64.unpack_from
        if count * 8 > end - at:
            raise self.fail(f"an array of {count} strings")
        for _ in range(count):
            if at + 8 > end:
                raise self.fail("its header is cut off")
            length = unpack(data, at)[0]
            at += 8 + length
            if length > MAX_STRING_BYTES or at > end:
                raise self.fail(f"a string of {length} bytes")
        self.at = at


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and check the header of one GGUF file.

    Raises: UsageError if there is no such file; GgufError if it is not a GGUF, is cut off, or contradicts itself.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not path.is_file():
                raise UsageError(f"{path} is not a regular file")
            if size < 24:
                raise GgufError(f"{path} is not a GGUF: it has only {size} bytes")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(_Reader(data, path), size)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error


def _parse(reader: _Reader, size: int) -> GgufHeader:
    path = reader.path
    if reader.data[:4] != MAGIC:
        raise GgufError(f"{path} is not a GGUF: it begins with {reader.data[:4]!r}")
    reader.at = 4
    version = reader.u32()
    if version not in VERSIONS:
        hint = " (big-endian files are not supported)" if version in (2 << 24, 3 << 24) else ""
        raise GgufError(f"{path} is a GGUF of version {version}; versions 2 and 3 can be read{hint}")
    n_tensors, n_fields = reader.u64(), reader.u64()
    if n_tensors > MAX_TENSORS or n_fields > MAX_FIELDS:
        raise reader.fail(f"{n_tensors} tensors and {n_fields} metadata fields")
    fields: dict[str, GgufField] = {}
    for _ in range(n_fields):
        field = _read_field(reader)
        if field.key in fields:
            raise reader.fail(f"metadata key {field.key!r} stands twice")
        fields[field.key] = field
    alignment = _alignment(fields, reader)
    entries = [_read_tensor(reader) for _ in range(n_tensors)]
    data_start = -(-reader.at // alignment) * alignment
    return GgufHeader(
        path, version, fields, _place_tensors(reader, entries, data_start, alignment, size), size, (path,)
    )


def _read_field(reader: _Reader) -> GgufField:
    key = reader.string(MAX_KEY_BYTES)
    kind = reader.value_type()
    start = reader.at
    if kind == ValueType.STRING:
        length = reader.u64()
        if length > MAX_STRING_BYTES:
            raise reader.fail(f"a string of {length} bytes for {key!r}")
        reader.skip(length)
        return GgufField(key, kind, start, reader.at, path=reader.path)
    if kind != ValueType.ARRAY:
        reader.skip(SCALARS[kind].size)
        return GgufField(key, kind, start, reader.at, path=reader.path)
    element = reader.value_type()
    count = reader.u64()
    if element == ValueType.ARRAY:
        raise reader.fail(f"an array of arrays for {key!r}")
    if count > MAX_ARRAY:
        raise reader.fail(f"an array of {count} elements for {key!r}")
    if element == ValueType.STRING:
        reader.skip_strings(count)
    else:
        reader.skip(count * SCALARS[element].size)
    return GgufField(key, kind, start, reader.at, element, count, reader.path)


def _alignment(fields: dict[str, GgufField], reader: _Reader) -> int:
    field = fields.get("general.alignment")
    if field is None:
        return DEFAULT_ALIGNMENT
    value = field.read()
    if not isinstance(value, int) or value <= 0 or value > 1 << 20 or value & (value - 1):
        raise reader.fail(f"general.alignment is {value!r}, which is no power of two")
    return value


def _read_tensor(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    name = reader.string(MAX_KEY_BYTES)
    n_dims = reader.u32()
    if not 1 <= n_dims <= MAX_DIMS:
        raise reader.fail(f"tensor {name!r} has {n_dims} dimensions")
    shape = tuple(reader.u64() for _ in range(n_dims))
    return name, shape, reader.u32(), reader.u64()


def _place_tensors(
    reader: _Reader, entries: list[tuple[str, tuple[int, ...], int, int]], data_start: int, alignment: int, size: int
) -> tuple[GgufTensor, ...]:
    """Check that the tensors' data lie inside the file, aligned, without overlap."""
    types = ggml_types()
    tensors, names = [], set()
    for name, shape, kind, offset in entries:
        if name in names:
            raise reader.fail(f"tensor {name!r} stands twice")
        names.add(name)
        if kind not in types:
            raise reader.fail(f"tensor {name!r} has the unknown type {kind}")
        block, block_bytes, type_name = types[kind]
        if any(side <= 0 or side > 1 << 40 for side in shape) or prod(shape) > 1 << 50 or shape[0] % block:
            raise reader.fail(f"tensor {name!r} of type {type_name} has the impossible shape {shape}")
        if offset % alignment:
            raise reader.fail(f"the data of tensor {name!r} is not aligned")
        tensors.append(
            GgufTensor(name, shape, kind, data_start + offset, prod(shape) // block * block_bytes, reader.path)
        )
    end = data_start if not tensors else max(tensor.offset + tensor.nbytes for tensor in tensors)
    if tensors and end > size:
        raise GgufError(f"{reader.path} is truncated: {end - size} of {end} bytes are missing; fetch it again")
    before: GgufTensor | None = None
    for tensor in sorted(tensors, key=lambda t: t.offset):
        if before is not None and before.offset + before.nbytes > tensor.offset:
            raise reader.fail(f"the data of tensors {before.name!r} and {tensor.name!r} overlap")
        before = tensor
    return tuple(tensors)


def _decode(field: GgufField, data: bytes) -> Any:
    if field.type == ValueType.STRING:
        return data[8:].decode(errors="replace")
    if field.type != ValueType.ARRAY:
        return SCALARS[field.type].unpack(data)[0]
    assert field.element is not None
    if field.element != ValueType.STRING:
        code = SCALARS[field.element].format[-1]
        return list(struct.unpack_from(f"<{field.count}{code}", data, 12))
    strings, at = [], 12
    for _ in range(field.count):
        length = _U64.unpack_from(data, at)[0]
        strings.append(data[at + 8 : at + 8 + length].decode(errors="replace"))
        at += 8 + length
    return strings
