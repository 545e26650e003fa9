"""How quick and how sure the DHT is: `python tests/bench/bench_dht.py [--nodes 50] [--ttl 12]`, one JSON line a figure.

All nodes run in one process on one event loop and share its core, so latencies are upper bounds: a node of its own has a core to itself.
Dead means gone without a word. Warm unless it says otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from shardnet.dht.kademlia_directory import KademliaDirectory
from shardnet.lifecycle import run_loop
from shardnet.log import configure
from tests.support.dht_world import MODEL, World, eventually, world

HOST = "127.0.0.1"


def tell(what: str, **figures: object) -> None:
    """Print one figure."""
    print(json.dumps({"bench": "dht", "what": what} | figures), flush=True)


def spread(seconds: list[float]) -> dict[str, float]:
    """Returns: median, 95th percentile and maximum, milliseconds."""
    ordered = sorted(seconds)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return {
        "n": len(ordered),
        "p50_ms": round(statistics.median(ordered) * 1e3, 2),
        "p95_ms": round(p95 * 1e3, 2),
        "max_ms": round(ordered[-1] * 1e3, 2),
    }


async def timed(work: Callable[[], Awaitable[Any]]) -> tuple[float, Any]:
    """Returns: seconds, result."""
    started = time.perf_counter()
    result = await work()
    return time.perf_counter() - started, result


async def lookup_round(net: World, owners: dict[int, str], what: str, chance: random.Random) -> None:
    """Look every shard up once, from a random living node, one after another."""
    seconds, found = [], 0
    for shard, owner in owners.items():
        asking = chance.choice(net.nodes)
        took, records = await timed(lambda asking=asking, shard=shard: asking.lookup(MODEL, shard))  # type: ignore[misc]
        seconds.append(took)
        found += [record.node_id for record in records] == [owner]
    tell(what, found=found, of=len(owners), **spread(seconds))


async def calm_network(net: World, count: int, chance: random.Random) -> None:
    """Joining, announcing, looking up, twenty providers of one key, a burst."""
    took, _ = await timed(lambda: net.grow(count))
    tell("join_all", nodes=count, seconds=round(took, 2), contacts_min=min(n.stats().contacts for n in net.nodes))
    seconds = []
    for shard in range(100):
        took, _ = await timed(
            lambda shard=shard: net.nodes[shard % count].announce(MODEL, shard, address=(HOST, 4000))  # type: ignore[misc]
        )
        seconds.append(took)
    tell("announce", **spread(seconds))
    owners = {shard: net.id_of(net.nodes[shard % count]) for shard in range(100)}
    await lookup_round(net, owners, "lookup", chance)
    providers = net.nodes[:20]
    took, _ = await timed(
        lambda: asyncio.gather(*(node.announce(MODEL, 500, address=(HOST, 4000)) for node in providers))
    )
    expected = {net.id_of(node) for node in providers}
    seconds, complete = [], 0
    for node in net.nodes:
        lookup_s, records = await timed(lambda node=node: node.lookup(MODEL, 500))  # type: ignore[misc]
        seconds.append(lookup_s)
        complete += {record.node_id for record in records} == expected
    tell("twenty_providers", announced_s=round(took, 3), complete=complete, of=count, **spread(seconds))
    took, kept = await timed(
        lambda: asyncio.gather(*(net.nodes[n % count].announce(MODEL, 1000 + n, address=(HOST, 1)) for n in range(200)))
    )
    tell(
        "burst_of_200",
        seconds=round(took, 2),
        kept_by_min=min(kept),
        contacts_min=min(n.stats().contacts for n in net.nodes),
    )


async def half_dies(net: World, count: int, chance: random.Random) -> None:
    """Half of the nodes are gone at once; then three rounds of lookups, a sweep, and a fourth."""
    survivors = net.nodes[: count // 2]
    await asyncio.gather(
        *(survivors[n % len(survivors)].announce(MODEL, 2000 + n, address=(HOST, 1)) for n in range(60))
    )
    owners = {2000 + n: net.id_of(survivors[n % len(survivors)]) for n in range(60)}
    await net.kill(*net.nodes[count // 2 :])
    for n in (1, 2, 3):
        await lookup_round(net, owners, f"lookup_after_half_died_round_{n}", chance)
    await asyncio.gather(*(node.sweep() for node in net.nodes))
    await lookup_round(net, owners, "lookup_after_half_died_and_a_sweep", chance)


async def dead_provider(folder: Path, ttl_s: float) -> None:
    """How long a provider is still returned: after a crash, and after a clean leave."""
    async with world(folder) as net:
        nodes = await net.grow(12, record_ttl_s=ttl_s)

        async def is_gone(asking: KademliaDirectory, shard: int) -> bool:
            return await asking.lookup(MODEL, shard) == []

        for shard, leave in ((1, False), (2, True)):
            provider = net.nodes[1]
            await provider.announce(MODEL, shard, address=(HOST, 4000))
            started = time.perf_counter()
            await provider.close(leave=leave)
            net.nodes.remove(provider)
            await eventually(lambda shard=shard: is_gone(nodes[8], shard), within_s=2 * ttl_s)  # type: ignore[misc]
            took = time.perf_counter() - started
            tell("forgotten_after_leave" if leave else "forgotten_after_crash", ttl_s=ttl_s, seconds=round(took, 2))


async def main(count: int, ttl_s: float) -> None:
    """Run everything."""
    configure(level="error")
    tell("host", cpus=os.cpu_count(), python=platform.python_version(), nodes=count, seed=1)
    chance = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        async with world(Path(folder)) as net:
            await calm_network(net, count, chance)
            await half_dies(net, count, chance)
        await dead_provider(Path(folder), ttl_s)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--ttl", type=float, default=12)
    arguments = parser.parse_args()
    run_loop(main(arguments.nodes, arguments.ttl))
