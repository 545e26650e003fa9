"""Rows of a run: the short way through native code gives what the general way gives, and steps aside for it."""

from __future__ import annotations

import asyncio
import select
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardnet.errors import RemoteProtocolError, SequenceGap, ShardnetError
from shardnet.ids import new_id
from shardnet.inference.engine.host import EngineProcess
from shardnet.inference.engine.interface import answer_of
from shardnet.inference.engine.steps import TOKEN, RowDone, StepDone
from shardnet.inference.worker import rows
from shardnet.messages import Sampling
from shardnet.steps import NextStep
from shardnet.wire import Buffer, Frame
from tests.support.engine_world import PROMPT, Route, SplitModel, Stage, begin_run, make_step, split
from tests.support.random_families import N_EMBD
from tests.support.random_models import build_random_model

pytestmark = pytest.mark.asyncio(loop_scope="module")

SAMPLINGS = [
    None,
    Sampling(temperature=0.9, seed=7, top_p=0.9),
    Sampling(repeat_penalty=1.3, logit_bias={5: 3.0}),
    Sampling(temperature=0.8, seed=3, grammar="root ::= [a-z ]+", prompt_tokens=len(PROMPT)),
]


class RunOfStages:
    """A run as nodes without links between their engines play it: the first step as a frame to each stage, then rows round and round."""

    def __init__(self, engine: EngineProcess, model: SplitModel, cuts: list[tuple[int, int]]) -> None:
        self.engine, self.model, self.cuts = engine, model, cuts
        self.sequence_id = new_id()
        self.command_id = new_id()
        self._done: asyncio.Queue[RowDone | ShardnetError] = asyncio.Queue()

    async def begin(self, prompt: list[int], sampling: Sampling | None = None) -> int:
        """Returns: the first token."""
        stages = [(self.engine, shards) for shards in self.cuts]
        return await begin_run(
            stages, self.model, self.sequence_id, self.command_id, prompt, self._done.put_nowait, sampling=sampling
        )

    async def row(self, position: int, token: int, ahead: int = 9) -> RowDone:
        """Returns: what the last stage made of it. Raises: what a stage failed with."""
        payloads: tuple[Buffer, ...] = (TOKEN.pack(token),)
        done: RowDone | None = None
        for number in range(len(self.cuts)):
            n_embd = 0 if done is None else done.n_embd
            self.engine.row(
                NextStep(self.command_id, self.sequence_id, number, position, ahead, 30.0, n_embd), payloads
            )
            answer = await self._done.get()
            if isinstance(answer, ShardnetError):
                raise answer
            assert (answer.stage, answer.went_on) == (number, False)
            done = answer
            payloads = (TOKEN.pack(done.token), done.hidden)
        assert done is not None
        return done

    async def generate(self, prompt: list[int], count: int, sampling: Sampling | None) -> list[int]:
        tokens = [await self.begin(prompt, sampling)]
        while len(tokens) < count:
            position = len(prompt) + len(tokens) - 1
            done = await self.row(position, tokens[-1])
            assert done.position == position + 1
            tokens.append(done.token)
        return tokens


async def test_this_installation_has_the_short_way() -> None:
    assert rows.NATIVE_ROW is not None


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "drawn", "penalised", "grammar"])
async def test_rows_write_what_steps_write(engine: EngineProcess, tiny: SplitModel, sampling: Sampling | None) -> None:
    route = Route([Stage(engine, tiny, (0, 1)), Stage(engine, tiny, (1, 3))])
    expected, _ = await route.generate(PROMPT, 16, sampling)
    route.forget()
    run = RunOfStages(engine, tiny, [(0, 1), (1, 3)])
    assert await run.generate(list(PROMPT), 16, sampling) == expected
    engine.forget(run.sequence_id)


