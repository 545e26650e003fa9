"""Ports, tried on this machine: free, taken by this process, and by a daemon of this home."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from shardnet.coordinator.settings import CoordinatorSettings
from shardnet.doctor.ports import (
    PortWanted,
    coordinator_ports,
    has_run_a_coordinator,
    look_at_ports,
    node_ports,
    port_findings,
)
from shardnet.node.settings import NodeSettings
from shardnet.swarm.home import Home
from shardnet.swarm.identity import claim_identity


def wanted(port: int, *, is_certain: bool = True, udp: bool = False) -> list[PortWanted]:
    return [PortWanted("the HTTP API", "--api", ("127.0.0.1", port), "UDP" if udp else "TCP", is_certain)]


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def test_a_port_that_another_program_has_is_named_with_it_and_with_what_chooses_another(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with listening() as taken:
        port = taken.getsockname()[1]
        (fault,) = port_findings(look_at_ports(wanted(port), home))
        (note,) = port_findings(look_at_ports(wanted(port, is_certain=False), home))
    assert (fault.level, note.level) == ("fault", "note")
    assert f"TCP port {port} for the HTTP API is taken by" in fault.what
    assert f"process {os.getpid()}" in fault.what
    assert fault.remedy == "Stop it, or choose another with --api"


def test_a_port_of_a_daemon_of_this_home_is_well(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with claim_identity(home, None, "coordinator"), listening() as taken:
        (found,) = port_findings(look_at_ports(wanted(taken.getsockname()[1]), home))
        assert has_run_a_coordinator(home)
    assert found.level == "ok"
    assert "a daemon of this home listens there" in found.what


def test_a_udp_port_is_tried_as_one(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        (found,) = port_findings(look_at_ports(wanted(port, udp=True), Home(tmp_path)))
    assert "UDP port" in found.what
    assert found.level == "fault"


def test_an_address_that_is_not_this_machines_cannot_be_listened_at(tmp_path: Path) -> None:
    elsewhere = [PortWanted("links", "node.listen", ("192.0.2.77", 0), is_certain=True)]
    (found,) = port_findings(look_at_ports(elsewhere, Home(tmp_path)))
    assert found.level == "fault"
    assert "cannot assign requested address" in found.what


def test_every_port_of_both_daemons_is_looked_at() -> None:
    node = NodeSettings.model_validate({"torrent": {"listen_port": 7711}, "node": {"listen": "0.0.0.0:7710"}})
    assert [(one.address, one.transport) for one in node_ports(node)] == [
        (("0.0.0.0", 7710), "TCP"),
        (("0.0.0.0", 7711), "TCP"),
        (("0.0.0.0", 0), "UDP"),
    ]
    ports = [one.address[1] for one in coordinator_ports(CoordinatorSettings())]
    assert ports == [7700, 8080, 7701, 7702]
