"""The foundation's promise: over real node processes, every logit and every token is that of unsplit llama.cpp."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from shardnet.bench.driver import Driver
from shardnet.bench.plain import PlainLlama
from shardnet.inference.splitting.manifest_file import load_manifest
from shardnet.local.processes import LocalSwarm
from shardnet.messages import Sampling, ShardOptions
from shardnet.swarm.home import Home
from tests.conftest import SplitSmolLM2
from tests.support.node_parity import compare, expected_run

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

OPTIONS = ShardOptions(n_ctx=256, n_seq=2, n_batch=32)
PROMPT = [(11 * index) % 900 + 20 for index in range(75)]
"""Longer than two chunks, so that chunked prefill is part of the promise."""

SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.8, top_p=0.95, top_k=40, seed=1),
    Sampling(temperature=1.2, min_p=0.05, repeat_penalty=1.1, seed=2),
]


@pytest.mark.model
async def test_a_real_model_over_three_nodes_gives_the_unsplit_models_logits_and_tokens(
    tmp_path: Path, smollm2: Path, split_smollm2: SplitSmolLM2, home: Path
) -> None:
    cache = tmp_path / "cache"
    for n_shards in (1, 2, 3):
        shutil.copytree(split_smollm2(n_shards)[0], cache, copy_function=os.link, dirs_exist_ok=True)
    one, two, three = [load_manifest(split_smollm2(n_shards)[1]) for n_shards in (1, 2, 3)]
    with (
        LocalSwarm(tmp_path) as swarm,
        PlainLlama(smollm2, n_ctx=OPTIONS.n_ctx, n_batch=OPTIONS.n_batch, threads=1) as plain,
    ):
        expected = [expected_run(plain, PROMPT, 16, sampling) for sampling in SAMPLINGS]
        async with Driver(Home(swarm.home)) as driver:
            for index in range(3):
                swarm.start_node(f"node-{index}", cache, "--coordinator", str(driver.address), "--threads", "1")
            await driver.wait_nodes(3)
            for manifest, route in (
                (one, [("node-0", 0, 1)]),
                (two, [("node-0", 0, 1), ("node-1", 1, 2)]),
                (three, [("node-0", 0, 1), ("node-1", 1, 2), ("node-2", 2, 3)]),
                (three, [("node-2", 0, 2), ("node-1", 2, 3)]),  # two shards as one chain in one engine
            ):
                for node, first, end in route:
                    for shard_id in range(first, end):
                        await driver.load(node, manifest, shard_id, OPTIONS)
                count = len(SAMPLINGS) if manifest is three and len(route) == 3 else 1
                for sampling, unsplit in zip(SAMPLINGS[:count], expected, strict=False):
                    row = await compare(driver, unsplit, manifest, route, PROMPT, 16, sampling, OPTIONS)
                    assert row.tokens_equal, row
                    assert row.max_abs_logit_diff == 0, row
