"""What a revocation ends besides links: records on the DHT, datagrams in the member's name, transfers with the addresses it was seen at."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from shardnet.dht.kademlia_directory import KademliaDirectory
from shardnet.node.weights.presence import hosts_to_block
from tests.support.dht_world import MODEL, SWARM_KEY, KeySigner, entry_of, eventually, quick_settings, world
from tests.support.torrent_world import Reached, World, make_shard

pytestmark = pytest.mark.integration
MB = 1_000_000


async def test_a_revoked_members_records_are_neither_stored_nor_believed_and_it_gets_no_answers(tmp_path: Path) -> None:
    revoked: set[str] = set()

    async with world(tmp_path) as net:

        async def start() -> KademliaDirectory:
            signer = KeySigner()
            directory = KademliaDirectory(
                quick_settings([entry_of(net.nodes[0])] if net.nodes else []),
                signer,
                SWARM_KEY,
                tmp_path / f"{signer.node_id}.json",
                revoked=lambda: frozenset(revoked),
            )
            net.signers[directory] = signer
            return await net.start(directory)

        nodes = [await start() for _ in range(6)]
        await eventually(lambda: all(node.stats().contacts >= 5 for node in nodes))
        bad, good, asking = nodes[1], nodes[2], nodes[3]
        for node in (bad, good):
            await node.announce(MODEL, 0, address=("127.0.0.1", 4000), torrent_port=4001)
        assert {one.node_id for one in await asking.lookup(MODEL, 0)} == {net.id_of(bad), net.id_of(good)}

        revoked.add(net.id_of(bad))
        assert [one.node_id for one in await asking.lookup(MODEL, 0)] == [net.id_of(good)]
        assert await bad.announce(MODEL, 1, address=("127.0.0.1", 4000)) == 0, "nobody keeps it"
        assert await asking.lookup(MODEL, 1) == []
        refused = asking.stats().refused
        assert refused.get("record_revoked") or refused.get("datagram_revoked")
        others = [node for node in nodes if node is not bad]
        await asyncio.gather(*(node.sweep() for node in others))
        assert all(
            record.node_id != net.id_of(bad)
            for node in others
            for key in node._storage.held_keys()
            for record in node._storage.records(key)
        )
        for node in others:
            node._storage.check()


@pytest.fixture
async def torrents(tmp_path: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield World(tmp_path, stack)


async def test_transfers_with_a_blocked_address_end_and_begin_again_when_it_is_free(
    torrents: World, tmp_path: Path
) -> None:
    shard = make_shard(tmp_path / "origin", 20 * MB, torrents.authority.pem)
    seed = await torrents.session(
        "seed", torrents.authority.member(), listen_host="127.0.0.2", upload_limit_bytes_per_s=4 * MB
    )
    # It listens elsewhere than where it dials from, so that the seed, whose own dials come from 127.0.0.1 here, does not find it.
    node = await torrents.session("node", torrents.authority.member(), listen_host="127.0.0.3", stall_timeout_s=1.0)
    await seed.seed(shard.torrent, shard.path, label="0")
    begun = Reached(0.1)
    holders = [("127.0.0.2", seed.port)]

    def stalled() -> bool:
        return any(line["event"] == "torrent_stalled" for line in logs)

    with capture_logs() as logs:
        fetch = asyncio.create_task(
            node.fetch(
                shard.torrent,
                torrents.target("node"),
                peers=holders,
                deadline_s=60,
                on_progress=begun,
                **shard.wanted(),
            )
        )
        await begun.wait()
        logs.clear()  # a slow start may have stalled as well
        node.block(["127.0.0.2"])
        await eventually(stalled, within_s=30)
        assert not fetch.done()
        fetch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetch
    assert begun.reports[-1].fraction < 0.6
    node.block([])
    quick = await torrents.session("quick", torrents.authority.member(), listen_host="127.0.0.2")
    await quick.seed(shard.torrent, shard.path, label="0")
    holders = [("127.0.0.2", quick.port)]
    await node.fetch(shard.torrent, torrents.target("node"), peers=holders, deadline_s=30, **shard.wanted())


def test_an_address_is_blocked_only_where_nobody_else_lives() -> None:
    seen = {"gone": {"10.0.0.1", "10.0.0.2"}, "here": {"10.0.0.2"}, "also gone": {"10.0.0.3", "10.0.0.9"}}
    assert hosts_to_block(seen, frozenset({"gone", "also gone"}), own="10.0.0.9") == ["10.0.0.1", "10.0.0.3"]
    assert hosts_to_block(seen, frozenset(), own="") == []
