"""A tensor's rows on their way to the threads that quantise them: out of a file, each slab read by the thread that needs it, or made elsewhere.

Knows files and offsets; refuses to know types.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shardnet.errors import GgufError
from shardnet.inference.gguf.cursor import opened
from shardnet.inference.gguf.header import Buffer, GgufTensor

Bytes = NDArray[np.uint8]
Load = Callable[[Bytes], Bytes]
"""Puts a slab's bytes into the room that it is given, or has them already. Returns: the bytes. May be called by another thread."""


class RowSource(Protocol):
    """Where a tensor's rows come from."""

    def ask(self, start: int, nbytes: int) -> Load:
        """Announce a slab, by its place in the tensor's bytes; slabs are asked for in order, without gaps."""
        ...


@contextmanager
def row_source(tensor: GgufTensor) -> Iterator[RowSource]:
    """Yield the tensor's rows. Raises: UsageError if its file cannot be opened."""
    if tensor.data is not None:
        yield _MadeRows(tensor, tensor.data.pieces(tensor))
        return
    with opened(tensor.path) as (descriptor, _size):
        yield _FileRows(tensor, descriptor)


class _FileRows:
    """Each thread reads its own slabs. The disk is told of them as they are asked for, so it reads them while others are computed."""

    def __init__(self, tensor: GgufTensor, descriptor: int) -> None:
        self._tensor, self._descriptor = tensor, descriptor

    def ask(self, start: int, nbytes: int) -> Load:
        at = self._tensor.offset + start
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, at, nbytes, os.POSIX_FADV_WILLNEED)
        return lambda room: self._read(at, room[:nbytes])

    def _read(self, at: int, room: Bytes) -> Bytes:
        view, done = room.data, 0
        while done < len(view):
            count = os.preadv(self._descriptor, [view[done:]], at + done)
            if not count:
                tensor = self._tensor
                raise GgufError(f"{tensor.path} ended while tensor {tensor.name!r} was read: it changed meanwhile")
            done += count
        return room


class _MadeRows:
    """Bytes that are made in order, in pieces of any length, by the thread that asks."""

    def __init__(self, tensor: GgufTensor, pieces: Iterator[Buffer]) -> None:
        self._tensor, self._pieces = tensor, pieces
        self._left: Bytes = np.empty(0, np.uint8)

    def ask(self, start: int, nbytes: int) -> Load:
        slab, done = np.empty(nbytes, np.uint8), 0
        while done < nbytes:
            if not self._left.size:
                piece = next(self._pieces, None)
                if piece is None:
                    raise GgufError(f"{self._tensor.path} ended while tensor {self._tensor.name!r} was made of it")
                self._left = np.frombuffer(piece, np.uint8)
            count = min(nbytes - done, self._left.size)
            slab[done : done + count] = self._left[:count]
            self._left = self._left[count:]
            done += count
        return lambda _room: slab
