"""A small model in shards, a real engine process, and the steps that tests send to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardnet.errors import ShardnetError
from shardnet.ids import new_id
from shardnet.inference.engine.host import EngineProcess
from shardnet.inference.engine.interface import answer_of
from shardnet.inference.engine.protocol import Load
from shardnet.inference.engine.settings import InferenceSettings
from shardnet.inference.engine.steps import NO_SEQUENCE, NOBODY, RowDone, Step, StepDone
from shardnet.inference.llama.batch import single_sequence_rows
from shardnet.inference.llama.model import LlamaContext, LlamaModel
from shardnet.inference.splitting.cutting import CutRequest, plan_split, split_model
from shardnet.messages import Sampling, ShardOptions
from shardnet.wire import Frame
from tests.support.random_models import tiny_llama

OPTIONS = ShardOptions(n_ctx=256, n_seq=4, n_batch=64)
PROMPT = list(range(40, 57))


@dataclass(frozen=True)
class SplitModel:
    """A model, whole and in shards."""

    model_id: str
    whole: Path
    shards: tuple[Path, ...]

    @property
    def n(self) -> int:
        return len(self.shards)


def split(whole: Path, n_shards: int, cache: Path) -> SplitModel:
    """Cut a model with `shardnet split`'s own code."""
    folder, manifest = split_model(plan_split(whole, CutRequest(n_shards=n_shards)), cache)
    return SplitModel(manifest.model_id, whole, tuple(folder / shard.file for shard in manifest.content.shards))


def hidden_of(frame: Frame[StepDone]) -> NDArray[np.float32] | None:
    return _tensor(frame, "hidden")


def logits_of(frame: Frame[StepDone]) -> NDArray[np.float32] | None:
    return _tensor(frame, "logits")


def _tensor(frame: Frame[StepDone], name: str) -> NDArray[np.float32] | None:
    data = frame.payload(name)
    if data is None:
        return None
    shape = next(spec.shape for spec in frame.message.tensors if spec.name == name)
    return np.frombuffer(data, dtype=np.float32).reshape(shape)


def make_step(
    model_id: str,
    shards: tuple[int, int],
    sequence_id: str,
    position: int,
    tokens: Sequence[int],
    *,
    hidden: NDArray[np.float32] | None = None,
    samples: bool = False,
    sampling: Sampling | None = None,
    return_logits: bool = False,
    ahead: int = 0,
) -> tuple[Step, list[memoryview]]:
    """Returns: a step and its payloads, as a node would send them."""
    ids = np.asarray(tokens, dtype=np.int32)
    payloads = [ids.data]
    if hidden is not None:
        payloads.append(np.ascontiguousarray(hidden).data)
    step = Step(
        command_id=new_id(),
        model_id=model_id,
        first_shard=shards[0],
        end_shard=shards[1],
        sequence_id=sequence_id,
        position=position,
        n_tokens=len(ids),
        samples=samples,
        sampling=b"" if sampling is None else sampling.model_dump_json().encode(),
        return_logits=return_logits,
        n_embd=0 if hidden is None else hidden.shape[1],
        ahead=ahead,
    )
    return step, payloads


async def begin_run(
    stages: Sequence[tuple[EngineProcess, tuple[int, int]]],
    model: SplitModel,
    sequence_id: str,
    command_id: str,
    prompt: Sequence[int],
    tell: Callable[[RowDone | ShardnetError], None],
    *,
    sampling: Sampling | None = None,
    nodes: Sequence[str] | None = None,
) -> int:
    """Give the first step of a run to each stage, an engine and its shards, one after the other, as nodes do.

    Args:
        tell: gets what became of each row that follows, and what a stage failed with.
        nodes: ids of the stages' nodes, where engines are to hand rows on themselves.

    Returns: the first token.
    """
    names = nodes or [NOBODY] * len(stages)
    hidden: NDArray[np.float32] | None = None
    tokens: tuple[int, ...] = ()
    for number, (engine, shards) in enumerate(stages):
        is_last = number == len(stages) - 1
        step, payloads = make_step(
            model.model_id,
            shards,
            sequence_id,
            0,
            prompt,
            hidden=hidden,
            samples=True,
            sampling=sampling if is_last else None,
        )
        step = step._replace(
            command_id=command_id,
            begins_run=True,
            stage=number,
            source=names[number - 1],
            onward=names[(number + 1) % len(names)],
        )
        answers: asyncio.Queue[Frame[StepDone] | ShardnetError] = asyncio.Queue()

        def take(
            answer: Frame[StepDone] | ShardnetError,
            answers: asyncio.Queue[Frame[StepDone] | ShardnetError] = answers,
        ) -> None:
            answers.put_nowait(answer)
            if isinstance(answer, ShardnetError):
                tell(answer)

        engine.step(step, payloads, take, tell)
        answer = await answers.get()
        assert not isinstance(answer, ShardnetError)
        tokens, hidden = answer.message.tokens, hidden_of(answer)
    return tokens[0]


