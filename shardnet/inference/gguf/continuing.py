"""Writing a GGUF that may be broken off at any byte, by `kill -9` and power cuts too, and is gone on with later.

Knows only the file itself: what stands in it is read and hashed again, which is quicker than any network. Whether it is still the same file that is
to be written is the caller's to know; a header that differs begins it anew.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from shardnet.inference.gguf.header import GgufField, GgufValue, StreamedData, padded
from shardnet.inference.gguf.writer import (
    PIECE_BYTES,
    Hasher,
    OnBytes,
    OutTensor,
    Sources,
    Written,
    header_bytes,
    total_bytes,
)

SYNC_BYTES = 4 << 20
"""The file is made durable up to each multiple of this, so that what stands below the last one is right even after a power cut."""


def continue_gguf(
    path: Path, fields: dict[str, GgufValue | GgufField], tensors: Sequence[OutTensor], *, mark: str, on_bytes: OnBytes
) -> Written:
    """Write a file, or the rest of one that was broken off; at most `SYNC_BYTES` of what stood there are made again.

    A tensor whose data cannot begin in the middle (`StreamedData`) is made anew from its beginning.

    Args:
        on_bytes: called with bytes that stand, whether they were written or found.
    Raises: as `write_gguf`; what is written stays.
    """
    header, mark_offset = header_bytes(fields, tensors, mark)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    with os.fdopen(descriptor, "r+b", buffering=0) as out, Sources() as sources, Hasher() as hasher:
        at, first, skip = _standing(out, header, tensors)
        out.truncate(at)
        _hash_standing(out, at, hasher, on_bytes)
        if at == 0:
            hasher.update(header)
            at = _write(out, header, at)
            on_bytes(len(header))
        for piece in sources.body(tensors[first:], skip):
            hasher.update(piece)
            at = _write(out, piece, at)
            on_bytes(len(piece))
        os.fsync(out.fileno())
        digest = hasher.hexdigest()
    return Written(digest, total_bytes(header, tensors), mark_offset)


def _standing(out: BinaryIO, header: bytes, tensors: Sequence[OutTensor]) -> tuple[int, int, int]:
    """Returns: how many bytes stand for sure, the tensor to go on with, and how many of its bytes are among them."""
    sure = os.fstat(out.fileno()).st_size // SYNC_BYTES * SYNC_BYTES
    if sure < len(header) or out.read(len(header)) != header:
        return 0, 0, 0
    start = len(header)
    for number, tensor in enumerate(tensors):
        end = start + padded(tensor.nbytes)
        if sure < end:
            skip = min(sure - start, tensor.nbytes)
            data = tensor.source.data if tensor.source is not None else None
            if skip < tensor.nbytes and data is not None and not isinstance(data, StreamedData):
                skip = 0
            return start + skip, number, skip
        start = end
    return start, len(tensors), 0


def _hash_standing(out: BinaryIO, count: int, hasher: Hasher, on_bytes: OnBytes) -> None:
    out.seek(0)
    left = count
    while left:
        piece = out.read(min(PIECE_BYTES, left))
        hasher.update(piece)
        on_bytes(len(piece))
        left -= len(piece)


def _write(out: BinaryIO, piece: bytes | memoryview, at: int) -> int:
    """Write at the end, and make durable what crosses a multiple of `SYNC_BYTES`. Returns: the new end."""
    left = memoryview(piece)
    while left:
        left = left[out.write(left) :]
    end = at + len(piece)
    if at // SYNC_BYTES != end // SYNC_BYTES:
        os.fdatasync(out.fileno())
    return end
