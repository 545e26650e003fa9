"""Decode speed over nodes beside plain llama.cpp, and one hop taken apart.

Every round measures plain llama.cpp and then each pipeline, so that both see the same weather; the figures are medians over rounds.
No parity, no number: a pipeline whose tokens differ from plain llama.cpp's is reported as an error, without a speed.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shardnet.bench.driver import DrivenRun, Driver
from shardnet.bench.plain import PlainLlama, PlainRun
from shardnet.demo.processes import LocalSwarm
from shardnet.errors import ParityError
from shardnet.inference.split import CutRequest, plan_split, split_model
from shardnet.manifest import Manifest
from shardnet.messages import ShardOptions
from shardnet.steps import StageTiming
from shardnet.swarm.home import Home

PROMPT_TOKENS = 64
OnRow = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Pipeline:
    """One model cut into as many shards as there are nodes."""

    stages: int
    manifest: Manifest

    @property
    def route(self) -> list[tuple[str, int, int]]:
        """Returns: `(node, first shard, end shard)` per stage."""
        return [(f"node-{index}", index, index + 1) for index in range(self.stages)]


@dataclass(frozen=True)
class HopCost:
    """Median microseconds of one decode step, by part, and per hop."""

    total_us: float
    compute_us: float
    engine_us: float
    queue_us: float
    network_us: float
    hops: int

    @classmethod
    def of(cls, runs: Sequence[DrivenRun], stages: int) -> HopCost:
        """`network_us` is what neither llama.cpp nor the way to the engine explains: TLS, event loops, framing, sampling's answer."""
        steps = [(wall * 1e6, timing) for run in runs for wall, timing in zip(run.step_s, run.timings[1:], strict=True)]

        def median(of: Callable[[StageTiming], float]) -> float:
            return statistics.median(sum(of(stage) for stage in timing) for _, timing in steps)

        total = statistics.median(wall for wall, _ in steps)
        compute, engine, queue = (
            median(lambda t: t.compute_us),
            median(lambda t: t.engine_us),
            median(lambda t: t.queue_us),
        )
        return cls(total, compute, engine, queue, max(0.0, total - compute - engine - queue), stages + 1)


async def decode_speed(
    model: Path,
    work: Path,
    *,
    stages: Sequence[int],
    rounds: int,
    n_tokens: int,
    threads: int,
    on_row: OnRow,
) -> None:
    """Measure each number of stages against plain llama.cpp and hand every result row to `on_row`.

    Args:
        threads: CPU threads of plain llama.cpp, and of each stage: for one stream only one stage works at a time.

    Raises: ParityError if any answer differs from plain llama.cpp's.
    """
    prompt = [(7 * index) % 1000 + 10 for index in range(PROMPT_TOKENS)]
    options = ShardOptions(n_ctx=1024, n_seq=1)
    cache = work / "models_cache"
    pipelines = []
    for count in stages:
        _, manifest = split_model(plan_split(model, CutRequest(n_shards=count), f"bench-{count}"), cache)
        pipelines.append(Pipeline(count, manifest))
    with LocalSwarm(work) as swarm, PlainLlama(model, threads=threads, n_ctx=options.n_ctx) as plain:
        async with Driver(Home(swarm.home)) as driver:
            for index in range(max(stages)):
                threads_flag = ("--threads", str(threads))
                swarm.start_node(f"node-{index}", cache, "--coordinator", str(driver.address), *threads_flag)
            await driver.wait_nodes(max(stages))
            for pipeline in pipelines:
                for node, shard_id, _end in pipeline.route:
                    await driver.load(node, pipeline.manifest, shard_id, options)
            plain_runs: list[PlainRun] = []
            runs: dict[int, list[DrivenRun]] = {count: [] for count in stages}
            for round_number in range(rounds + 1):  # the first is warm-up
                expected = plain.generate(prompt, n_tokens)
                for pipeline in pipelines:
                    run = await driver.generate(pipeline.manifest, pipeline.route, prompt, n_tokens, options=options)
                    if run.tokens != expected.tokens:
                        raise ParityError(
                            f"{pipeline.stages} stages give other tokens than plain llama.cpp: no speed is reported"
                        )
                    if round_number:
                        runs[pipeline.stages].append(run)
                if round_number:
                    plain_runs.append(expected)
    for row in _rows(plain_runs, runs, threads, n_tokens):
        on_row(row)


def _rows(
    plain_runs: Sequence[PlainRun], runs: dict[int, list[DrivenRun]], threads: int, n_tokens: int
) -> Iterator[dict[str, Any]]:
    plain_speeds = [run.decode_tokens_per_s for run in plain_runs]
    for stages, driven in runs.items():
        speeds = [len(run.step_s) / sum(run.step_s) for run in driven]
        ratios = [speed / plain for speed, plain in zip(speeds, plain_speeds, strict=True)]
        yield {
            "bench": "decode",
            "stages": stages,
            "threads": threads,
            "tokens": n_tokens,
            "tokens_per_s": round(statistics.median(speeds), 2),
            "plain_tokens_per_s": round(statistics.median(plain_speeds), 2),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_min": round(min(ratios), 3),
            "ratio_max": round(max(ratios), 3),
            "rounds": len(driven),
            "parity": "identical",
            "cores": os.cpu_count(),
            "step": {key: round(value, 1) for key, value in asdict(HopCost.of(driven, stages)).items()},
        }
