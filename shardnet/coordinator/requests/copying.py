"""Where an answer that repeats a text with changes is in that text, and what it will say next. Pure.

An edit of code copies a file but for some places. Behind such a place the last few tokens stood nowhere before, so that a look-up of runs
(`ngrams.py`) finds nothing, or another place that is alike. `Copying` keeps its place: behind a token that is not the text's it looks for where
the text goes on, close by. And it remembers what was put in place of what: a name that was changed once will be changed again.

It knows nothing of probabilities or costs: it says what comes next, and of which kind that guess is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from shardnet.coordinator.requests.ngrams import common_end

WINDOW = 24
"""Tokens behind an edit's beginning among which the text may go on."""
LONGEST_EDIT = 64
"""Tokens that an edit may put in until its place counts as lost."""
LONGEST_REMOVED, LONGEST_PUT = 4, 12
"""Tokens of an edit that is remembered."""
PROVEN = 2
"""Tokens of the text behind an edit that show that it is over."""


@dataclass(slots=True)
class _Walk:
    """A way along the text, edits that are remembered included.

    Attributes:
        place: of the next token.
        rest: of what an edit puts in: tokens still to come.
        edit_at: where the last edit was made; -1: nowhere.
        rule: that edit, while its tokens come.
        said: tokens of it that came.
    """

    place: int
    rest: tuple[int, ...] = ()
    edit_at: int = -1
    rule: tuple[int, ...] | None = None
    said: int = 0


@dataclass(slots=True)
class _Edit:
    """Something else than the text: it began instead of the token at `place`. `tokens`: the answer's since then, those behind the edit among them."""

    place: int
    tokens: list[int]


@dataclass(slots=True)
class Copying:
    """A place in prompt and answer that the answer goes along.

    Attributes:
        streak: tokens of the text that came since the last edit; 0: it is not known where the text goes on.
    """

    streak: int = 0
    _walk: _Walk | None = None
    _edit: _Edit | None = None
    _rules: dict[tuple[int, ...], tuple[int, ...]] = field(default_factory=dict)
    """By what is removed, or by (-1, the token before, the token behind) where nothing is: what is put in."""

    @property
    def has_place(self) -> bool:
        """True while it goes along a text."""
        return self._walk is not None

    @property
    def edit_tokens(self) -> int:
        """Returns: tokens since the edit began that it is in."""
        return len(self._edit.tokens) if self._edit is not None and not self.streak else 0

    def begin(self, place: int, streak: int) -> None:
        """Go along from `place`, before which `streak` tokens were the answer's last ones."""
        self._walk, self._edit, self.streak = _Walk(place), None, streak

    def lose(self) -> None:
        """Forget the place, not the edits."""
        self._walk = self._edit = None
        self.streak = 0

    def guess(self, tokens: Sequence[int], count: int) -> list[int]:
        """Returns: the next `count` tokens, or none. In an edit of one token so far: what follows if it replaced one."""
        walk = self._walk
        if walk is None:
            return []
        if not self.streak:
            if self._edit is None or len(self._edit.tokens) != 1:
                return []
            walk = _Walk(self._edit.place + 1)
        walk, said = replace(walk), list[int]()
        while len(said) < count:
            token = self._step(walk, tokens, len(tokens), said)
            if token is None:
                return []
            said.append(token)
        return said

    def take(self, tokens: Sequence[int], position: int) -> None:
        """The answer's token at `position` came."""
        walk, token = self._walk, tokens[position]
        if walk is None:
            return
        if self.streak:
            ahead = replace(walk)
            if self._step(ahead, tokens, position, ()) == token:
                self._walk, self.streak = ahead, self.streak + 1
                self._note(tokens, token)
                return
            self._depart(walk, ahead)
        edit = self._edit
        assert edit is not None
        edit.tokens.append(token)
        self._resume(edit, tokens, position + 1)

    # -- inside --------------------------------------------------------------------------------------------------------------

    def _step(self, walk: _Walk, tokens: Sequence[int], size: int, said: Sequence[int]) -> int | None:
        """Go one token on.

        Args:
            size: of the text; behind it stands what was `said`: a text that runs into itself goes on in circles.

        Returns: that token; None where there is none yet.
        """
        if not walk.rest and walk.place < size and walk.edit_at != walk.place:
            walk.rule = None
            if (rule := self._rule_at(tokens, walk.place)) is not None:
                put = self._rules[rule]
                walk.rule, walk.said, walk.edit_at, walk.rest = rule, 0, walk.place, put
                if rule[0] >= 0:
                    walk.place += len(rule)
        if walk.rest:
            token, walk.rest = walk.rest[0], walk.rest[1:]
            walk.said += 1
            return token
        walk.rule = None
        place, walk.place = walk.place, walk.place + 1
        if place < size:
            return tokens[place]
        return said[place - size] if place - size < len(said) else None

    def _rule_at(self, tokens: Sequence[int], place: int) -> tuple[int, ...] | None:
        if not self._rules:
            return None
        for size in range(LONGEST_REMOVED, 0, -1):
            if (removed := tuple(tokens[place : place + size])) in self._rules:
                return removed
        between = (-1, tokens[place - 1], tokens[place])
        return between if between in self._rules else None

    def _note(self, tokens: Sequence[int], token: int) -> None:
        """The text goes on: an edit that it shows to be over is remembered."""
        edit, walk = self._edit, self._walk
        if edit is None or walk is None:
            return
        edit.tokens.append(token)
        if self.streak < PROVEN:
            return
        self._edit = None
        put = tuple(edit.tokens[: -self.streak])
        removed = tuple(tokens[edit.place : walk.place - self.streak])
        if len(removed) > LONGEST_REMOVED or len(put) > LONGEST_PUT or not put:
            return
        self._rules[removed or (-1, tokens[edit.place - 1], tokens[edit.place])] = put

    def _depart(self, walk: _Walk, ahead: _Walk) -> None:
        """Another token came than was expected."""
        if ahead.rule is not None:  # a remembered edit is not made here, or not so
            put = self._rules.pop(ahead.rule)
            self._edit = _Edit(ahead.edit_at, list(put[: ahead.said - 1]))
        elif self._edit is None:
            self._edit = _Edit(walk.place, [])
        self.streak = 0

    def _resume(self, edit: _Edit, tokens: Sequence[int], size: int) -> None:
        """Look for where the text goes on behind the edit."""
        best = start = 0
        for place in range(edit.place + 1, min(edit.place + WINDOW, size - len(edit.tokens)) + 1):
            length = common_end(edit.tokens, tokens[edit.place : place])
            if length > best:
                best, start = length, place
        if best:
            self._walk, self.streak = _Walk(start), best
        elif len(edit.tokens) > LONGEST_EDIT:
            self.lose()
