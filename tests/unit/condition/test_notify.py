"""A service manager's socket is found and told by its own protocol; without one nothing happens, and a broken one harms nobody."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardnet.condition.notify import Notifier, datagram, socket_address


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """The manager's end of a real socket, and its name as it stands in the environment."""
    text = str(tmp_path / "notify") if request.param == "path" else f"@shardnet-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(socket_address(text) or "")
        listening.settimeout(5)
        yield text, listening


def test_a_real_socket_of_either_kind_gets_the_words(manager: tuple[str, socket.socket]) -> None:
    text, listening = manager
    Notifier.from_environ({"NOTIFY_SOCKET": text}).send(STATUS="joined", READY="1")
    assert listening.recv(1000) == b"STATUS=joined\nREADY=1"


def test_a_sentence_of_several_lines_cannot_become_another_word() -> None:
    assert datagram({"STATUS": "one\nREADY=1\r\ntwo"}) == b"STATUS=one READY=1 two"


def test_the_variables_are_taken_out_so_that_no_child_speaks_for_us(tmp_path: Path) -> None:
    environ = {"NOTIFY_SOCKET": str(tmp_path / "s"), "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "", "OTHER": "1"}
    assert Notifier.from_environ(environ).watchdog_s == 3.0
    assert environ == {"OTHER": "1"}


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "0"},
        {"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "3000000"},
        {"NOTIFY_SOCKET": "vsock:2:1234", "WATCHDOG_USEC": "3000000"},
        {"NOTIFY_SOCKET": "@"},
    ],
    ids=str,
)
def test_no_watchdog_is_served_that_is_not_ours_or_does_not_exist(variables: dict[str, str]) -> None:
    assert Notifier.from_environ(variables).watchdog_s is None


def test_a_manager_that_is_gone_stops_nothing(tmp_path: Path) -> None:
    notifier = Notifier(str(tmp_path / "nobody"))
    notifier.send(READY="1")
    notifier.send(READY="1")
    Notifier().send(READY="1")
