"""`ShardedSafeTensors`: a checkpoint's tensors as numpy arrays, each read when it is asked for and not before.

The `safetensors` package maps a file and copies out what is asked for. Everything is checked on opening, from headers alone
(`consistency`). A file that changes after that is an error when it is read next. Refuses to know what the tensors are for.
"""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from shardnet.errors import CheckpointError, UsageError
from shardnet.inference.checkpoints.config import read_config
from shardnet.inference.checkpoints.consistency import check_config, gather_tensors
from shardnet.inference.checkpoints.dtypes import NUMPY_DTYPES, UNKNOWN_TO_SAFETENSORS_NUMPY
from shardnet.inference.checkpoints.files import find_checkpoint
from shardnet.inference.checkpoints.header import StoredTensor, read_safetensors_header
from shardnet.inference.checkpoints.summary import Facts, modality_of, summarise
from shardnet.inference.gguf.cursor import opened

CACHE_BYTES = 256 << 20
AHEAD_BYTES = 256 << 20
TOUCHED_BYTES = 64 << 20
"""Pages of a mapped file count as this process' memory from when they are read until the file is let go: after so many it is, and is mapped anew."""
HEADER_READERS = 8
READERS = 2
"""Threads of a stream, so that a file is opened and read while another still is; a third gained nothing, and each holds a tensor."""

Array = NDArray[Any]


