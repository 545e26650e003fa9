"""How far a load is, by bytes, with the memory and processors that the engine uses meanwhile: looked at a few times a second by a thread of its own.

A weight is done when it has been read and llama.cpp has been through it. Of a mapped file the kernel reads everything before llama.cpp's first word,
seen as growth of resident memory; laying weights out anew comes after that and may take longer. So the two count half each, until llama.cpp says that
it is through. Lives in the engine process only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import psutil

from shardnet.inference.engine.protocol import Load

INTERVAL_S = 0.25


@dataclass(frozen=True, slots=True)
class Sample:
    """A look at the process: when, resident bytes, seconds of processor time so far."""

    at_s: float
    memory_bytes: int
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Progress:
    """A load has come this far.

    Attributes:
        memory_bytes: what the whole engine has resident.
        cpu_cores: processors that it kept busy since the last look.
    """

    request: Load
    done_bytes: int
    total_bytes: int
    bytes_per_s: float
    memory_bytes: int
    cpu_cores: float


class LoadCourse:
    """One load's course. Pure: looks come in, progress comes out, and never goes back."""

    def __init__(self, request: Load, total_bytes: int, first: Sample) -> None:
        self._request = request
        self._total_bytes = total_bytes
        self._first = self._last = first
        self._done_bytes = 0

    def seen(self, sample: Sample, share: float) -> Progress:
        """Take in a look, and the share (0 to 1) that llama.cpp told last."""
        grown = sample.memory_bytes - self._first.memory_bytes
        read, gone_through = min(self._total_bytes, max(0, grown)), int(self._total_bytes * share)
        done = max(self._done_bytes, self._total_bytes if share >= 1 else (read + gone_through) // 2)
        passed_s = max(1e-3, sample.at_s - self._last.at_s)
        progress = Progress(
            self._request,
            done,
            self._total_bytes,
            (done - self._done_bytes) / passed_s,
            sample.memory_bytes,
            max(0.0, sample.cpu_s - self._last.cpu_s) / passed_s,
        )
        self._done_bytes, self._last = done, sample
        return progress


class LoadWatch:
    """Reports a load's progress while its `with` block runs.

    Args:
        total_bytes: the weights.
        report: called on the watching thread.
    """

    def __init__(self, request: Load, total_bytes: int, report: Callable[[Progress], None]) -> None:
        self._process = psutil.Process()
        self._course = LoadCourse(request, total_bytes, self._look())
        self._report = report
        self._share = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="load-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()

    def handled(self, share: float) -> None:
        """llama.cpp's callback: this share of the tensors has been gone through."""
        self._share = min(1.0, max(0.0, share))

    def _look(self) -> Sample:
        with self._process.oneshot():
            times = self._process.cpu_times()
            return Sample(time.monotonic(), self._process.memory_info().rss, times.user + times.system)

    def _watch(self) -> None:
        while not self._over.wait(INTERVAL_S):
            self._report(self._course.seen(self._look(), self._share))
