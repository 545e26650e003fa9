"""`GET /logs` over real HTTP and TLS: all daemons in one stream, whoever comes and goes, and who may read it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from shardnet.coordinator.logs import collecting
from shardnet.coordinator.page import inviting
from shardnet.messages import Software
from tests.support.fake_node import FakeNode
from tests.support.page_world import PageWorld, page_world

SOFTWARE = Software(shardnet="0.1.0", llama="0.3.36", clock_s=0.0)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("EVERY_S", 0.02), ("FIRST_S", 0.2), ("ANSWER_S", 0.4)):
        monkeypatch.setattr(collecting, name, seconds)


def client_of(world: PageWorld, **headers: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=world.url, timeout=10, trust_env=False, headers=headers)


def telling(world: PageWorld, name: str, *lines: str, ahead_s: float = 0.0) -> FakeNode:
    node = world.node(name, 0)
    node.software, node.clock_ahead_s, node.run_id = SOFTWARE, ahead_s, "0123456789abcdef"
    for line in lines:
        node.journal.take({"event": line, "level": "warning"})
    return node


async def events(answer: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    assert answer.status_code == 200, await answer.aread()
    async for line in answer.aiter_lines():
        if line == "data: [DONE]":
            return
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


async def read(world: PageWorld, **params: Any) -> list[dict[str, Any]]:
    async with client_of(world) as client, client.stream("GET", "/logs", params=params) as answer:
        return [one async for one in events(answer)]


async def test_lines_of_every_daemon_come_in_one_stream_in_order_of_time(home: Path, tmp_path: Path) -> None:
    async with page_world(tmp_path) as world, telling(world, "a", "from_a"), telling(world, "b", "from_b"):
        found = await read(world)
        assert {one["node"] for one in found} == {"coordinator", "a", "b"}
        assert [one["at_s"] for one in found] == sorted(one["at_s"] for one in found)
        only = await read(world, node=["a"], level="warning")
        assert [one["text"].strip() for one in only] == ["⚠️  from a"]
        assert len(await read(world, lines=1)) == 1


async def test_a_clock_that_is_off_is_noted_and_put_right(home: Path, tmp_path: Path) -> None:
    async with page_world(tmp_path) as world, telling(world, "a", "early", ahead_s=3600.0) as node:
        node.journal.take({"event": "late", "level": "warning"})
        note, *lines = await read(world, node="a")
        assert note["note"]
        assert note["text"].startswith("its clock is 3600.0 s ahead of")
        whole = await read(world)
        assert abs(lines[-1]["at_s"] - max(one["at_s"] for one in whole if one["node"] == "coordinator")) < 60


async def test_an_older_node_is_not_asked_and_one_that_does_not_answer_holds_up_nobody(
    home: Path, tmp_path: Path
) -> None:
    async with page_world(tmp_path) as world, world.node("old", 1), telling(world, "mute") as mute:
        mute.silent = True
        found = await read(world)
        notes = {one["node"]: one["text"] for one in found if one["note"]}
        assert notes["old"].startswith("it runs an older shardnet")
        assert notes["mute"].startswith("its log cannot be had")
        (only,) = await read(world, node="mute")
        assert only["note"], "whose lines are missing is told also to who asks for no others"
        assert any(one["node"] == "coordinator" for one in found)


async def test_a_node_that_goes_away_in_the_middle_is_told_and_its_lines_come_when_it_is_back(
    home: Path, tmp_path: Path
) -> None:
    async with (
        page_world(tmp_path) as world,
        client_of(world) as client,
        asyncio.timeout(20),
        telling(world, "a", "before") as node,
    ):
        params: dict[str, Any] = {"follow": True, "lines": 1, "node": ["a"]}
        async with client.stream("GET", "/logs", params=params) as answer:
            lines = events(answer)
            assert "before" in (await anext(lines))["text"]
            node.journal.take({"event": "while_here", "level": "info"})
            assert "while here" in (await anext(lines))["text"]
            await node.leave()
            gone = await anext(lines)
            assert gone["note"]
            assert gone["text"].startswith("it has left")
            node.journal.take({"event": "while_away", "level": "info"})
            await node.join()
            assert "while away" in (await anext(lines))["text"]
            node.run_id = "fedcba9876543210"  # it begins anew, and its lines are numbered anew
            await node.leave()
            assert (await anext(lines))["note"]
            await node.join()
            assert {"before", "while here"} <= {(await anext(lines))["text"].replace("⚠️", "").strip() for _ in range(2)}


async def test_a_burst_is_cut_and_what_is_missing_counted(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "FOLLOWED_LINES", 3)
    async with (
        page_world(tmp_path) as world,
        telling(world, "a") as node,
        client_of(world) as client,
        client.stream("GET", "/logs", params={"follow": True, "node": "a"}) as answer,
        asyncio.timeout(10),
    ):
        lines = events(answer)
        node.journal.take({"event": "first", "level": "info"})
        await anext(lines)
        for number in range(20):
            node.journal.take({"event": f"burst_{number}", "level": "info"})
        note = await anext(lines)
        assert note["text"].startswith("17 older lines are left out here")
        assert "burst 17" in (await anext(lines))["text"]


async def test_without_a_key_only_the_coordinators_own_user_reads_and_with_one_whoever_has_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with page_world(tmp_path) as world, client_of(world) as client:
        assert (await client.get("/logs")).status_code == 200
        assert (await client.get("/logs", headers={"Via": "1.1 proxy"})).status_code == 403
        monkeypatch.setattr(inviting, "is_own_user", lambda _client, _server: False)
        refused = await client.get("/logs")
        assert refused.status_code == 403
        assert "shardnet key add" in refused.json()["error"]["message"]
    async with page_world(tmp_path, api={"key": "s3cret"}) as world, client_of(world) as client:
        assert (await client.get("/logs")).status_code == 401
        assert (await client.get("/logs", headers={"Authorization": "Bearer s3cret"})).status_code == 200


async def test_what_cannot_be_asked_for_is_said_before_anything_is_streamed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "MOST_READERS", 1)
    async with page_world(tmp_path) as world, client_of(world) as client:
        for wrong in ("node=nobody", "level=loud", "lines=-1", "since_s=x", "unheard=1"):
            answer = await client.get(f"/logs?{wrong}")
            assert answer.status_code in (400, 404), (wrong, answer.text)
        async with client.stream("GET", "/logs?follow=true") as first:
            assert first.status_code == 200
            assert (await client.get("/logs")).status_code == 503
        async with asyncio.timeout(5):
            while (await client.get("/logs?lines=1")).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def test_readers_are_let_go_when_the_coordinator_stops(home: Path, tmp_path: Path) -> None:
    async with (
        page_world(tmp_path) as world,
        client_of(world) as client,
        client.stream("GET", "/logs", params={"follow": True}) as answer,
        asyncio.timeout(10),
    ):
        told = []
        async for one in events(answer):
            told.append(one["text"])
            world.coordinator.stop()
        assert told
