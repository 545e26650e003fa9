"""One torrent as the event loop sees it: what libtorrent told of it last, and who waits for what it will tell next."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shardnet.torrent.alerts import Event, Status
from shardnet.torrent.metainfo import TorrentFacts
from shardnet.torrent.progress import TorrentStats

Address = tuple[str, int]


@dataclass(slots=True, eq=False)
class Torrent:
    """One torrent of the session.

    Invariants: `native` is None until libtorrent has added it; every future in `waiting` is settled by an event or by `settle_all`.
    """

    metainfo: bytes
    facts: TorrentFacts
    folder: Path
    file_name: str
    label: str
    is_seed: bool
    native: Any = None
    status: Status | None = None
    peers: dict[Address, None] = field(default_factory=dict)
    banned: set[Address] = field(default_factory=set)
    bans: int = 0
    last_refusal: str = ""
    has_first_slots: bool = False
    """True for a torrent that was added as a seed: it begins with `FIRST_SLOTS` upload slots."""
    waiting: list[tuple[tuple[type[Event], ...], asyncio.Future[Any]]] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """Returns: where the bytes are."""
        return self.folder / self.file_name

    def expect(self, *kinds: type[Event]) -> asyncio.Future[Any]:
        """Returns: a future of the next event of one of these kinds. Ask before causing it, so that it cannot be missed."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.waiting.append((kinds, future))
        return future

    def settle(self, event: Event) -> None:
        """Hand `event` to all who wait for it."""
        for kinds, future in self.waiting:
            if isinstance(event, kinds) and not future.done():
                future.set_result(event)
        self.waiting = [(kinds, future) for kinds, future in self.waiting if not future.done()]

    def settle_all(self, error: Exception) -> None:
        """Nothing more will come."""
        for _, future in self.waiting:
            if not future.done():
                future.set_exception(error)
                future.exception()  # whoever still waits gets it; if nobody does, that is no news
        self.waiting.clear()

    def stats(self) -> TorrentStats:
        """Returns: the figures as of the last report."""
        status = self.status
        done = self.facts.file_bytes if self.is_seed else (status.bytes_done if status else 0)
        return TorrentStats(
            info_hash=self.facts.info_hash,
            label=self.label,
            is_seeding=self.is_seed,
            is_checking=status.is_checking if status else False,
            bytes_done=done,
            bytes_total=self.facts.file_bytes,
            download_bytes_per_s=status.download_bytes_per_s if status else 0,
            peers=status.peers if status else 0,
            downloaded_bytes=status.downloaded_bytes if status else 0,
            uploaded_bytes=status.uploaded_bytes if status else 0,
            banned_peers=len(self.banned),
        )
