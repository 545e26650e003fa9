"""Where a reader of calls tells what it finds, and what it may know of the tools that were offered. Pure."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shardnet.coordinator.text.calls.events import CallArguments, CallBegun, CallBroken, CallDone, Event
from shardnet.coordinator.text.calls.json_reading import parsed
from shardnet.coordinator.text.calls.source import Broken, Source

MAX_CALLS = 128
_LETTERS = string.ascii_letters + string.digits


def openai_id() -> str:
    """Returns: a new id as OpenAI writes them."""
    return "call_" + "".join(secrets.choice(_LETTERS) for _ in range(24))


def mistral_id() -> str:
    """Returns: a new id of nine letters and digits, which Mistral's templates insist on."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))


Tools = Mapping[str, Mapping[str, Any]]
"""Name of a function -> the JSON schema of its arguments."""


@dataclass
class Calls:
    """The calls of one answer.

    Attributes:
        tools: what was offered.
        done: calls that are whole.
    """

    source: Source
    tools: Tools
    make_id: Callable[[], str]
    tell: Callable[[Event], None]
    done: int = 0
    _open: bool = False
    _next: int = 0
    _pieces: list[str] = field(default_factory=list)

    @property
    def is_open(self) -> bool:
        """True between `begin` and `end`."""
        return self._open

    def begin(self, name: str, call_id: str | None = None) -> None:
        """A call begins. Raises: Broken if its name is none, or there are too many."""
        if not name or len(name) > 256 or self.done >= MAX_CALLS:
            raise Broken
        self._open, self._pieces = True, []
        self.tell(CallBegun(self._next, call_id or self.make_id(), name))

    def arguments(self, piece: str) -> None:
        """More of its arguments' JSON text."""
        self._pieces.append(piece)
        if piece:
            self.tell(CallArguments(self._next, piece))

    def end(self) -> None:
        """The call is whole. Raises: Broken if its arguments are no JSON object."""
        if not isinstance(parsed("".join(self._pieces)), dict):
            raise Broken
        self._open = False
        self.tell(CallDone(self._next))
        self._next += 1
        self.done += 1
        self.source.commit()

    def whole(self, name: str, arguments: Mapping[str, Any], call_id: str | None = None) -> None:
        """A call that is known at once."""
        self.begin(name, call_id)
        self.arguments(json.dumps(arguments, ensure_ascii=False))
        self.end()

    def broken(self) -> None:
        """What was begun is no call."""
        self.tell(CallBroken(self._next, self.source.taken))
        self._open = False
        self._next += 1
        self.source.commit()
