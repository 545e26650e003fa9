"""A model of which one shard is in memory at a time: whatever ends a request, none is left there."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from shardnet.errors import NoRoomError
from shardnet.inference.engine.host import EngineProcess
from shardnet.inference.engine.protocol import Load
from shardnet.library.chain import Chain, Stage
from shardnet.messages import ShardOptions
from tests.support.coordinator_world import make_manifest


class Engine:
    """With room for one shard. As the real one: a load goes on although who asked for it does not wait any more."""

    def __init__(self) -> None:
        self.held: set[int] = set()
        self.may_load = asyncio.Event()
        self._loading: asyncio.Task[None] | None = None

    async def load(self, load: Load) -> None:
        if self.held - {load.shard_id}:
            raise NoRoomError("one shard has room")
        self._loading = asyncio.create_task(self._load(load.shard_id))
        await asyncio.shield(self._loading)

    async def _load(self, shard_id: int) -> None:
        await self.may_load.wait()
        self.held.add(shard_id)

    async def unload(self, _model_id: str, shard_id: int, *, keep_sequences: bool) -> None:
        assert keep_sequences
        if self._loading is not None:
            await self._loading
        self.held.discard(shard_id)


async def test_a_request_that_is_interrupted_while_it_loads_leaves_no_shard_behind(tmp_path: Path) -> None:
    engine = Engine()
    chain = Chain(tmp_path, make_manifest([0, 1, 2]), ShardOptions(n_ctx=16, n_seq=1, n_batch=4), one_at_a_time=True)
    stages = [Stage(cast("EngineProcess", engine), index, index + 1) for index in range(2)]

    async def use(stage: Stage) -> set[int]:
        async with cast(Any, chain)._in_memory(stage):
            return set(engine.held)

    interrupted = asyncio.create_task(use(stages[1]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    interrupted.cancel()
    await asyncio.sleep(0)
    engine.may_load.set()
    with pytest.raises(asyncio.CancelledError):
        await interrupted
    assert engine.held == set()
    assert [await use(stage) for stage in stages] == [{0}, {1}]
