"""What every daemon tells of itself: version, log lines, how late its event loop is, when its certificate ends, and its process.

A context manager: it hears what is logged inside.
"""

from __future__ import annotations

import asyncio
import os
import platform
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from prometheus_client import ProcessCollector
from prometheus_client.metrics_core import Metric

from shardnet import __version__, log
from shardnet.metrics.buckets import LAG_S, Buckets
from shardnet.metrics.family import counter, gauge, histogram
from shardnet.swarm.identity import Identity

LOOK_S = 0.5
LEVELS = ("debug", "info", "warning", "error", "critical")

BUILD = gauge("build_info", "1, with what this daemon is.", "version", "python", "role")
LOG_LINES = counter("log_lines", "Lines that were logged.", "level")
LOOP_LAG = histogram("event_loop_lag_seconds", "How late the event loop came back to a timer.")
CERTIFICATE = gauge(
    "certificate_expiry_timestamp_seconds",
    "Unix time at which a certificate ends: this daemon's own, and that of the swarm's authority.",
    "certificate",
)
THREADS = gauge("threads", "Threads of this process.")
CLOCK = gauge(
    "time_seconds", "Unix time by this machine's clock; less the time of the scrape, it is how far that is off."
)


class Vitals:
    """Belongs to the event loop's thread; only `take` may be called from others."""

    def __init__(self, role: str, identity: Identity) -> None:
        self._role = role
        self._identity = identity
        self._lag = Buckets(LAG_S)
        self._lines: Counter[str] = Counter(dict.fromkeys(LEVELS[1:4], 0))
        self._lock = threading.Lock()
        self._stop: Callable[[], None] = lambda: None
        self._process = ProcessCollector(registry=None)

    def __enter__(self) -> Self:
        self._stop = log.watch(self.take)
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop()

    def take(self, fact: Mapping[str, Any]) -> None:
        """Count a line."""
        level = str(fact.get("level", "info"))
        with self._lock:
            self._lines[level if level in LEVELS else "error"] += 1

    async def run(self) -> None:
        """Look how late the loop is, until cancelled."""
        while True:
            due_s = time.perf_counter() + LOOK_S
            await asyncio.sleep(LOOK_S)
            self._lag.add(max(0.0, time.perf_counter() - due_s))

    def quick(self) -> Iterable[Metric]:
        """Yield what is known on the event loop."""
        yield BUILD.of({(__version__, platform.python_version(), self._role): 1})
        with self._lock:
            yield LOG_LINES.of(dict(self._lines))
        yield LOOP_LAG.buckets({(): self._lag})
        yield CLOCK.one(time.time())

    def slow(self) -> Iterable[Metric]:
        """Yield what files say. Blocking."""
        own = x509.load_pem_x509_certificate(self._identity.certificate_pem)
        ends = {"own": own, "authority": self._identity.swarm.ca}
        yield CERTIFICATE.of({name: one.not_valid_after_utc.timestamp() for name, one in ends.items()})
        yield from self._process.collect()
        yield THREADS.one(n_threads(os.getpid()))


def n_threads(pid: int) -> int:
    """Returns: threads of a process, native ones too; of this one those of Python, where the kernel does not tell."""
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return threading.active_count()
