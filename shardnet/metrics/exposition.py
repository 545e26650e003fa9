"""All figures of a daemon in one answer, as plain text or OpenMetrics, whichever the scraper asks for.

State is read on the event loop, where it belongs, as plain numbers; wording them, and reading the kernel's files, happens in a thread, so that no
token waits for a scrape. Refuses to know who may ask, and how.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

Read = Callable[[], Iterable[Metric]]
Answer = tuple[bytes, dict[str, str]]
"""A body, and its headers."""


class _Reader(Collector):
    def __init__(self, read: Read) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        return self._read()

    def describe(self) -> Iterable[Metric]:
        """Names are told apart by a test; nothing is read at registration."""
        return ()


class _Taken(Collector):
    """What was read, as a registry gives it, and what is to be read now."""

    def __init__(self, families: Sequence[Metric], slow: CollectorRegistry) -> None:
        self._families = families
        self._slow = slow

    def collect(self) -> Iterable[Metric]:
        yield from self._families
        yield from self._slow.collect()


class Exposition:
    """What is told of a daemon.

    Args:
        quick: read state of the event loop; called on it.
        slow: read files; called in a thread.
    """

    def __init__(self, quick: Iterable[Read], slow: Iterable[Read] = ()) -> None:
        self._quick, self._slow = CollectorRegistry(), CollectorRegistry()
        for registry, readers in ((self._quick, quick), (self._slow, slow)):
            for read in readers:
                registry.register(_Reader(read))

    async def answer(self, accept: str, accept_encoding: str) -> Answer:
        """Returns: all figures of this moment, in the format that the headers ask for."""
        taken = _Taken(list(self._quick.collect()), self._slow)
        return await asyncio.to_thread(_worded, taken, accept, accept_encoding)


def _worded(taken: Collector, accept: str, accept_encoding: str) -> Answer:
    encode, kind = choose_encoder(accept)
    body, headers = (
        encode(taken),
        {"Content-Type": kind, "Cache-Control": "no-store", "Vary": "Accept, Accept-Encoding"},
    )
    if gzip_accepted(accept_encoding):
        return gzip.compress(body, compresslevel=1, mtime=0), headers | {"Content-Encoding": "gzip"}
    return body, headers
