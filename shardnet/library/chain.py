"""A model's shards in engine processes of this machine, and the way of a sequence through them. Belongs to one event loop.

Knows which shards are in which process, and when. Refuses to know words: tokens go in, tokens come out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from shardnet.coordinator.placement.chunks import next_chunk
from shardnet.errors import UsageError
from shardnet.ids import new_id
from shardnet.inference.engine.host import EngineProcess
from shardnet.inference.engine.interface import answer_of
from shardnet.inference.engine.protocol import Load, Ready
from shardnet.inference.engine.settings import InferenceSettings
from shardnet.inference.engine.steps import Step
from shardnet.library.devices import CPU, bind
from shardnet.manifest import Manifest
from shardnet.messages import Sampling, ShardOptions
from shardnet.wire import Buffer


@dataclass(frozen=True, slots=True)
class Stage:
    """Shards `[first, end)` in one engine process."""

    engine: EngineProcess
    first: int
    end: int


@dataclass(slots=True)
class _Rows:
    """Rows of a sequence on their way: `hidden` float32 (n_tokens, n_embd), behind the first stage."""

    position: int
    tokens: np.ndarray[tuple[int], np.dtype[np.int32]]
    hidden: Buffer | None = None
    n_embd: int = 0


class Chain:
    """All shards of a model, ready to run; an empty one until `open`.

    Args:
        folder: of the split model, whose files were checked.
        one_at_a_time: a shard is in memory while it computes, and no other is. Its sequences' KV waits in main memory.
    """

    def __init__(self, folder: Path, manifest: Manifest, options: ShardOptions, *, one_at_a_time: bool) -> None:
        self.options = options
        self._folder = folder
        self._manifest = manifest
        self._one_at_a_time = one_at_a_time
        self._engines: list[EngineProcess] = []
        self._stages: list[Stage] = []
        self._turn = asyncio.Lock()
        self._places = asyncio.Semaphore(options.n_seq)

    async def open(
        self, settings: InferenceSettings, assignment: Mapping[int, str] | None, environ: Mapping[str, str]
    ) -> None:
        """Start the processes and load the shards. Whoever calls this closes it, whatever comes of it.

        Args:
            assignment: shard -> device, a process for each device; None: one process, which uses what there is.
            environ: the variables of this process.

        Raises: UsageError for a device that is not here; NoRoomError, GgufError, EngineError.
        """
        n_shards = self._manifest.n_shards
        if assignment is None:
            engine = EngineProcess(settings)
            await self._start(engine)
            cuts = range(n_shards + 1) if self._one_at_a_time else (0, n_shards)
            self._stages = [Stage(engine, first, end) for first, end in pairwise(cuts)]
        else:
            engines: dict[str, EngineProcess] = {}
            for shard, device in sorted(assignment.items()):
                if device not in engines:
                    engines[device] = await self._start_on(device, settings, environ)
                if self._stages and self._stages[-1].engine is engines[device]:
                    self._stages[-1] = Stage(engines[device], self._stages[-1].first, shard + 1)
                else:
                    self._stages.append(Stage(engines[device], shard, shard + 1))
        if not self._one_at_a_time:
            for stage in self._stages:
                await self._load(stage)

    async def _start_on(self, device: str, settings: InferenceSettings, environ: Mapping[str, str]) -> EngineProcess:
        binding = bind(device, environ)
        settings = settings.model_copy(update={"n_gpu_layers": binding.n_gpu_layers})
        engine = EngineProcess(settings, environment=binding.environment)
        ready = await self._start(engine)
        if not is_there(device, ready):
            raise UsageError(
                f"there is no device {device!r} that this build of llama.cpp can use: see `shardnet devices`"
            )
        return engine

    async def _start(self, engine: EngineProcess) -> Ready:
        self._engines.append(engine)
        return await engine.start()

    async def close(self) -> None:
        """End the processes; nothing of them is left afterwards."""
        engines, self._engines, self._stages = self._engines, [], []
        for engine in engines:
            await engine.close()

    # -- shards ------------------------------------------------------------------------------------------------------

    async def _load(self, stage: Stage) -> None:
        for shard in self._manifest.content.shards[stage.first : stage.end]:
            path = str((self._folder / shard.file).absolute())
            await stage.engine.load(
                Load(
                    command_id=new_id(),
                    model_id=self._manifest.model_id,
                    shard_id=shard.shard_id,
                    path=path,
                    options=self.options,
                )
            )

    @asynccontextmanager
    async def _in_memory(self, stage: Stage) -> AsyncIterator[None]:
        if not self._one_at_a_time:
            yield
            return
        async with self._turn:
            try:
                await self._load(stage)  # goes on in the engine also when this is cancelled
                yield
            finally:
                await stage.engine.unload(self._manifest.model_id, stage.first, keep_sequences=True)

    # -- sequences ---------------------------------------------------------------------------------------------------

    async def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[int, None]:
        """Yield token after token behind a prompt, without end; waits for a place first. Closed, it frees the place.

        Raises: EngineError, EngineCrashed, NoRoomError.
        """
        sequence_id = new_id()
        # A grammar begins behind the prompt, so the engine has to know where that ends.
        wanted = sampling.model_copy(update={"prompt_tokens": len(prompt)}).model_dump_json().encode()
        async with self._places:
            try:
                position, rows = 0, list(prompt)
                while True:
                    token = await self._run(sequence_id, position, rows, wanted)
                    yield token
                    position, rows = position + len(rows), [token]
            finally:
                for engine in self._engines:
                    engine.forget(sequence_id)

    async def _run(self, sequence_id: str, position: int, tokens: Sequence[int], sampling: bytes) -> int:
        """All rows go through one stage before the next: a prompt passes each shard once, however long it is. Returns: the sampled token."""
        chunks = self._chunks(position, tokens)
        sampled: tuple[int, ...] = ()
        for stage in self._stages:
            async with self._in_memory(stage):
                for chunk in chunks:
                    step = Step(
                        command_id=new_id(),
                        model_id=self._manifest.model_id,
                        first_shard=stage.first,
                        end_shard=stage.end,
                        sequence_id=sequence_id,
                        position=chunk.position,
                        n_tokens=len(chunk.tokens),
                        samples=chunk is chunks[-1],
                        n_embd=chunk.n_embd,
                        sampling=sampling if chunk is chunks[-1] else b"",
                    )
                    payloads = [chunk.tokens.data] if chunk.hidden is None else [chunk.tokens.data, chunk.hidden]
                    frame = await answer_of(stage.engine, step, payloads)
                    chunk.hidden, chunk.n_embd = frame.payload("hidden"), frame.message.n_embd
                    sampled = frame.message.tokens
        return sampled[0]

    def _chunks(self, position: int, tokens: Sequence[int]) -> list[_Rows]:
        chunks, done, most = [], 0, self.options.n_batch
        while done < len(tokens):
            end = next_chunk(done, len(tokens), most, most)
            chunks.append(_Rows(position + done, np.asarray(tokens[done:end], dtype=np.int32)))
            done = end
        return chunks


def is_there(device: str, ready: Ready) -> bool:
    """Returns: False if an engine that may see this device alone does not see it."""
    return device == CPU or any(found.kind == "gpu" for found in ready.devices)
