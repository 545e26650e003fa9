"""The last lines of this process's log, for the web page and for `shardnet logs`. They hold no prompts, answers and keys (`shardnet.log`)."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Self

from shardnet import log
from shardnet.errors import printable
from shardnet.messages import LOG_LEVELS, MAX_LOG_CHARS, MAX_LOG_LINES, LogLine, LogTold, TellLog

KEPT = 300
KEPT_FOR_OTHERS = MAX_LOG_LINES
"""Lines that each daemon keeps for `shardnet logs`: a megabyte or so."""
MOST_CHARS = 1000
"""A line is cut there: one with the trace of an error in it can be long."""
QUIET = frozenset({"request_finished", "request_cancelled"})
"""Facts that change nothing of what the page shows: nobody need look at once."""


class Journal:
    """A bounded ring. A context manager: it listens inside. Facts may come from any thread.

    Args:
        on_news: called, in the thread that logs, with each fact after which the swarm may look different.
        kept: lines.
    """

    def __init__(
        self,
        on_news: Callable[[], None] = lambda: None,
        *,
        kept: int = KEPT,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._on_news = on_news
        self._now_s = now_s
        self._lines: deque[dict[str, Any]] = deque(maxlen=kept)
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

    def tell(self, question: TellLog) -> LogTold:
        """Returns: the answer to who asks for lines."""
        with self._lock:
            lines, newest = list(self._lines), self._count
        now_s = self._now_s()
        after = question.after if question.after <= newest else 0
        behind = [line for line in lines if line["number"] > after]
        lost = newest - after - len(behind)
        wanted = [
            line
            for line in behind
            if _rank(line["level"]) >= _rank(question.level)
            and (question.max_age_s is None or line["at_s"] >= now_s - question.max_age_s)
        ]
        told = wanted[max(0, len(wanted) - question.most_lines) :]
        return LogTold(
            command_id=question.command_id,
            lines=tuple(
                LogLine(**line | {"text": printable(line["text"], keep="\n")[:MAX_LOG_CHARS]}) for line in told
            ),
            left_out=lost + len(wanted) - len(told),
            newest=newest,
            clock_s=now_s,
        )


def _rank(level: str) -> int:
    return LOG_LEVELS.index(level) if level in LOG_LEVELS else LOG_LEVELS.index("info")
