"""A process that fetches one shard, for tests that kill it: `python -m tests.torrent_fetcher` with a JSON job as its argument.

Writes one JSON line per progress report, and `{"finished": true, ...}` at the end.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from shardnet.lifecycle import run_loop
from shardnet.log import configure
from shardnet.torrent.progress import TorrentStats
from shardnet.torrent.session import TorrentSession
from shardnet.torrent.settings import TorrentSettings


def tell(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


async def main(job: dict[str, Any]) -> None:
    def report(stats: TorrentStats) -> None:
        tell(**dataclasses.asdict(stats))

    settings = TorrentSettings(keep_free_bytes=0, progress_interval_s=0.1, flush_interval_s=0.2)
    async with TorrentSession(settings, None, Path(job["state"])) as session:
        await session.fetch(
            base64.b64decode(job["torrent"]),
            Path(job["target"]),
            expect_sha256=job["sha256"],
            expect_bytes=job["size"],
            label="0",
            peers=[("127.0.0.1", job["port"])],
            on_progress=report,
        )
        tell(finished=True)
        await asyncio.sleep(job.get("stay_s", 0))


if __name__ == "__main__":
    configure(stream=sys.stderr)
    run_loop(main(json.loads(sys.argv[1])))
