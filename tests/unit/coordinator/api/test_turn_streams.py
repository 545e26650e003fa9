"""Streams with named events: kept awake while nothing comes, and over for every node once the client goes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from shardnet.coordinator.api import streaming, turns
from shardnet.messages import ExecuteTask

BODIES: dict[str, dict[str, Any]] = {
    "/v1/responses": {"input": "hi", "stream": True},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 100, "stream": True},
}
AWAKE = {"/v1/responses": ": computing", "/v1/messages": "event: ping"}


@pytest.mark.parametrize("path", BODIES)
async def test_a_silent_stream_is_kept_awake_and_a_client_that_goes_frees_its_place(
    make_world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(turns, "KEEP_ALIVE_S", 0.05)
    async with make_world(prefixes={"enabled": False}) as world, world.node("a", 0, 1, 2) as node:
        await world.ready()

        def answers(_task: ExecuteTask) -> bool:
            return len(node.tasks) < 5

        node.on_task = answers
        async with asyncio.timeout(15), world.client.stream("POST", path, json=BODIES[path]) as stream:
            seen = 0
            async for line in stream.aiter_lines():
                seen += line == AWAKE[path]
                if seen > 3:
                    break
        await world.until(lambda _: not node.live_sequences)


@pytest.mark.parametrize("path", BODIES)
async def test_what_nobody_expected_ends_a_stream_with_an_error_too(
    make_world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    async with make_world(prefixes={"enabled": False}) as world, world.node("a", 0, 1, 2):
        await world.ready()

        def broken(_turn: turns.Turn) -> turns.Told:
            raise RuntimeError("a fault of ours")

        monkeypatch.setattr(turns, "_news", broken)
        text = (await world.client.post(path, json=BODIES[path])).text
        assert "event: error" in text
        assert streaming.UNEXPECTED in text
        assert "a fault of ours" not in text
