"""Text that knows of each of its characters who wrote it: the chat template, or a client. Pure.

A chat template mixes its own words with a client's. Only the template's may become control tokens, so every string of the template's source is
`Traced`, and whatever a template does to it keeps the authors beside the characters. A `Traced` is a str with the same value, so nothing that a
template can ask (length, comparison, repr, a slice, JSON) depends on who wrote it. Operations that are not known here give a plain str, which counts
as a client's: what is not proved to be the template's own never becomes a control token.

Refuses to know Jinja, vocabularies and messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, SupportsIndex

import markupsafe

CLIENT = "\x00"
"""Author of everything that nothing better is known of."""
TEMPLATE = "\x01"
"""Author of the template's own words, the only ones that may be control tokens."""
_FIRST_MESSAGE = 2
_WINDOW = 1 << 16


def author_of_message(number: int) -> str:
    """Returns: the author that stands for a client's message `number`, from 0."""
    return chr(_FIRST_MESSAGE + number)


def authors_of(text: str) -> str:
    """Returns: a str as long as `text`, each character of it standing for the author of the character at the same place."""
    return text._authors if isinstance(text, Traced | TracedMarkup) else CLIENT * len(text)


def written_by(author: str, text: str) -> Traced:
    """Returns: the text, all of it by one author."""
    return Traced(text, author * len(text))


def concat(pieces: Iterable[str]) -> str:
    """Returns: the pieces joined, each with its authors."""
    found = list(pieces)
    if len(found) == 1:
        return str(found[0])
    return Traced("".join(found), "".join([authors_of(piece) for piece in found]))


def authors_in(text: str) -> set[str]:
    """Returns: all who wrote in a text. Long ones are gone through in pieces, so that other threads may run in between."""
    authors, found = authors_of(text), set[str]()
    for at in range(0, len(authors), _WINDOW):
        found.update(authors[at : at + _WINDOW])
    return found


def sole_author(value: Any) -> str:
    """Returns: the message that all text in a value comes from, however deep; `CLIENT` if it comes from several, or from none."""
    found: set[str] = set()
    _collect(value, found)
    found -= {CLIENT, TEMPLATE}
    return found.pop() if len(found) == 1 else CLIENT


def _collect(value: Any, found: set[str]) -> None:
    if isinstance(value, str):
        found.update(authors_in(value))
    elif isinstance(value, Mapping):
        for one in value.values():
            _collect(one, found)
    elif isinstance(value, list | tuple):
        for one in value:
            _collect(one, found)


