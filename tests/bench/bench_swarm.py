"""What a swarm's first holder pays when everybody wants everything. Real processes over loopback; one JSON line per figure.

    python -m tests.bench.bench_swarm [--nodes 5] [--shards 3] [--limit-megabytes 0 10] [--model GGUF] [--folder DIR]

One process (`shardnet seed`) holds all shards of the model (SmolLM2 if none is named), the others (`shardnet fetch --stay`) are empty, and wait for
it: time counts from its first announcement. A star would send the model once for each of them: `sent_over_model` would be nodes - 1. With a limit,
`time_over_limit` is the time until the last one is complete over the time that the limit alone dictates for one copy.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from shardnet.inference.splitting.manifest_file import load_manifest
from shardnet.local.model import find_demo_model
from shardnet.local.processes import LocalSwarm, Process
from shardnet.manifest import Manifest
from shardnet.node.sharing import FETCHES_AT_ONCE

MB = 1_000_000


def tell(figure: str, **facts: Any) -> None:
    shown = {key: round(value, 3) if isinstance(value, float) else value for key, value in facts.items()}
    print(json.dumps({"figure": figure, **shown}), flush=True)


def split(model: Path, cache: Path, n_shards: int) -> tuple[Path, Manifest]:
    command = [sys.executable, "-m", "shardnet", "split", str(model), "--shards", str(n_shards), "--out", str(cache)]
    subprocess.run([*command, "--no-verify"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = next(cache.glob("shards/*/manifest.json")).parent
    return folder, load_manifest(folder)


def has_logged(process: Process, event: str) -> int:
    """Returns: how often."""
    return sum(f'"{event}"' in line for line in list(process.tail))


def bytes_given(lines: list[str]) -> int:
    for line in lines:
        if '"exchange_ended"' in line:
            return int(json.loads(line)["sent_bytes"])
    return 0


def measure(root: Path, cache: Path, manifest: Manifest, n_nodes: int, limit: int) -> None:
    """One run: everybody is up and waits, then the holder comes, until the last one has everything."""
    with LocalSwarm(root / "swarm", log_format="json") as swarm:
        swarm.start_coordinator("--models-cache", str(cache))
        names = [f"node-{index}" for index in range(1, n_nodes)]
        for name in names:
            out = str(root / name)
            fetch = ("fetch", manifest.name, "--out", out, "--stay", "--log-level", "info")
            swarm.start(name, *fetch, env={"SHARDNET_TORRENT__FIND_HOLDERS_S": "600"})

        def waits(name: str) -> bool:
            return has_logged(swarm.processes[name], "shard_has_no_holder_yet") >= min(
                FETCHES_AT_ONCE, manifest.n_shards
            )

        def complete(name: str) -> bool:
            return len(list((root / name).glob("shards/*/shard-*.gguf"))) == manifest.n_shards

        swarm.wait_for(lambda: all(waits(name) for name in names), 120, "the nodes")
        load = os.getloadavg()[0]
        more = ["--upload-limit", f"{limit}MB"] if limit else []
        holder = swarm.start("holder", "seed", str(cache), *more)
        swarm.wait_for(lambda: has_logged(holder, "dht_announced") > 0, 60, "the holder")
        began = time.perf_counter()

        swarm.wait_for(lambda: all(complete(name) for name in names), 600, "the last node")
        seconds = time.perf_counter() - began
        processes = dict(swarm.processes)
    sent = bytes_given(list(processes["holder"].tail))
    facts: dict[str, Any] = {
        "nodes": n_nodes,
        "model_bytes": manifest.total_bytes,
        "seconds": seconds,
        "load": load,
        "sent_bytes": sent,
        "sent_over_model": sent / manifest.total_bytes,
        "sent_by_others": [bytes_given(list(processes[name].tail)) for name in names],
    }
    if limit:
        facts |= {"limit_bytes_per_s": limit * MB, "time_over_limit": seconds / (manifest.total_bytes / (limit * MB))}
    tell("swarm_limited" if limit else "swarm", **facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--limit-megabytes", type=int, nargs="+", default=[0, 10], help="one run each; 0: no limit")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder if not given")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="bench-swarm-") as scratch:
        root = Path(scratch)
        cache = root / "cache"
        _, manifest = split(arguments.model or find_demo_model(), cache, arguments.shards)
        for limit in arguments.limit_megabytes:
            run = root / f"run-{limit}"
            run.mkdir()
            measure(run, cache, manifest, arguments.nodes, limit)
            shutil.rmtree(run)


if __name__ == "__main__":
    main()