async def test_what_rows_took_is_told_in_reports(engine: EngineProcess, tiny: SplitModel) -> None:
    run = RunOfStages(engine, tiny, [(0, 1), (1, 3)])
    await run.generate(list(PROMPT), 6, None)
    engine.forget(run.sequence_id)
    told = {one.chain: one for one in (await engine.report()).batches if one.rows == 1}
    for shards in run.cuts:
        time = told[tiny.model_id, *shards]
        assert 0 < time.beside_us < time.us < 1e6


async def test_several_runs_at_once_write_what_each_writes_alone(engine: EngineProcess, tiny: SplitModel) -> None:
    prompts = [list(PROMPT), list(PROMPT[::-1]), list(PROMPT[3:])]

    async def one(prompt: list[int]) -> list[int]:
        run = RunOfStages(engine, tiny, [(0, 1), (1, 3)])
        tokens = await run.generate(prompt, 12, None)
        engine.forget(run.sequence_id)
        return tokens

    alone = [await one(prompt) for prompt in prompts]
    assert await asyncio.gather(*(one(prompt) for prompt in prompts)) == alone


async def test_a_repeated_row_gives_the_same_token(engine: EngineProcess, tiny: SplitModel) -> None:
    run = RunOfStages(engine, tiny, [(0, 3)])
    tokens = await run.generate(list(PROMPT), 6, None)
    for back in (1, 3):
        position = len(PROMPT) + len(tokens) - 1 - back
        assert (await run.row(position, tokens[-1 - back])).token == tokens[-back]
    engine.forget(run.sequence_id)


async def test_a_row_of_a_run_that_is_over_has_no_answer(engine: EngineProcess, tiny: SplitModel) -> None:
    run, other = RunOfStages(engine, tiny, [(0, 3)]), RunOfStages(engine, tiny, [(0, 3)])
    await run.generate(list(PROMPT), 3, None)
    engine.halt(run.command_id)
    engine.row(NextStep(run.command_id, run.sequence_id, 0, len(PROMPT) + 2, 5, 30.0), (TOKEN.pack(5),))
    await other.generate(list(PROMPT), 3, None)  # the engine has had both
    assert run._done.empty()
    for one in (run, other):
        engine.forget(one.sequence_id)


async def test_a_whole_model_goes_on_by_itself_until_the_run_is_long_enough(
    engine: EngineProcess, tiny: SplitModel
) -> None:
    expected = await RunOfStages(engine, tiny, [(0, 3)]).generate(list(PROMPT), 8, None)
    step, payloads = make_step(tiny.model_id, (0, 3), new_id(), 0, list(PROMPT), samples=True)
    tokens: asyncio.Queue[tuple[int, int]] = asyncio.Queue()

    def take(answer: Frame[StepDone] | ShardnetError) -> None:
        assert not isinstance(answer, ShardnetError)
        tokens.put_nowait((answer.message.tokens[0], answer.message.ahead))

    engine.step(
        step._replace(begins_run=True, ahead=7),
        payloads,
        take,
        lambda done: tokens.put_nowait((done.token, done.ahead)),
    )
    assert [await tokens.get() for _ in range(8)] == list(zip(expected, range(7, -1, -1), strict=True))
    engine.forget(step.sequence_id)


async def test_a_shard_that_is_loaded_again_in_the_middle_of_a_run_is_a_gap_and_no_wrong_answer(
    engine: EngineProcess, tiny: SplitModel
) -> None:
    run = RunOfStages(engine, tiny, [(0, 1), (1, 3)])
    await run.generate(list(PROMPT), 3, None)
    await engine.unload(tiny.model_id, 1)
    await Stage(engine, tiny, (1, 2)).load()
    with pytest.raises(SequenceGap):
        await run.row(len(PROMPT) + 2, 5)
    engine.forget(run.sequence_id)


