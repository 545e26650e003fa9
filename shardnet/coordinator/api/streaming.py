"""Answers as they come: all of them whole, or as server-sent events that end when the client goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from shardnet.coordinator.api.errors import error_body
from shardnet.coordinator.api.large_json import LargeJSONResponse
from shardnet.coordinator.api.service import Answering
from shardnet.coordinator.api.wording import Wording, Wordings, to_event
from shardnet.coordinator.placement.planning import Route
from shardnet.coordinator.requests.running import Piece, wait_for_news
from shardnet.errors import ShardnetError
from shardnet.log import get

log = get("api")
UNEXPECTED = "an unexpected error in the coordinator; its log says more"
KEEP_ALIVE_S = 15.0
"""A comment goes out so often while a long prompt is computed: proxies give up on silent connections."""
COMMENT = b": computing\n\n"
PEEK_S = 0.3
"""Errors that come so soon get a status of their own, rather than an event in a stream that says 200."""

T = TypeVar("T")
DescribeStage = Callable[[Route, int], dict[str, Any]]


async def whole(wordings: Wordings, describe: DescribeStage) -> dict[str, Any]:
    """Returns: the body of the whole answer, when all of it is there. Raises: the error that ended one of them."""
    reasons = await all_of(wordings.ones)
    stages = [one.answering.running.stages(describe) for one in wordings.ones]
    return await asyncio.to_thread(
        wordings.whole, reasons, stages
    )  # the log-probabilities of 4,000 tokens take a second


class Taker(Protocol):
    """Whoever takes in an answer."""

    @property
    def answering(self) -> Answering: ...

    def add(self, piece: Piece) -> object: ...


async def all_of(takers: Sequence[Taker]) -> list[str]:
    """Have all of these answers taken in. Returns: their finish reasons. Raises: the first error that ended one of them."""
    reasons = [""] * len(takers)
    while going := [index for index, reason in enumerate(reasons) if not reason]:
        await wait_for_news([takers[index].answering.running for index in going])
        for index in going:
            running = takers[index].answering.running
            if running.has_news:
                piece = running.take()
                takers[index].add(piece)
                reasons[index] = piece.finish_reason or ""
    return reasons


async def events(wordings: Wordings, describe: DescribeStage, *, wants_usage: bool) -> AsyncIterator[bytes]:
    """Yield the server-sent events of all answers as they come, what came together at once: a write each. An error of one ends them all, with an
    event of its own and no `[DONE]`."""
    told = b"".join([to_event(one.first()) for one in wordings.ones])
    now = asyncio.get_running_loop().time
    told_at_s = now()
    while going := [one for one in wordings.ones if not one.answering.running.is_over]:
        if told:
            yield told
            told_at_s = now()
        await wait_for_news([one.answering.running for one in going], max(0.0, told_at_s + KEEP_ALIVE_S - now()))
        told = b""
        for one in going:
            if not one.answering.running.has_news:
                continue
            try:
                told += _news(one, describe)
            except ShardnetError as error:
                yield told + to_event(error_body(error))
                return
            except Exception:  # a stream that breaks off is taken for a whole answer by some clients
                log.exception("api_stream_failed")
                yield told + to_event(error_body(ShardnetError(UNEXPECTED)))
                return
        if not told and now() >= told_at_s + KEEP_ALIVE_S:  # also while tokens come that are held back
            told = COMMENT
    if wants_usage:
        told += to_event(wordings.usage_event())
    yield told + b"data: [DONE]\n\n"


def _news(one: Wording, describe: DescribeStage) -> bytes:
    """Returns: the events of what came; nothing where it is held back. Raises: the error that ended it."""
    piece, told = one.answering.running.take(), b""
    if piece.events or (piece.tokens and one.wants_every_token):
        told = one.part_event(piece)
    else:
        one.add(piece)
    if piece.finish_reason is not None:
        told += to_event(one.last(piece.finish_reason, one.answering.running.stages(describe)))
    return told


class EventStream(Response):
    """A stream of server-sent events that ends when the client goes, and then always calls `on_end`."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], on_end: Callable[[], None]) -> None:
        self.status_code = 200
        self.background = None
        self._events = events
        self._on_end = on_end
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end or until the client is gone, whichever is first."""
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(self._until_gone(receive, send))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._on_end()
            await _cancel(sending, leaving)
        if not sending.cancelled():
            sending.result()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _until_gone(self, receive: Receive, send: Send) -> None:
        """The client closed its half, or all of it, where anything but a farewell is received: writing tells which."""
        while (await receive())["type"] != "http.disconnect":
            await send({"type": "http.response.body", "body": COMMENT, "more_body": True})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def until_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Returns: what `work` gives. Raises: ClientDisconnect, with `work` cancelled, if the client goes first."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        await _cancel(working, leaving)


async def whole_response(
    request: Request, answers: list[Answering], body: Coroutine[Any, Any, dict[str, Any]]
) -> Response:
    """Returns: the whole answer. Raises: the error that ended it; ClientDisconnect. In any case the answers are closed then."""
    try:
        return await asyncio.to_thread(LargeJSONResponse, await until_gone(request, body))
    except BaseException:
        _close(answers)
        raise


async def streamed_response(request: Request, answers: list[Answering], told: AsyncIterator[bytes]) -> Response:
    """Returns: the answers as events, which close them. Raises: an error that came at once; ClientDisconnect."""
    try:
        first = answers[0].running
        if await until_gone(request, first.wait(PEEK_S)) and first.generation.error is not None:
            raise first.generation.error
        return EventStream(told, lambda: _close(answers))
    except BaseException:
        _close(answers)
        raise


def _close(answers: list[Answering]) -> None:
    for one in answers:
        one.running.close()
