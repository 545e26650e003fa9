"""An answer as a row of blocks, each of one kind: reasoning, text, or one call. Pure.

For APIs that tell of blocks beginning, growing and ending, where OpenAI's chats tell of one message with three fields.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from shardnet.coordinator.text.calls.events import (
    CallArguments,
    CallBegun,
    CallBroken,
    CallDone,
    Content,
    Event,
    Reasoning,
)

Kind = Literal["reasoning", "text", "call"]


@dataclass(slots=True)
class Block:
    """One block.

    Attributes:
        index: in the answer, from 0.
        call_id: and `name`, of a call.
        is_whole: False of a call that broke off, whose text comes as a block behind it.
    """

    index: int
    kind: Kind
    call_id: str = ""
    name: str = ""
    is_whole: bool = True
    _pieces: list[str] = field(default_factory=list)

    def grow(self, text: str) -> None:
        """More of it."""
        self._pieces.append(text)

    @property
    def text(self) -> str:
        """All of it: text, or the JSON text of a call's arguments."""
        return "".join(self._pieces)


@dataclass(frozen=True, slots=True)
class Opened:
    """A block begins."""

    block: Block


@dataclass(frozen=True, slots=True)
class Grew:
    """More of the block that is open."""

    block: Block
    text: str


@dataclass(frozen=True, slots=True)
class Closed:
    """The block is over."""

    block: Block


Step = Opened | Grew | Closed


class Blocks:
    """The blocks of one answer as they come.

    Args:
        holds_calls: a call is told when it is whole, and one that broke off is a text like others. False tells it as it comes.
    """

    def __init__(self, *, holds_calls: bool) -> None:
        self.all: list[Block] = []
        self._holds_calls = holds_calls
        self._held: list[CallBegun | CallArguments] = []
        self._open: Block | None = None

    @property
    def open_kind(self) -> Kind | None:
        """Of the block that is open."""
        return self._open.kind if self._open is not None else None

    def take(self, events: Iterable[Event]) -> list[Step]:
        """Returns: what to tell of what came."""
        return [step for event in events for step in self._taken(event)]

    def end(self) -> list[Step]:
        """The answer is over. Returns: what is left to tell; an answer that says nothing is an empty text."""
        if not self.all:
            return [*self._begin("text"), *self._close()]
        is_call = self._open is not None and self._open.kind == "call"
        return self._close(is_whole=not is_call)

    def _taken(self, event: Event) -> list[Step]:
        match event:
            case Content(text):
                return self._grow("text", text)
            case Reasoning(text):
                return self._grow("reasoning", text)
            case CallBegun() | CallArguments() if self._holds_calls:
                self._held.append(event)
                return []
            case CallBegun(_, call_id, name):
                return self._begin("call", call_id, name)
            case CallArguments(_, text):
                return self._grow("call", text)
            case CallDone():
                held, self._held = self._held, []
                told: list[Step] = []
                for one in held:
                    told += (
                        self._begin("call", one.id, one.name)
                        if isinstance(one, CallBegun)
                        else self._grow("call", one.text)
                    )
                return [*told, *self._close()]
            case CallBroken(_, text):
                self._held = []
                closed = self._close(is_whole=False) if self.open_kind == "call" else []
                return [*closed, *self._grow("text", text)]

    def _begin(self, kind: Kind, call_id: str = "", name: str = "") -> list[Step]:
        closed = self._close()
        self._open = Block(len(self.all), kind, call_id, name)
        self.all.append(self._open)
        return [*closed, Opened(self._open)]

    def _grow(self, kind: Kind, text: str) -> list[Step]:
        if not text:
            return []
        begun = [] if self._open is not None and self._open.kind == kind else self._begin(kind)
        assert self._open is not None
        self._open.grow(text)
        return [*begun, Grew(self._open, text)]

    def _close(self, *, is_whole: bool = True) -> list[Step]:
        block, self._open = self._open, None
        if block is None:
            return []
        block.is_whole = is_whole
        return [Closed(block)]
