"""Where a model's weights lie in its files, stage by stage, and how quickly the disk gives them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from shardnet.inference.gguf.header import GgufHeader
from shardnet.inference.gguf.layout import LOOKED_UP, layer_of
from shardnet.inference.llama.residency import Extent

SAMPLES = 8
SAMPLE_BYTES = 4 << 20

Stage = tuple[Extent, ...]


def stages_of(header: GgufHeader, *, has_head: bool) -> tuple[Stage, ...]:
    """Returns: the extents of each layer, with `has_head` then those of what stands behind them; without tables of which a token reads a row."""
    layers: list[list[Extent]] = [[] for _ in range(header.n_layers)]
    head: list[Extent] = []
    is_tied = not any(tensor.name == "output.weight" for tensor in header.tensors)
    for tensor in header.tensors:
        layer = layer_of(tensor.name)
        if layer is None and tensor.name in LOOKED_UP and not (is_tied and tensor.name == "token_embd.weight"):
            continue
        (head if layer is None else layers[layer]).append(Extent(tensor.path, tensor.offset, tensor.nbytes))
    return tuple(tuple(stage) for stage in ([*layers, head] if has_head else layers) if stage)


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
