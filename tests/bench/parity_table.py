"""Parity over node processes, as a table: python tests/bench/parity_table.py MODEL.gguf --shards 1,2,3,4,30 --tokens 200

For each number of shards: the shards over as many nodes as --nodes allows (contiguous shards on one node run as a chain), one greedy run and three
sampled ones, every logit and token beside unsplit llama.cpp. Prints a JSON line each; ends with 1 if any differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

from shardnet.bench.driver import Driver
from shardnet.bench.plain import PlainLlama
from shardnet.inference.splitting.cutting import CutRequest, plan_split, split_model
from shardnet.lifecycle import run_loop
from shardnet.local.model import find_demo_model
from shardnet.local.processes import LocalSwarm
from shardnet.messages import Sampling, ShardOptions
from shardnet.swarm.home import Home

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.node_parity import compare, expected_run

SAMPLINGS = (
    Sampling(),
    Sampling(temperature=0.7, top_p=0.9, seed=11),
    Sampling(temperature=1.0, top_k=50, min_p=0.02, seed=12),
    Sampling(temperature=1.3, top_p=0.95, repeat_penalty=1.15, frequency_penalty=0.1, seed=13),
)


def spread(n_shards: int, n_nodes: int) -> list[tuple[str, int, int]]:
    """Returns: `(node, first shard, end shard)`: contiguous runs, as even as can be."""
    count = min(n_shards, n_nodes)
    edges = [round(index * n_shards / count) for index in range(count + 1)]
    return [(f"node-{index}", edges[index], edges[index + 1]) for index in range(count)]


async def table(model: Path, shards: list[int], n_nodes: int, n_tokens: int, work: Path) -> bool:
    options = ShardOptions(n_ctx=1024, n_seq=1, n_batch=256)
    prompt = [(13 * index) % 5000 + 50 for index in range(400)]
    exact = True
    manifests = {n: split_model(plan_split(model, CutRequest(n_shards=n), f"p{n}"), work / "cache")[1] for n in shards}
    with LocalSwarm(work) as swarm, PlainLlama(model, n_ctx=options.n_ctx, n_batch=options.n_batch) as plain:
        expected = [expected_run(plain, prompt, n_tokens, sampling) for sampling in SAMPLINGS]
        async with Driver(Home(swarm.home)) as driver:
            for index in range(n_nodes):
                swarm.start_node(f"node-{index}", work / "cache", "--coordinator", str(driver.address))
            for count in shards:
                manifest = manifests[count]
                await driver.wait_nodes(n_nodes, 120)
                route = spread(count, n_nodes)
                for node, first, end in route:
                    for shard_id in range(first, end):
                        await driver.load(node, manifest, shard_id, options)
                for sampling, unsplit in zip(SAMPLINGS, expected, strict=True):
                    row = await compare(driver, unsplit, manifest, route, prompt, n_tokens, sampling, options)
                    exact = exact and row.is_exact
                    print(json.dumps(dataclasses.asdict(row) | {"model": model.name}), flush=True)
    return exact


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--shards", default="1,2,3,4,30")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=200)
    given = parser.parse_args()
    shards = [int(part) for part in given.shards.split(",")]
    with tempfile.TemporaryDirectory(prefix="shardnet-parity-") as work:
        model = given.model or find_demo_model()
        exact = run_loop(table(model, shards, given.nodes, given.tokens, Path(work)))
    sys.exit(0 if exact else 1)


if __name__ == "__main__":
    main()
