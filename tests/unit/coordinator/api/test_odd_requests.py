"""Whatever is sent, what comes back is an answer, or an error in the shape and the words of this API: never a parser's, never a 500."""

from __future__ import annotations

import asyncio
import queue
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import httpx
import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardnet.coordinator.api.endpoints import Api
from shardnet.coordinator.api.openapi.document import document, endpoints_of
from shardnet.coordinator.api.openapi.operations import OPERATIONS
from shardnet.coordinator.api.service import Service
from shardnet.coordinator.api.settings import ApiSettings
from shardnet.manifest import Manifest
from shardnet.swarm.api_keys import KeyRing
from tests.support.odd_requests import HI, ODD, VALID, WHOLE, places, with_odd_value
from tests.support.openapi_form import closed
from tests.support.scripted_swarm import World, scripted_swarm

FOREIGN_WORDS = re.compile(
    r"input should|validation|pydantic|traceback|unexpected error|expecting|expected value|EOF|trailing|_type\b|NoneType|Error\(|<class",
    re.IGNORECASE,
)
TOLD = document(endpoints_of(Api(cast(Service, None), ApiSettings(), KeyRing()).routes))
SHORT = {"n_ctx": 448, "n_batch": 64}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(ODD),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def odd_bodies(draw: st.DrawFn) -> tuple[str, bytes]:
    """A path, and a body that it would take but for one value."""
    path = draw(st.sampled_from(sorted(VALID)))
    body = draw(st.sampled_from(VALID[path]))
    return path, with_odd_value(body, draw(st.sampled_from(list(places(body)))), draw(VALUES))


@pytest.fixture
def drawn() -> list[tuple[str, bytes]]:
    """Paths and bodies, drawn before a coordinator runs: hypothesis does not bear with threads that draw numbers of their own."""
    found: list[tuple[str, bytes]] = []

    @settings(max_examples=100, database=None)
    @given(odd_bodies())
    def collect(one: tuple[str, bytes]) -> None:
        found.append(one)

    collect()
    return found


@pytest.fixture
def live(
    drawn: list[tuple[str, bytes]],
    tmp_path: Path,
    home: Path,
    manifest: Manifest,
    words: Sequence[int],
    tokenizer: Path,
) -> Iterator[httpx.Client]:
    """A client of one coordinator, which lives in a thread, for many requests."""
    addresses: queue.SimpleQueue[str] = queue.SimpleQueue()
    ended = threading.Event()

    async def serve() -> None:
        swarm = scripted_swarm(tmp_path / "cache", manifest, words, tokenizer, sequences=SHORT)
        async with swarm as world, world.node("a", 0, 1, 2) as node:
            node.next_token = lambda _task, _tokens: 72
            await world.ready()
            addresses.put(str(world.client.base_url))
            await asyncio.to_thread(ended.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        with httpx.Client(base_url=addresses.get(timeout=30), timeout=20, trust_env=False) as client:
            yield client
    finally:
        ended.set()
        thread.join()


def look(live: httpx.Client, path: str, body: bytes) -> None:
    answer = live.post(path, content=body, headers={"Content-Type": "application/json"})
    if answer.status_code == 200:
        return
    assert answer.status_code in (400, 404), (path, body, answer.text)
    jsonschema.validate(answer.json(), closed(TOLD, OPERATIONS["POST", path].refuses.__name__))
    message = answer.json()["error"]["message"]
    assert not FOREIGN_WORDS.search(message), (path, body, message)
    assert message.isprintable(), (path, body, message)
    assert len(message) < 1500, (path, body, message)


def test_a_value_out_of_place_is_taken_or_refused_in_our_words(
    live: httpx.Client, drawn: list[tuple[str, bytes]]
) -> None:
    assert len(drawn) == 100
    for path, body in drawn:
        look(live, path, body)


def test_a_body_that_is_none_is_refused_in_our_words(live: httpx.Client) -> None:
    for path in VALID:
        for body in WHOLE:
            look(live, path, body)


async def test_unknown_paths_and_methods_are_refused_by_name_and_with_what_there_is(
    make_world: Callable[..., Any],
) -> None:
    async with make_world() as world:
        for method, path, status, words in (
            ("GET", "/nope", 404, "there is nothing at '/nope': this API has "),
            ("OPTIONS", "/nope", 404, "there is nothing"),
            ("GET", "//v1/models", 404, "there is nothing"),
            ("GET", "/v1/%0Amodels", 404, "there is nothing at '/v1/\\nmodels'"),
            ("DELETE", "/v1/models", 405, "'/v1/models' does not take DELETE: it takes GET, HEAD, OPTIONS"),
            ("FOO", "/v1/completions", 405, "'/v1/completions' does not take FOO: it takes OPTIONS, POST"),
        ):
            refused = await world.client.request(method, path)
            assert refused.status_code == status
            jsonschema.validate(refused.json(), closed(TOLD, "Error"))
            assert refused.json()["error"]["message"].startswith(words)
            assert ("allow" in refused.headers) == (status == 405)
        there = (await world.client.get("/nope")).json()["error"]["message"]
        assert all(path in there for path in TOLD["paths"])


RAW = [
    b"hello there\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    b"GET /status HTTP/1.1\r\n\r\n",
    b"GET /status HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    b"GET /status HTTP/1.1\r\nHost: localhost\r\nX : a\r\n\r\n",
    b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n{}",
    b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n{}",
    b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}",
]


async def raw(world: World, sent: bytes) -> httpx.Response:
    api = world.addresses["api"]
    assert api is not None
    reader, writer = await asyncio.open_connection(api.host, api.port)
    writer.write(sent)
    head = await reader.readuntil(b"\r\n\r\n")
    lines = [line.partition(b": ") for line in head.split(b"\r\n")[1:] if line]
    headers = {name.decode().lower(): value.decode() for name, _, value in lines}
    body = await reader.readexactly(int(headers["content-length"]))
    writer.close()
    return httpx.Response(int(head.split(b" ")[1]), headers=headers, content=body)


async def test_what_is_no_http_is_refused_in_the_same_shape(make_world: Callable[..., Any]) -> None:
    async with make_world() as world:
        for sent in RAW:
            refused = await raw(world, sent)
            assert (refused.status_code, refused.headers["connection"]) == (400, "close"), sent
            jsonschema.validate(refused.json(), closed(TOLD, "Error"))
            assert refused.json()["error"]["message"].startswith("this is no valid HTTP/1.1 request")


async def test_a_body_that_is_announced_as_far_too_large_is_refused_before_it_comes(
    make_world: Callable[..., Any],
) -> None:
    head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9999999999\r\n\r\n"
    async with make_world() as world:
        async with asyncio.timeout(5):
            refused = await raw(world, head)
        assert refused.status_code == 413


async def test_one_connection_too_many_is_told_to_come_back(
    make_world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardnet.coordinator.api.http_server.MAX_CONNECTIONS", 3)
    async with make_world() as world:
        api = world.addresses["api"]
        assert api is not None
        assert (await world.client.get("/v1/models")).status_code == 200
        others = [await asyncio.open_connection(api.host, api.port) for _ in range(3)]
        refused = await world.client.post("/v1/chat/completions", json={"messages": HI})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "busy")
        assert refused.headers["retry-after"]
        for _, writer in others:
            writer.close()
