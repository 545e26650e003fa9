"""A machine that nobody types at: it joins by the token in a file, once, and waits for a coordinator that is not there yet."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardnet.errors import PeerRefused, UsageError
from shardnet.messages import Address
from shardnet.swarm.enrol_service import EnrolmentServer
from shardnet.swarm.home import Home
from shardnet.swarm.identity import claim_identity, open_swarm
from shardnet.swarm.joining import join_once
from shardnet.swarm.membership import invite
from tests.support.free_ports import free_ports
from tests.support.swarm_world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def write_token(world: World, file: Path, address: Address, lifetime_s: float = 60) -> None:
    file.write_text(f"{invite(open_swarm(world.home), address, lifetime_s=lifetime_s)}\n")


async def test_it_waits_for_the_coordinator_and_joins_once(world: World, tmp_path: Path) -> None:
    file, home = tmp_path / "token", Home(tmp_path / "new")
    address = Address(host="127.0.0.1", port=free_ports(1)[0])
    write_token(world, file, address)
    joining = asyncio.create_task(join_once(file, home, "node-1"))
    await asyncio.sleep(0.05)
    assert not joining.done()
    async with EnrolmentServer(world.home, world.server, (address.host, address.port)):
        async with asyncio.timeout(20):
            await joining
    file.unlink()
    await join_once(file, home, "node-1")  # no service and no token any more: none is needed
    with claim_identity(home, "node-1", "node") as identity:
        assert identity.swarm.swarm_id == world.server.swarm.swarm_id


async def test_the_owners_own_home_needs_no_token(world: World, tmp_path: Path) -> None:
    await join_once(tmp_path / "missing", world.home, "node-7")


async def test_what_cannot_become_a_membership_is_said(world: World, tmp_path: Path) -> None:
    home = Home(tmp_path / "new")
    with pytest.raises(UsageError, match=r"join_token_file .*missing cannot be read"):
        await join_once(tmp_path / "missing", home, "node")
    file = tmp_path / "token"
    file.write_text("hello")
    with pytest.raises(UsageError, match="token"):
        await join_once(file, home, "node")
    async with EnrolmentServer(world.home, world.server, ("127.0.0.1", 0)) as server:
        write_token(world, file, server.address)
        await join_once(file, home, "node")
        with pytest.raises(PeerRefused, match="used"):
            await join_once(file, Home(tmp_path / "another"), "node")
