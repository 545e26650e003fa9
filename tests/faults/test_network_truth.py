"""The network changes under a swarm of real processes, each on a machine of its own. Longer faults: `tests/bench/network_truth.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from shardnet.local.processes import LocalSwarm
from tests.support.namespaces import Lan, Machine, lan
from tests.support.two_nodes import Halves, complete, tiny_halves

pytestmark = pytest.mark.integration


class Apart:
    """A coordinator here, at an address of the network that both families reach, and two nodes, each on another machine."""

    def __init__(self, net: Lan, swarm: LocalSwarm, halves: Halves) -> None:
        self.net = net
        self.swarm = swarm
        self.logs: list[dict[str, Any]] = []
        halves.start_coordinator(swarm, "--listen", "[::]:0")
        self.machines: list[Machine] = []
        for index in range(2):
            machine = net.add(index + 2)
            self.machines.append(machine)
            at = f"{net.host}:{swarm.listen_port}"
            halves.start_node(swarm, index, "--coordinator", at, "--listen", "[::]:0", prefix=machine.prefix)
        swarm.wait_ready(60)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.swarm.get("/status")
        return found

    def is_well(self) -> bool:
        """True if each node is known where it is, and the model is served without detours."""
        found = self.status()
        stages = [one for model in found["models"] for pipeline in model["pipelines"] for one in pipeline]
        there = {f"node-{index}": machine.address for index, machine in enumerate(self.machines)}
        return addresses(found) == there and len(stages) == 2 and not any(one["relayed"] for one in stages)

    def answer(self) -> list[int]:
        tokens: list[int] = complete(self.swarm, "hello", max_tokens=8)["choices"][0]["token_ids"]
        return tokens


def addresses(status: dict[str, Any]) -> dict[str, str]:
    """Returns: where the coordinator has each node dialled."""
    return {one["name"]: one["address"].rpartition(":")[0] for one in status["nodes"]}


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    folder = tmp_path_factory.mktemp("apart")
    with lan() as net:
        made: list[Apart] = []

        def hear(_name: str, line: str) -> None:
            if made and line.startswith("{"):
                made[0].logs.append(json.loads(line))

        with LocalSwarm(folder, hear, log_format="json") as swarm:
            made.append(Apart(net, swarm, tiny_halves(folder)))
            yield made[0]


def test_nodes_that_listen_over_both_families_are_known_by_the_address_that_reaches_the_coordinator(
    apart: Apart,
) -> None:
    status = apart.status()
    assert addresses(status) == {"node-0": apart.machines[0].address, "node-1": apart.machines[1].address}
    assert [one["reach"] for one in status["nodes"]] == [[], []]


@pytest.mark.parametrize("index", [1, 0], ids=["last stage", "first stage"])
def test_a_node_whose_address_changes_is_dialled_at_its_new_one_within_seconds(apart: Apart, index: int) -> None:
    before = apart.answer()
    apart.machines[index].move(f"{apart.net.subnet}.{30 + index}")
    apart.swarm.wait_for(apart.is_well, 10, "the node at its new address")
    assert apart.answer() == before
    moves = [(line["before"], line["now"]) for line in apart.logs if line["event"] == "node_moved"]
    assert moves[-1][1].rpartition(":")[0] == apart.machines[index].address


def test_a_coordinator_whose_address_changes_is_found_at_its_new_one_by_nodes_that_were_told_the_old_one(
    apart: Apart,
) -> None:
    before = apart.answer()
    apart.net.move_host(70)
    apart.swarm.wait_for(lambda: not apart.is_well(), 20, "the links to be lost")
    apart.swarm.wait_for(apart.is_well, 30, "the nodes at the coordinator's new address")
    assert apart.answer() == before
    joined = [line["coordinator"] for line in apart.logs if line["event"] == "node_joined"]
    assert [where.rpartition(":")[0] for where in joined[-2:]] == [apart.net.host] * 2
