"""Is the peer going too slowly on purpose? Pure: times and counters in, a sentence or None out.

Looked at once a second, and only while a frame is half received or something waits to be sent; so it costs a link nothing per frame.
"""

from __future__ import annotations

from dataclasses import dataclass

from shardnet.transport.limits import HEADER_TIMEOUT_S, MIN_PAYLOAD_BYTES_PER_S, PAYLOAD_GRACE_S, STALLED_TIMEOUT_S


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