class Traced(str):
    """A str with the author of each character beside it.

    Args:
        text: the characters.
        authors: as long as the text; by default all `CLIENT`.
    """

    __slots__ = ("_authors",)
    _authors: str

    def __new__(cls, text: str = "", authors: str | None = None) -> Traced:
        made = super().__new__(cls, text)
        made._authors = CLIENT * len(text) if authors is None else authors
        return made

    def __str__(self) -> str:
        return self

    # -- joining -------------------------------------------------------------------------------------------------------------

    def __add__(self, other: Any) -> Any:
        if not isinstance(other, str) or hasattr(other, "__html__"):
            return NotImplemented
        return Traced(str.__add__(self, other), self._authors + authors_of(other))

    def __radd__(self, other: Any) -> Any:
        if not isinstance(other, str) or hasattr(other, "__html__"):
            return NotImplemented
        return Traced("".join((other, self)), authors_of(other) + self._authors)

    def __mul__(self, times: SupportsIndex) -> Traced:
        return Traced(str.__mul__(self, times), self._authors * times)

    __rmul__ = __mul__

    def join(self, pieces: Iterable[str]) -> Traced:
        """As `str.join`."""
        found = list(pieces)
        return Traced(str.join(self, found), self._authors.join([authors_of(piece) for piece in found]))

    def __mod__(self, values: Any) -> Traced:
        given = values if isinstance(values, tuple) else (values,)
        pieces = re.split("(%[%s])", self)
        if isinstance(values, Mapping) or any("%" in piece for piece in pieces[::2]):
            return Traced(str.__mod__(self, values))
        whole = str.__mod__(self, values)  # raises where the values do not fit
        made, at, next_value = [], 0, iter(given)
        for piece in pieces:
            own, at = self[at : at + len(piece)], at + len(piece)
            made.append(str(next(next_value)) if piece == "%s" else own[1:] if piece == "%%" else own)
        return Traced(whole, authors_of(concat(made)))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> Traced:
        """As `str.replace`."""
        if not old:
            return Traced(str.replace(self, old, new, count))
        return Traced(new, authors_of(new)).join(self.split(old, count))

    # -- cutting -------------------------------------------------------------------------------------------------------------

    def __getitem__(self, key: SupportsIndex | slice) -> Traced:
        return Traced(str.__getitem__(self, key), self._authors[key])

    def strip(self, chars: str | None = None, /) -> Traced:
        """As `str.strip`."""
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> Traced:
        """As `str.lstrip`."""
        return self[len(self) - len(str.lstrip(self, chars)) :]

    def rstrip(self, chars: str | None = None, /) -> Traced:
        """As `str.rstrip`."""
        return self[: len(str.rstrip(self, chars))]

    def removeprefix(self, prefix: str, /) -> Traced:
        """As `str.removeprefix`."""
        return self[len(self) - len(str.removeprefix(self, prefix)) :]

    def removesuffix(self, suffix: str, /) -> Traced:
        """As `str.removesuffix`."""
        return self[: len(str.removesuffix(self, suffix))]

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """As `str.split`."""
        return self._located(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """As `str.rsplit`."""
        return self._located(str.rsplit(self, sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:
        """As `str.splitlines`."""
        bare, at = str.splitlines(self), 0
        lines: list[str] = []
        for line, whole in zip(bare, str.splitlines(self, True), strict=True):
            lines.append(self[at : at + len(whole if keepends else line)])
            at += len(whole)
        return lines

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        """As `str.partition`."""
        return self._in_three(str.partition(self, sep))

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        """As `str.rpartition`."""
        return self._in_three(str.rpartition(self, sep))

    def _in_three(self, parts: tuple[str, str, str]) -> tuple[str, str, str]:
        head, middle = len(parts[0]), len(parts[0]) + len(parts[1])
        return self[:head], self[head:middle], self[middle:]

    def _located(self, pieces: list[str], sep: str | None) -> list[str]:
        """Returns: pieces that stand one after the other in this text, `sep` (or white space) between them, with their authors."""
        found: list[str] = []
        at = 0
        for piece in pieces:
            if (
                sep is None
            ):  # a piece never begins with white space, but for the first one, so it is at the next place that looks like it
                at = str.index(self, piece, at)
            found.append(self[at : at + len(piece)])
            at += len(piece) + len(sep or "")
        return found

    # -- changing letters ----------------------------------------------------------------------------------------------------

    def upper(self) -> Traced:
        """As `str.upper`."""
        return self._changed(str.upper(self))

    def lower(self) -> Traced:
        """As `str.lower`."""
        return self._changed(str.lower(self))

    def capitalize(self) -> Traced:
        """As `str.capitalize`."""
        return self._changed(str.capitalize(self))

    def title(self) -> Traced:
        """As `str.title`."""
        return self._changed(str.title(self))

    def _changed(self, text: str) -> Traced:
        # No letter becomes nothing, so a text of the same length has every letter at its place.
        return Traced(text, self._authors if len(text) == len(self) else sole_author(self) * len(text))


class TracedMarkup(markupsafe.Markup):
    """What the filter `safe` makes: joined with another text it writes `<`, `&` and quotes of that one as HTML does, as it does in transformers.

    Args:
        text: the characters.
        authors: as for `Traced`.
    """

    __slots__ = ("_authors",)
    _authors: str

    def __new__(cls, text: str = "", authors: str | None = None) -> TracedMarkup:
        made = super().__new__(cls, text)
        made._authors = CLIENT * len(made) if authors is None else authors
        return made

    def __str__(self) -> str:
        return Traced(str.__str__(self), self._authors)

    def __add__(self, other: Any) -> Any:
        if not isinstance(other, str):
            return NotImplemented
        text, authors = _escaped(other)
        return TracedMarkup(str.__str__(self) + text, self._authors + authors)

    def __radd__(self, other: Any) -> Any:
        if not isinstance(other, str):
            return NotImplemented
        text, authors = _escaped(other)
        return TracedMarkup(text + str.__str__(self), authors + self._authors)


def _escaped(text: str) -> tuple[str, str]:
    """Returns: a text as HTML writes it, and its authors."""
    plain, authors = str.__str__(text), authors_of(text)
    if hasattr(text, "__html__"):
        return plain, authors
    pieces = [str.__str__(markupsafe.escape(one)) for one in plain]
    return "".join(pieces), "".join([author * len(one) for one, author in zip(pieces, authors, strict=True)])


Traced.__name__, Traced.__module__ = (
    "str",
    "builtins",
)  # a template's errors name the type of a value: to it, this is a str
