"""Two processes with one key, as where a home was copied: the second one is told what to do, and gives nothing while the first one lives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardnet.local.processes import LocalSwarm, Process
from tests.support.two_nodes import Halves, tiny_halves

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Halves:
    return tiny_halves(tmp_path_factory.mktemp("copied"))


@pytest.fixture(scope="module")
def swarm(halves: Halves) -> Iterator[LocalSwarm]:
    with LocalSwarm(halves.whole.parent, log_format="json") as found:
        halves.start_coordinator(found)
        yield found


def facts(process: Process, event: str) -> list[dict[str, Any]]:
    """Returns: what it logged of that kind so far."""
    said = [json.loads(line) for line in list(process.tail) if line.startswith("{")]
    return [fact for fact in said if fact["event"] == event]


def with_copied_home(swarm: LocalSwarm, tmp_path: Path) -> dict[str, str]:
    home = tmp_path / "copied"
    shutil.copytree(swarm.home, home, ignore=shutil.ignore_patterns("*.sock"))
    return {"SHARDNET_HOME": str(home), "SHARDNET_NODE__COORDINATOR": f"127.0.0.1:{swarm.listen_port}"}


def test_a_seed_of_a_copied_home_gives_nothing_until_the_first_one_is_gone(
    swarm: LocalSwarm, halves: Halves, tmp_path: Path
) -> None:
    first = swarm.start("first", "seed", str(halves.cache))
    swarm.wait_for(lambda: len(facts(first, "torrent_seeding")) == 2, 60, "the first seed")
    second = swarm.start("second", "seed", str(halves.cache), env=with_copied_home(swarm, tmp_path))
    swarm.wait_for(lambda: bool(facts(second, "node_not_joined")), 60, "the second seed to be refused")
    reason = facts(second, "node_not_joined")[0]["reason"]
    assert "a node with the same key runs already: client" in reason
    assert "shardnet join TOKEN" in reason
    assert facts(second, "torrent_seeding") == facts(second, "dht_announced") == []
    swarm.processes.pop("first").kill()
    swarm.wait_for(lambda: len(facts(second, "torrent_seeding")) == 2, 60, "the second seed to give")
    swarm.processes.pop("second").kill()


def test_a_fetch_with_a_copied_home_is_told_of_the_node_that_has_its_key_and_takes_nothing(
    swarm: LocalSwarm, halves: Halves, tmp_path: Path
) -> None:
    halves.start_node(swarm, 0)
    swarm.wait_for(lambda: bool(facts(swarm.processes["node-0"], "node_joined")), 60, "the node")
    environment = with_copied_home(swarm, tmp_path) | {"SHARDNET_NODE__NAME": "node-0"}
    fetch = swarm.start("fetch", "fetch", "tiny", "--stay", "--out", str(tmp_path / "out"), env=environment)
    swarm.wait_for(lambda: bool(facts(fetch, "node_not_joined")), 60, "the fetch to be refused")
    swarm.processes.pop("fetch").kill()
    swarm.processes.pop("node-0").wait(5)
    assert "a node with the same key runs already: node-0 at 127.0.0.1:" in facts(fetch, "node_not_joined")[0]["reason"]
    assert not list((tmp_path / "out").rglob("*.gguf*"))