@pytest.mark.parametrize("family", ["qwen3next", "gemma2", "glm4", "qwen2vl"])
async def test_rows_of_other_families_write_what_steps_write(
    engine: EngineProcess, tmp_path: Path, family: str
) -> None:
    model = split(build_random_model(tmp_path / "model.gguf", family), 2, tmp_path / "cache")
    stages = [Stage(engine, model, (0, 1)), Stage(engine, model, (1, 2))]
    for stage in stages:
        await stage.load()
    route = Route(stages)
    expected, _ = await route.generate(PROMPT, 8)
    route.forget()
    run = RunOfStages(engine, model, [(0, 1), (1, 2)])
    assert await run.generate(list(PROMPT), 8, None) == expected
    engine.forget(run.sequence_id)
    for index in range(2):
        await engine.unload(model.model_id, index)


@pytest.mark.parametrize("row", [{"n_embd": 300_000}, {"deadline_s": 1e-60}], ids=["too large", "no time"])
async def test_a_row_that_no_engine_can_take_fails_its_run_and_nothing_else(
    engine: EngineProcess, tiny: SplitModel, row: dict[str, Any]
) -> None:
    run, pid = RunOfStages(engine, tiny, [(0, 3)]), engine.pid
    await run.begin(list(PROMPT))
    step = NextStep(run.command_id, run.sequence_id, 0, len(PROMPT), 5, 30.0)._replace(**row)
    engine.row(step, (TOKEN.pack(5), bytes(4 * step.n_embd)))
    assert type(await run._done.get()) is RemoteProtocolError
    other = RunOfStages(engine, tiny, [(0, 3)])
    assert len(await other.generate(list(PROMPT), 3, None)) == 3
    assert engine.pid == pid
    for one in (run, other):
        engine.forget(one.sequence_id)


async def test_a_run_that_is_halted_before_its_first_answer_is_read_is_forgotten(
    engine: EngineProcess, tiny: SplitModel
) -> None:
    step, payloads = make_step(tiny.model_id, (0, 3), new_id(), 0, list(PROMPT), samples=True)
    step = step._replace(begins_run=True, ahead=7)
    answers: asyncio.Queue[Frame[StepDone] | ShardnetError] = asyncio.Queue()
    engine.step(step, payloads, answers.put_nowait, lambda _: None)
    assert engine._child is not None
    # The event loop stands still: the first answer and rows are there, unread.
    assert select.select([engine._child._packets], [], [], 30)[0]
    engine.halt(step.command_id)
    await asyncio.wait_for(answers.get(), 30)
    engine.step(step._replace(ahead=0, begins_run=False), payloads, answers.put_nowait)
    await asyncio.wait_for(answers.get(), 30)
    engine.forget(step.sequence_id)


async def test_a_row_does_not_run_in_the_place_of_a_sequence_that_is_gone(
    engine: EngineProcess, tmp_path: Path
) -> None:
    model = split(build_random_model(tmp_path / "model.gguf", "qwen3next"), 2, tmp_path / "cache")
    stages = [Stage(engine, model, (0, 1)), Stage(engine, model, (1, 2))]
    for stage in stages:
        await stage.load()
    run = RunOfStages(engine, model, [(0, 1), (1, 2)])
    tokens = await run.generate(list(PROMPT), 4, None)
    hidden = np.zeros((1, N_EMBD), dtype=np.float32)
    step, payloads = make_step(model.model_id, (1, 2), run.sequence_id, len(PROMPT), [5], hidden=hidden)
    with pytest.raises(SequenceGap):  # its state cannot be taken back: the sequence is dropped
        await answer_of(engine, step._replace(stage=1), payloads)
    other = RunOfStages(engine, model, [(0, 1), (1, 2)])
    assert await other.generate(list(PROMPT), 4, None) == tokens  # it has the same place, and is as long
    position = len(PROMPT) + len(tokens) - 1
    engine.row(NextStep(run.command_id, run.sequence_id, 0, position, 5, 30.0), (TOKEN.pack(tokens[-1]),))
    assert type(await run._done.get()) is SequenceGap
    for index in range(2):
        await engine.unload(model.model_id, index)
