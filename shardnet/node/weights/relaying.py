"""The way of last resort for a shard: its pieces through the coordinator, while no holder can be connected to.

The torrent that runs proves every piece by its hashes, keeps it, and goes on from there: with a peer, once there is one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NoReturn

from shardnet.errors import ShardnetError
from shardnet.log import get
from shardnet.manifest import Manifest
from shardnet.node.weights.holders import Holders
from shardnet.torrent.native import Piece
from shardnet.torrent.session import TorrentSession

PATIENCE_S = 4.0
"""Without a byte from any peer before pieces are asked of the coordinator."""
LOOK_S = 0.5
AGAIN_S = 2.0
"""After the coordinator could not help."""
PART_BYTES = 256 << 10
"""Asked for at a time: so long a token waits behind it at 10 MB/s is 25 ms."""
PARTS_AT_ONCE = 2

log = get("exchange")


class RelayedPieces:
    """Asks for what a download lacks, as long as it gets nothing from peers.

    Args:
        quiet_s: seconds since a peer sent anything.
    """

    def __init__(
        self,
        manifest: Manifest,
        shard_id: int,
        info_hash: str,
        session: TorrentSession,
        holders: Holders,
        quiet_s: Callable[[], float],
    ) -> None:
        self._manifest = manifest
        self._shard_id = shard_id
        self._info_hash = info_hash
        self._session = session
        self._holders = holders
        self._quiet_s = quiet_s
        self._is_told = False
        self._parts = asyncio.Semaphore(PARTS_AT_ONCE)

    async def run(self) -> NoReturn:
        """Help until cancelled."""
        while True:
            if self._quiet_s() < PATIENCE_S:
                await asyncio.sleep(LOOK_S)
                continue
            try:
                await self._fetch_missing()
            except ShardnetError as error:
                log.debug("relay_gave_nothing", shard_id=self._shard_id, reason=str(error))
                await asyncio.sleep(AGAIN_S)
            await asyncio.sleep(LOOK_S)

    async def _fetch_missing(self) -> None:
        for piece in await self._session.missing(self._info_hash):
            if self._quiet_s() < PATIENCE_S:
                return
            data = await self._fetch(piece)
            if not self._is_told:
                self._is_told = True
                log.warning(
                    "shard_comes_by_relay",
                    shard_id=self._shard_id,
                    model=self._manifest.name,
                    reason="no node that has it can be connected to",
                )
            self._session.put(self._info_hash, piece, data)

    async def _fetch(self, piece: Piece) -> bytes:
        async def part(offset: int) -> bytes:
            n_bytes = min(PART_BYTES, piece.offset + piece.n_bytes - offset)
            async with self._parts:
                return await self._holders.piece_by_relay(self._manifest, self._shard_id, offset, n_bytes)

        offsets = range(piece.offset, piece.offset + piece.n_bytes, PART_BYTES)
        return b"".join(await asyncio.gather(*map(part, offsets)))
