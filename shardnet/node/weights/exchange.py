"""How shards travel between nodes, as the node sees it. Composed in by the command line; without one a node has what its folder has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from shardnet.manifest import Manifest
from shardnet.messages import ShardSource
from shardnet.torrent.disk import Stamp


@dataclass(frozen=True, slots=True)
class FetchProgress:
    """One look at a shard on its way here."""

    done_bytes: int
    total_bytes: int
    bytes_per_s: float
    peers: int


OnFetchProgress = Callable[[FetchProgress], None]


class ShardExchange(Protocol):
    """Gets shards from other nodes, and gives them ours. Everything is called on the event loop; nothing may block it."""

    @property
    def torrent_port(self) -> int:
        """Returns: where other nodes' transfers connect to; 0 if nowhere."""
        ...

    async def fetch(
        self,
        manifest: Manifest,
        shard_id: int,
        target: Path,
        sources: tuple[ShardSource, ...],
        on_progress: OnFetchProgress,
    ) -> Stamp | None:
        """Bring a shard to `target`, whole. The node verifies it against the manifest afterwards. Cancelling may keep what is there.

        Returns: the file's stamp when its SHA-256 was seen to be the manifest's, so that it need not be computed again; None if it was not.
        Raises: ShardNotFound if nobody has it, NoRoomError, ShardCorrupt, DeadlineExceeded.
        """
        ...

    async def offer(self, manifest: Manifest, shard_id: int, path: Path) -> None:
        """A proved file is here: seed it and announce it. Repeating it is harmless."""
        ...

    async def withdraw(self, model_id: str, shard_id: int) -> None:
        """The file is no longer good. Harmless when it was not offered."""
        ...

    async def manifest(self, model_id: str, sources: tuple[ShardSource, ...]) -> Manifest:
        """Returns: the manifest of a model that is not known here, signed by the swarm's owner. Raises: ManifestError if nobody has it."""
        ...

    async def torrent(self, manifest: Manifest, shard_id: int) -> bytes:
        """Returns: the shard's torrent file. Raises: ShardNotFound if there is none here."""
        ...

    async def piece(self, manifest: Manifest, shard_id: int, offset: int, most_bytes: int) -> bytes:
        """Returns: bytes of an offered shard's file, at the pace that this node may give. Raises: ShardNotFound if it is not offered; ShardError."""
        ...

    def meet(self, manifest: Manifest, shard_id: int, asker: ShardSource) -> None:
        """Somebody wants an offered shard, and may not be able to dial this node: let transfers dial it."""
        ...
