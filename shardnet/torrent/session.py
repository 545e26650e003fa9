"""What the daemons see of BitTorrent: seed a file, fetch a file, name peers, read figures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

from shardnet.errors import Busy, ShardCorrupt
from shardnet.log import get, human_bytes
from shardnet.torrent import disk
from shardnet.torrent.core import TorrentCore
from shardnet.torrent.download import PARTIAL_SUFFIX, Download, OnProgress
from shardnet.torrent.entry import Address, Torrent
from shardnet.torrent.metainfo import TorrentFacts, check_torrent, parse_torrent
from shardnet.torrent.native import Piece
from shardnet.torrent.progress import TorrentStats
from shardnet.torrent.settings import TorrentSettings
from shardnet.torrent.tls import TlsMaterial

OnRotten = Callable[[str, Path], None]
log = get("torrent")


class TorrentSession:
    """One libtorrent session: an async context manager, to be used on one event loop.

    With `tls` it takes part in that swarm's SSL torrents only; without, in open torrents only.
    """

    def __init__(
        self,
        settings: TorrentSettings,
        tls: TlsMaterial | None,
        state_dir: Path,
        *,
        on_rotten: OnRotten | None = None,
        on_unreadable: OnRotten | None = None,
    ) -> None:
        """Args:
        state_dir: a folder of our own for resume data.
        on_rotten: called with (label, path) when a seeded file turns out to be damaged; its torrent is removed, the file left alone.
        on_unreadable: likewise when it cannot be read, which says nothing of its bytes.
        """
        self._settings = settings
        self._tls = tls
        self._resume_dir = state_dir / "resume"
        self._core = TorrentCore(settings, tls, _telling(on_rotten), _telling(on_unreadable))
        self._downloads: set[asyncio.Task[disk.Stamp]] = set()
        self._fetching: set[str] = set()

    @property
    def port(self) -> int:
        """Returns: the TCP port where peers are accepted; known once the session is entered."""
        return self._core.port

    async def __aenter__(self) -> Self:
        await self._core.open()
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Stops all downloads, saving what they have."""
        for task in self._downloads:
            task.cancel()
        await asyncio.gather(*self._downloads, return_exceptions=True)
        await self._core.close()

    async def seed(self, torrent: bytes, path: Path, *, label: str) -> None:
        """Give a finished file to whoever asks. Seeding what is being seeded already does nothing.

        The file is not hashed now; each piece is, when it is first asked for. A damaged one ends the seeding and calls `on_rotten`.

        Args:
            label: what logs call the shard: `3` gives `Seeding shard 3`.
        Raises: ManifestError if the torrent is not one for this session; ShardCorrupt if the file is missing or has another length.
        """
        facts = parse_torrent(torrent)
        check_torrent(torrent, expect_bytes=facts.file_bytes, root_cert_pem=self._authority)
        if self._is_seeding(facts):
            return
        if await asyncio.to_thread(disk.regular_size, path) != facts.file_bytes:
            raise ShardCorrupt(f"{path} is not the file of {facts.file_bytes} bytes that its torrent describes")
        entry = Torrent(torrent, facts, disk.absolute(path).parent, path.name, label, is_seed=True)
        await self._core.add(entry, resume=None, web_seeds=())
        log.info("torrent_seeding", shard_id=label, size=human_bytes(facts.file_bytes))

    async def fetch(
        self,
        torrent: bytes,
        target: Path,
        *,
        expect_sha256: str,
        expect_bytes: int,
        label: str,
        peers: Iterable[Address] = (),
        web_seeds: Iterable[str] = (),
        deadline_s: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> disk.Stamp | None:
        """Bring a file here, whole and verified, and seed it from then on. Cancelling keeps what is verified.

        Until then the bytes are in `<target>.partial`. More peers may be named at any time by `add_peers`. A file that is there already with the
        right bytes is seeded at once; with wrong ones, only its bad pieces are fetched.

        Args:
            expect_sha256: of the whole file, by the manifest.
            peers: (IP address, port) of holders known now.
            web_seeds: HTTP addresses of the file, used with those in the torrent if `settings.web_seeds_allowed`.
            deadline_s: seconds after which to give up; None waits for peers for ever.
            on_progress: called on the event loop about once per `settings.progress_interval_s`, and once at the end.
        Returns: the stamp that the file had when it was held against `expect_sha256`; None if it was seeded already, and not looked at.
        Raises: ManifestError if the torrent is not the one wanted; NoRoomError before or in the middle;
            ShardNotFound if nobody gave anything until the deadline, DeadlineExceeded if it was only slow;
            ShardCorrupt if all known peers sent bad pieces or the bytes are not the manifest's; Busy if it is being fetched already.
        """
        facts = check_torrent(torrent, expect_bytes=expect_bytes, root_cert_pem=self._authority)
        target = disk.absolute(target)
        if self._is_seeding(facts) and self._core.torrents[facts.info_hash].path == target:
            return None
        if facts.info_hash in self._fetching:
            raise Busy(f"{label} is already being fetched", retry_after_s=1.0)
        partial = target.with_name(target.name + PARTIAL_SUFFIX)
        entry = Torrent(torrent, facts, partial.parent, partial.name, label, is_seed=False)
        sources = (*facts.web_seeds, *web_seeds) if self._settings.web_seeds_allowed else ()
        download = Download(
            self._core,
            entry,
            target,
            expect_sha256=expect_sha256,
            on_progress=on_progress,
            resume_file=self._resume_dir / f"{facts.info_hash}.resume",
            web_seeds=sources,
        )
        self._core.know_peers(entry, peers)
        self._fetching.add(facts.info_hash)
        task = asyncio.create_task(download.run(deadline_s=deadline_s), name=f"fetch {label}")
        self._downloads.add(task)

        def ended(_: asyncio.Task[disk.Stamp]) -> None:
            self._downloads.discard(task)
            self._fetching.discard(facts.info_hash)

        task.add_done_callback(ended)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task})
            raise

    def add_peers(self, info_hash: str, peers: Iterable[Address]) -> None:
        """Name holders of a torrent of this session, as (IP address, port); unknown torrents and odd addresses are passed over."""
        if (entry := self._core.torrents.get(info_hash)) is not None:
            self._core.know_peers(entry, peers)

    async def missing(self, info_hash: str) -> list[Piece]:
        """Returns: pieces of a download that are not here, in order; none if it is over or only begins."""
        entry = self._core.torrents.get(info_hash)
        return await self._core.missing(entry) if entry is not None and info_hash in self._fetching else []

    def put(self, info_hash: str, piece: Piece, data: bytes) -> None:
        """A piece of a download came by another way: it is proved and kept as if a peer had sent it. Harmless when the download is over."""
        entry = self._core.torrents.get(info_hash)
        if entry is not None and info_hash in self._fetching:
            self._core.put(entry, piece, data)

    def redial(self) -> None:
        """This machine's address is another one: end the connections of every download, and dial again from here."""
        for info_hash in self._fetching:
            if (entry := self._core.torrents.get(info_hash)) is not None:
                self._core.redial(entry)

    def block(self, hosts: Iterable[str]) -> None:
        """Have nothing to do with these IP addresses from now on; open connections end. Replaces earlier lists."""
        self._core.block(hosts)

    async def remove(self, info_hash: str) -> None:
        """Stop seeding. The file stays. Does nothing if the torrent is not here, or is still being fetched: cancel that instead."""
        entry = self._core.torrents.get(info_hash)
        if entry is not None and info_hash not in self._fetching:
            await self._core.remove(entry)

    def stats(self) -> dict[str, TorrentStats]:
        """Returns: figures of every torrent, by info-hash."""
        return {info_hash: entry.stats() for info_hash, entry in self._core.torrents.items()}

    def traffic(self) -> tuple[int, int]:
        """Returns: payload bytes sent and taken since the start, those of torrents that are gone included."""
        now = self.stats().values()
        sent, taken = self._core.past_traffic
        return sent + sum(one.uploaded_bytes for one in now), taken + sum(one.downloaded_bytes for one in now)

    @property
    def _authority(self) -> bytes | None:
        return self._tls.ca_pem if self._tls is not None else None

    def _is_seeding(self, facts: TorrentFacts) -> bool:
        entry = self._core.torrents.get(facts.info_hash)
        return entry is not None and entry.is_seed


def _telling(tell: OnRotten | None) -> Callable[[Torrent], None]:
    return lambda entry: None if tell is None else tell(entry.label, entry.path)
