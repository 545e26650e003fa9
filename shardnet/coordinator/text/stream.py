"""From tokens to text: bytes held back until a character is whole, stop strings held back so that none leaks. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence


class StopStrings:
    """Lets text through up to the first stop string.

    Args:
        stops: the text ends before the one that is whole first (of several that end together the longest): so it does not matter in which pieces
            the text comes, and nothing has to be waited for once one is there.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.met = False
        """True once a stop string was met; nothing more comes then."""
        self.which = ""
        """The one that was met."""

    def push(self, text: str) -> str:
        """Returns: what of the text is certain now."""
        if self.met:
            return ""
        if not self._stops or not text:
            return text
        self._held += text
        found = min(((at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0), default=None)
        if found is not None:
            self.met, self.which = True, self._held[found[1] : found[0]]
            shown, self._held = self._held[: found[1]], ""
            return shown
        keep = max(_overlap(self._held, stop) for stop in self._stops)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """No more text comes. Returns: what was held back."""
        held, self._held = self._held, ""
        return held


class TextStream:
    """Turns an answer's tokens into text that may be shown.

    Args:
        piece: token -> its bytes; end-of-text tokens give none.
        stops: see `StopStrings`.
    """

    def __init__(self, piece: Callable[[int], bytes], stops: Sequence[str] = ()) -> None:
        self._piece = piece
        self._stops = StopStrings(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    @property
    def stopped(self) -> bool:
        """True once a stop string was met; nothing more comes then."""
        return self._stops.met

    @property
    def stop_met(self) -> str:
        """The stop string that was met; empty until then."""
        return self._stops.which

    def push(self, token: int) -> str:
        """Returns: text that is certain now; often empty."""
        return self._stops.push(self._decoder.decode(self._piece(token)))

    def flush(self) -> str:
        """The text is over, or a control token is in its way. Returns: what was held back."""
        text = self._stops.push(self._decoder.decode(b"", final=True))
        self._decoder.reset()
        return text + self._stops.flush()


def _overlap(text: str, stop: str) -> int:
    """Returns: how long a tail of `text` could be the beginning of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
