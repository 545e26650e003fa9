"""Answers in the shapes of APIs that have one answer to a request, and events with names: whole, or streamed to their end.

Knows how such a request is taken, how its stream goes on and how it ends. Refuses to know what the events say.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from shardnet.coordinator.api.service import Answering, Service
from shardnet.coordinator.api.streaming import (
    KEEP_ALIVE_S,
    UNEXPECTED,
    all_of,
    streamed_response,
    until_gone,
    whole_response,
)
from shardnet.coordinator.api.translation import Translated
from shardnet.coordinator.api.wording import to_event
from shardnet.coordinator.requests.running import Piece
from shardnet.errors import ShardnetError
from shardnet.log import get

Told = list[dict[str, Any]]
"""Events to send now, each with its `type`."""
log = get("api")


class Turn(Protocol):
    """One answer in the shape of an API."""

    @property
    def answering(self) -> Answering: ...

    def begin(self) -> Told:
        """Returns: the events that open a stream."""
        ...

    def add(self, piece: Piece) -> Told:
        """Take in what came. Returns: the events that tell of it."""
        ...

    def end(self, reason: str) -> Told:
        """All came. Returns: the last events. Args: reason: the finish reason."""
        ...

    def fail(self, error: ShardnetError) -> Told:
        """It cannot go on. Returns: the last events."""
        ...

    def idle(self) -> bytes:
        """Returns: what keeps a connection awake in which nothing is said."""
        ...

    def whole(self, reason: str) -> dict[str, Any]:
        """All came. Returns: the body of the answer that is not streamed."""
        ...


class TurnRequest(Protocol):
    """What a client asks in one of these shapes."""

    @property
    def is_streamed(self) -> bool: ...

    def translated(self) -> Translated:
        """Returns: the chat that is meant. Raises: UsageError in the client's own words."""
        ...

    def turn(self, answering: Answering, chat: Translated) -> Turn:
        """Returns: what words the answer."""
        ...


def named_event(data: dict[str, Any]) -> bytes:
    """Returns: a server-sent event that is named by its type."""
    return b"event: " + str(data["type"]).encode() + b"\n" + to_event(data)


async def answer_turn(request: Request, asked: TurnRequest, service: Service) -> Response:
    """Returns: the answer, whole or streamed. Raises: what the client can mend, in its own words; what ended the answer before it began."""
    meant = await asyncio.to_thread(asked.translated)  # some hundred milliseconds for a long conversation
    with meant.in_client_words():
        answers = await until_gone(request, service.answer(meant.chat))
    turn = asked.turn(answers[0], meant)
    if asked.is_streamed:
        return await streamed_response(request, answers, turn_events(turn))
    return await whole_response(request, answers, whole_turn(turn))


async def count_turn(asked: TurnRequest, service: Service) -> int:
    """Returns: how many tokens the prompt has. Raises: as `answer_turn`."""
    meant = await asyncio.to_thread(asked.translated)  # some hundred milliseconds for a long conversation
    with meant.in_client_words():
        return await service.count(meant.chat)


async def whole_turn(turn: Turn) -> dict[str, Any]:
    """Returns: the body of the whole answer, when all of it is there. Raises: the error that ended it."""
    (reason,) = await all_of([turn])
    return await asyncio.to_thread(turn.whole, reason)


async def turn_events(turn: Turn) -> AsyncIterator[bytes]:
    """Yield the events of an answer as it comes. Whatever ends it before its time is told as an event."""
    running, now = turn.answering.running, asyncio.get_running_loop().time
    yield _as_bytes(turn.begin())
    sent_at_s = now()
    try:
        while not running.is_over:
            has_news = await running.wait(max(0.0, sent_at_s + KEEP_ALIVE_S - now()))
            told = _news(turn) if has_news else []
            if told or now() >= sent_at_s + KEEP_ALIVE_S:
                yield _as_bytes(told) if told else turn.idle()
                sent_at_s = now()
    except ShardnetError as error:
        yield _as_bytes(turn.fail(error))
    except Exception:
        log.exception("api_stream_failed")
        yield _as_bytes(turn.fail(ShardnetError(UNEXPECTED)))


def _news(turn: Turn) -> Told:
    piece = turn.answering.running.take()
    told = turn.add(piece)
    return told if piece.finish_reason is None else [*told, *turn.end(piece.finish_reason)]


def _as_bytes(told: Told) -> bytes:
    return b"".join([named_event(one) for one in told])
