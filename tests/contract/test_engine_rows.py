"""Rows of a run that come as packets: the short way through native code gives what the general way gives, and steps aside for it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shardnet.errors import SequenceGap
from shardnet.ids import new_id
from shardnet.inference import rows
from shardnet.inference.engine import answer_of
from shardnet.inference.host import EngineProcess
from shardnet.inference.steps import BEGINS_RUN, OF_RUN, StepDone
from shardnet.messages import Sampling
from shardnet.wire import Frame
from tests.engine_world import PROMPT, Route, SplitModel, Stage, hidden_of, make_step, split
from tests.random_models import build_random_model

pytestmark = pytest.mark.asyncio(loop_scope="module")

SAMPLINGS = [
    None,
    Sampling(temperature=0.9, seed=7, top_p=0.9),
    Sampling(repeat_penalty=1.3, logit_bias={5: 3.0}),
    Sampling(temperature=0.8, seed=3, grammar="root ::= [a-z ]+", prompt_tokens=len(PROMPT)),
]


class RunOfStages:
    """A run as nodes play it: the first step as a frame to each stage, then rows round and round."""

    def __init__(self, engine: EngineProcess, model: SplitModel, cuts: list[tuple[int, int]]) -> None:
        self.engine, self.model, self.cuts = engine, model, cuts
        self.sequence_id = new_id()
        self.command_id = new_id()

    async def pass_through(
        self, position: int, tokens: list[int], run: int, sampling: Sampling | None
    ) -> Frame[StepDone]:
        hidden, frame = None, None
        for number, shards in enumerate(self.cuts):
            step, payloads = make_step(
                self.model.model_id,
                shards,
                self.sequence_id,
                position,
                tokens,
                hidden=hidden,
                sample_from=len(tokens) - 1,
                sampling=sampling if number == len(self.cuts) - 1 else None,
            )
            step = step._replace(command_id=self.command_id, run=run)
            frame = await answer_of(self.engine, step, payloads)
            hidden = hidden_of(frame)
        assert frame is not None
        return frame

    async def generate(self, prompt: list[int], count: int, sampling: Sampling | None) -> list[int]:
        frame = await self.pass_through(0, prompt, BEGINS_RUN, sampling)
        tokens = [frame.message.tokens[0]]
        while len(tokens) < count:
            position = len(prompt) + len(tokens) - 1
            frame = await self.pass_through(position, tokens[-1:], OF_RUN, sampling)
            assert frame.message.position == position + 1
            tokens.append(frame.message.tokens[0])
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
        frame = await run.pass_through(position, [tokens[-1 - back]], OF_RUN, None)
        assert frame.message.tokens == (tokens[-back],)
    engine.forget(run.sequence_id)


async def test_a_row_of_a_run_that_is_not_known_is_a_gap(engine: EngineProcess, tiny: SplitModel) -> None:
    run = RunOfStages(engine, tiny, [(0, 3)])
    await run.generate(list(PROMPT), 3, None)
    engine.forget(run.sequence_id)
    with pytest.raises(SequenceGap):
        await run.pass_through(len(PROMPT) + 2, [5], OF_RUN, None)


async def test_a_shard_that_is_loaded_again_in_the_middle_of_a_run_is_a_gap_and_no_wrong_answer(
    engine: EngineProcess, tiny: SplitModel
) -> None:
    run = RunOfStages(engine, tiny, [(0, 1), (1, 3)])
    await run.generate(list(PROMPT), 3, None)
    await engine.unload(tiny.model_id, 1)
    await Stage(engine, tiny, (1, 2)).load()
    with pytest.raises(SequenceGap):
        await run.pass_through(len(PROMPT) + 2, [5], OF_RUN, None)
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
