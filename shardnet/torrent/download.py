"""One download from start to end: room, pieces, stalls, verification, rename. The torrent seeds on when it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from shardnet.errors import DeadlineExceeded, NoRoomError, ShardCorrupt, ShardError, ShardNotFound
from shardnet.files import sync_folder
from shardnet.log import counted, get, human_bytes
from shardnet.torrent import disk
from shardnet.torrent.alerts import Finished, Flushed, Renamed, ResumeData, TorrentFailed
from shardnet.torrent.core import ANSWER_TIMEOUT_S, TorrentCore
from shardnet.torrent.entry import Address, Torrent
from shardnet.torrent.progress import TorrentStats
from shardnet.torrent.watchdog import Remedy, StallWatchdog

PARTIAL_SUFFIX = ".partial"
BANNED_GRACE_S = 3.0
"""How long a download whose every known peer was banned waits for another before it says so."""
RETRY_GRACE_S = 0.5
"""How long it waits before it tries one of them again, alone."""

PESTERING_BANS = 5
FLUSH_TIMEOUT_S = 600.0
"""A slow disk may have a lot of the system's dirty pages to write before ours."""

OnProgress = Callable[[TorrentStats], None]
log = get("torrent")


class Download:
    """Fetches one file. `run()` is its life; cancelling it keeps what is verified for the next time."""

    def __init__(
        self,
        core: TorrentCore,
        torrent: Torrent,
        target: Path,
        *,
        expect_sha256: str,
        on_progress: OnProgress | None,
        resume_file: Path,
        web_seeds: tuple[str, ...],
    ) -> None:
        self._core = core
        self._torrent = torrent
        self._target = target
        self._sha256 = expect_sha256
        self._on_progress = on_progress
        self._resume_file = resume_file
        self._web_seeds = web_seeds
        self._has_failed = False
        self._tried_alone: set[Address] = set()
        self._flushing: asyncio.Future[Flushed | TorrentFailed] | None = None
        self._watchdog = StallWatchdog(core.settings.stall_timeout_s)

    async def run(self, *, deadline_s: float | None) -> disk.Stamp:
        """Fetch, verify, put in place, and leave the torrent seeding.

        Returns: the stamp of the file that was held against the manifest.
        Raises: as `TorrentSession.fetch`.
        """
        try:
            return await self._run(deadline_s)
        except OSError as error:  # TimeoutError is one too
            reason = error.strerror or "no answer from the disk in time"
            raise ShardError(f"{self._torrent.label} cannot be put into {self._target.parent}: {reason}") from error

    async def _run(self, deadline_s: float | None) -> disk.Stamp:
        partial, facts = self._torrent.path, self._torrent.facts
        started = asyncio.get_running_loop().time()
        proved = await asyncio.to_thread(
            disk.prepare_partial, partial, self._target, file_bytes=facts.file_bytes, sha256=self._sha256
        )
        if proved is not None:
            self._torrent.file_name, self._torrent.is_seed = self._target.name, True
            await self._core.add(self._torrent, resume=None, web_seeds=())
            return proved
        await asyncio.to_thread(
            disk.check_room, partial, file_bytes=facts.file_bytes, keep_free_bytes=self._core.settings.keep_free_bytes
        )
        resume = await asyncio.to_thread(disk.take_resume, self._resume_file, partial)
        try:
            outcome = self._torrent.expect(Finished, TorrentFailed)
            await self._core.add(self._torrent, resume=resume, web_seeds=self._web_seeds)
            await self._wait(outcome, started, deadline_s)
            proved = await self._put_in_place()
            if proved is None:
                # The pieces are right by the torrent, the file is not by the manifest: hash what is really on the disk before blaming the torrent.
                log.warning("torrent_file_differs", shard_id=self._torrent.label, remedy="hashing it again")
                await self._core.remove(self._torrent)
                self._flushing = None
                outcome = self._torrent.expect(Finished, TorrentFailed)
                await self._core.add(self._torrent, resume=None, web_seeds=self._web_seeds)
                await self._wait(outcome, started, deadline_s)
                if (proved := await self._put_in_place()) is None:
                    await self._discard()
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self._park()))
            raise
        seconds = asyncio.get_running_loop().time() - started
        log.info("torrent_finished", shard_id=self._torrent.label, size=human_bytes(facts.file_bytes), seconds=seconds)
        self._report()
        return proved

    async def _wait(
        self, outcome: asyncio.Future[Finished | TorrentFailed], started: float, deadline: float | None
    ) -> None:
        """Wait for the last piece, telling progress and curing stalls on the way."""
        loop = asyncio.get_running_loop()
        next_report = next_dial = started
        next_flush = started + self._core.settings.flush_interval_s
        while not outcome.done():
            now = loop.time()
            if now >= next_report:
                next_report = now + self._core.settings.progress_interval_s
                self._report()
            stats = self._torrent.stats()
            remedy = self._watchdog.observe(at_s=now, bytes_done=stats.bytes_done, is_checking=stats.is_checking)
            if remedy is not None:
                log.warning(
                    "torrent_stalled",
                    shard_id=self._torrent.label,
                    seconds=self._watchdog.stalled_s(now),
                    reason=self._why_stalled(stats),
                    remedy=remedy.value,
                )
                outcome = await self._cure(remedy, outcome)
            if stats.peers == 0 and now >= next_dial:
                next_dial = now + self._core.settings.reconnect_interval_s
                self._core.dial(self._torrent)
            if now >= next_flush and not stats.is_checking and (self._flushing is None or self._flushing.done()):
                # libtorrent keeps up to 32 MiB in memory; what the system has, a `kill -9` cannot take away.
                next_flush = now + self._core.settings.flush_interval_s
                self._flushing = self._flush()
            if self._is_hopeless(stats, now):
                outcome = await self._try_next_alone(stats, outcome)
            if deadline is not None and now - started >= deadline:
                raise self._too_late(stats, deadline)
            await asyncio.wait({outcome}, timeout=self._core.settings.progress_interval_s / 4)
        result = outcome.result()
        if isinstance(result, TorrentFailed):
            self._raise_failure(result)

    async def _cure(
        self, remedy: Remedy, outcome: asyncio.Future[Finished | TorrentFailed], *, but_for: Address | None = None
    ) -> asyncio.Future[Finished | TorrentFailed]:
        """Args: but_for: a banned peer that may come back."""
        torrent = self._torrent
        match remedy:
            case Remedy.RECONNECT:
                self._core.dial(torrent)
            case Remedy.RESTART:
                self._core.redial(torrent)
            case Remedy.READD:
                await self._park()
                self._flushing = None
                outcome = torrent.expect(Finished, TorrentFailed)
                resume = await asyncio.to_thread(disk.take_resume, self._resume_file, torrent.path)
                if but_for is not None:
                    torrent.banned.discard(but_for)
                await self._core.add(torrent, resume=resume, web_seeds=self._web_seeds)
                torrent.bans = 0
        return outcome

    async def _put_in_place(self) -> disk.Stamp | None:
        """libtorrent's "finished" is not yet on disk: flush, compare with the manifest, make durable, then give the final name.

        Returns: the stamp of the file that was compared; None if the bytes are not the manifest's, and the file keeps its partial name.
        """
        torrent = self._torrent
        self._report(is_whole=True)
        async with asyncio.timeout(FLUSH_TIMEOUT_S):
            if self._flushing is not None:
                await self._flushing  # its answer must not be taken for that of the flush that counts
            outcome = await self._flush()
        if isinstance(outcome, TorrentFailed):
            self._raise_failure(outcome)
        proved = await asyncio.to_thread(
            disk.prove, torrent.path, file_bytes=torrent.facts.file_bytes, sha256=self._sha256
        )
        if proved is None:
            return None
        renamed = torrent.expect(Renamed)
        torrent.native.rename_file(0, self._target.name)
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            answer = await renamed
        if answer.reason is not None:
            raise ShardError(f"{torrent.path} cannot be renamed to {self._target.name}: {answer.reason}")
        torrent.file_name, torrent.is_seed = self._target.name, True
        await asyncio.to_thread(sync_folder, torrent.folder)
        return proved

    def _flush(self) -> asyncio.Future[Flushed | TorrentFailed]:
        future = self._torrent.expect(Flushed, TorrentFailed)
        self._torrent.native.flush_cache()
        return future

    async def _discard(self) -> NoReturn:
        torrent = self._torrent
        await self._core.remove(torrent)
        await asyncio.to_thread(torrent.path.unlink, missing_ok=True)
        raise ShardCorrupt(
            f"{torrent.label}: the torrent's bytes are not those that the manifest promises; they were deleted. "
            "Ask another holder for the torrent",
            info_hash=torrent.facts.info_hash,
        )

    async def _park(self) -> None:
        """Write resume data for what is verified and take the torrent out of the session. Never raises but for cancellation."""
        torrent = self._torrent
        if torrent.native is None:
            return
        resume: bytes | None = None
        try:
            torrent.native.pause()
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                flushed = torrent.expect(Flushed)
                torrent.native.flush_cache()
                await flushed
                # A disk that refused a write was seen to leave pieces in the resume data that are not in the file.
                if self._has_failed:
                    raise ShardError("the disk refused a write; the bytes will be hashed instead")
                saved = torrent.expect(ResumeData)
                torrent.native.save_resume_data()
                resume = (await saved).resume
        except (TimeoutError, ShardError) as error:
            log.warning("torrent_resume_not_saved", shard_id=torrent.label, reason=str(error) or "no answer")
        partial, was_finished = torrent.path, torrent.is_seed
        await self._core.remove(torrent)
        if resume is not None and not was_finished:
            try:
                await asyncio.to_thread(disk.write_resume, self._resume_file, partial, resume)
            except OSError as error:
                log.warning("torrent_resume_not_saved", shard_id=torrent.label, reason=str(error))

    def _report(self, *, is_whole: bool = False) -> None:
        stats = self._torrent.stats()
        if is_whole:  # libtorrent's own figures come a moment later
            stats = replace(stats, bytes_done=stats.bytes_total)
        log.info("torrent_progress", **stats.log_fields())
        if self._on_progress is not None:
            self._on_progress(stats)

    def _why_stalled(self, stats: TorrentStats) -> str:
        if self._torrent.banned and self._is_all_banned(stats):
            return "every known peer sent bad pieces"
        if stats.peers:
            return f"{counted(stats.peers, 'peer')} connected, but none sends"
        if not self._torrent.peers and not self._web_seeds:
            return "no peer known; it goes on when one appears"
        why = f": {self._torrent.last_refusal}" if self._torrent.last_refusal else ""
        return f"no peer connected{why}; it goes on when one returns"

    def _is_all_banned(self, stats: TorrentStats) -> bool:
        unbanned = self._torrent.peers.keys() - self._torrent.banned
        return bool(self._torrent.banned) and not unbanned and stats.peers == 0 and not self._web_seeds

    def _is_hopeless(self, stats: TorrentStats, now: float) -> bool:
        # A banned peer that dials us comes from another port each time and gets in once more: count, and do not wait for it for ever.
        is_pestered = self._torrent.bans >= PESTERING_BANS
        grace_s = RETRY_GRACE_S if self._to_try_alone() else BANNED_GRACE_S
        return self._is_all_banned(stats) and (is_pestered or self._watchdog.stalled_s(now) >= grace_s)

    def _to_try_alone(self) -> list[Address]:
        peers = self._torrent.peers
        return [peer for peer in peers if peer not in self._tried_alone] if len(peers) > 1 else []

    async def _try_next_alone(
        self, stats: TorrentStats, outcome: asyncio.Future[Finished | TorrentFailed]
    ) -> asyncio.Future[Finished | TorrentFailed]:
        """All known peers are banned. Where a piece came from several, libtorrent may blame an honest one: each gets a chance without the others.

        Raises: ShardCorrupt if there is only one, or each had its chance.
        """
        torrent = self._torrent
        if not (untried := self._to_try_alone()):
            raise ShardCorrupt(
                f"{torrent.label}: every known peer ({len(torrent.banned)}) sent bad pieces and was banned; "
                f"{100 * stats.fraction:.0f} % are here and kept. Give it another holder",
                banned_peers=len(torrent.banned),
            )
        suspect = untried[0]
        log.info("torrent_peer_tried_alone", shard_id=torrent.label, peer=f"{suspect[0]}:{suspect[1]}")
        self._tried_alone.add(suspect)
        outcome = await self._cure(Remedy.READD, outcome, but_for=suspect)
        self._watchdog = StallWatchdog(self._core.settings.stall_timeout_s)
        return outcome

    def _too_late(self, stats: TorrentStats, deadline: float) -> ShardError | DeadlineExceeded:
        here = f"{100 * stats.fraction:.0f} % are here and kept"
        if self._watchdog.stalled_s(asyncio.get_running_loop().time()) < min(2.0, self._watchdog.timeout_s):
            return DeadlineExceeded(f"{self._torrent.label} is not complete after {deadline:.0f} s; {here}")
        return ShardNotFound(
            f"no peer has {self._torrent.label}: {self._why_stalled(stats)} ({here})",
            info_hash=self._torrent.facts.info_hash,
            bytes_done=stats.bytes_done,
        )

    def _raise_failure(self, failure: TorrentFailed) -> NoReturn:
        self._has_failed = True
        stats = self._torrent.stats()
        if failure.is_disk_full:
            missing = stats.bytes_total - stats.bytes_done
            raise NoRoomError(
                f"the disk of {self._torrent.folder} is full: {human_bytes(missing)} of {self._torrent.label} are still missing. "
                "What is here is kept; free some space and load again",
                needed_bytes=missing,
                free_bytes=0,
            )
        raise ShardError(f"{self._torrent.label} cannot be downloaded: {failure.reason}")
