"""A node may only fail the steps of routes that it is on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

from shardnet.coordinator.requests.driver import Requests, Swarm
from shardnet.errors import EngineError
from shardnet.messages import CommandFailed, ErrorInfo


def test_a_failure_told_by_a_node_off_the_route_leaves_the_step_its_true_answer() -> None:
    requests = Requests(Mock(spec=Swarm))
    command_id = "1" * 16
    running = cast("Any", SimpleNamespace(generation=SimpleNamespace(route=SimpleNamespace(node_ids=("a" * 40,)))))
    requests._owners[command_id] = running
    requests.on_failed("b" * 40, CommandFailed(command_id=command_id, error=ErrorInfo.of(EngineError("forged"))))
    assert requests._owners == {command_id: running}
    assert requests.totals.late_answers == 1
