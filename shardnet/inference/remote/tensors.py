"""The tensors of a model that lies on a web server, as `splitting` wants them: in order, from any byte on, fetched ahead of whoever writes them.

Knows which bytes to ask for in one request. Refuses to know what becomes of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from shardnet.inference.gguf.header import Buffer, GgufTensor
from shardnet.inference.remote.ranges import RemoteFile
from shardnet.inference.remote.transfers import Transfers

RANGE_BYTES = 4 << 20
"""Bytes of one request: some hundred milliseconds of a good line, so that a round trip costs little and a broken one loses little."""
AHEAD = 6
"""Requests under way. With what is being written, 28 MiB are held at most."""
MOST_GAP = 4096
"""Padding between neighbours that is fetched with them rather than asked around."""
SAMPLE_GAP = 16 << 10
SAMPLES_AT_ONCE = 16


@dataclass(slots=True)
class _Stretch:
    """Bytes `[start, end)` of the file called `path`."""

    path: Path
    start: int
    end: int


class _Ahead:
    """Stretches that will be read in this order, the first of which are being fetched."""

    def __init__(self, fetch: Callable[[_Stretch], Future[bytes]], stretches: Iterable[_Stretch] = ()) -> None:
        self._fetch = fetch
        self._waiting = deque(stretches)
        self._coming: deque[tuple[_Stretch, Future[bytes]]] = deque()
        self._ask()

    def bring(self, path: Path, at: int) -> tuple[_Stretch, Future[bytes]] | None:
        """Returns: the request that brings a byte; what was to be read before it is not wanted any more. None if the byte is not expected."""
        if not any(_holds(one, path, at) for one in (*(one for one, _ in self._coming), *self._waiting)):
            return None
        while not _holds(self._coming[0][0], path, at):
            self._coming.popleft()[1].cancel()
            self._ask()
        return self._coming[0]

    def cancel(self) -> None:
        """Nothing more is wanted."""
        for _, coming in self._coming:
            coming.cancel()

    def _ask(self) -> None:
        while self._waiting and len(self._coming) < AHEAD:
            stretch = self._waiting.popleft()
            self._coming.append((stretch, self._fetch(stretch)))


class RemoteTensors:
    """`StreamedData` of all tensors of one model, whatever files they are in.

    Args:
        files: by the name that the tensors' `path` gives.
    """

    def __init__(self, files: Mapping[Path, RemoteFile], transfers: Transfers) -> None:
        self._files = files
        self._transfers = transfers
        self._expected = _Ahead(self._fetch)

    @property
    def asked_bytes(self) -> int:
        """Returns: bytes asked for so far, headers and repeats included."""
        return sum(file.asked_bytes for file in self._files.values())

    @property
    def file_bytes(self) -> int:
        """Returns: bytes of all files of the model."""
        return sum(file.version.size for file in self._files.values() if file.version is not None)

    def close(self) -> None:
        """End all transfers; nothing can be read afterwards."""
        self._transfers.close()

    def expect(self, reads: Sequence[tuple[GgufTensor, int]]) -> None:
        """As `StreamedData.expect`."""
        self._expected.cancel()
        self._expected = self._ahead(reads)

    def pieces(self, tensor: GgufTensor) -> Iterator[Buffer]:
        """As `TensorData.pieces`. Raises: as `RemoteFile.fetch`."""
        return self.pieces_from(tensor, 0)

    def pieces_from(self, tensor: GgufTensor, start: int) -> Iterator[Buffer]:
        """As `StreamedData.pieces_from`; a tensor that was not expected is fetched beside those that were. Raises: as `RemoteFile.fetch`."""
        at, end = tensor.offset + start, tensor.offset + tensor.nbytes
        ahead = self._expected
        while at < end:
            bringing = ahead.bring(tensor.path, at)
            if bringing is None:
                ahead = self._ahead([(tensor, at - tensor.offset)])
                continue
            stretch, coming = bringing
            piece = memoryview(coming.result())[at - stretch.start : end - stretch.start]
            yield piece
            at += len(piece)

    def _ahead(self, reads: Sequence[tuple[GgufTensor, int]]) -> _Ahead:
        spans = [
            _Stretch(tensor.path, tensor.offset + start, tensor.offset + tensor.nbytes)
            for tensor, start in reads
            if start < tensor.nbytes
        ]
        return _Ahead(self._fetch, _ranges(_joined(spans, MOST_GAP)))

    def _fetch(self, stretch: _Stretch) -> Future[bytes]:
        return self._transfers.start(self._files[stretch.path].fetch(stretch.start, stretch.end))

    def samples(self, wanted: Sequence[tuple[GgufTensor, int, int]]) -> list[bytes]:
        """As `StreamedData.samples`; neighbours come with one request."""
        spans = [_Stretch(tensor.path, tensor.offset + start, tensor.offset + end) for tensor, start, end in wanted]
        stretches = _joined(spans, SAMPLE_GAP)
        brought = iter(zip(stretches, self._transfers.run(self._fetch_all(stretches)), strict=True))
        samples: list[bytes] = []
        stretch, data = _Stretch(Path(), 0, 0), b""
        for span in spans:
            while not _holds(stretch, span.path, span.start):
                stretch, data = next(brought)
            samples.append(data[span.start - stretch.start : span.end - stretch.start])
        return samples

    async def _fetch_all(self, stretches: Sequence[_Stretch]) -> list[bytes]:
        some = asyncio.Semaphore(SAMPLES_AT_ONCE)

        async def fetch(stretch: _Stretch) -> bytes:
            async with some:
                return await self._files[stretch.path].fetch(stretch.start, stretch.end)

        return await asyncio.gather(*map(fetch, stretches))


def _holds(stretch: _Stretch, path: Path, at: int) -> bool:
    return stretch.path == path and stretch.start <= at < stretch.end


def _joined(spans: Sequence[_Stretch], most_gap: int) -> list[_Stretch]:
    """Returns: the spans in their order, each joined to the one before it if it lies close behind it."""
    joined: list[_Stretch] = []
    for span in spans:
        last = joined[-1] if joined else None
        if last is not None and last.path == span.path and 0 <= span.start - last.end <= most_gap:
            last.end = span.end
        else:
            joined.append(_Stretch(span.path, span.start, span.end))
    return joined


def _ranges(stretches: Sequence[_Stretch]) -> Iterator[_Stretch]:
    for stretch in stretches:
        for start in range(stretch.start, stretch.end, RANGE_BYTES):
            yield _Stretch(stretch.path, start, min(start + RANGE_BYTES, stretch.end))
