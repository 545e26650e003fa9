"""Weights in a file that llama.cpp has mapped, read before they are needed and let go afterwards, so that memory holds no more of them than it may.

llama.cpp computes on the mapped file; a page that is missing stops it until the disk has given it. Here a thread of its own goes ahead of the
computing layer and makes the pages present (`MADV_POPULATE_READ` on llama.cpp's own mapping: advice alone, as `MADV_WILLNEED`, gains nothing once
memory is short), and drops what does not stay (`residency`) of stages that were computed. Where the disk is slower, the computing thread waits
for the stage to be there: its own page faults would read far beyond what is needed, and push out what stays.

Knows extents of files and where this process has them mapped. Refuses to know what is in them.
Source: madvise(2), proc_pid_maps(5), posix_fadvise(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from shardnet.inference.llama.residency import Extent, bytes_to_keep, joined, passing_part

MADV_POPULATE_READ = 22
"""Since Linux 5.14; Python has no name for it."""
PIECE_BYTES = 4 << 20
"""Read at a time: the thread looks up between two pieces whether the layer is still to come."""
ADVISED_BYTES = 1 << 20
"""Linux reads no more for one `POSIX_FADV_WILLNEED` than the device takes at a time, which is seldom less than this."""
ADVISED_PIECES = 4
"""So many pieces the disk is told of at a time, so that it never rests between two of them."""
PATIENCE_S = 10.0
"""Longest wait for a stage to be read. After that it is read page by page, as it is computed."""
Mapping = tuple[int, int, int]
"""(first address, address behind the last, offset in the file)."""


class ReadAhead:
    """Reads the stages of a model ahead of what computes, in a cycle, from `__enter__` to `__exit__`.

    The model must be open for as long. `begin_pass`, `stage_done` and `pass_done` are for the computing thread.

    Args:
        stages: where the bytes of each stage lie.
        budget: bytes of weights that may be in memory.
        passes: times that the whole row will be run; nothing is read beyond. None: nobody knows, and the next pass is always made ready.
    """

    def __init__(self, stages: Sequence[Sequence[Extent]], budget: int, passes: int | None) -> None:
        self._stages = [joined(extents) for extents in stages]
        self.stage_bytes = tuple(sum(extent.nbytes for extent in extents) for extents in self._stages)
        self._read_bytes, self._read_s = 0, 0.0
        self._last = None if passes is None else len(stages) * passes
        # Both count stages over all passes. What is read and does not stay, from `_computing` up to `_reading`, takes `_room`.
        self._computing, self._reading = 0, 0
        self._divide(budget)
        self._behind: deque[int] = deque()
        self._is_closing = False
        self._changed = threading.Condition()
        self._files = _Files({extent.path for extents in self._stages for extent in extents})
        self._thread = threading.Thread(target=self._run, name="read ahead", daemon=True)

    def _divide(self, budget: int) -> None:
        """Settle what stays and what passes through. What stays is read along with the rest on the next pass."""
        self.budget = budget
        kept = bytes_to_keep(self.stage_bytes, budget)
        self._passing = [passing_part(extents, stays) for extents, stays in zip(self._stages, kept, strict=True)]
        self._sizes = [size - stays for size, stays in zip(self.stage_bytes, kept, strict=True)]
        self.stays_bytes = sum(kept)
        self._room = budget - self.stays_bytes
        self._kept_from = self._reading + len(self._stages)

    @property
    def bytes_per_s(self) -> float:
        """Returns: how quick reading is, over all that was read so far; 0 if nothing was."""
        return self._read_bytes / self._read_s if self._read_s else 0.0

    @property
    def pass_bytes(self) -> int:
        """Returns: bytes that each pass reads."""
        return sum(self._sizes)

    def __enter__(self) -> Self:
        for stage in range(len(self._stages)):  # what loading left in memory is not what is needed first
            self._drop(stage)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading; to be called before the model is closed."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join()
        self._files.close()

    def set_budget(self, budget: int) -> None:
        """Have more or less memory from now on. What was read ahead and is not to stay is let go; for any thread."""
        with self._changed:
            if budget == self.budget:
                return
            self._reading = self._computing
            self._divide(budget)
            self._behind.clear()
            for stage in range(len(self._stages)):
                self._drop(stage)
            self._changed.notify_all()

    def begin_pass(self) -> None:
        """Wait until the stage that comes next is there."""
        with self._changed:
            self._wait()

    def stage_done(self, stage: int) -> None:
        """Say that a stage was computed, and wait until the next one of the pass is there.

        Stages come in order, and 0 follows upon the last. One that is said again is not counted twice.
        """
        count = len(self._stages)
        with self._changed:
            ahead = (stage - self._computing) % count + 1
            if ahead == count and self._computing:
                return
            for done in range(self._computing, self._computing + ahead):
                if self._sizes[done % count]:
                    self._behind.append(done % count)
            self._computing += ahead
            self._reading = max(self._reading, self._computing)
            self._changed.notify_all()
            if self._computing % count:
                self._wait()

    def pass_done(self) -> None:
        """Say that the last stage was computed."""
        self.stage_done(len(self._stages) - 1)

    def _wait(self) -> None:
        """Called with the lock held. Where nothing is going to be read, there is nothing to wait for."""
        self._changed.wait_for(
            lambda: self._is_closing or self._reading > self._computing or not self._may_read(), PATIENCE_S
        )

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closing or self._behind or self._may_read())
                if self._is_closing:
                    return
                self._drop_behind()
                if not self._may_read():
                    continue
                position, budget = self._reading, self.budget
                extents = self._to_read(position)
            began_s = time.perf_counter()
            was_read = self._read(position, extents)
            with self._changed:
                if was_read:
                    self._read_bytes += sum(extent.nbytes for extent in extents)
                    self._read_s += time.perf_counter() - began_s
                if budget == self.budget:  # else it is divided in another way by now
                    self._reading = max(self._reading, position + 1) if was_read else self._reading
                    self._changed.notify_all()

    def _may_read(self) -> bool:
        """True if the next stage to be read has a place in memory. Called with the lock held."""
        count = len(self._stages)
        if self._reading >= self._computing + count:
            return False  # a whole pass is here already
        if self._last is not None and self._reading >= self._last:
            return False
        if self._reading == self._computing:
            return True
        taken = sum(self._sizes[position % count] for position in range(self._computing, self._reading))
        taken += sum(self._sizes[stage] for stage in self._behind)
        return taken + self._sizes[self._reading % count] <= self._room

    def _to_read(self, position: int) -> tuple[Extent, ...]:
        stage = position % len(self._stages)
        return self._passing[stage] if position >= self._kept_from else self._stages[stage]

    def _read(self, position: int, extents: Sequence[Extent]) -> bool:
        """Returns: False if it was given up, since it is too late to be of use, or memory is divided in another way now."""
        budget, to_come = self.budget, list(pieces(extents))
        for index, piece in enumerate(to_come):
            for ahead in to_come[:ADVISED_PIECES] if index == 0 else to_come[index + ADVISED_PIECES - 1 :][:1]:
                self._files.advise(ahead)
            with self._changed:
                if self._is_closing or self._computing > position or self.budget != budget:
                    return False
                self._drop_behind()  # the disk is busy meanwhile
            self._files.read(piece)
        return True

    def _drop_behind(self) -> None:
        """Called with the lock held."""
        while self._behind:
            self._drop(self._behind.popleft())

    def _drop(self, stage: int) -> None:
        for extent in self._passing[stage]:
            self._files.drop(extent)


def pieces(extents: Sequence[Extent]) -> Iterator[Extent]:
    """Yield the same bytes in order, `PIECE_BYTES` at most at a time."""
    for extent in extents:
        for offset in range(extent.offset, extent.end, PIECE_BYTES):
            yield Extent(extent.path, offset, min(PIECE_BYTES, extent.end - offset))


class _Files:
    """Files with file handles of our own, and where this process has them mapped."""

    def __init__(self, paths: set[Path]) -> None:
        self._handles = {path: os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths}
        self._mappings = {path: mappings_of(path) for path in paths}
        self._madvise = ctypes.CDLL(None, use_errno=True).madvise
        self._madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self._scratch = bytearray(PIECE_BYTES)

    def close(self) -> None:
        for handle in self._handles.values():
            os.close(handle)

    def advise(self, extent: Extent) -> None:
        """Have the disk begin with bytes, these and none beyond, as a page fault would."""
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                for offset in range(extent.offset, extent.end, ADVISED_BYTES):
                    nbytes = min(ADVISED_BYTES, extent.end - offset)
                    os.posix_fadvise(self._handles[extent.path], offset, nbytes, os.POSIX_FADV_WILLNEED)

    def read(self, extent: Extent) -> None:
        """Bring bytes into memory. An error is not ours to tell: who computes with them will meet it."""
        places = list(self._places(extent, inwards=False))
        covered = sum(size for _address, size in places) >= extent.nbytes
        if covered and all(self._madvise(at, size, MADV_POPULATE_READ) == 0 for at, size in places):
            return
        with contextlib.suppress(
            OSError
        ):  # an older kernel, or none of Linux: read, which leaves the bytes in the page cache
            os.preadv(self._handles[extent.path], [memoryview(self._scratch)[: extent.nbytes]], extent.offset)

    def drop(self, extent: Extent) -> None:
        """Give the memory of bytes back: out of the mapping first, since a mapped page is not dropped from the cache."""
        for address, size in self._places(extent, inwards=True):
            self._madvise(address, size, mmap.MADV_DONTNEED)
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._handles[extent.path], extent.offset, extent.nbytes, os.POSIX_FADV_DONTNEED)

    def _places(self, extent: Extent, *, inwards: bool) -> Iterator[tuple[int, int]]:
        """Yield (address, bytes) of whole pages that hold an extent, `inwards`: of pages that hold nothing else."""
        page = mmap.PAGESIZE
        for first, end, offset in self._mappings[extent.path]:
            begin = max(first, first + extent.offset - offset)
            behind = min(end, first + extent.end - offset)
            if inwards:
                begin, behind = -(-begin // page) * page, behind // page * page
            else:
                begin, behind = begin // page * page, min(end, -(-behind // page) * page)
            if begin < behind:
                yield begin, behind - begin


def mappings_of(path: Path) -> list[Mapping]:
    """Returns: where this process has a file mapped; [] where the operating system does not tell."""
    wanted = os.path.realpath(path)
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        addresses, _access, offset, _device, _inode, *name = line.split(maxsplit=5)
        if name and name[0].replace("\\012", "\n") == wanted:
            first, end = addresses.split("-")
            found.append((int(first, 16), int(end, 16), int(offset, 16)))
    return found
