"""Is the peer going too slowly on purpose, and is it there at all? Pure: times and counters in, a sentence or None out.

Looked at once a second; so it costs a link nothing per frame.
"""

from __future__ import annotations

from dataclasses import dataclass

from shardnet.transport.limits import (
    ASK_AFTER_TICKS,
    BULK_BYTES,
    CHECK_INTERVAL_S,
    HEADER_TIMEOUT_S,
    LOST_AFTER_TICKS,
    MIN_PAYLOAD_BYTES_PER_S,
    PAYLOAD_GRACE_S,
    STALLED_TIMEOUT_S,
)


@dataclass(slots=True)
class ReceivingPace:
    """Judges the frame in progress."""

    _frame: int = -1
    _since_s: float = 0.0
    _header_done_s: float | None = None

    def too_slow(self, now_s: float, *, frame: int, payload_bytes: int | None) -> str | None:
        """Returns: why the peer is cut off, or None.

        Args:
            frame: number of frames that are complete: another number means another frame in progress.
            payload_bytes: of the frame in progress, received so far; None while its header is not complete.
        """
        if frame != self._frame:
            self._frame, self._since_s, self._header_done_s = frame, now_s, None
        if payload_bytes is None:
            if now_s - self._since_s >= HEADER_TIMEOUT_S:
                return f"it needs more than {HEADER_TIMEOUT_S:g} s for the header of one message"
            return None
        if self._header_done_s is None:
            self._header_done_s = now_s
        elapsed_s = now_s - self._header_done_s
        if elapsed_s > PAYLOAD_GRACE_S and payload_bytes < (elapsed_s - PAYLOAD_GRACE_S) * MIN_PAYLOAD_BYTES_PER_S:
            return f"it sends a tensor at less than {MIN_PAYLOAD_BYTES_PER_S >> 10} KiB/s"
        return None


@dataclass(slots=True)
class SendingPace:
    """Judges whether the peer still takes what we send."""

    _taken_bytes: int = -1
    _since_s: float = 0.0

    def stalled(self, now_s: float, *, taken_bytes: int, queued_bytes: int) -> str | None:
        """Returns: why the peer is cut off, or None.

        Args:
            taken_bytes: all that ever left the queue.
            queued_bytes: what waits in it now.
        """
        if taken_bytes != self._taken_bytes or not queued_bytes:
            self._taken_bytes, self._since_s = taken_bytes, now_s
            return None
        if now_s - self._since_s >= STALLED_TIMEOUT_S:
            return f"it took nothing for {STALLED_TIMEOUT_S:g} s while {queued_bytes} bytes waited for it"
        return None


@dataclass(slots=True)
class Silence:
    """Judges whether anything comes back. `ticks`: looks since the last sign of life."""

    ticks: int = 0
    _received_bytes: int = -1
    _taken_bytes: int = 0
    _unacknowledged_bytes: int = 0

    def look(self, *, received_bytes: int, taken_bytes: int, unacknowledged_bytes: int) -> None:
        """Take one reading.

        Args:
            received_bytes: all that ever came.
            taken_bytes: all that ever left our queue.
            unacknowledged_bytes: of that, what the kernel still keeps because the other end has not acknowledged it.
        """
        was_bulk = self._unacknowledged_bytes > BULK_BYTES
        most_bytes = self._unacknowledged_bytes + taken_bytes - self._taken_bytes
        is_alive = received_bytes != self._received_bytes or (was_bulk and unacknowledged_bytes < most_bytes)
        self._received_bytes, self._taken_bytes = received_bytes, taken_bytes
        self._unacknowledged_bytes = unacknowledged_bytes
        self.ticks = 0 if is_alive else self.ticks + 1

    @property
    def asks(self) -> bool:
        """Returns: True when it is time to ask the peer for a sign of life."""
        return self.ticks > 0 and self.ticks % ASK_AFTER_TICKS == 0

    @property
    def verdict(self) -> str | None:
        """Returns: why the peer is given up, or None."""
        if self.ticks < LOST_AFTER_TICKS:
            return None
        return f"nothing came back for {LOST_AFTER_TICKS * CHECK_INTERVAL_S:g} s"
