"""The rim around libtorrent: one native session, its torrents, and its alerts as events on the event loop.

The loop calls only functions that libtorrent answers at once or posts to its own thread.
Knows nothing of what a download is for: `session` and `download` stand on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import Callable, Iterable
from typing import Any

from shardnet.errors import Busy, LocalProtocolError, SettingsError, ShardError
from shardnet.log import get
from shardnet.torrent.alerts import (
    Added,
    AlertsDropped,
    Event,
    ListenFailed,
    Listening,
    PeerBanned,
    PeerGone,
    PieceFailed,
    Removed,
    StateChanged,
    Statuses,
    TorrentEvent,
    TorrentFailed,
    translate,
)
from shardnet.torrent.entry import Address, Torrent
from shardnet.torrent.native import Piece, missing_pieces, open_native, put_piece, refusing, torrent_params
from shardnet.torrent.settings import TorrentSettings
from shardnet.torrent.slots import SeedReading, UploadSlots
from shardnet.torrent.tls import FFDHE2048_PEM, TlsMaterial
from shardnet.torrent.waking import WakingPipe

ANSWER_TIMEOUT_S = 30.0
"""How long libtorrent may take to answer a request that only concerns itself or the disk."""

READY_TIMEOUT_S = 1.0
"""How long a torrent's start may wait for libtorrent's look at its file; later than that, it connects a second later."""

MOST_PEERS = 200
"""Addresses remembered per torrent: a directory under attack may name thousands."""

log = get("torrent")


class TorrentCore:
    """Owns the native session. All methods are called on the event loop; none of them blocks it."""

    def __init__(
        self,
        settings: TorrentSettings,
        tls: TlsMaterial | None,
        on_rotten: Callable[[Torrent], None],
        on_unreadable: Callable[[Torrent], None],
    ) -> None:
        """Args:
        on_rotten: called when a seeded file turned out not to be what its torrent says, and the torrent was removed.
        on_unreadable: likewise when it could not be read.
        """
        self.settings = settings
        self.tls = tls
        self.port = 0
        self.torrents: dict[str, Torrent] = {}
        self.past_traffic = 0, 0
        """Payload bytes sent and taken by torrents that are gone."""
        self._by_handle: dict[int, Torrent] = {}
        self._on_rotten, self._on_unreadable = on_rotten, on_unreadable
        self._native: Any = None
        self._pipe: WakingPipe | None = None
        self._listening: asyncio.Future[Listening | ListenFailed] | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._slots = UploadSlots(most=settings.max_uploads)
        self._removals: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen. Raises: SettingsError if the address cannot be had, or this process may not have what BitTorrent takes."""
        self._listening = asyncio.get_running_loop().create_future()
        try:
            self._native = await asyncio.to_thread(open_native, self.settings, with_tls=self.tls is not None)
        except RuntimeError as error:  # how libtorrent tells what the system refused: threads, files, memory
            raise SettingsError(
                f"BitTorrent cannot start ({error}): are processes, open files or memory limited (ulimit -u, -n, -v)?"
            ) from error
        self._pipe = WakingPipe(self._pump)
        self._native.set_alert_fd(self._pipe.write_end)
        self._pump()
        where = f"{self.settings.listen_host} port {self.settings.listen_port}"
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                outcome = await self._listening
        except TimeoutError as error:
            await self.close()
            raise SettingsError(f"torrents: nothing listens on {where} after {ANSWER_TIMEOUT_S:.0f} s") from error
        if isinstance(outcome, ListenFailed):
            await self.close()
            raise SettingsError(f"torrents cannot listen on {where}: {outcome.reason}")
        self.port = outcome.port
        self._ticker = asyncio.create_task(self._tick(), name="torrent-figures")
        self._ticker.add_done_callback(_say_why_it_ended)

    async def close(self) -> None:
        """Let go of everything: when this returns, no thread, socket or file of libtorrent's is left."""
        tasks = [*self._removals, *([self._ticker] if self._ticker else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for torrent in self.torrents.values():
            torrent.settle_all(ShardError(f"the torrent session was closed while {torrent.label} was busy"))
            torrent.native = None
        self.torrents.clear()
        self._by_handle.clear()
        holder, self._native = [self._native], None
        # The last reference goes in a thread: libtorrent joins its own threads then.
        await asyncio.to_thread(holder.clear)
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def block(self, hosts: Iterable[str]) -> None:
        """Have nothing to do with these IP addresses, in both directions, from now on; open connections end. Replaces earlier lists."""
        self._native.set_ip_filter(refusing(hosts))

    async def add(self, torrent: Torrent, *, resume: bytes | None, web_seeds: Iterable[str]) -> None:
        """Add a torrent, with its certificate, and let it run.

        Raises: Busy if the session has it already; ShardError if libtorrent refuses it.
        """
        if torrent.facts.info_hash in self.torrents:
            raise Busy(f"{torrent.label} is already being fetched or seeded", retry_after_s=1.0)
        params = await asyncio.to_thread(torrent_params, torrent, resume, tuple(web_seeds))
        if self._native is None:
            raise LocalProtocolError("the torrent session is closed")
        if torrent.facts.info_hash in self.torrents:
            raise Busy(f"{torrent.label} is already being fetched or seeded", retry_after_s=1.0)
        self.torrents[torrent.facts.info_hash] = torrent
        added, looked_at = torrent.expect(Added), torrent.expect(StateChanged, TorrentFailed)
        self._native.async_add_torrent(params)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                answer = await added
            if answer.reason is not None:
                raise ShardError(f"libtorrent refuses {torrent.label}: {answer.reason}")
            if self.tls is not None:
                torrent.native.set_ssl_certificate_buffer(
                    self.tls.cert_pem.decode(), self.tls.key_pem.decode(), FFDHE2048_PEM
                )
            # It begins paused. libtorrent connects once a second, but at once when a torrent that is ready and knows peers is resumed.
            self.dial(torrent)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(READY_TIMEOUT_S):
                    await looked_at
            torrent.native.resume()
        except BaseException:
            # A handle that comes late is removed by `_take_added`, as nobody here knows it any more.
            if self.torrents.get(torrent.facts.info_hash) is torrent:
                del self.torrents[torrent.facts.info_hash]
            if torrent.native is not None and self._native is not None:
                self._by_handle.pop(hash(torrent.native), None)
                self._native.remove_torrent(torrent.native)
            torrent.native = None
            raise

    async def remove(self, torrent: Torrent) -> None:
        """Take a torrent out; its file stays. When this returns, libtorrent has closed the file."""
        if torrent.native is None or self._native is None or self.torrents.get(torrent.facts.info_hash) is not torrent:
            return
        removed = torrent.expect(Removed)
        self._native.remove_torrent(torrent.native)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await removed
        except TimeoutError:
            log.warning("torrent_removal_unanswered", shard_id=torrent.label)
        finally:
            self._by_handle.pop(hash(torrent.native), None)
            torrent.native = None
            if self.torrents.get(torrent.facts.info_hash) is torrent:
                del self.torrents[torrent.facts.info_hash]
                stats, (sent, taken) = torrent.stats(), self.past_traffic
                self.past_traffic = sent + stats.uploaded_bytes, taken + stats.downloaded_bytes

    def know_peers(self, torrent: Torrent, peers: Iterable[Address]) -> None:
        """Remember addresses and dial them. What is not an IP address with a port, or is ourselves, is passed over."""
        fresh: list[Address] = []
        for host, port in peers:
            try:
                address = (str(ipaddress.ip_address(host)), port)
            except ValueError:
                log.debug("torrent_peer_ignored", peer=f"{host}:{port}")
                continue
            is_self = address == (self.settings.listen_host, self.port)
            if is_self or not 0 < port < 65536 or len(torrent.peers) >= MOST_PEERS:
                continue
            torrent.peers[address] = None
            fresh.append(address)
        self.dial(torrent, fresh)

    def dial(self, torrent: Torrent, peers: Iterable[Address] | None = None) -> None:
        """Connect to `peers`, by default to all known ones; never to one that was banned."""
        if torrent.native is None:
            return
        for address in torrent.peers if peers is None else peers:
            if address not in torrent.banned:
                torrent.native.connect_peer(address)

    async def missing(self, torrent: Torrent) -> list[Piece]:
        """Returns: its pieces that are not here, in order."""
        native = torrent.native
        if native is None:
            return []
        return await asyncio.to_thread(missing_pieces, native, torrent.facts.file_bytes)

    def put(self, torrent: Torrent, piece: Piece, data: bytes) -> None:
        """Have libtorrent prove a piece and keep it. One that is here already changes nothing."""
        if torrent.native is not None:
            put_piece(torrent.native, piece, data)

    def redial(self, torrent: Torrent) -> None:
        """End all its connections and make them anew."""
        if torrent.native is not None:
            torrent.native.pause()
            torrent.native.resume()
            self.dial(torrent)

    def _pump(self) -> None:
        if self._native is None:
            return
        for event in [translate(alert) for alert in self._native.pop_alerts()]:
            if event is not None:
                self._take(event)

    def _take(self, event: Event) -> None:
        match event:
            case Listening() | ListenFailed():
                if self._listening is not None and not self._listening.done():
                    self._listening.set_result(event)
            case AlertsDropped():
                log.warning("torrent_alerts_dropped")
            case Statuses():
                for status in event.changed:
                    if (torrent := self.torrents.get(status.info_hash)) is not None:
                        torrent.status = status
            case Added():
                self._take_added(event)
            case Removed():
                if (torrent := self.torrents.get(event.info_hash)) is not None:
                    torrent.settle(event)
            case TorrentEvent():
                if (torrent := self._by_handle.get(event.handle)) is not None:
                    self._take_torrent_event(torrent, event)

    def _take_added(self, event: Added) -> None:
        torrent = self.torrents.get(event.info_hash)
        if torrent is None:
            if event.reason is None:
                self._native.remove_torrent(event.native)
            return
        if event.reason is None:
            torrent.native = event.native
            self._by_handle[hash(event.native)] = torrent
        torrent.settle(event)

    def _take_torrent_event(self, torrent: Torrent, event: TorrentEvent) -> None:
        match event:
            case PeerBanned():
                torrent.bans += 1
                if (event.host, event.port) not in torrent.banned:
                    torrent.banned.add((event.host, event.port))
                    log.warning("torrent_peer_banned", peer=f"{event.host}:{event.port}", shard_id=torrent.label)
            case PieceFailed() if torrent.is_seed:
                self._rotten(torrent)
            case PieceFailed():
                log.info("torrent_piece_failed", shard_id=torrent.label, piece=event.piece)
            case PeerGone():
                torrent.last_refusal = event.reason
                log.debug("torrent_peer_gone", peer=f"{event.host}:{event.port}", reason=event.reason)
            case TorrentFailed() if torrent.is_seed:
                log.error("torrent_seed_failed", shard_id=torrent.label, reason=event.reason)
                self._end_seed(torrent, self._on_unreadable)
            case StateChanged(state="downloading") if torrent.is_seed:
                self._rotten(torrent)
        torrent.settle(event)

    def _rotten(self, torrent: Torrent) -> None:
        """The file of a seed is not what it should be."""
        if self._end_seed(torrent, self._on_rotten):
            log.error("torrent_file_rotten", shard_id=torrent.label, path=str(torrent.path))

    def _end_seed(self, torrent: Torrent, tell: Callable[[Torrent], None]) -> bool:
        """Stop giving it away, at once. Returns: False if that is so already."""
        if self.torrents.get(torrent.facts.info_hash) is not torrent or torrent.native is None:
            return False
        if any(task.get_name() == torrent.facts.info_hash for task in self._removals):
            return False
        task = asyncio.create_task(self._remove_seed(torrent, tell), name=torrent.facts.info_hash)
        self._removals.add(task)
        task.add_done_callback(self._removals.discard)
        return True

    async def _remove_seed(self, torrent: Torrent, tell: Callable[[Torrent], None]) -> None:
        await self.remove(torrent)
        tell(torrent)

    def _widen_slots(self) -> None:
        # A seed that was downloaded here has as many slots as any other torrent: it is never the only holder.
        seeds = {
            info_hash: SeedReading(torrent.status.uploaded_bytes, torrent.status.downloaders)
            for info_hash, torrent in self.torrents.items()
            if torrent.has_first_slots and torrent.status is not None
        }
        wider = self._slots.observe(asyncio.get_running_loop().time(), seeds)
        if wider is not None and (native := self.torrents[wider].native) is not None:
            log.debug("torrent_slots", shard_id=self.torrents[wider].label, slots=self._slots.slots[wider])
            native.set_max_uploads(self._slots.slots[wider])

    async def _tick(self) -> None:
        """Rates have no event of their own: libtorrent is asked for them at a fixed pace, and answers by an alert."""
        while True:
            if self.torrents:
                self._native.post_torrent_updates()
                self._widen_slots()
            await asyncio.sleep(self.settings.progress_interval_s / 2)


def _say_why_it_ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("torrent_figures_ended", exc_info=error)
