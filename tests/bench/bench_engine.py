"""What the engine process costs beside plain llama.cpp, and what batching and wait policies do. Prints JSON lines.

    python -m tests.bench.bench_engine MODEL.gguf [--steps 100] [--threads 1] [--only handover,decode,batch,policies,loading]

Medians, warm; the plain side runs in this process, in turns with the engine, so that both meet the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np

from shardnet.inference.engine.host import EngineProcess
from shardnet.inference.engine.settings import InferenceSettings
from shardnet.inference.llama.batch import Rows, single_sequence_rows
from shardnet.inference.llama.model import LlamaContext, LlamaModel
from shardnet.lifecycle import run_loop
from shardnet.log import configure
from shardnet.messages import ShardOptions
from tests.support.engine_world import PROMPT, Route, SplitModel, Stage, load_request, split
from tests.support.random_models import tiny_llama

OPTIONS = ShardOptions(n_ctx=1024, n_seq=8, n_batch=256)
WARM = 5
POLICIES: dict[str, dict[str, str]] = {
    "libgomp's default": {},
    "GOMP_SPINCOUNT=100": {"GOMP_SPINCOUNT": "100"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=100000": {"GOMP_SPINCOUNT": "100000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "OMP_WAIT_POLICY=active": {"OMP_WAIT_POLICY": "active"},
}


def tell(what: str, **facts: object) -> None:
    print(json.dumps({"bench": what, **facts}), flush=True)


def median(values: list[float]) -> float:
    return round(float(np.median(values[WARM:])), 1)


@contextlib.asynccontextmanager
async def engines(model: SplitModel, stages: list[tuple[int, int]], threads: int) -> AsyncIterator[list[Stage]]:
    started = [Stage(EngineProcess(InferenceSettings(threads=threads)), model, shards) for shards in stages]
    try:
        for stage in started:
            await stage.engine.start()
            await stage.load(OPTIONS)
        yield started
    finally:
        for stage in started:
            await stage.engine.close()


async def decode(route: Route, steps: int, start: int = 0) -> tuple[list[float], list[float]]:
    """Returns: microseconds of each step, and those of them that were neither waiting nor computing."""
    await route.step(start, PROMPT)
    whole, outside = [], []
    for position in range(start + len(PROMPT), start + len(PROMPT) + steps):
        began = time.perf_counter()
        message = (await route.step(position, [50])).message
        whole.append((time.perf_counter() - began) * 1e6)
        outside.append(whole[-1] - message.queue_us - message.compute_us)
    return whole, outside


def plain_decode(context: LlamaContext, steps: int) -> list[float]:
    context.truncate(0, 0)
    context.decode(single_sequence_rows(0, len(PROMPT), tokens=PROMPT, outputs=[len(PROMPT) - 1]))
    times = []
    for position in range(len(PROMPT), len(PROMPT) + steps):
        began = time.perf_counter()
        context.decode(single_sequence_rows(position, 1, tokens=[50], outputs=[0]))
        int(context.logits(0).argmax())
        times.append((time.perf_counter() - began) * 1e6)
    return times


async def bench_handover(model: SplitModel, steps: int, folder: Path) -> None:
    """Daemon to engine and back, building the step and reading the answer included; with warm caches and with a real model's."""
    tiny = split(tiny_llama(folder / "tiny.gguf", tied=False), 3, folder)
    for name, used in (("tiny", tiny), ("model", model)):
        async with engines(used, [(0, used.n)], 1) as stages:
            whole, outside = await decode(Route(stages), steps)
            tell("handover", model=name, last_stage_us=median(outside), step_us=median(whole))
        async with engines(used, [(0, 1)], 1) as stages:
            _, outside = await decode(Route(stages), steps)
            tell("handover", model=name, first_stage_us=median(outside))


async def bench_decode(model: SplitModel, steps: int, threads: int) -> None:
    """One stream: all shards in one engine, and one engine for each shard, beside plain llama.cpp."""
    with (
        LlamaModel(model.whole) as whole,
        LlamaContext(
            whole, n_ctx=OPTIONS.n_ctx, n_seq=OPTIONS.n_seq, n_batch=OPTIONS.n_batch, threads=threads
        ) as plain,
    ):
        for layout in ([(0, model.n)], [(i, i + 1) for i in range(model.n)]):
            ratios = []
            async with engines(model, layout, threads) as stages:
                for _ in range(5):
                    reference = median(plain_decode(plain, steps))
                    route = Route(stages)
                    times, _ = await decode(route, steps)
                    route.forget()
                    ratios.append(reference / median(times))
            tell(
                "decode",
                engines=len(layout),
                threads=threads,
                plain_us=reference,
                ratio_to_plain=round(float(np.median(ratios)), 3),
                ratios=[round(r, 3) for r in ratios],
            )


