"""A client that closes its half of the connection gets its answer; one that is gone is noticed soon."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from shardnet.coordinator.api import half_close
from shardnet.coordinator.api.http_server import HttpServer
from shardnet.coordinator.api.streaming import EventStream, until_gone
from tests.support.swarm_world import LOOPS, until

BODY = json.dumps({"text": "é" * 10}).encode()


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_close, "LOOK_S", 0.02)


def request(path: str, *, version: str = "1.1", body: bytes = BODY) -> bytes:
    return f"POST {path} HTTP/{version}\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


class Answers:
    """`/whole` and `/stream` answer when they are told to, `/endless` does not end.

    Attributes:
        begun: requests whose body was read.
        left: clients that were seen to be gone.
    """

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.begun = self.left = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = Request(scope, receive)
        assert await asked.body() == BODY
        self.begun += 1
        ended = False

        async def events() -> AsyncIterator[bytes]:
            nonlocal ended
            yield b"data: one\n\n"
            await self.go.wait()
            yield b"data: two\n\n"
            while scope["path"] == "/endless":
                yield b"data: more\n\n"
                await asyncio.sleep(0.01)
            ended = True

        def on_end() -> None:
            self.left += not ended

        if scope["path"] in ("/stream", "/endless"):
            await EventStream(events(), on_end)(scope, receive, send)
            return
        try:
            await until_gone(asked, self.go.wait())
        except Exception:
            self.left += 1
            return
        await Response(f"answer to {scope['path']}")(scope, receive, send)


@contextlib.asynccontextmanager
async def served(app: ASGIApp) -> AsyncIterator[socket.socket]:
    """Yields: a client's socket, connected."""
    server = HttpServer.listen(("127.0.0.1", 0))
    running = asyncio.create_task(server.serve(app))
    own = socket.create_connection((server.address.host, server.address.port))
    own.setblocking(False)
    try:
        yield own
    finally:
        own.close()
        server.stop()
        await running


async def all_from(own: socket.socket) -> bytes:
    """Returns: what comes until the server closes."""
    received = b""
    while piece := await asyncio.get_running_loop().sock_recv(own, 1 << 16):
        received += piece
    return received


def run(loop: str, main: Coroutine[Any, Any, None]) -> None:
    """Run `main` on an event loop of that kind."""

    async def bounded() -> None:
        async with asyncio.timeout(20):
            await main

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(bounded())


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("path", ["/whole", "/stream"])
@pytest.mark.parametrize("waits", [False, True])
def test_a_half_closed_client_gets_its_answer(loop: str, path: str, waits: bool) -> None:
    async def main() -> None:
        answers = Answers()
        async with served(answers) as own:
            await asyncio.get_running_loop().sock_sendall(own, request(path))
            own.shutdown(socket.SHUT_WR)
            await until(lambda: answers.begun == 1)
            if waits:
                await asyncio.sleep(0.1)  # it is looked at several times meanwhile, and found to be there
            answers.go.set()
            received = await all_from(own)
        assert b"answer to /whole" in received if path == "/whole" else received.count(b"data: ") == 2
        assert answers.left == 0
        final = received.rpartition(b"HTTP/1.1 ")[2]
        assert final.startswith(b"200 OK"), "interim responses come before"

    run(loop, main())


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("path", ["/whole", "/stream"])
def test_a_client_that_is_gone_is_noticed_soon(loop: str, path: str) -> None:
    async def main() -> None:
        answers = Answers()
        async with served(answers) as own:
            await asyncio.get_running_loop().sock_sendall(own, request(path))
            await until(lambda: answers.begun == 1)
            own.close()
            async with asyncio.timeout(5):
                await until(lambda: answers.left == 1)

    run(loop, main())


async def test_a_half_closed_client_that_goes_later_is_noticed_when_it_is_written_to() -> None:
    answers = Answers()
    async with served(answers) as own:
        await asyncio.get_running_loop().sock_sendall(own, request("/endless"))
        own.shutdown(socket.SHUT_WR)
        answers.go.set()
        received = b""
        while received.count(b"more") < 3:
            received += await asyncio.get_running_loop().sock_recv(own, 1 << 16)
        own.close()
        async with asyncio.timeout(5):
            await until(lambda: answers.left == 1)


async def test_requests_sent_before_the_end_are_all_answered() -> None:
    answers = Answers()
    async with served(answers) as own:
        await asyncio.get_running_loop().sock_sendall(own, request("/first") + request("/second"))
        own.shutdown(socket.SHUT_WR)
        answers.go.set()
        received = await all_from(own)
    assert received.index(b"answer to /first") < received.index(b"answer to /second")


async def test_a_request_that_breaks_off_is_none() -> None:
    answers = Answers()
    async with served(answers) as own:
        await asyncio.get_running_loop().sock_sendall(own, request("/whole")[:-1])
        own.shutdown(socket.SHUT_WR)
        await all_from(own)
    assert answers.begun == 0


async def test_an_old_client_that_ends_is_gone_unless_its_answer_began() -> None:
    for path, gets in (("/whole", False), ("/stream", True)):
        answers = Answers()
        async with served(answers) as own:
            await asyncio.get_running_loop().sock_sendall(own, request(path, version="1.0"))
            await until(lambda answers=answers: answers.begun == 1)  # type: ignore[misc]
            if gets:
                assert b"one" in await asyncio.get_running_loop().sock_recv(own, 1 << 16)
            own.shutdown(socket.SHUT_WR)
            if not gets:
                await until(lambda answers=answers: answers.left == 1)  # type: ignore[misc]
            answers.go.set()
            assert (b"two" in await all_from(own)) == gets
