"""Writing a GGUF whose tensor data come straight out of other files, in constant memory, hashed on the way.

Source: ggml's docs/gguf.md, version 3.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from shardnet.errors import GgufError
from shardnet.inference.gguf_file import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    SCALARS,
    GgufField,
    GgufTensor,
    GgufValue,
    ValueType,
)

GGUF_VERSION = 3
PIECE_BYTES = 8 << 20
OnBytes = Callable[[int], None]
"""Called with the number of bytes just handled."""


@dataclass(frozen=True, slots=True)
class OutTensor:
    """A tensor to be written: its data copied from `source`, or zeros."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    nbytes: int
    source: GgufTensor | None


def string_value(text: str) -> GgufValue:
    return GgufValue(ValueType.STRING, text)


def u32_value(number: int) -> GgufValue:
    return GgufValue(ValueType.UINT32, number)


def encode_value(value: GgufValue | GgufField) -> bytes:
    """Returns: type tag and value. A field of another file is copied as it stands."""
    if isinstance(value, GgufField):
        return struct.pack("<I", value.type) + value.raw()
    if value.type == ValueType.ARRAY:
        if value.element is None:
            raise GgufError("an array without an element type")
        body = b"".join(_scalar(value.element, item) for item in value.value)
        return struct.pack("<IIQ", value.type, value.element, len(value.value)) + body
    return struct.pack("<I", value.type) + _scalar(value.type, value.value)


def _scalar(kind: ValueType, value: Any) -> bytes:
    if kind == ValueType.STRING:
        text = str(value).encode()
        return struct.pack("<Q", len(text)) + text
    return SCALARS[kind].pack(value)


def _name(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _aligned(offset: int, alignment: int = DEFAULT_ALIGNMENT) -> int:
    return -(-offset // alignment) * alignment


@dataclass(frozen=True, slots=True)
class Written:
    """What a written file is: SHA-256 of its bytes, its size, and where the value of `mark` begins."""

    sha256: str
    nbytes: int
    mark_offset: int


def header_bytes(
    fields: dict[str, GgufValue | GgufField], tensors: Sequence[OutTensor], mark: str
) -> tuple[bytes, int]:
    """Returns: the padded header, and the offset of the string value of key `mark` in it (0 if it is not there)."""
    out = bytearray(struct.pack("<4sIQQ", MAGIC, GGUF_VERSION, len(tensors), len(fields)))
    mark_offset = 0
    for key, value in fields.items():
        out += _name(key)
        if key == mark:
            mark_offset = len(out) + 12  # type tag and length
        out += encode_value(value)
    offset = 0
    for tensor in tensors:
        out += _name(tensor.name) + struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        out += struct.pack("<IQ", tensor.ggml_type, offset)
        offset = _aligned(offset + tensor.nbytes)
    if tensors:
        out += bytes(_aligned(len(out)) - len(out))
    return bytes(out), mark_offset


def total_bytes(header: bytes, tensors: Sequence[OutTensor]) -> int:
    """Returns: size of the file that `write_gguf` will write."""
    return len(header) + sum(_aligned(tensor.nbytes) for tensor in tensors)


def write_gguf(
    path: Path, fields: dict[str, GgufValue | GgufField], tensors: Sequence[OutTensor], *, mark: str, on_bytes: OnBytes
) -> Written:
    """Write a new file. Raises: OSError (ENOSPC among others); GgufError if a source ends early."""
    header, mark_offset = header_bytes(fields, tensors, mark)
    digest = hashlib.sha256(header)
    with path.open("xb") as out, _Sources() as sources:
        out.write(header)
        for tensor in tensors:
            for piece in sources.pieces(tensor):
                out.write(piece)
                digest.update(piece)
                on_bytes(len(piece))
            padding = bytes(_aligned(tensor.nbytes) - tensor.nbytes)
            out.write(padding)
            digest.update(padding)
    return Written(digest.hexdigest(), total_bytes(header, tensors), mark_offset)


class _Sources:
    """The open source files, and one buffer for all copying, so that memory stays flat whatever the model's size."""

    def __init__(self) -> None:
        self._files: dict[Path, BinaryIO] = {}
        self._buffer = bytearray(PIECE_BYTES)

    def __enter__(self) -> _Sources:
        return self

    def __exit__(self, *_error: object) -> None:
        for file in self._files.values():
            file.close()

    def pieces(self, tensor: OutTensor) -> Iterator[memoryview]:
        """Yield the tensor's data; each piece is overwritten by the next."""
        view = memoryview(self._buffer)
        if tensor.source is None:
            self._buffer[:] = bytes(PIECE_BYTES)
            for start in range(0, tensor.nbytes, PIECE_BYTES):
                yield view[: min(PIECE_BYTES, tensor.nbytes - start)]
            return
        source = tensor.source
        if source.path not in self._files:
            self._files[source.path] = source.path.open("rb", buffering=0)
        file = self._files[source.path]
        file.seek(source.offset)
        left = tensor.nbytes
        while left:
            count = file.readinto(view[: min(PIECE_BYTES, left)])  # type: ignore[attr-defined]
            if not count:
                raise GgufError(f"{source.path} ended while tensor {source.name!r} was read: it changed meanwhile")
            yield view[:count]
            left -= count


def file_sha256(path: Path, on_bytes: OnBytes = lambda _count: None) -> str:
    """Returns: SHA-256 of a file, hex. Raises: OSError."""
    digest = hashlib.sha256()
    view = memoryview(bytearray(PIECE_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(view):
            digest.update(view[:count])
            on_bytes(count)
    return digest.hexdigest()