async def bench_batch(model: SplitModel, steps: int, threads: int) -> None:
    """Many streams in one engine, beside plain llama.cpp with the same rows."""
    for streams in (1, 2, 4, 8):
        async with engines(model, [(0, model.n)], threads) as stages:
            routes = [Route(stages) for _ in range(streams)]
            began = time.perf_counter()
            await asyncio.gather(*(decode(route, steps) for route in routes))
            took = time.perf_counter() - began
        plain = plain_batched(model.whole, streams, steps, threads)
        tell(
            "batch",
            streams=streams,
            threads=threads,
            tokens_per_s=round(streams * steps / took, 1),
            plain_tokens_per_s=round(plain, 1),
            ratio=round(streams * steps / took / plain, 3),
        )


def plain_batched(whole: Path, streams: int, steps: int, threads: int) -> float:
    with (
        LlamaModel(whole) as model,
        LlamaContext(
            model, n_ctx=OPTIONS.n_ctx, n_seq=OPTIONS.n_seq, n_batch=OPTIONS.n_batch, threads=threads
        ) as context,
    ):
        slots = np.arange(streams, dtype=np.int32)
        began = time.perf_counter()
        for slot in range(streams):
            context.decode(single_sequence_rows(0, len(PROMPT), tokens=PROMPT, slot=slot, outputs=[len(PROMPT) - 1]))
        for position in range(len(PROMPT), len(PROMPT) + steps):
            context.decode(
                Rows(
                    np.full(streams, position, dtype=np.int32),
                    slots,
                    np.ones(streams, dtype=np.bool_),
                    tokens=np.full(streams, 50, dtype=np.int32),
                )
            )
            for row in range(streams):
                int(context.logits(row).argmax())
        return streams * steps / (time.perf_counter() - began)


async def bench_policies(model: SplitModel, steps: int) -> None:
    """Stages that share a machine, each with a thread for every core: one stream goes from one to the next."""
    threads = os.cpu_count() or 1
    for name, variables in POLICIES.items():
        os.environ.update(variables)
        try:
            for layout in ([(0, model.n)], [(i, i + 1) for i in range(model.n)]):
                async with engines(model, layout, threads) as stages:
                    times, outside = await decode(Route(stages), steps)
                    tell("policy", policy=name, engines=len(layout), step_us=median(times), outside_us=median(outside))
        finally:
            for variable in variables:
                del os.environ[variable]


async def bench_loading(model: SplitModel, threads: int) -> None:
    """The longest step while another model is loaded."""
    async with engines(model, [(0, model.n)], threads) as stages:
        route = Route(stages)
        calm, _ = await decode(route, 60)
        other = SplitModel("f" * 64, model.whole, (model.whole,))
        began_s = time.perf_counter()
        load = asyncio.create_task(stages[0].engine.load(load_request(other, 0, OPTIONS)))
        times: list[float] = []
        while not load.done():
            took, _ = await decode(route, 1)
            times += took
        load_s = time.perf_counter() - began_s
        await load
        tell(
            "loading",
            load_s=round(load_s, 3),
            calm_step_us=median(calm),
            steps_meanwhile=len(times),
            longest_step_us=round(max(times), 1),
        )


async def main(options: argparse.Namespace) -> None:
    wanted = options.only.split(",")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = split(options.model, options.shards, folder)
        if "handover" in wanted:
            await bench_handover(model, options.steps, folder)
        if "decode" in wanted:
            await bench_decode(model, options.steps, options.threads)
        if "batch" in wanted:
            await bench_batch(model, options.steps, options.threads)
        if "policies" in wanted:
            await bench_policies(model, options.steps)
        if "loading" in wanted:
            await bench_loading(model, options.threads)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--only", default="handover,decode,batch,policies,loading")
    configure(level="error")
    run_loop(main(parser.parse_args()))
