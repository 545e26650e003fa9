"""`SwarmClient` and its twin for event loops, against an API whose answers the test writes."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from shardnet import AsyncSwarmClient, Piece, SwarmClient
from shardnet.errors import PlacementError, UnreachableError, UsageError

ANSWERS: dict[str, str] = {}
ASKED: list[tuple[str, str | None, Any]] = []


class Canned(BaseHTTPRequestHandler):
    """Answers each path with what the test put into ANSWERS, and keeps what was asked."""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        ASKED.append((self.path, self.headers.get("authorization"), json.loads(body) if body else None))
        self.send_response(200)
        answer = ANSWERS[self.path].encode()
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def api() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Canned)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    ANSWERS.clear()
    ASKED.clear()
    events: list[dict[str, Any]] = [
        {"model": "tiny", "choices": [{"delta": {"role": "assistant"}}], "prompt_token_ids": [1, 2]},
        {"choices": [{"delta": {"content": "Hel"}, "token_ids": [5]}]},
        {"choices": [{"delta": {"content": "lo"}, "token_ids": [6, 7]}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}], "shardnet": {"stages": [{"node": "a"}]}},
    ]
    lines = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    ANSWERS["/v1/chat/completions"] = ": computing\n\n" + lines + "data: [DONE]\n\n"
    ANSWERS["/v1/completions"] = lines.replace('"delta": {"content"', '"text": "", "delta": {"content"')
    card = {"model_id": "ab", "ready": False, "reason": "no node"}
    ANSWERS["/v1/models"] = json.dumps({"data": [{"id": "tiny", "shardnet": card}]})
    ANSWERS["/status"] = json.dumps({"nodes": []})
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


MESSAGES = [{"role": "user", "content": "hi"}]


def test_a_whole_answer_and_its_pieces(api: str) -> None:
    with SwarmClient(api, key="secret", model="tiny") as swarm:
        answer = swarm.chat(MESSAGES, max_tokens=5, seed=None)
        assert (answer.text, answer.token_ids, answer.prompt_token_ids) == ("Hello", [5, 6, 7], [1, 2])
        assert (answer.finish_reason, answer.model, answer.stages) == ("stop", "tiny", [{"node": "a"}])
        assert list(swarm.stream(MESSAGES)) == [Piece("Hel", (5,)), Piece("lo", (6, 7)), Piece("", (), "stop")]
    path, key, body = ASKED[0]
    assert (path, key) == ("/v1/chat/completions", "Bearer secret")
    assert body == {
        "messages": MESSAGES, "model": "tiny", "max_tokens": 5, "return_token_ids": True, "stream": True,
    }  # fmt: skip


def test_an_event_loop_gets_the_same(api: str) -> None:
    async def ask() -> tuple[Any, ...]:
        async with AsyncSwarmClient(api, model="tiny") as swarm:
            pieces = [piece async for piece in swarm.stream(MESSAGES)]
            return await asyncio.gather(swarm.chat(MESSAGES), swarm.models(), swarm.status()), pieces

    (answer, models, status), pieces = asyncio.run(ask())
    with SwarmClient(api) as swarm:
        assert (answer.text, answer.token_ids) == ("Hello", [5, 6, 7])
        assert pieces == list(swarm.stream(MESSAGES))
        assert (models, status) == (swarm.models(), swarm.status())
        assert (models[0].name, models[0].is_ready, models[0].reason) == ("tiny", False, "no node")


@pytest.mark.parametrize("prompt", ["once", [3, 4]])
def test_a_prompt_is_continued_and_a_stream_that_breaks_off_is_no_answer(api: str, prompt: str | list[int]) -> None:
    async def ask() -> None:
        async with AsyncSwarmClient(api) as swarm:
            await swarm.complete(prompt)

    with SwarmClient(api) as swarm, pytest.raises(UnreachableError, match="went away"):
        swarm.complete(prompt)
    with pytest.raises(UnreachableError, match="went away"):
        asyncio.run(ask())
    assert [(path, body["prompt"]) for path, _, body in ASKED] == [("/v1/completions", prompt)] * 2


def test_the_coordinators_own_error_and_its_absence_are_raised(api: str) -> None:
    error = {"error": {"message": "layers [0, 2) are missing", "shardnet_code": "NO_PLACEMENT"}}
    ANSWERS["/v1/chat/completions"] = f"data: {json.dumps(error)}\n\n"

    async def ask(url: str) -> None:
        async with AsyncSwarmClient(url) as swarm:
            await swarm.chat(MESSAGES)

    with SwarmClient(api) as swarm, pytest.raises(PlacementError, match="layers"):
        swarm.chat(MESSAGES)
    with pytest.raises(PlacementError, match="layers"):
        asyncio.run(ask(api))
    with SwarmClient("http://127.0.0.1:1") as nobody, pytest.raises(UnreachableError, match="no coordinator"):
        nobody.models()
    with pytest.raises(UnreachableError, match="no coordinator"):
        asyncio.run(ask("http://127.0.0.1:1"))


def test_an_option_that_there_is_not_is_named(api: str) -> None:
    with SwarmClient(api) as swarm, pytest.raises(UsageError, match="no option 'max_token'"):
        swarm.chat(MESSAGES, max_token=5)  # type: ignore[call-arg]
    assert not ASKED
