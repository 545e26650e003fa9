"""Addresses as people write them."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest

from shardnet.cli.swarm import parse_duration_s
from shardnet.errors import SettingsError, UnreachableError, UsageError
from shardnet.hosts import is_ours
from shardnet.messages import Address
from shardnet.swarm.addresses import (
    bound_address,
    is_loopback,
    is_wildcard,
    open_listening_sockets,
    parse_address,
    parse_host_port,
    read_coordinator_addresses,
    write_coordinator_addresses,
)
from shardnet.swarm.home import Home
from shardnet.swarm.identity import Identity, claim_identity


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("127.0.0.1:7070", ("127.0.0.1", 7070)),
        ("[::1]:0", ("::1", 0)),
        (" coordinator.local:65535 ", ("coordinator.local", 65535)),
    ],
)
def test_host_and_port_are_read(text: str, found: tuple[str, int]) -> None:
    assert parse_host_port(text) == found


@pytest.mark.parametrize("text", ["", "7070", ":7070", "host", "host:", "host:x", "host:65536", "host:-1", "host:٣"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"--listen .* is not HOST:PORT, as in"):
        parse_host_port(text, what="--listen")


@pytest.mark.parametrize("text", ["host:0", "a b:1", "../x:1"])
def test_what_cannot_be_dialled_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="cannot be dialled"):
        parse_address(text)


def test_loopback_and_wildcard_are_known() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "10.0.0.1", "x.org")] == [True] * 3 + [
        False
    ] * 2
    assert [is_wildcard(host) for host in ("0.0.0.0", "::", "127.0.0.1", "x.org")] == [True] * 2 + [False] * 2


def test_a_taken_port_is_named_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = bound_address(taken)
        with pytest.raises(
            SettingsError, match=rf"cannot listen at {address}: address already in use; .* choose another"
        ):
            open_listening_sockets(("127.0.0.1", address.port))


def test_a_host_that_is_not_here_is_named() -> None:
    with pytest.raises(SettingsError, match=r"cannot listen at 192\.0\.2\.1:0"):
        open_listening_sockets(("192.0.2.1", 0))
    with pytest.raises(UnreachableError, match="does not know the host"):
        open_listening_sockets(("no such host", 0))


def test_the_coordinators_addresses_are_remembered(home: Path) -> None:
    here, nodes = Home(home), Address(host="127.0.0.1", port=7070)
    assert read_coordinator_addresses(here).nodes is None
    write_coordinator_addresses(here, nodes=nodes, api=Address(host="127.0.0.1", port=8000))
    assert read_coordinator_addresses(here).nodes == nodes
    assert read_coordinator_addresses(here).enrol is None


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("24h", 86_400), ("7d", 604_800)])
def test_durations_are_read(text: str, seconds: int) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "24", "0h", "1w", "-1h", "1.5h", "31d"])
def test_wrong_durations_say_what_is_right(text: str) -> None:
    with pytest.raises(UsageError, match=r"90s, 30m, 24h or 7d|30 days at most"):
        parse_duration_s(text)


def test_commands_ask_the_coordinator_that_runs_and_not_one_that_came_and_went(home: Path) -> None:
    here = Home(home)

    def start(port: int) -> Identity:
        identity = claim_identity(here, None, "coordinator")
        api = Address(host="127.0.0.1", port=port)
        write_coordinator_addresses(here, api=api, identity=identity.key_path.parent)
        return identity

    def found() -> int:
        api = read_coordinator_addresses(here).api
        assert api is not None
        return api.port

    with start(8001):
        with start(8002):
            assert found() == 8002, "of two, the one that began last"
        assert found() == 8001
        with claim_identity(here, "coordinator-2", "node"):
            assert found() == 8001, "a node that took the other's name over is no coordinator"
    assert found() == 8002, "none runs: what was written last"


def families(listening: list[socket.socket]) -> list[str]:
    """Returns: by which loopback addresses somebody listens there."""
    port, found = bound_address(listening[0]).port, []
    for host in ("127.0.0.1", "::1"):
        with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
            found.append(host)
    return found


@pytest.mark.parametrize(
    ("host", "answers"),
    [
        ("localhost", ["127.0.0.1", "::1"]),
        ("::", ["127.0.0.1", "::1"]),
        ("0.0.0.0", ["127.0.0.1"]),
        ("::1", ["::1"]),
        ("127.0.0.1", ["127.0.0.1"]),
    ],
)
def test_localhost_and_the_ipv6_wildcard_answer_over_both_families(host: str, answers: list[str]) -> None:
    if "::1" in answers and not is_ours(("::1",)):
        pytest.skip("this machine has no IPv6")
    listening = open_listening_sockets((host, 0))
    try:
        assert families(listening) == answers
        assert len({bound_address(one).port for one in listening}) == 1
    finally:
        for one in listening:
            one.close()


def test_a_port_of_localhost_that_is_taken_in_one_family_is_taken() -> None:
    if not is_ours(("::1",)):
        pytest.skip("this machine has no IPv6")
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = bound_address(taken).port
        with pytest.raises(SettingsError, match=rf"cannot listen at localhost:{port}: address already in use"):
            open_listening_sockets(("localhost", port))
