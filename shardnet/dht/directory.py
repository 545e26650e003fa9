"""What the rest of shardnet asks of a directory: who holds which shard, who coordinates, who has a manifest.

Answers are hints: verified to be the announcer's own word, but whether it is a member, and there, only TLS proves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from shardnet.dht.records import CoordinatorRecord, ManifestRecord, ProviderRecord

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class DhtStats:
    """Figures for `shardnet status` and metrics; all counts since the start.

    `refused`: by kind, for example `datagram_unsealed`, `record_signature`, `contact_node_id`.
    """

    address: Address
    contacts: int
    keys: int
    records: int
    announcements: int
    datagrams_in: int
    datagrams_out: int
    bytes_in: int
    bytes_out: int
    refused: dict[str, int]


class Directory(Protocol):
    """Announce and look up. Announcing twice renews, with new values; announcements are renewed until withdrawn, or the directory is left.

    Announcing returns how many other nodes keep the record now; 0 means that nobody was there yet, and that it is tried again in the background.
    Lookups return an empty list when nobody is found. Nothing here raises for what another peer does.
    """

    async def announce(
        self,
        model_id: str,
        shard_id: int,
        *,
        address: Address | None,
        torrent_port: int = 0,
        memory_free_bytes: int = 0,
    ) -> int:
        """Say that this node holds a shard. `address`: IP address and port where it serves; None: nowhere until `move` names one.

        Raises: UsageError if `address` is not one that others can connect to.
        """
        ...

    async def withdraw(self, model_id: str, shard_id: int) -> None:
        """This node no longer holds the shard. Harmless when it was not announced."""
        ...

    async def lookup(self, model_id: str, shard_id: int) -> list[ProviderRecord]:
        """Returns: every known holder of the shard, this node included, by node id."""
        ...

    async def announce_download(
        self, model_id: str, shard_id: int, *, address: Address | None, torrent_port: int
    ) -> int:
        """Say that this node is fetching a shard, so that others who fetch it find each other. Raises: UsageError as `announce` does."""
        ...

    async def withdraw_download(self, model_id: str, shard_id: int) -> None:
        """The download is over. Harmless when it was not announced."""
        ...

    async def lookup_downloads(self, model_id: str, shard_id: int) -> list[ProviderRecord]:
        """Returns: every node that is fetching the shard, by node id."""
        ...

    async def announce_coordinator(self, *, address: Address | None) -> int:
        """Say that nodes may join at `address`. Raises: UsageError as `announce` does."""
        ...

    async def lookup_coordinators(self) -> list[CoordinatorRecord]:
        """Returns: the swarm's coordinators, by node id."""
        ...

    async def announce_manifest(self, model_id: str, *, address: Address | None) -> int:
        """Say that this node hands out the model's manifest. Raises: UsageError as `announce` does."""
        ...

    async def withdraw_manifest(self, model_id: str) -> None:
        """This node no longer hands out the manifest."""
        ...

    async def lookup_manifest(self, model_id: str) -> list[ManifestRecord]:
        """Returns: holders of the model's manifest, by node id."""
        ...

    async def move(self, address: Address | None) -> None:
        """All that is announced is served at another address from now on; None: nowhere, and it is withdrawn until it is somewhere again.

        Raises: UsageError as `announce` does.
        """
        ...

    def hush(self) -> None:
        """Announce nothing any more until `move`, without withdrawing what was announced: it stands for somebody else of this node's name."""
        ...

    async def add_peers(self, addresses: Sequence[str]) -> int:
        """Ask further "host:port" addresses, now and whenever alone. Returns: how many proved to be members."""
        ...

    def stats(self) -> DhtStats:
        """Returns: figures of this moment."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc_info: object) -> None: ...
