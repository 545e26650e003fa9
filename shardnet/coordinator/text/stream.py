"""From tokens to text: bytes held back until a character is whole, stop strings held back so that none leaks. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence


class TextStream:
    """Turns an answer's tokens into text that may be shown.

    Args:
        piece: token -> its bytes; end-of-text tokens give none.
        stops: the text ends before the first of these.
    """

    def __init__(self, piece: Callable[[int], bytes], stops: Sequence[str] = ()) -> None:
        self._piece = piece
        self._stops = tuple(stop for stop in stops if stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped = False
        """True once a stop string was met; nothing more comes then."""

    def push(self, token: int) -> str:
        """Returns: text that is certain now; often empty."""
        if self.stopped:
            return ""
        text = self._decoder.decode(self._piece(token))
        return self._release(text) if text else ""

    def flush(self) -> str:
        """The answer is over. Returns: what was held back."""
        if self.stopped:
            return ""
        text = self._release(self._decoder.decode(b"", final=True))
        if self.stopped:
            return text
        held, self._held = self._held, ""
        return text + held

    def _release(self, text: str) -> str:
        if not self._stops:
            return text
        self._held += text
        found = min((at for stop in self._stops if (at := self._held.find(stop)) >= 0), default=-1)
        if found >= 0:
            self.stopped = True
            shown, self._held = self._held[:found], ""
            return shown
        keep = max(_overlap(self._held, stop) for stop in self._stops)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown


def _overlap(text: str, stop: str) -> int:
    """Returns: how long a tail of `text` could be the beginning of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
