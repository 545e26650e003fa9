"""How quickly the disk gives a model's weights."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

SAMPLES = 8
SAMPLE_BYTES = 4 << 20


def disk_rate(path: Path) -> float:
    """Measure, on a few pieces of a file, how quickly the disk gives it. They are dropped from the page cache first, where the system allows it.

    Returns: bytes per second; 0 for an empty file.
    """
    read, seconds = 0, 0.0
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for offset in _sample_offsets(os.fstat(handle).st_size):
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(handle, offset, SAMPLE_BYTES, os.POSIX_FADV_DONTNEED)
            begin = time.perf_counter()
            read += len(os.pread(handle, SAMPLE_BYTES, offset))
            seconds += time.perf_counter() - begin
    finally:
        os.close(handle)
    return read / seconds if seconds else 0.0


def _sample_offsets(size: int) -> Iterator[int]:
    """Yield places spread over a file, none of which overlap."""
    count = min(SAMPLES, -(-size // SAMPLE_BYTES))
    for number in range(count):
        yield size * number // count // SAMPLE_BYTES * SAMPLE_BYTES
