"""What a daemon says of itself, when, and that it goes on saying so only while its event loop turns."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardnet.condition.notify import Notifier
from shardnet.condition.record import FILE, State, running_daemons
from shardnet.condition.telling import Condition
from shardnet.errors import UnreachableError
from shardnet.swarm.home import Home
from shardnet.swarm.identity import claim_identity
from tests.support.swarm_world import until


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.bind(str(tmp_path / "notify"))
    listening.setblocking(False)
    yield listening
    listening.close()


def heard(listening: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(listening.recv(1000).decode())
        except BlockingIOError:
            return found


async def test_ready_is_said_once_when_it_is_up_and_stopping_at_its_end(manager: socket.socket, tmp_path: Path) -> None:
    said: list[tuple[State, str]] = [("starting", "a")]
    notifier = Notifier(str(tmp_path / "notify"))
    async with Condition(tmp_path, "node", lambda: said[-1], notifier=notifier) as condition:
        assert heard(manager) == ["STATUS=a"]
        for now in ("waiting", "b"), ("ready", "c"), ("waiting", "d"), ("ready", "d"), ("stopping", "e"):
            said.append(now)
            condition.look()
            condition.look()
    assert heard(manager) == ["STATUS=b\nREADY=1", "STATUS=c", "STATUS=d", "STATUS=d", "STATUS=e\nSTOPPING=1"]


async def test_the_watchdog_is_fed_by_the_event_loop_and_hungers_when_that_hangs(
    manager: socket.socket, tmp_path: Path
) -> None:
    notifier = Notifier(str(tmp_path / "notify"), watchdog_s=0.04)
    async with Condition(tmp_path, "node", lambda: ("ready", "x"), notifier=notifier):
        async with asyncio.timeout(10):
            await until(lambda: "WATCHDOG=1" in heard(manager))
        heard(manager)
        deadline = asyncio.get_running_loop().time() + 0.1
        while asyncio.get_running_loop().time() < deadline:
            pass  # what a hung loop does
        assert heard(manager) == []


async def test_the_file_in_the_home_says_how_the_running_daemon_is(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with claim_identity(home, None, "node") as identity:
        with pytest.raises(UnreachableError, match="no daemon runs"):
            running_daemons(home)  # one that says nothing is none
        said: list[tuple[State, str]] = [("waiting", "not joined")]
        async with Condition(identity.folder, "node", lambda: said[-1], notifier=Notifier(), interval_s=0.01):
            async with asyncio.timeout(10):
                await until((identity.folder / FILE).exists)
                told = running_daemons(home)[0].told
                assert told is not None
                assert (told.state, told.sentence) == ("waiting", "not joined")
                said.append(("ready", "joined"))
                await until(lambda: '"joined"' in (identity.folder / FILE).read_text())
                assert running_daemons(home)[0].trouble(must_be_ready=True) == ""


async def test_a_disk_that_takes_nothing_ends_no_daemon(tmp_path: Path) -> None:
    async with Condition(tmp_path / "gone", "node", lambda: ("ready", "x"), notifier=Notifier(), interval_s=0.01):
        await asyncio.sleep(0.05)
    assert not (tmp_path / "gone" / FILE).exists()
