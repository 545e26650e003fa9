"""Writing a GGUF whose tensor data come out of other files or are made on the way, in constant memory, and hashed as they pass.

Source: ggml's docs/gguf.md, version 3.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from itertools import cycle
from pathlib import Path
from typing import Any

from shardnet.errors import GgufError
from shardnet.inference.gguf.header import (
    MAGIC,
    SCALARS,
    Buffer,
    GgufField,
    GgufTensor,
    GgufValue,
    StreamedData,
    ValueType,
    padded,
)

GGUF_VERSION = 3
PIECE_BYTES = 4 << 20
SMALL_BYTES = 256 << 10
"""Pieces below this are hashed where they are: handing them to the thread would take longer."""
OnBytes = Callable[[int], None]
"""Called with the number of bytes just handled."""


@dataclass(frozen=True, slots=True)
class OutTensor:
    """A tensor to be written: its data are those of `source`, or zeros."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    nbytes: int
    source: GgufTensor | None


def string_value(text: str) -> GgufValue:
    """Returns: a metadata value of type string."""
    return GgufValue(ValueType.STRING, text)


def u32_value(number: int) -> GgufValue:
    """Returns: a metadata value of type uint32."""
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


def made_field(key: str, value: GgufValue, source: Path) -> GgufField:
    """Returns: a field that stands in no file, as a header that is made on the way holds it; `source` is what it was made of.

    Raises: ValueError, struct.error if the value is none of its type.
    """
    raw = encode_value(value)[4:]  # without the type tag
    count = len(value.value) if value.type == ValueType.ARRAY else 1
    return GgufField(key, value.type, 0, len(raw), value.element, count, source, raw)


def _scalar(kind: ValueType, value: Any) -> bytes:
    if kind == ValueType.STRING:
        text = value if isinstance(value, bytes) else str(value).encode()
        return struct.pack("<Q", len(text)) + text
    return SCALARS[kind].pack(value)


def _name(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


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
        offset = padded(offset + tensor.nbytes)
    if tensors:
        out += bytes(padded(len(out)) - len(out))
    return bytes(out), mark_offset


def total_bytes(header: bytes, tensors: Sequence[OutTensor]) -> int:
    """Returns: size of the file that `write_gguf` will write."""
    return len(header) + sum(padded(tensor.nbytes) for tensor in tensors)


def write_gguf(
    path: Path, fields: dict[str, GgufValue | GgufField], tensors: Sequence[OutTensor], *, mark: str, on_bytes: OnBytes
) -> Written:
    """Write a new file. Raises: OSError (ENOSPC among others); GgufError if a source ends early."""
    header, mark_offset = header_bytes(fields, tensors, mark)
    with path.open("xb") as out, Sources() as sources, Hasher() as hasher:
        out.write(header)
        hasher.update(header)
        for piece in sources.body(tensors):
            hasher.update(piece)
            out.write(piece)
            on_bytes(len(piece))
        digest = hasher.hexdigest()
    return Written(digest, total_bytes(header, tensors), mark_offset)


class Hasher:
    """SHA-256 in a thread of its own, one piece behind the reading and writing."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._running: Future[None] | None = None

    def __enter__(self) -> Hasher:
        return self

    def __exit__(self, *_error: object) -> None:
        self._pool.shutdown()

    def update(self, piece: Buffer) -> None:
        """Take one piece; it must stay as it is until the next call returns."""
        self._wait()
        if len(piece) < SMALL_BYTES:
            self._digest.update(piece)
        else:
            self._running = self._pool.submit(self._digest.update, piece)

    def _wait(self) -> None:
        if self._running is not None:
            self._running.result()
            self._running = None

    def hexdigest(self) -> str:
        """Returns: the hash of all pieces so far."""
        self._wait()
        return self._digest.hexdigest()


class Sources:
    """The open source files, and two buffers for all copying, so that memory stays flat whatever the model's size."""

    def __init__(self) -> None:
        self._files: dict[Path, FileIO] = {}
        self._buffers = cycle((memoryview(bytearray(PIECE_BYTES)), memoryview(bytearray(PIECE_BYTES))))
        self._zeros = memoryview(bytes(PIECE_BYTES))

    def __enter__(self) -> Sources:
        return self

    def __exit__(self, *_error: object) -> None:
        for file in self._files.values():
            file.close()

    def body(self, tensors: Sequence[OutTensor], skip: int = 0) -> Iterator[Buffer]:
        """Yield what stands behind a header: each tensor's data and its padding; of the first tensor all but the first `skip` bytes.

        Each piece is overwritten by the next but one.
        """
        self._announce(tensors, skip)
        for tensor in tensors:
            yield from self.pieces(tensor, skip)
            if padding := padded(tensor.nbytes) - tensor.nbytes:
                yield bytes(padding)
            skip = 0

    def _announce(self, tensors: Sequence[OutTensor], skip: int) -> None:
        """Tell those who fetch bytes from afar what will be asked of them."""
        reads: dict[int, tuple[StreamedData, list[tuple[GgufTensor, int]]]] = {}
        for number, tensor in enumerate(tensors):
            if tensor.source is not None and isinstance(tensor.source.data, StreamedData):
                data = tensor.source.data
                reads.setdefault(id(data), (data, []))[1].append((tensor.source, 0 if number else skip))
        for data, wanted in reads.values():
            data.expect(wanted)

    def pieces(self, tensor: OutTensor, skip: int = 0) -> Iterator[Buffer]:
        """Yield the tensor's data from byte `skip` on; each piece is overwritten by the next but one."""
        source, left = tensor.source, tensor.nbytes - skip
        if source is None:
            for start in range(0, left, PIECE_BYTES):
                yield self._zeros[: min(PIECE_BYTES, left - start)]
            return
        if source.data is not None:
            if skip and isinstance(source.data, StreamedData):
                yield from source.data.pieces_from(source, skip)
            elif left:
                yield from source.data.pieces(source)
            return
        if source.path not in self._files:
            self._files[source.path] = source.path.open("rb", buffering=0)
        file = self._files[source.path]
        file.seek(source.offset + skip)
        while left:
            buffer = next(self._buffers)
            count = file.readinto(buffer[: min(PIECE_BYTES, left)])
            if not count:
                raise GgufError(f"{source.path} ended while tensor {source.name!r} was read: it changed meanwhile")
            yield buffer[:count]
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
