"""One look for all who watch, a journal of what was logged, and a guide that knows how far one is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from shardnet import log
from shardnet.coordinator.page import feed as feeds
from shardnet.coordinator.page.feed import Feed
from shardnet.coordinator.page.guide import guide
from shardnet.coordinator.page.pulse import Reading
from shardnet.journal import KEPT, MOST_CHARS, Journal
from shardnet.messages import Address


class World:
    """A swarm that says what it is told to, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.nodes: list[str] = []

    def status(self) -> dict[str, Any]:
        self.asked += 1
        about = {
            "node_id": "c" * 40,
            "swarm_id": "5" * 40,
            "version": "1",
            "addresses": {},
            "refused": [],
            "uptime_s": 1,
        }
        nodes: list[dict[str, Any]] = [
            {
                "node_id": name,
                "name": name,
                "address": "10.0.0.1:1",
                "state": "up",
                "devices": [],
                "memory_limit": None,
                "held": [],
                "loading": [],
                "bound_to_nothing": [],
                "failed": [],
                "not_served": [],
                "refused": [],
                "memory_free_bytes": 1,
                "heartbeat_age_s": 0.1,
                "load": 0.5,
                "sequences": 0,
            }
            for name in self.nodes
        ]
        return {"coordinator": about, "nodes": nodes, "models": [], "links": [], "kept_out": [], "requests": {}}

    def reading(self) -> Reading:
        return Reading(0.0, 0, 0, 0.0, 0)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def feed(world: World, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Feed]:
    monkeypatch.setattr(feeds, "EVERY_S", 0.05)
    monkeypatch.setattr(feeds, "SOONEST_S", 0.0)
    feed = Feed(world.status, world.reading, lambda: None)
    running = asyncio.create_task(feed.run())
    await asyncio.sleep(0)
    yield feed
    feed.close()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def events_in(told: bytes) -> list[tuple[str, Any]]:
    """The names and data of events that came at once."""
    found = []
    for event in told.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


async def next_event(stream: AsyncIterator[bytes], wanted: str) -> Any:
    """The data of the next event of that name, or of the first where several came at once."""
    async with asyncio.timeout(5):
        async for told in stream:
            for name, data in events_in(told):
                if name == wanted:
                    return data
    raise AssertionError(wanted)


async def test_twenty_pages_cost_one_look(feed: Feed, world: World) -> None:
    streams = [feed.follow() for _ in range(20)]
    for stream in streams:
        await next_event(stream, "all")
    world.asked = 0
    for _ in range(3):
        for stream in streams:
            await next_event(stream, "pulse")
    assert world.asked <= 5  # not sixty
    for stream in streams:
        await stream.aclose()  # type: ignore[attr-defined]
    assert feed.n_watchers == 0


async def test_the_picture_is_sent_again_only_where_something_happened(feed: Feed, world: World) -> None:
    stream = feed.follow()
    whole = await next_event(stream, "all")
    assert set(whole) == {"picture", "pulse", "samples", "log"}
    names = [name for _ in range(4) for name, _data in events_in(await anext(stream))]
    assert names.count("picture") <= 1
    assert names.count("pulse") >= 4
    world.nodes = ["a"]
    picture = await next_event(stream, "picture")
    assert [one["name"] for one in picture["nodes"]] == ["a"]
    world.nodes = []
    assert [one["name"] for one in (await next_event(stream, "picture"))["gone"]] == ["a"]


async def test_who_does_not_read_gets_the_whole_again_and_holds_up_nobody(
    feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "MOST_BEHIND", 3)
    lazy, eager = feed.follow(), feed.follow()
    await next_event(lazy, "all")
    await next_event(eager, "all")
    for _ in range(6):
        await next_event(eager, "pulse")
    assert events_in(await anext(lazy))[0][0] == "all"


async def test_what_is_told_at_once_is_one_write_for_each_page(feed: Feed, world: World) -> None:
    """A write is what a page costs, not the bytes in it."""
    stream = feed.follow()
    await next_event(stream, "all")
    await anext(stream)
    world.nodes = ["a"]
    async with asyncio.timeout(5):
        async for told in stream:
            names = [name for name, _ in events_in(told)]
            if "picture" in names:
                assert names == ["picture", "pulse"]
                break


async def test_every_stream_ends_when_the_coordinator_stops(feed: Feed) -> None:
    stream = feed.follow()
    await next_event(stream, "all")
    feed.close()
    async with asyncio.timeout(5):
        assert [event async for event in stream if event.startswith(b"event: all")] == []


async def test_nobody_watching_costs_no_looks(feed: Feed, world: World) -> None:
    world.asked = 0
    await asyncio.sleep(0.3)
    assert world.asked <= 1


# -- what was logged ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def journal() -> Iterator[Journal]:
    with Journal(now_s=lambda: 12.0) as journal:
        yield journal


def test_the_journal_keeps_the_last_lines_as_people_read_them(
    journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure(form="json")
    for shard in range(KEPT + 5):
        log.get("x").info("shard_path", path=f"p{shard}")
    lines = journal.after(0)
    assert len(lines) == KEPT
    assert lines[-1] == {"number": KEPT + 5, "at_s": 12.0, "level": "info", "text": f"[SHARD]   Path: p{KEPT + 4}"}
    assert journal.after(KEPT + 4) == lines[-1:]


def test_the_journal_holds_no_secrets_and_no_endless_line(journal: Journal, capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(form="json")
    log.get("x").warning("odd", key="sk-shardnet-secret", reason="r" * 5000)
    (line,) = journal.after(0)
    assert "secret" not in line["text"]
    assert len(line["text"]) == MOST_CHARS + 1


def test_a_journal_that_is_closed_hears_nothing(journal: Journal, capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(form="json")
    journal.__exit__()
    log.get("x").info("odd")
    assert journal.after(0) == []
    journal.__enter__()


# -- what to do next ---------------------------------------------------------------------------------------------------------------

LAN, LOOPBACK = Address(host="192.168.1.9", port=7701), Address(host="127.0.0.1", port=7701)


def steps(enrol: Address | None, *, nodes: tuple[str, ...] = (), models: int = 0) -> dict[str, dict[str, Any]]:
    picture = {"models": [{}] * models, "nodes": [{"address": one} for one in nodes]}
    return {one["step"]: one for one in guide(picture, enrol)}


def test_a_new_swarm_is_told_all_steps_and_an_old_one_which_are_done() -> None:
    assert [one["done"] for one in steps(LAN).values()] == [False, False, False]
    done = steps(LAN, nodes=("10.0.0.1:1", "10.0.0.2:1"), models=1)
    assert [one["done"] for one in done.values()] == [True, True, True]
    assert not steps(LAN, nodes=("10.0.0.1:1", "10.0.0.1:2"), models=1)["machine"]["done"]


def test_the_next_machine_is_told_what_to_type() -> None:
    assert steps(LAN)["machine"]["commands"] == ["shardnet join TOKEN", "shardnet node --listen 0.0.0.0:7710"]


def test_a_coordinator_on_loopback_says_that_no_other_machine_reaches_it() -> None:
    step = steps(LOOPBACK)["machine"]
    assert "this machine only" in step["says"][0]
    assert step["commands"] == ["shardnet coordinator --listen 0.0.0.0:7700 --enrol 0.0.0.0:7701"]


def test_where_nobody_is_taken_in_no_token_is_offered() -> None:
    assert not steps(None)["machine"]["takes_token"]
