"""The stall watchdog: which remedy is due, decided from figures and a clock that the caller hands in. Pure.

libtorrent was seen to stop at 97 % with a good seed known, after it had banned a bad one; cause unknown. So a download that stands still is helped,
by gentle means first.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Remedy(Enum):
    """In the order in which they are tried; after the last one the first again."""

    RECONNECT = "known peers are dialled again"
    RESTART = "the torrent is paused and resumed"
    READD = "the torrent is removed and added again"


@dataclass(slots=True)
class StallWatchdog:
    """Asks for the next remedy after each `timeout_s` without a new byte.

    Invariants: `stalled_since_s` is the moment of the last progress; `tried` counts the remedies since.
    """

    timeout_s: float
    stalled_since_s: float | None = None
    best_bytes: int = -1
    tried: int = 0

    def observe(self, *, at_s: float, bytes_done: int, is_checking: bool) -> Remedy | None:
        """Take one reading.

        Args:
            at_s: monotonic seconds.
            is_checking: bytes on disk are being hashed, which is progress.
        Returns: the remedy that is due now, or None.
        """
        if self.stalled_since_s is None or is_checking or bytes_done > self.best_bytes:
            self.stalled_since_s, self.tried = at_s, 0
            self.best_bytes = max(self.best_bytes, bytes_done)
            return None
        if at_s - self.stalled_since_s < self.timeout_s * (self.tried + 1):
            return None
        self.tried += 1
        return list(Remedy)[(self.tried - 1) % len(Remedy)]

    def stalled_s(self, at_s: float) -> float:
        """Returns: seconds since the last new byte."""
        return 0.0 if self.stalled_since_s is None else at_s - self.stalled_since_s
