"""Pieces through the coordinator: only while no peer gives any, a part at a time, and again where one fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from shardnet.errors import PeerLost
from shardnet.node.weights import relaying
from shardnet.node.weights.holders import Holders
from shardnet.node.weights.relaying import PART_BYTES, RelayedPieces
from shardnet.torrent.native import Piece
from shardnet.torrent.session import TorrentSession
from tests.support.node_world import make_manifest

SIZE = 2 * PART_BYTES + 100
CONTENT = bytes(range(256)) * (2 * SIZE // 256 + 1)


class Fakes:
    """A session that lacks two pieces, and a coordinator that gives parts of them."""

    def __init__(self) -> None:
        self.lacking = [Piece(0, 0, SIZE), Piece(1, SIZE, SIZE)]
        self.quiet_s = 100.0
        self.parts: list[tuple[int, int]] = []
        self.at_once = self.most_at_once = self.failures = 0
        self.complete = asyncio.Event()
        self.got: dict[int, bytes] = {}

    async def missing(self, _info_hash: str) -> list[Piece]:
        return [piece for piece in self.lacking if piece.index not in self.got]

    def put(self, _info_hash: str, piece: Piece, data: bytes) -> None:
        self.got[piece.index] = data
        if len(self.got) == len(self.lacking):
            self.complete.set()

    async def piece_by_relay(self, _manifest: object, _shard_id: int, offset: int, n_bytes: int) -> bytes:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.parts.append((offset, n_bytes))
        await asyncio.sleep(0)
        self.at_once -= 1
        if self.failures:
            self.failures -= 1
            raise PeerLost("the coordinator is gone")
        return CONTENT[offset:][:n_bytes]


@asynccontextmanager
async def running(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    for name in ("LOOK_S", "AGAIN_S"):
        monkeypatch.setattr(relaying, name, 0.01)
    session, holders = cast("TorrentSession", fakes), cast("Holders", fakes)
    pieces = RelayedPieces(make_manifest(), 0, "00", session, holders, lambda: fakes.quiet_s)
    task = asyncio.create_task(pieces.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_is_missing_comes_in_parts_of_a_bounded_size_two_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = Fakes()
    async with running(fakes, monkeypatch), asyncio.timeout(5):
        await fakes.complete.wait()
    assert fakes.got == {0: CONTENT[:SIZE], 1: CONTENT[SIZE:][:SIZE]}
    assert max(n_bytes for _, n_bytes in fakes.parts) == PART_BYTES
    assert fakes.most_at_once == 2


async def test_nothing_is_asked_for_while_peers_give(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = Fakes()
    fakes.quiet_s = 1.0
    async with running(fakes, monkeypatch):
        await asyncio.sleep(0.1)
        assert fakes.parts == []
        fakes.quiet_s = 100.0
        async with asyncio.timeout(5):
            await fakes.complete.wait()


async def test_a_coordinator_that_cannot_help_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = Fakes()
    fakes.failures = 2
    async with running(fakes, monkeypatch), asyncio.timeout(5):
        await fakes.complete.wait()
    assert fakes.got[0] == CONTENT[:SIZE]
