"""Weights pass through the coordinator from a node that has them to one that cannot dial it: bounded, and proved by neither."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from shardnet.coordinator.nodes import weights_relay
from shardnet.coordinator.nodes.peers import Peers
from shardnet.coordinator.nodes.weights_relay import WeightsRelay
from shardnet.errors import Busy, PeerLost, ShardCorrupt, ShardNotFound
from shardnet.lifecycle import Pace
from shardnet.messages import FileIs, GetFile
from shardnet.shards import Dtype, TensorSpec
from shardnet.wire import Frame
from tests.support.coordinator_world import make_manifest, node_id, ready_cluster

MANIFEST = make_manifest()
COMMAND = "0123456789abcdef"
BYTES = b"weights!"


class FakePeers:
    """Nodes that give eight bytes of anything; `broken` ones are gone, `liars` say more than they give."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, GetFile]] = []
        self.broken: set[str] = set()
        self.liars: set[str] = set()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def ask(self, node: str, command: GetFile, *, timeout_s: float) -> Any:
        self.asked.append((node, command))
        await self.go_on.wait()
        if node in self.broken:
            raise PeerLost("it is gone")
        spec = TensorSpec(name="data", dtype=Dtype.INT32, shape=(2,))
        claimed = len(BYTES) + (1 if node in self.liars else 0)
        answer = FileIs(command_id=command.command_id, total_bytes=100, piece_bytes=claimed, tensors=(spec,))
        return Frame(answer, (memoryview(BYTES),))


def question(kind: str = "shard", **more: Any) -> GetFile:
    fields: dict[str, Any] = {
        "command_id": COMMAND,
        "deadline_s": 10.0,
        "model_id": MANIFEST.model_id,
        "kind": kind,
        "shard_id": 0,
    }
    return GetFile(**(fields | more))


def relay(peers: FakePeers, bytes_per_s: float = 1e9) -> WeightsRelay:
    return WeightsRelay(ready_cluster(MANIFEST, {1: [0], 2: [0], 3: [1]}), cast("Peers", peers), bytes_per_s)


async def test_a_piece_comes_from_a_holder_and_never_from_whoever_asks() -> None:
    peers = FakePeers()
    one = relay(peers)
    assert await one.piece(node_id(1), question(offset=64, most_bytes=8)) == (100, BYTES)
    ((node, asked),) = peers.asked
    assert node == node_id(2)
    assert (asked.kind, asked.offset, asked.most_bytes, asked.asker) == ("shard", 64, 8, None)
    assert asked.command_id != COMMAND
    assert one.relayed_bytes == len(BYTES)


async def test_the_next_holder_is_asked_where_one_fails() -> None:
    peers = FakePeers()
    peers.broken = {node_id(1)}
    assert await relay(peers).piece(node_id(3), question()) == (100, BYTES)
    assert [node for node, _ in peers.asked] == [node_id(1), node_id(2)]


async def test_a_holder_of_a_torrent_is_told_where_the_asker_can_be_dialled() -> None:
    peers = FakePeers()
    one = relay(peers)
    node = one._cluster.nodes[node_id(3)]
    node.capabilities = node.capabilities.model_copy(update={"torrent_port": 6881})
    await one.piece(node_id(3), question("torrent"))
    asker = peers.asked[0][1].asker
    assert asker is not None
    assert (asker.node_id, asker.address, asker.torrent_port) == (node_id(3), node.address, 6881)


async def test_nobody_who_has_it_and_a_relay_that_is_off_are_told_apart() -> None:
    with pytest.raises(ShardNotFound, match="no connected node has shard 2"):
        await relay(FakePeers()).piece(node_id(1), question(shard_id=2))
    with pytest.raises(ShardNotFound, match="relay_bytes_per_s is 0"):
        await relay(FakePeers(), 0).piece(node_id(1), question())


async def test_a_piece_that_is_shorter_than_it_says_is_refused() -> None:
    peers = FakePeers()
    peers.liars = {node_id(2)}
    with pytest.raises(ShardCorrupt, match="not whole"):
        await relay(peers).piece(node_id(1), question())


async def test_only_so_many_pieces_are_on_their_way_at_once_and_a_flood_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(weights_relay, "MOST_WAITING", 10)
    peers = FakePeers()
    peers.go_on.clear()
    one = relay(peers)
    waiting = [asyncio.create_task(one.piece(node_id(1), question())) for _ in range(10)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(peers.asked) == weights_relay.AT_ONCE
    with pytest.raises(Busy):
        await one.piece(node_id(1), question())
    other = asyncio.create_task(one.piece(node_id(3), question()))
    peers.go_on.set()
    assert await asyncio.gather(*waiting, other) == [(100, BYTES)] * 11, "another's questions have their own room"
    assert not one._waiting


async def test_a_pace_lets_so_many_bytes_a_second_through() -> None:
    pace, loop = Pace(100_000), asyncio.get_running_loop()
    await pace.take(100_000)  # a second's worth at once, after a rest
    began_s = loop.time()
    for _ in range(5):
        await pace.take(2_000)
    assert 0.08 <= loop.time() - began_s < 1