@asynccontextmanager
async def two_stages(folder: Path) -> AsyncIterator[list[Stage]]:
    """A tiny model in two stages of one engine, loaded."""
    model = split(tiny_llama(folder / "tiny.gguf"), 2, folder / "cache")
    async with stages_of(model) as stages:
        yield stages


@asynccontextmanager
async def stages_of(model: SplitModel) -> AsyncIterator[list[Stage]]:
    """A model with each shard a stage of one engine, loaded."""
    engine = EngineProcess(InferenceSettings(threads=1))
    try:
        await engine.start()
        stages = [Stage(engine, model, (index, index + 1)) for index in range(model.n)]
        for stage in stages:
            await stage.load()
        yield stages
    finally:
        await engine.close()


@dataclass
class Stage:
    """Contiguous shards of a model in one engine."""

    engine: EngineProcess
    model: SplitModel
    shards: tuple[int, int]

    async def load(self, options: ShardOptions = OPTIONS) -> None:
        for index in range(*self.shards):
            await self.engine.load(load_request(self.model, index, options))


def load_request(model: SplitModel, index: int, options: ShardOptions = OPTIONS) -> Load:
    return Load(
        command_id=new_id(), model_id=model.model_id, shard_id=index, path=str(model.shards[index]), options=options
    )


@dataclass
class Route:
    """A sequence and the stages that it runs through, as a coordinator sees them."""

    stages: list[Stage]
    sequence_id: str = field(default_factory=new_id)

    async def step(
        self,
        position: int,
        tokens: Sequence[int],
        *,
        samples: bool = True,
        sampling: Sampling | None = None,
        return_logits: bool = False,
        copy_from: str = NO_SEQUENCE,
    ) -> Frame[StepDone]:
        """Run rows through all stages."""
        hidden: NDArray[np.float32] | None = None
        frame: Frame[StepDone] | None = None
        for stage in self.stages:
            step, payloads = make_step(
                stage.model.model_id,
                stage.shards,
                self.sequence_id,
                position,
                tokens,
                hidden=hidden,
                samples=samples,
                sampling=sampling,
                return_logits=return_logits,
            )
            frame = await answer_of(stage.engine, step._replace(copy_from=copy_from), payloads)
            hidden = hidden_of(frame)
        assert frame is not None
        return frame

    async def generate(
        self, prompt: Sequence[int], n_tokens: int, sampling: Sampling | None = None, *, start: int = 0
    ) -> tuple[list[int], list[NDArray[np.float32]]]:
        """Returns: tokens, and the logits that each was picked from."""
        tokens, logits, position, rows = [], [], start, list(prompt)
        for _ in range(n_tokens):
            frame = await self.step(position, rows, sampling=sampling, return_logits=True)
            found = logits_of(frame)
            assert found is not None
            logits.append(found[0].copy())
            tokens.append(frame.message.tokens[0])
            position += len(rows)
            rows = [tokens[-1]]
        return tokens, logits

    def forget(self) -> None:
        for stage in self.stages:
            stage.engine.forget(self.sequence_id)


NewRoute = Callable[[], Route]
"""Makes a sequence of its own."""


def plain_logits(
    whole: Path,
    prompt: Sequence[int],
    n_tokens: int,
    options: ShardOptions = OPTIONS,
    *,
    threads: int = 1,
    repack: bool = True,
) -> tuple[list[int], list[NDArray[np.float32]]]:
    """Greedy decoding by stock llama.cpp in this process: what everything is held against."""
    tokens, logits, position, rows = [], [], 0, list(prompt)
    with (
        LlamaModel(whole, repack=repack) as model,
        LlamaContext(
            model, n_ctx=options.n_ctx, n_seq=options.n_seq, n_batch=options.n_batch, threads=threads
        ) as context,
    ):
        for _ in range(n_tokens):
            context.decode(single_sequence_rows(position, len(rows), tokens=rows, outputs=[len(rows) - 1]))
            logits.append(context.logits(len(rows) - 1).copy())
            tokens.append(int(logits[-1].argmax()))
            position += len(rows)
            rows = [tokens[-1]]
    return tokens, logits
