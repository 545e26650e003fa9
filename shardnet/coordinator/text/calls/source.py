"""Text that comes in pieces, and readers over it that wait for more where they cannot decide. Pure.

A reader is a generator: it yields when it needs more text, and is gone on with when there is some. What it decides depends on the text alone, never
on how much of it was there at once. Control tokens are text here too, known as such: they can be read as marks, and are never part of what is shown.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]
"""A reader that ends with a T."""


class Broken(Exception):
    """The text is not what the reader expects, or ends before it."""


class Source:
    """The text of one answer that is not committed yet.

    Attributes:
        ended: nothing more comes.
    """

    def __init__(self) -> None:
        self._text = ""
        self._control = ""
        self._at = 0
        self.ended = False

    def push(self, text: str, *, control: bool = False) -> None:
        """More text came; `control` if it is how a control token is written."""
        self._text += text
        self._control += ("1" if control else "0") * len(text)

    @property
    def rest(self) -> str:
        """What was not taken yet."""
        return self._text[self._at :]

    @property
    def is_empty(self) -> bool:
        """True if all that came was taken."""
        return self._at >= len(self._text)

    def is_control(self, at: int = 0) -> bool:
        """True if the character `at` of the rest belongs to a control token."""
        return self._control[self._at + at : self._at + at + 1] == "1"

    def take(self, count: int) -> str:
        """Returns: so many characters, without control tokens. They can be had again until `commit`."""
        begun, self._at = self._at, min(len(self._text), self._at + count)
        return self._shown(begun, self._at)

    @property
    def taken(self) -> str:
        """All that was taken since the last `commit`, without control tokens."""
        return self._shown(0, self._at)

    def _shown(self, begun: int, end: int) -> str:
        text, control = self._text[begun:end], self._control[begun:end]
        if "1" not in control:
            return text
        return "".join([one for one, flag in zip(text, control, strict=True) if flag == "0"])

    def commit(self) -> None:
        """What was taken is used."""
        self._text, self._control, self._at = self._text[self._at :], self._control[self._at :], 0

    def go_back(self) -> None:
        """What was taken since the last `commit` is there again."""
        self._at = 0

    # -- readers -------------------------------------------------------------------------------------------------------------

    def more(self) -> Steps[None]:
        """Wait. Raises: Broken at the end."""
        if self.ended:
            raise Broken
        yield

    def char(self) -> Steps[str]:
        """Returns: the next character, which stays. Raises: Broken at the end."""
        while self.is_empty:
            yield from self.more()
        return self._text[self._at]

    def space(self) -> Steps[None]:
        """Take white space."""
        while True:
            while not self.is_empty and self._text[self._at].isspace():
                self._at += 1
            if not self.is_empty or self.ended:
                return
            yield

    def looking_at(self, *marks: str) -> Steps[str | None]:
        """Returns: the longest of the marks that comes next, which stays; None if none does."""
        while True:
            rest = self.rest[: max(map(len, marks), default=0)]
            may_grow = any(len(one) > len(rest) and one.startswith(rest) for one in marks)
            if not may_grow or self.ended:
                return max((one for one in marks if rest.startswith(one)), key=len, default=None)
            yield

    def accept(self, *marks: str) -> Steps[str | None]:
        """Returns: the mark that was taken, if one came next."""
        found = yield from self.looking_at(*marks)
        self.take(len(found or ""))
        return found

    def expect(self, *marks: str) -> Steps[str]:
        """Returns: the mark that was taken. Raises: Broken if none came next."""
        found = yield from self.accept(*marks)
        if found is None:
            raise Broken
        return found

    def until(self, *marks: str, like: re.Pattern[str] | None = None) -> Steps[tuple[str, str]]:
        """Take what stands before the first of the marks, and the mark.

        Args:
            like: what the text before it must look like, from its beginning on.

        Returns: both.
        Raises: Broken if the text does not look like that, or no mark comes.
        """
        pattern, longest = (
            re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True)))),
            max(map(len, marks)),
        )
        seen = 0
        while True:
            found = pattern.search(self._text, self._at + seen)
            if found is not None:
                before = found.start() - self._at
                if like is not None and not like.fullmatch(self._text, self._at, found.start()):
                    raise Broken
                text = self.take(before)
                self.take(len(found[0]))
                return text, found[0]
            seen = max(0, len(self._text) - self._at - longest + 1)
            if like is not None and seen and not like.fullmatch(self._text, self._at, self._at + seen):
                raise Broken
            yield from self.more()


def held_back(text: str, marks: tuple[str, ...]) -> int:
    """Returns: how long a tail of the text could be the beginning of a mark."""
    longest = max(map(len, marks), default=1) - 1
    for size in range(min(len(text), longest), 0, -1):
        tail = text[-size:]
        if any(one.startswith(tail) for one in marks):
            return size
    return 0