class ShardedSafeTensors:
    """One checkpoint, opened from a `.safetensors`, an index or a folder. Safe to use from several threads.

    Attributes:
        files: which files it is made of, and which others were ignored.
        tensors: name -> dtype, shape and place of each tensor, in the order of files and of data in them.
        config: its config.json; None if there is none.
    """

    def __init__(self, path: Path | str, *, cache_bytes: int = CACHE_BYTES) -> None:
        """Read and check all headers, in parallel; no weights.

        Args: cache_bytes: arrays kept by `tensor`, least recently used thrown away first; 0 keeps none.
        Raises: UsageError if there is no checkpoint at `path`; CheckpointError if it is incomplete, damaged, or contradicts itself.
        """
        self.files = find_checkpoint(Path(path))
        with ThreadPoolExecutor(HEADER_READERS) as pool:
            headers = list(pool.map(read_safetensors_header, self.files.paths))
        self.tensors = gather_tensors(self.files, headers)
        self.config = read_config(self.files.folder)
        if self.config is not None:
            check_config(self.config, self.tensors)
        self._headers = {header.path: header for header in headers}
        self._cache_bytes = cache_bytes
        self._cache: OrderedDict[str, Array] = OrderedDict()
        self._cached_bytes = 0
        self._mapped: dict[Path, Any] = {}
        self._touched_bytes = 0
        self._lock = Lock()

    @property
    def total_bytes(self) -> int:
        """Returns: bytes of all tensors, without headers."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def modality(self) -> str:
        """Returns: "text", "text+image", ...; "unknown" if neither index nor config.json says."""
        return modality_of(self.files, self.config)

    def summary(self) -> Facts:
        """Returns: what `shardnet inspect --json` prints of it."""
        return summarise(self.files, self.tensors, self.config)

    def tensor_names(self) -> list[str]:
        """Returns: names in the order of files and of data in them."""
        return list(self.tensors)

    def shard_files(self) -> list[Path]:
        """Returns: the checkpoint's SafeTensors files."""
        return list(self.files.paths)

    def shard_of(self, name: str) -> Path:
        """Returns: the file that holds a tensor. Raises: UsageError if there is no such tensor."""
        return self._stored(name).path

    def tensor(self, name: str) -> Array:
        """Returns: the whole tensor, read-only since the cache may give it to others too. Raises: UsageError, CheckpointError."""
        with self._lock:
            if name in self._cache:
                self._cache.move_to_end(name)
                return self._cache[name]
        stored = self._stored(name)
        array = self._read(stored)
        array.setflags(write=False)
        with self._lock:
            if stored.nbytes <= self._cache_bytes and name not in self._cache:
                self._cache[name] = array
                self._cached_bytes += stored.nbytes
                while self._cached_bytes > self._cache_bytes:
                    _, oldest = self._cache.popitem(last=False)
                    self._cached_bytes -= oldest.nbytes
        return array

    def rows(self, name: str, first: int, end: int) -> Array:
        """Read rows [first, end) of the first dimension and no others. Returns: an array of the caller's own.

        Raises: UsageError if there is no such tensor or no such rows; CheckpointError if the file has changed.
        """
        stored = self._stored(name)
        if not stored.shape or not 0 <= first <= end <= stored.n_rows:
            raise UsageError(f"tensor {name!r} of shape {list(stored.shape)} has no rows [{first}, {end})")
        return self._read(stored, first, end)

    def row_blocks(self, name: str, most_bytes: int) -> Iterator[tuple[int, Array]]:
        """Yield (first row, rows) from the first to the last; a block has at most `most_bytes`, but at least one row."""
        stored = self._stored(name)
        if not stored.shape:
            yield 0, self._read(stored)
            return
        step = max(1, most_bytes * stored.n_rows // max(stored.nbytes, 1))
        for first in range(0, stored.n_rows, step):
            yield first, self.rows(name, first, min(first + step, stored.n_rows))

    def stream(
        self, names: Iterable[str] | None = None, *, readers: int = READERS, ahead_bytes: int = AHEAD_BYTES
    ) -> Generator[tuple[str, Array], None, None]:
        """Yield (name, tensor) in the given order, or in that of the files, while `readers` threads read the next ones, from the next file too.

        No more than `ahead_bytes`, or one tensor, is read ahead; nothing enters the cache. Raises: UsageError, CheckpointError.
        """
        order = [self._stored(name) for name in (self.tensors if names is None else names)]
        waiting: deque[tuple[StoredTensor, Future[Array]]] = deque()
        held = 0
        pool = ThreadPoolExecutor(readers, thread_name_prefix="safetensors")
        try:
            for stored in order:
                while waiting and held + stored.nbytes > ahead_bytes:
                    done, future = waiting.popleft()
                    held -= done.nbytes
                    yield done.name, future.result()
                waiting.append((stored, pool.submit(self._read, stored)))
                held += stored.nbytes
            while waiting:
                done, future = waiting.popleft()
                yield done.name, future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def cache_memory_usage(self) -> int:
        """Returns: bytes of the arrays that the cache holds."""
        with self._lock:
            return self._cached_bytes

    def clear_cache(self) -> None:
        """Forget all cached arrays and close all files; they are opened again when they are needed."""
        with self._lock:
            self._cache.clear()
            self._cached_bytes = 0
            self._let_go()

    def _stored(self, name: str) -> StoredTensor:
        found = self.tensors.get(name)
        if found is None:
            raise UsageError(f"the checkpoint in {self.files.folder} has no tensor {name!r}")
        return found

    def _read(self, stored: StoredTensor, first: int = 0, end: int | None = None) -> Array:
        """Rows [first, end), or everything; an array that nobody else has."""
        self._check_unchanged(stored.path)
        end = stored.n_rows if end is None else end
        shape = (end - first, *stored.shape[1:]) if stored.shape else ()
        dtype = NUMPY_DTYPES[stored.dtype]
        nbytes = prod(shape) * dtype.itemsize
        if not nbytes:
            return np.empty(shape, dtype)
        if stored.dtype in UNKNOWN_TO_SAFETENSORS_NUMPY:
            array = np.empty(shape, np.uint8)
            _read_into(array, stored.path, stored.offset + first * (nbytes // (end - first)))
            return array.view(dtype)
        try:
            file = self._map(stored.path, nbytes)
            if nbytes == stored.nbytes:
                return np.asarray(file.get_tensor(stored.name))
            return np.asarray(file.get_slice(stored.name)[first:end])
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"cannot read tensor {stored.name!r} from {stored.path}: {error}") from error

    def _let_go(self) -> None:
        """Unmap all files, as soon as no thread reads them any more. Called with the lock."""
        self._mapped.clear()
        self._touched_bytes = 0

    def _map(self, path: Path, nbytes: int) -> Any:
        """Returns: the file, of which `nbytes` are about to be read. Its methods have no types, hence `Any`."""
        with self._lock:
            if self._touched_bytes + nbytes > TOUCHED_BYTES:
                self._let_go()
            self._touched_bytes += nbytes
            if path not in self._mapped:
                self._mapped[path] = safe_open(path, framework="numpy")
            return self._mapped[path]

    def _check_unchanged(self, path: Path) -> None:
        """Pages of a mapped file that became shorter would end the process."""
        header = self._headers[path]
        with opened(path) as (descriptor, size):
            if size != header.file_bytes or os.fstat(descriptor).st_mtime_ns != header.changed_ns:
                raise CheckpointError(f"{path} has changed since the checkpoint was opened: open it again")


def _read_into(array: NDArray[np.uint8], path: Path, offset: int) -> None:
    """Fill an array from a file, without the package."""
    view = memoryview(array.data).cast("B")
    with opened(path) as (descriptor, _size):
        at = 0
        while at < len(view):
            count = os.preadv(descriptor, [view[at:]], offset + at)
            if count == 0:
                raise CheckpointError(f"{path} became shorter while it was read")
            at += count
