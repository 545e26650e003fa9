"""A process that fetches one shard, for tests that kill it: `python -m tests.support.torrent_fetcher` with a JSON job as its argument.

Writes one JSON line per progress report, and `{"finished": true, ...}` at the end. With `die_at` in its job it kills itself at that moment, as
`kill -9` would.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from shardnet.lifecycle import run_loop
from shardnet.log import configure
from shardnet.torrent import disk, download
from shardnet.torrent.progress import TorrentStats
from shardnet.torrent.session import TorrentSession
from shardnet.torrent.settings import TorrentSettings

FLUSH_INTERVAL_S = 0.2


def tell(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def die(*_arguments: Any, **_options: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def die_halfway_through_resume_data(handle: int, fsync: Any = os.fsync) -> None:
    if os.readlink(f"/proc/self/fd/{handle}").endswith(".tmp"):  # noqa: PTH115 - a handle, not a path
        os.ftruncate(handle, os.fstat(handle).st_size // 2)
        die()
    fsync(handle)


MOMENTS: dict[str, tuple[Any, str, Any]] = {
    "verified, not flushed": (download.Download, "_put_in_place", die),
    "flushed, not compared with the manifest": (disk, "sha256_and_sync", die),
    "renamed, the folder not synced": (download, "sync_folder", die),
    "resume data half written": (os, "fsync", die_halfway_through_resume_data),
}
"""What is put in whose place, so that it happens then."""


async def main(job: dict[str, Any]) -> None:
    reached = asyncio.Event()

    def report(stats: TorrentStats) -> None:
        tell(**dataclasses.asdict(stats))
        if stats.fraction >= job.get("cancel_at", 2):
            reached.set()

    if "die_at" in job:
        place, name, end = MOMENTS[job["die_at"]]
        setattr(place, name, end)
    settings = TorrentSettings(keep_free_bytes=0, progress_interval_s=0.1, flush_interval_s=FLUSH_INTERVAL_S)
    async with TorrentSession(settings, None, Path(job["state"])) as session:
        fetch = asyncio.create_task(
            session.fetch(
                base64.b64decode(job["torrent"]),
                Path(job["target"]),
                expect_sha256=job["sha256"],
                expect_bytes=job["size"],
                label="0",
                peers=[("127.0.0.1", job["port"])],
                on_progress=report,
            )
        )
        cancel = asyncio.create_task(reached.wait())
        await asyncio.wait({fetch, cancel}, return_when=asyncio.FIRST_COMPLETED)
        if cancel.done():
            fetch.cancel()
        cancel.cancel()
        await fetch
        tell(finished=True)
        await asyncio.sleep(job.get("stay_s", 0))


if __name__ == "__main__":
    configure(stream=sys.stderr)
    run_loop(main(json.loads(sys.argv[1])))
