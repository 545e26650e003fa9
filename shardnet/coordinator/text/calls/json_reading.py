"""JSON as models write it, read while it comes. Pure.

Raw line breaks and tabs within strings, which models write and JSON does not allow, are escaped on the way.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from shardnet.coordinator.text.calls.source import Broken, Source, Steps

_BEHIND_SCALAR = frozenset(",]} \t\r\n")
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
MAX_DEPTH = 128


class _Scan:
    """Where a JSON value that begins with a bracket or a quote ends."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.is_over = False

    def feed(self, text: str) -> int:
        """Returns: how many characters of the text belong to the value."""
        for at, char in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = char == "\\"
                self._in_string = char != '"'
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
                if self._depth > MAX_DEPTH:
                    raise Broken
            elif char in "}]":
                self._depth -= 1
            if not self._in_string and self._depth == 0:
                self.is_over = True
                return at + 1
        return len(text)


class _Repair:
    """Writes control characters within strings as JSON does."""

    def __init__(self) -> None:
        self._in_string = False
        self._escaped = False

    def feed(self, text: str) -> str:
        """Returns: the text, as JSON."""
        made = []
        for char in text:
            if self._in_string and char < " ":
                made.append(_ESCAPES.get(char, f"\\u{ord(char):04x}"))
                self._escaped = False
                continue
            made.append(char)
            if self._escaped:
                self._escaped = False
            elif char == '"':
                self._in_string = not self._in_string
            elif char == "\\":
                self._escaped = self._in_string
        return "".join(made)


def value(source: Source, tell: Callable[[str], None] | None = None) -> Steps[str]:
    """Take a JSON value, told piece by piece as it comes.

    Returns: its text.
    Raises: Broken if brackets do not close, or a scalar is none.
    """
    first = yield from source.char()
    if first not in '{["':
        return (yield from _scalar(source))
    scan, repair, pieces = _Scan(), _Repair(), list[str]()
    while True:
        piece = repair.feed(source.take(scan.feed(source.rest)))
        pieces.append(piece)
        if tell is not None and piece:
            tell(piece)
        if scan.is_over:
            return "".join(pieces)
        yield from source.more()


def _scalar(source: Source) -> Steps[str]:
    text = ""
    while True:
        if source.is_empty and source.ended:
            break
        char = yield from source.char()
        if char in _BEHIND_SCALAR:
            break
        text += source.take(1)
        if len(text) > 64:
            raise Broken
    parsed(text)
    return text


def string(source: Source) -> Steps[str]:
    """Returns: the string that was taken. Raises: Broken if none comes next."""
    if (yield from source.char()) != '"':
        raise Broken
    found = parsed((yield from value(source)))
    assert isinstance(found, str)
    return found


def parsed(text: str) -> Any:
    """Returns: what a JSON text says. Raises: Broken if it is none."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise Broken from None


def _refuse(_text: str) -> Any:
    raise ValueError
