"""The models cache as the daemon uses it: every touch of the disk, in threads. Decides nothing."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from shardnet.errors import ManifestError, ShardError, ShardnetError, UsageError
from shardnet.ids import ShardKey
from shardnet.inference.splitting.manifest_file import (
    MANIFEST,
    CacheScan,
    HashCache,
    check_shard,
    no_link,
    save_manifest,
    scan_cache,
    scan_folder,
)
from shardnet.log import get
from shardnet.manifest import Manifest
from shardnet.messages import MAX_FILE_PIECE, MAX_REFUSED, MAX_REFUSED_CHARS
from shardnet.node.shards.events import CacheScanned, LocalModel, LocalShard
from shardnet.torrent.disk import Stamp, stamp

HASHES_AT_ONCE = 2
"""Files hashed side by side: more would only make one disk seek."""
PROGRESS_INTERVAL_S = 0.25
CORRUPT_SUFFIX = ".corrupt"

OnDone = Callable[[int], None]
"""Called on the event loop with the bytes done so far."""

log = get("node")


class ModelStore:
    """One models cache folder.

    Attributes:
        refused: why files and folders that the last scan found are of no use: as many sentences as a `Hello` takes.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.refused: tuple[str, ...] = ()
        self._hashes: HashCache | None = None
        self._hashing = asyncio.Semaphore(HASHES_AT_ONCE)

    async def scan(self) -> CacheScanned:
        """Find models and shards by their headers, and load the known hashes. Files that are no use are logged and left out."""
        began_s = time.perf_counter()
        found, self._hashes = await asyncio.to_thread(lambda: (_scan(self.root), HashCache(self.root)))
        for path, reason in found.refused:
            log.warning("shard_refused", path=str(path), reason=reason)
        self.refused = _few([reason for _, reason in found.refused])
        log.info(
            "shards_scanned",
            shards=len(found.shards),
            models=len({shard.model_id for shard in found.shards}),
            path=str(self.root),
            seconds=time.perf_counter() - began_s,
        )
        if not found.shards:
            log.info("no_shards_here", path=str(self.root.absolute()))
        return CacheScanned(
            tuple(LocalModel(manifest, folder) for folder, manifest in found.manifests.values()),
            tuple(
                LocalShard(ShardKey((shard.model_id, shard.shard_id)), shard.path, shard.layers, shard.nbytes)
                for shard in found.shards
            ),
        )

    async def verify(self, path: Path, manifest: Manifest, shard_id: int, on_done: OnDone) -> None:
        """Hold a file against its manifest; it is hashed only if it changed since it was hashed last.

        Raises: ShardNotFound, ShardCorrupt, GgufError; ShardError if it cannot be read.
        """
        loop = asyncio.get_running_loop()
        done, told_s = 0, time.monotonic()
        given_up = threading.Event()

        def on_bytes(count: int) -> None:
            nonlocal done, told_s
            if given_up.is_set():
                raise InterruptedError("nobody waits for this hash any more")
            done += count
            if time.monotonic() - told_s >= PROGRESS_INTERVAL_S:
                told_s = time.monotonic()
                loop.call_soon_threadsafe(on_done, done)

        async with self._hashing:
            try:
                await asyncio.to_thread(check_shard, path, manifest, shard_id, self._known_hashes(), on_bytes)
            except asyncio.CancelledError:
                given_up.set()  # a process ends no sooner than its threads
                raise
            except OSError as error:
                raise ShardError(f"{path} cannot be read: {error.strerror or error}") from error

    async def missing(self, files: Iterable[tuple[ShardKey, Path]]) -> list[tuple[ShardKey, Path]]:
        """Returns: those that are not there any more."""

        def look() -> list[tuple[ShardKey, Path]]:
            return [(key, path) for key, path in files if not os.path.lexists(path)]

        return await asyncio.to_thread(look)

    async def offer_all(self, found: CacheScanned, offer: Callable[[Manifest, int, Path], Awaitable[None]]) -> int:
        """Prove every file of a scan, and `offer` it; those that cannot be are logged and left out. Returns: how many were offered."""
        manifests = {model.manifest.model_id: model.manifest for model in found.models}
        count = 0
        for shard in found.shards:
            model_id, shard_id = shard.key
            try:
                if model_id not in manifests:
                    raise ManifestError("there is no manifest.json to prove it")
                await self.verify(shard.path, manifests[model_id], shard_id, lambda _done: None)
                await offer(manifests[model_id], shard_id, shard.path)
                count += 1
            except ShardnetError as error:
                log.warning("shard_refused", path=str(shard.path), reason=str(error))
        return count

    async def note_proved(self, path: Path, sha256: str, proved: Stamp | None) -> None:
        """Remember a hash that somebody else computed of the file as it was then, so that `verify` need not; if the file changed since, do not."""
        hashes = self._known_hashes()

        def note() -> None:
            if proved is not None and stamp(path) == proved:
                hashes.remember(path, sha256)

        try:
            await asyncio.to_thread(note)
        except (OSError, ShardnetError) as error:
            log.info("hash_not_remembered", path=str(path), reason=str(error))

    async def keep_manifest(self, folder: Path, manifest: Manifest) -> None:
        """Write `folder/manifest.json`. Raises: NoRoomError if the disk is full; ShardError if the folder cannot be written."""
        try:
            await asyncio.to_thread(save_manifest, folder, manifest)
        except UsageError as error:
            raise ShardError(str(error)) from error

    async def quarantine(self, path: Path) -> None:
        """Rename a damaged file, so that nothing takes it for a shard again, and its owner can look at it."""
        try:
            await asyncio.to_thread(path.replace, path.with_name(path.name + CORRUPT_SUFFIX))
        except OSError as error:
            log.warning("quarantine_failed", path=str(path), reason=error.strerror or str(error))

    async def read_piece(self, path: Path, offset: int) -> tuple[int, bytes]:
        """Returns: the file's length, and at most MAX_FILE_PIECE of its bytes from `offset`. Raises: ShardError if it cannot be read or is a link."""

        def read() -> tuple[int, bytes]:
            no_link(path)
            with path.open("rb") as file:
                total = file.seek(0, 2)
                file.seek(min(offset, total))
                return total, file.read(MAX_FILE_PIECE)

        try:
            return await asyncio.to_thread(read)
        except OSError as error:
            raise ShardError(f"{path.name} cannot be read here: {error.strerror or error}") from error

    def _known_hashes(self) -> HashCache:
        if self._hashes is None:
            raise ShardnetError("a shard is verified before the cache was scanned")
        return self._hashes


def _scan(root: Path) -> CacheScan:
    """Returns: what a models cache holds, or the folder of a single model."""
    try:
        is_one_model = (root / MANIFEST).is_file()
    except OSError:
        is_one_model = False  # a folder that may not be entered: the scan of it says so
    if not is_one_model:
        return scan_cache(root)
    scan = CacheScan(root)
    scan_folder(root, scan)
    return scan


def _few(reasons: list[str]) -> tuple[str, ...]:
    """Returns: as much of them as a `Hello` takes; a file's name may hold what is no text."""
    shown = reasons if len(reasons) <= MAX_REFUSED else reasons[: MAX_REFUSED - 1]
    rest = [f"and {len(reasons) - len(shown)} more: this node's log names them"] if len(shown) < len(reasons) else []
    return tuple(one.encode(errors="replace").decode()[:MAX_REFUSED_CHARS] for one in [*shown, *rest])
