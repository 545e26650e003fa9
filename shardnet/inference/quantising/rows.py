"""A tensor's bytes in another type, made while they are asked for: threads take slabs of rows, read them, quantise them, and measure what that lost.

Only a few slabs are under way at a time, so memory stays flat whatever the tensor's size; they are handed over in order, and while they are written
the next ones are read and quantised. Rows do not depend on each other, so the bytes are those that one call of ggml's would make. Knows one tensor at
a time; refuses to know which type it should get.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from math import isfinite
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from shardnet.errors import GgufError
from shardnet.inference.gguf.element_types import GGML_TYPES
from shardnet.inference.gguf.header import Buffer, GgufTensor
from shardnet.inference.quantising.kernels import is_sound, quantise_rows, to_float
from shardnet.inference.quantising.losses import NOTHING, Sums, dot
from shardnet.inference.quantising.reading import Bytes, Load, row_source

SLAB_WEIGHTS = 1 << 19
"""What a thread takes at a time: enough that handing it over costs nothing."""
STEP_WEIGHTS = 1 << 16
"""What goes through the kernels at a time: in float32, before and after, it stays in a core's cache."""
SLABS_AHEAD = 2
"""Slabs that wait for each thread, or to be written, beside the one it works on."""

Made = tuple[Bytes, Sums]


@dataclass(slots=True)
class QuantisedData:
    """The bytes of `source` in another type (`header.TensorData`).

    Args:
        source: what is quantised; its rows fit the type that is asked for.
        importance: float32, (number of matrices, row length): how much each column matters.
        threads: how many compute.
    """

    source: GgufTensor
    importance: NDArray[np.float32] | None
    threads: int
    sums: Sums | None = field(default=None, init=False)
    """What was lost, once all pieces have been made."""

    def pieces(self, tensor: GgufTensor) -> Iterator[Buffer]:
        """Yield the tensor's bytes. Raises: GgufError if weights are not finite, do not fit the type, or their file ends early; OSError."""
        total = NOTHING
        job = _Job(self.source, tensor.ggml_type, self.importance, self.threads)
        waiting: deque[Future[Made]] = deque()
        with row_source(self.source) as rows, ThreadPoolExecutor(self.threads, "quantise") as pool:
            try:
                for first, end in job.slabs():
                    load = rows.ask(first * job.bytes_before, (end - first) * job.bytes_before)
                    waiting.append(pool.submit(job.run, first, end, load))
                    if len(waiting) > self.threads * (1 + SLABS_AHEAD):
                        made, lost = waiting.popleft().result()
                        total += lost
                        yield made.data
                while waiting:
                    made, lost = waiting.popleft().result()
                    total += lost
                    yield made.data
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        self.sums = total


class _Desk:
    """What one thread works on: room for a slab's bytes, and for a step's float32s before and after."""

    def __init__(self, slab_bytes: int, step_weights: int) -> None:
        self.raw = np.empty(slab_bytes, np.uint8)
        self.before = np.empty(step_weights, np.float32)
        self.after = np.empty(step_weights, np.float32)


class _Job:
    """One tensor on its way from type to type. `bytes_before` and `bytes_after` are those of a row."""

    def __init__(
        self, source: GgufTensor, ggml_type: int, importance: NDArray[np.float32] | None, n_threads: int
    ) -> None:
        self._source, self._type, self._importance = source, ggml_type, importance
        self._row_length = source.shape[0]
        self._n_rows = source.n_elements // self._row_length
        self._rows_per_matrix = source.shape[1] if importance is not None else self._n_rows
        self.bytes_before, self.bytes_after = (
            self._row_length // kind.block * kind.block_bytes
            for kind in (GGML_TYPES[source.ggml_type], GGML_TYPES[ggml_type])
        )
        self._to_float, self._back = to_float(source.ggml_type), to_float(ggml_type)
        self._rows_per_step = max(1, STEP_WEIGHTS // self._row_length)
        share = min(SLAB_WEIGHTS, source.n_elements // (2 * n_threads))  # small tensors have some for every thread too
        self._rows_per_slab = max(self._rows_per_step, share // self._row_length)
        self._desks: SimpleQueue[_Desk] = SimpleQueue()
        for _ in range(n_threads):
            self._desks.put(_Desk(self._rows_per_slab * self.bytes_before, self._rows_per_step * self._row_length))

    def slabs(self) -> Iterator[tuple[int, int]]:
        """Yield (first row, row after the last), counted through all matrices; one of importance never spans two of them."""
        first = 0
        while first < self._n_rows:
            border = (first // self._rows_per_matrix + 1) * self._rows_per_matrix
            end = min(first + self._rows_per_slab, border, self._n_rows)
            yield first, end
            first = end

    def run(self, first: int, end: int, load: Load) -> Made:
        """Quantise one slab; called by many threads."""
        desk = self._desks.get()
        try:
            return self._quantise(first, end, load(desk.raw), desk)
        finally:
            self._desks.put(desk)

    def _quantise(self, first: int, end: int, raw: Bytes, desk: _Desk) -> Made:
        made = np.empty((end - first) * self.bytes_after, np.uint8)
        importance = None
        if self._importance is not None:
            importance = self._importance[first // self._rows_per_matrix].ctypes.data
        source, target = raw.ctypes.data, made.ctypes.data
        before, after = desk.before.ctypes.data, desk.after.ctypes.data
        total = NOTHING
        for row in range(0, end - first, self._rows_per_step):
            n_rows = min(self._rows_per_step, end - first - row)
            n_weights, at = n_rows * self._row_length, target + row * self.bytes_after
            weights, lost = desk.before[:n_weights], desk.after[:n_weights]
            self._to_float(source + row * self.bytes_before, before, n_weights)
            xx = self._checked_square(weights)
            quantise_rows(self._type, before, at, n_rows, self._row_length, importance)
            if not is_sound(self._type, at, n_rows * self.bytes_after):
                raise GgufError(
                    f"{self._source.path}: weights of tensor {self._source.name!r} are too large for {GGML_TYPES[self._type].name}"
                )
            self._back(at, after, n_weights)
            np.subtract(weights, lost, out=lost)
            total += Sums(n_weights, xx, dot(weights, lost), dot(lost, lost))
        return made, total

    def _checked_square(self, weights: NDArray[np.float32]) -> float:
        """Kernels promise nothing for weights that are not finite, so these never reach them."""
        square = dot(weights, weights)
        if isfinite(square):
            return square
        if not np.isfinite(weights).all():
            raise GgufError(
                f"{self._source.path}: tensor {self._source.name!r} has weights that are infinite or not a number; it cannot be quantised"
            )
        return float(np.vecdot(weights.astype(np.float64), weights.astype(np.float64)))
