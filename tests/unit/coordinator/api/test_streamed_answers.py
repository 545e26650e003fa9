"""Several answers to one request, streamed: what came together is one write, and nothing waits for what did not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from shardnet.coordinator.api import streaming
from shardnet.coordinator.api.service import Answering
from shardnet.coordinator.api.wording import CompletionWording, Wording, Wordings
from shardnet.coordinator.requests.driver import Requests
from shardnet.coordinator.requests.generation_spec import GenerationSpec
from shardnet.coordinator.text.answering import PlainStream
from shardnet.coordinator.text.calls.events import Event
from shardnet.errors import UsageError
from shardnet.messages import CommandFailed, ErrorInfo, ExecuteTask, Sampling
from tests.support.coordinator_world import MODEL_ID, route
from tests.support.requests_world import World, result

BASE = {"id": "x"}
N_TOKENS = 3


class Streams:
    """Answers of one request over two nodes, of which only the steps are looked at."""

    def __init__(self) -> None:
        self.world = World(route(1, 2, n_seq=4))
        self.requests = Requests(self.world)
        self.steps: list[ExecuteTask] = []

    async def wordings(self, count: int, *, n_tokens: int = N_TOKENS, says: bytes = b"%d.") -> Wordings:
        """Begin so many answers."""
        ones: list[Wording] = []
        for index in range(count):
            spec = GenerationSpec(MODEL_ID, range(4), Sampling(), n_tokens, lambda _token: False)
            running = await self.requests.open(spec, PlainStream(lambda token: says and says % token))
            answering = Answering(running, cast(Any, None), cast(Any, None), [1])
            ones.append(CompletionWording(answering, index, BASE, logprobs=False, token_ids=False))
            self.steps += self.world.take()[0]
        return Wordings(ones, BASE)

    async def open(self, count: int, *, n_tokens: int = N_TOKENS, says: bytes = b"%d.") -> AsyncIterator[bytes]:
        """Begin. Returns: the writes of the stream."""
        wordings = await self.wordings(count, n_tokens=n_tokens, says=says)
        return streaming.events(wordings, lambda _route, _index: {}, wants_usage=True)

    def answer(self, token: int, *, ahead: int = 1, of: slice = slice(None)) -> None:
        """The last stage samples the same token for some of them, or all."""
        for step in self.steps[of]:
            told = result(step, token, ahead=ahead, at=step.position + step.n_tokens + token)
            self.requests.on_result(step.route[-1].node_id, told)


def said(write: bytes) -> list[tuple[int, str]]:
    """Returns: index and text of each choice in a write."""
    events = [json.loads(line[6:]) for line in write.decode().split("\n\n") if line.startswith("data: {")]
    return [(one["index"], one["text"]) for event in events for one in event.get("choices", [])]


async def test_what_came_together_is_one_write_and_so_is_the_end() -> None:
    streams = Streams()
    told = await streams.open(3)
    assert said(await anext(told)) == [(0, ""), (1, ""), (2, "")]
    streams.answer(0)
    assert said(await anext(told)) == [(0, "0."), (1, "0."), (2, "0.")]
    streams.answer(1, of=slice(1))
    assert said(await anext(told)) == [(0, "1.")]
    streams.answer(1, of=slice(1, 3))
    assert said(await anext(told)) == [(1, "1."), (2, "1.")]
    streams.answer(2, ahead=0)
    last = await anext(told)
    assert said(last) == [pair for index in range(3) for pair in ((index, "2."), (index, ""))]
    assert last.count(b'finish_reason":"length') == 3
    assert last.count(b"usage") == 1
    assert last.endswith(b"data: [DONE]\n\n")
    assert [write async for write in told] == []


async def test_one_answer_that_is_over_does_not_end_the_others() -> None:
    streams = Streams()
    told = await streams.open(2)
    await anext(told)
    for token in range(N_TOKENS):
        streams.answer(token, of=slice(1))
        assert said(await anext(told))[0] == (0, f"{token}.")
    streams.answer(0, of=slice(1, 2))
    assert said(await anext(told)) == [(1, "0.")]


async def test_a_silent_stream_says_that_it_is_there_and_waits_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "KEEP_ALIVE_S", 0.01)
    streams = Streams()
    told = await streams.open(2)
    await anext(told)
    assert [await anext(told) for _ in range(2)] == [streaming.COMMENT] * 2
    monkeypatch.setattr(streaming, "KEEP_ALIVE_S", 20.0)
    waiting = asyncio.ensure_future(anext(told))
    await asyncio.sleep(0)
    streams.answer(0, of=slice(1, 2))
    assert said(await waiting) == [(1, "0.")]


async def test_the_error_of_one_ends_all_behind_what_the_others_said() -> None:
    streams = Streams()
    told = await streams.open(2)
    await anext(told)
    streams.answer(0, of=slice(1))
    step = streams.steps[1]
    failed = CommandFailed(command_id=step.command_id, error=ErrorInfo.of(UsageError("no more")))
    streams.requests.on_failed(step.route[-1].node_id, failed)
    write = await anext(told)
    assert said(write) == [(0, "0.")]
    assert b"no more" in write
    assert [write async for write in told] == []


async def test_a_stream_whose_tokens_are_held_back_says_that_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "KEEP_ALIVE_S", 0.02)
    n_tokens = 40
    streams = Streams()
    told = await streams.open(1, n_tokens=n_tokens, says=b"")
    await anext(told)
    writing = asyncio.ensure_future(anext(told))
    n_told = 0
    while not writing.done():
        assert n_told < n_tokens - 1, "nothing was sent while tokens came"
        streams.answer(n_told)
        n_told += 1
        await asyncio.sleep(0.01)
    assert await writing == streaming.COMMENT


async def test_whole_answers_are_taken_as_they_come_and_the_first_error_ends_the_wait() -> None:
    streams = Streams()
    wordings = await streams.wordings(3)
    body = asyncio.ensure_future(streaming.whole(wordings, lambda _route, _index: {}))
    await asyncio.sleep(0)
    for token in range(N_TOKENS):
        streams.answer(token, ahead=N_TOKENS - 1 - token, of=slice(1, 2))
    step = streams.steps[2]
    failed = CommandFailed(command_id=step.command_id, error=ErrorInfo.of(UsageError("no more")))
    streams.requests.on_failed(step.route[-1].node_id, failed)
    with pytest.raises(UsageError, match="no more"):
        await body
    assert wordings.ones[1].answering.running.n_completion == N_TOKENS


async def test_whole_answers_stand_in_the_order_of_their_prompts_whichever_ended_first() -> None:
    streams = Streams()
    body = asyncio.ensure_future(streaming.whole(await streams.wordings(2), lambda _route, _index: {}))
    await asyncio.sleep(0)
    for of in (slice(1, 2), slice(1)):
        for token in range(N_TOKENS):
            streams.answer(token, ahead=N_TOKENS - 1 - token, of=of)
            await asyncio.sleep(0)
    told = await body
    assert [one["text"] for one in told["choices"]] == ["0.1.2."] * 2
    assert [one["index"] for one in told["choices"]] == [0, 1]


async def test_an_error_of_ours_in_the_middle_is_told_as_one_and_the_stream_is_not_just_cut() -> None:
    streams = Streams()
    told = await streams.open(1, says=b"%d %d")
    await anext(told)
    streams.answer(0)
    assert b"unexpected error" in await anext(told)
    assert [write async for write in told] == []


async def test_a_stop_string_that_was_held_back_to_the_end_is_why_the_answer_ended() -> None:
    class Held(PlainStream):
        """Tells what it was given at its end alone."""

        def push(self, token: int) -> list[Event]:
            return []

        def flush(self) -> list[Event]:
            return super().push(0)

    swarm = Streams()
    spec = GenerationSpec(MODEL_ID, range(4), Sampling(), N_TOKENS, lambda _token: False)
    running = await swarm.requests.open(spec, Held(lambda _token: b"Paris\n", ("\n",)))
    swarm.steps += swarm.world.take()[0]
    for token in range(N_TOKENS):
        swarm.answer(token, ahead=N_TOKENS - 1 - token)
    piece = running.take()
    assert (piece.text, piece.finish_reason, running.stop_met) == ("Paris", "stop", "\n")
