"""How quick this machine is with a model's own shards: measured on a real engine process, told as a node would tell it. For `shardnet plan`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from shardnet.coordinator.placement.law import Pace, step_bytes
from shardnet.coordinator.placement.planning import pace_of
from shardnet.ids import new_id
from shardnet.inference.engine.host import EngineProcess
from shardnet.inference.engine.interface import answer_of
from shardnet.inference.engine.protocol import Load
from shardnet.inference.engine.settings import InferenceSettings
from shardnet.inference.engine.steps import Step, StepDone
from shardnet.manifest import Manifest
from shardnet.messages import HeldShard, ShardOptions
from shardnet.wire import Buffer

BATCHES = ((1, 24), (2, 5), (3, 5), (4, 5), (5, 5), (8, 4), (16, 3), (64, 3), (256, 2))
"""(rows, how often)."""
N_CTX = 1024


async def measure_pace(folder: Path, manifest: Manifest, threads: int) -> Pace:
    """Run steps through the first, a middle and the last shard, one shard in memory at a time.

    Args:
        folder: where the shards are.
        threads: of the engine; 0: all cores.

    Raises: the engine's errors: a shard is missing, or does not fit into memory.
    """
    engine = EngineProcess(InferenceSettings(threads=threads))
    await engine.start()
    try:
        told: list[tuple[int, HeldShard]] = []
        handovers: list[float] = []
        last = manifest.n_shards - 1
        for shard_id in sorted({0, last // 2, last}):
            held = await _measure_shard(engine, folder, manifest, shard_id, handovers)
            told.append((step_bytes(manifest, shard_id, shard_id + 1), held))
        return pace_of(told, median(handovers))
    finally:
        await engine.close()


async def _measure_shard(
    engine: EngineProcess, folder: Path, manifest: Manifest, shard_id: int, handovers: list[float]
) -> HeldShard:
    options = ShardOptions(n_ctx=N_CTX, n_seq=1, n_batch=BATCHES[-1][0])
    path = folder / manifest.content.shards[shard_id].file
    load = Load(command_id=new_id(), model_id=manifest.model_id, shard_id=shard_id, path=str(path), options=options)
    await engine.load(load)
    sequence_id, times = new_id(), {}
    generator = np.random.default_rng(1)
    position = 0
    for rows, repeats in BATCHES:
        found = []
        for _ in range(repeats):
            tokens = generator.integers(10, min(1000, manifest.content.n_vocab), rows).astype(np.int32)
            hidden = generator.standard_normal((rows, manifest.content.n_embd), dtype=np.float32)
            if position + rows > N_CTX:
                position = 0
            done, wall_us = await _step(engine, manifest, shard_id, sequence_id, position, tokens, hidden)
            position += rows
            found.append(done.compute_us)
            if rows == 1:
                handovers.append(max(0.0, wall_us - done.compute_us - done.queue_us))
        times[rows] = median(found[1:])  # the first is warm-up
    await engine.unload(manifest.model_id, shard_id)
    return HeldShard(
        model_id=manifest.model_id,
        shard_id=shard_id,
        loaded=True,
        step_us=times.pop(1),
        rows_us=tuple(sorted(times.items())),
    )


async def _step(
    engine: EngineProcess,
    manifest: Manifest,
    shard_id: int,
    sequence_id: str,
    position: int,
    tokens: NDArray[np.int32],
    hidden: NDArray[np.float32],
) -> tuple[StepDone, float]:
    """Returns: the engine's answer to one step, and microseconds until it was here."""
    rows = len(tokens)
    has_head = shard_id == manifest.n_shards - 1
    step = Step(
        command_id=new_id(),
        model_id=manifest.model_id,
        first_shard=shard_id,
        end_shard=shard_id + 1,
        sequence_id=sequence_id,
        position=position,
        n_tokens=rows,
        samples=has_head,
        n_embd=manifest.content.n_embd if shard_id else 0,
    )
    payloads: Sequence[Buffer] = (tokens.tobytes(), hidden.tobytes()) if shard_id else (tokens.tobytes(),)
    began_s = time.perf_counter()
    done = (await answer_of(engine, step, payloads)).message
    return done, (time.perf_counter() - began_s) * 1e6
