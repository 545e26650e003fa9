"""The last lines of this process's log, for whoever looks. What is logged holds no prompts, answers and keys (`shardnet.log`)."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Self

from shardnet import log

KEPT = 300
MOST_CHARS = 1000
"""A line is cut there: one with the trace of an error in it can be long."""
QUIET = frozenset({"request_finished", "request_cancelled"})
"""Facts that change nothing of what the page shows: nobody need look at once."""


class Journal:
    """A bounded ring. A context manager: it listens inside. Facts may come from any thread.

    Args:
        on_news: called, in the thread that logs, with each fact after which the swarm may look different.
    """

    def __init__(self, on_news: Callable[[], None] = lambda: None, *, now_s: Callable[[], float] = time.time) -> None:
        self._on_news = on_news
        self._now_s = now_s
        self._lines: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._lock = threading.Lock()
        self._count = 0
        self._stop: Callable[[], None] = lambda: None

    def __enter__(self) -> Self:
        self._stop = log.watch(self.take)
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop()

    def take(self, fact: Mapping[str, Any]) -> None:
        """Keep a fact, as people read it."""
        text = log.sentence(fact)
        with self._lock:
            self._count += 1
            line = {
                "number": self._count,
                "at_s": round(self._now_s(), 3),
                "level": str(fact.get("level", "info")),
                "text": text if len(text) <= MOST_CHARS else text[:MOST_CHARS] + "…",
            }
            self._lines.append(line)
        if fact.get("event") not in QUIET:
            self._on_news()

    def after(self, number: int) -> list[dict[str, Any]]:
        """Returns: the lines that are kept of those behind that number, the oldest first."""
        with self._lock:
            return [line for line in self._lines if line["number"] > number]
