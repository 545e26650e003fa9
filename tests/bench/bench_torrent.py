"""How fast shards travel, and what they cost the first holder. One JSON line per figure.

    python -m tests.bench.bench_torrent [--megabytes 500] [--capped-mebibytes 300] [--swarm-megabytes 98] [--limit-megabytes 10] [--folder DIR]

A figure is left out by giving its size as 0.

Everything runs on this machine, over loopback, in this process (libtorrent has threads of its own). `torrent_s` counts from the call of `fetch`
until it returns: connection, transfer, merkle check, flush, fsync, SHA-256, rename. `cp` and the HTTP download by curl get an fsync too.
"""

from __future__ import annotations

import argparse
import asyncio
import http.server
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

from shardnet.lifecycle import run_loop
from shardnet.torrent.metainfo import info_hash, make_torrent
from tests.support.torrent_world import Shard, World, make_shard

MB = 1_000_000
MIB = 1 << 20
CAP = 30 * MIB
NODES = 5
ORDINARY: dict[str, Any] = {"stall_timeout_s": 10.0, "flush_interval_s": 1.0, "progress_interval_s": 1.0}


def tell(figure: str, **facts: Any) -> None:
    print(json.dumps({"figure": figure, **{k: round(v, 3) if isinstance(v, float) else v for k, v in facts.items()}}))


def sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def time_cp(source: Path, folder: Path) -> float:
    started = time.perf_counter()
    subprocess.run(["cp", str(source), str(folder / "copy")], check=True)
    sync(folder / "copy")
    return time.perf_counter() - started


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def time_curl(source: Path, folder: Path) -> float | None:
    """Returns: seconds, or None where there is no curl."""
    if shutil.which("curl") is None:
        return None
    handler = partial(QuietHandler, directory=str(source.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/{source.name}"
        started = time.perf_counter()
        subprocess.run(["curl", "-sS", "-o", str(folder / "curled"), url], check=True)
        sync(folder / "curled")
        seconds = time.perf_counter() - started
        server.shutdown()
        thread.join()
    return seconds


async def one_to_one(folder: Path, megabytes: int) -> None:
    """One seed, one node, beside `cp` and curl in the same run; once open, once under the swarm's authority."""
    shard = make_shard(folder / "origin", megabytes * MB)
    for kind in ("open", "tls"):
        async with AsyncExitStack() as stack:
            world = World(folder / kind, stack)
            members = [world.authority.member() if kind == "tls" else None for _ in range(2)]
            authority = world.authority.pem if kind == "tls" else None
            torrent = make_torrent(shard.path, name=shard.path.name, root_cert_pem=authority)
            seed = await world.session("seed", members[0], **ORDINARY)
            node = await world.session("node", members[1], **ORDINARY)
            await seed.seed(torrent, shard.path, label="0")
            started = time.perf_counter()
            await node.fetch(torrent, world.target("node"), peers=[("127.0.0.1", seed.port)], **shard.wanted())
            torrent_s = time.perf_counter() - started
        cp_s = await asyncio.to_thread(time_cp, shard.path, folder)
        curl_s = await asyncio.to_thread(time_curl, shard.path, folder)
        tell(
            f"one_to_one_{kind}",
            megabytes=megabytes,
            torrent_s=torrent_s,
            torrent_mb_per_s=megabytes / torrent_s,
            cp_mb_per_s=megabytes / cp_s,
            curl_mb_per_s=megabytes / curl_s if curl_s else None,
        )
        shutil.rmtree(folder / kind)


async def flipped_byte(folder: Path, megabytes: int) -> None:
    """A node whose file has one wrong byte in the middle: from the moment that it is found out to a file that is right."""
    shard = make_shard(folder / "origin", megabytes * MB)
    async with AsyncExitStack() as stack:
        world = World(folder / "flipped", stack)
        torrent = make_torrent(shard.path, name=shard.path.name, root_cert_pem=None)
        seed = await world.session("seed", None, **ORDINARY)
        node = await world.session("node", None, **ORDINARY)
        await seed.seed(torrent, shard.path, label="0")
        target = world.target("node")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shard.path, target)
        with target.open("r+b") as file:
            file.seek(megabytes * MB // 2)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes((byte ^ 1,)))
        started = time.perf_counter()
        await node.fetch(torrent, target, peers=[("127.0.0.1", seed.port)], **shard.wanted())
        spent_s = time.perf_counter() - started
    tell("one_flipped_byte", megabytes=megabytes, until_right_s=spent_s)
    shutil.rmtree(folder / "flipped")


async def capped_seeds(folder: Path, mebibytes: int) -> None:
    """One seed and three, each held to 30 MiB/s. Do sources add up?"""
    shard = make_shard(folder / "capped", mebibytes * MIB)
    rates = {}
    for n_seeds in (1, 3):
        async with AsyncExitStack() as stack:
            world = World(folder / f"capped-{n_seeds}", stack)
            names = [f"seed-{index}" for index in range(n_seeds)]
            seeds = [await world.session(name, upload_limit_bytes_per_s=CAP, **ORDINARY) for name in names]
            node = await world.session("node", **ORDINARY)
            for seed in seeds:
                await seed.seed(shard.torrent, shard.path, label="0")
            holders = [("127.0.0.1", seed.port) for seed in seeds]
            started = time.perf_counter()
            await node.fetch(shard.torrent, world.target("node"), peers=holders, **shard.wanted())
            rates[n_seeds] = mebibytes / (time.perf_counter() - started)
        shutil.rmtree(world.folder)
    tell(
        "capped_seeds",
        mebibytes=mebibytes,
        cap_mib_per_s=CAP / MIB,
        one_mib_per_s=rates[1],
        three_mib_per_s=rates[3],
        three_over_one=rates[3] / rates[1],
    )


async def one_to_five(folder: Path, shards: list[Shard], limit_bytes_per_s: int) -> None:
    """Five nodes want all shards at once; one holder has them. What did it send, and how long did the last node wait?"""
    total = sum(shard.size for shard in shards)
    async with AsyncExitStack() as stack:
        world = World(folder / f"swarm-{limit_bytes_per_s}", stack)
        holder = await world.session("holder", upload_limit_bytes_per_s=limit_bytes_per_s, **ORDINARY)
        nodes = [await world.session(f"node-{index}", **ORDINARY) for index in range(NODES)]
        for shard in shards:
            await holder.seed(shard.torrent, shard.path, label=shard.path.parent.name)
        everybody = [("127.0.0.1", session.port) for session in (holder, *nodes)]
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for index, node in enumerate(nodes):
                for shard in shards:
                    target = world.folder / f"node-{index}" / shard.path.parent.name / shard.path.name
                    group.create_task(node.fetch(shard.torrent, target, peers=everybody, **shard.wanted()))
        seconds = time.perf_counter() - started
        await asyncio.sleep(1.5)  # figures are a moment old
        sent = sum(holder.stats()[info_hash(shard.torrent)].uploaded_bytes for shard in shards)
        tell(
            "one_to_five",
            limit_mb_per_s=limit_bytes_per_s / MB or None,
            megabytes=total / MB,
            shards=len(shards),
            seconds=seconds,
            holder_sent_over_size=sent / total,
            time_over_limits_own=seconds / (total / limit_bytes_per_s) if limit_bytes_per_s else None,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--flipped-megabytes", type=int, default=300)
    parser.add_argument("--capped-mebibytes", type=int, default=300)
    parser.add_argument("--swarm-megabytes", type=int, default=98)
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--limit-megabytes", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=None, help="where to work; a temporary folder by default")
    chosen = parser.parse_args()

    async def run(folder: Path) -> None:
        if chosen.megabytes:
            await one_to_one(folder, chosen.megabytes)
        if chosen.flipped_megabytes:
            await flipped_byte(folder, chosen.flipped_megabytes)
        if chosen.capped_mebibytes:
            await capped_seeds(folder, chosen.capped_mebibytes)
        if not chosen.swarm_megabytes:
            return
        size = chosen.swarm_megabytes * MB // chosen.shards
        shards = [make_shard(folder / f"shard-{index}", size, seed=index) for index in range(chosen.shards)]
        for limit in (0, chosen.limit_megabytes * MB):
            await one_to_five(folder, shards, limit)

    from shardnet.log import configure

    configure(level="error")
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        run_loop(run(Path(folder)))


if __name__ == "__main__":
    main()
