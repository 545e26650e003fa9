"""What the coordinator tells in moments of change: a plan that is due, and nodes that go, with a word or without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from shardnet.coordinator.daemon import Coordinator
from shardnet.coordinator.placement import standing
from shardnet.coordinator.settings import CoordinatorSettings
from shardnet.errors import SettingsError
from shardnet.log import sentence
from shardnet.messages import Leaving
from shardnet.swarm.home import Home, read_records
from shardnet.swarm.records import MEMBERS


async def test_a_question_between_a_node_s_joining_and_the_plan_is_told_to_wait(make_world: Callable[..., Any]) -> None:
    async with make_world(placement={"debounce_s": 60}) as world, world.node("a", 0, 1, 2, loaded=False):
        answer = await world.chat()
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        error = answer.json()["error"]
        assert error["loading"] == {
            "share": 0,
            "done_bytes": 0,
            "total_bytes": world.manifest.total_bytes,
            "bytes_per_s": 0,
            "seconds_left": None,
        }
        assert "ask again in a moment" in error["message"]


async def test_without_any_node_something_is_promised_in_the_coordinator_s_first_seconds_alone(
    make_world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with make_world(placement={"debounce_s": 60}) as world:
        monkeypatch.setattr(standing, "NODES_COME_BACK_S", 1e9)
        early = (await world.chat()).json()["error"]
        assert early["loading"]["done_bytes"] == 0
        assert "nodes that run already come within seconds" in early["message"]
        monkeypatch.setattr(standing, "NODES_COME_BACK_S", 0.0)
        answer = await world.chat()
        assert answer.status_code == 503
        assert "loading" not in answer.json()["error"]
        assert "start one with `shardnet node`" in answer.json()["error"]["message"]


async def test_a_node_that_says_good_bye_is_told_otherwise_than_one_that_breaks_off(
    make_world: Callable[..., Any],
) -> None:
    with capture_logs() as logs:
        async with make_world() as world:
            async with world.node("polite", 0) as polite:
                polite.connection.send(Leaving(reason="it was stopped there by Ctrl-C"))
                await world.until(lambda status: status["nodes"][0]["state"] == "leaving")
            async with world.node("cut", 1):
                await world.until(lambda status: [one["name"] for one in status["nodes"]] == ["cut"])
            await world.until(lambda status: not status["nodes"])
    about = [line for line in logs if line["event"] in ("node_leaving", "peer_left", "peer_lost")]
    assert [(line["event"], line["log_level"]) for line in about] == [
        ("node_leaving", "info"),
        ("peer_left", "info"),
        ("peer_lost", "warning"),
    ]
    assert sentence(about[0]) == "[COORDINATOR] polite is leaving: it was stopped there by Ctrl-C"
    assert "cut" in sentence(about[2])
    assert "did not say good-bye" in sentence(about[2])


async def test_a_second_coordinator_whose_ports_are_taken_leaves_no_member_behind(
    make_world: Callable[..., Any], home: Path
) -> None:
    async with make_world() as world:
        before = read_records(Home(home).members, MEMBERS, {})
        listen = {"nodes": str(world.addresses["nodes"]), "api": "127.0.0.1:0", "enrol": "127.0.0.1:0"}
        settings = {"listen": listen, "dht": {"listen_port": 0}, "models": {"cache": home / "none"}}
        with pytest.raises(SettingsError, match="is in use"):
            await Coordinator(CoordinatorSettings.model_validate(settings), Home(home)).run()
        assert read_records(Home(home).members, MEMBERS, {}) == before
        assert not (Home(home).nodes / "coordinator-2").exists()
