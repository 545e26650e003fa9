"""Text on its way to a client: content and reasoning, without the white space that only parts them from marks. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

from shardnet.coordinator.text.calls.events import Content, Event, Reasoning
from shardnet.coordinator.text.calls.source import Source, Steps, held_back

Kind = type[Content] | type[Reasoning]


@cache
def _first_letters(marks: tuple[str, ...]) -> re.Pattern[str]:
    """Returns: what a mark begins with."""
    return re.compile("|".join(sorted({re.escape(one[0]) for one in marks})) or "(?!)")


class Shown:
    """Tells texts, and holds back white space at the end of one until it is known that more of it follows, where a mark may follow instead.

    Args:
        tell: is told what is found.
    """

    def __init__(self, tell: Callable[[Event], None]) -> None:
        self._tell = tell
        self._kind: Kind | None = None
        self._space = ""
        self._trims = False

    def tell(self, source: Source, kind: Kind, count: int, *, holds: bool = True) -> None:
        """Take so many characters and tell them."""
        text = source.take(count)
        source.commit()
        self.say(kind, text, holds=holds)

    def say(self, kind: Kind, text: str, *, holds: bool = True) -> None:
        """Tell a text. Args: holds: a mark may follow, so white space at its end is held back."""
        if kind is not self._kind:
            self._trims |= self._kind is not None or kind is Reasoning  # the space between two kinds belongs to neither
            self._kind, self._space = kind, ""
        if self._trims:
            text = text.lstrip()
            self._trims = not text
        text = self._space + text
        bare = text.rstrip() if holds else text
        self._space = text[len(bare) :]
        if bare:
            self._tell(kind(bare))

    def part(self) -> None:
        """A mark comes: white space before and behind it is nobody's."""
        self._space, self._trims = "", True

    def end(self) -> None:
        """The answer is over: white space at its end is the client's."""
        if self._space and self._kind is Content:
            self._tell(Content(self._space))
        self._space = ""

    def until(self, source: Source, kind: Kind, marks: tuple[str, ...]) -> Steps[str | None]:
        """Tell the text up to the first of the marks, which stays.

        Args:
            marks: none of them within another.

        Returns: the mark; None at the end of the answer.
        """
        while True:
            rest = source.rest
            if not source.ended and not _first_letters(marks).search(rest):  # nearly every token of an answer
                self.tell(source, kind, len(rest), holds=bool(marks))
                yield
                continue
            found = min(((at, one) for one in marks if (at := rest.find(one)) >= 0), default=None)
            if found is not None:
                self.tell(source, kind, found[0])
                return found[1]
            self.tell(source, kind, len(rest) - (0 if source.ended else held_back(rest, marks)))
            if source.ended:
                return None
            yield
