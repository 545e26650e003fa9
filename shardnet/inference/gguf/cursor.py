"""Reading the bytes of a GGUF header with bounds on everything: types, limits, and a cursor that never believes a length before it has checked it."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

from shardnet.errors import GgufError, UsageError

MAX_STRING_BYTES = 16 << 20  # a tokenizer.json as one string is the longest known
MAX_STRINGS = 1 << 21  # four times the longest list of merges known
MAX_ARRAY = 1 << 24
MAX_HEADER_BYTES = 256 << 20

FIRST_READ = 64 << 10
WINDOW_BYTES = 1 << 20


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

U32, U64 = SCALARS[ValueType.UINT32], SCALARS[ValueType.UINT64]


@contextmanager
def opened(path: Path) -> Iterator[tuple[int, int]]:
    """Open a regular file for reading; never blocks on a FIFO or device.

    Yields: (file descriptor, bytes). Raises: UsageError if there is no such file or it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:  # a NUL byte in the name
        raise UsageError(f"cannot read {str(path)!r}: {error}") from error
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise UsageError(f"{path} is not a regular file")
        yield descriptor, facts.st_size
    finally:
        os.close(descriptor)


class Cursor:
    """A position in a file, and a window of it in memory: however long a header claims to be, no more is held."""

    def __init__(self, descriptor: int, size: int, path: Path) -> None:
        self._descriptor, self._limit = descriptor, min(size, MAX_HEADER_BYTES)
        self.size, self.path = size, path
        self._window, self._base = b"", 0
        self.at = 0

    def fail(self, what: str) -> GgufError:
        return GgufError(f"{self.path} is not a usable GGUF: {what} (at byte {self.at})")

    def skip(self, count: int) -> int:
        """Move on by `count` bytes without reading them. Returns: where they start."""
        start = self.at
        if start + count > self._limit:
            if start + count <= self.size:
                raise self.fail(f"its header is larger than {MAX_HEADER_BYTES >> 20} MiB")
            raise self.fail("its header is cut off or damaged; fetch the file again")
        self.at = start + count
        return start

    def take(self, count: int) -> tuple[bytes, int]:
        """Move on by `count` bytes. Returns: a buffer, and where in it they start."""
        index = self._in_window(self.skip(count), count)
        return self._window, index

    def _in_window(self, start: int, count: int) -> int:
        index = start - self._base
        if index < 0 or index + count > len(self._window):
            self._window = self._read(start, count, max(count, WINDOW_BYTES if start else FIRST_READ))
            self._base, index = start, 0
            if len(self._window) < count:
                raise self.fail("it became shorter while it was read")
        return index

    def _read(self, start: int, least: int, most: int) -> bytes:
        """Returns: `most` bytes from `start`, `least` of them if the others cannot be had yet; fewer only where the file ends."""
        return os.pread(self._descriptor, most, start)

    def between(self, start: int, end: int) -> bytes:
        """Returns: bytes that were passed already."""
        index = self._in_window(start, end - start)
        return self._window[index : index + end - start]

    def u32(self) -> int:
        return int(U32.unpack_from(*self.take(4))[0])

    def u64(self) -> int:
        return int(U64.unpack_from(*self.take(8))[0])

    def name(self, most: int) -> str:
        length = self.u64()
        if not 0 < length <= most:
            raise self.fail(f"a name of {length} bytes")
        start = self.skip(length)
        try:
            return self.between(start, self.at).decode()
        except UnicodeDecodeError:
            raise self.fail("a name that is not UTF-8") from None

    def value_type(self) -> ValueType:
        number = self.u32()
        if number > ValueType.FLOAT64:
            raise self.fail(f"unknown value type {number}")
        return ValueType(number)

    def skip_strings(self, count: int) -> None:
        """Walk over length prefixes: the hot loop of large vocabularies, so it looks at nothing else."""
        if self.at + 8 * count > self._limit:
            raise self.fail(f"an array of {count} strings does not fit into the file")
        unpack, most, left = U64.unpack_from, MAX_STRING_BYTES, count
        while left:
            index = self._in_window(self.skip(8), 8)
            window, sure = self._window, len(self._window) - 8  # a length prefix up to there lies within the window
            while left and index <= sure:
                length = unpack(window, index)[0]
                if length > most:
                    raise self.fail(f"a string of {length} bytes")
                index += length + 8
                left -= 1
            self.at = self._base
            self.skip(index)
