"""Speculation with a real engine: rows behind which another token comes than was proposed leave no trace."""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest

from shardnet.coordinator.placement.planning import Route as Pipeline
from shardnet.coordinator.requests.generation_spec import GenerationSpec
from shardnet.coordinator.requests.pipeline import Generation
from shardnet.coordinator.requests.speculation import ModelSpeculation, Speculator
from shardnet.messages import ExecuteTask, Sampling, StageRef
from shardnet.steps import TaskResult
from tests.support.coordinator_world import node_id
from tests.support.engine_world import OPTIONS, Route, two_stages

PROMPT = [40, 41, 42, 43, 40, 41, 42, 43, 40, 41]
SAMPLINGS = [Sampling(), Sampling(temperature=0.9, seed=7), Sampling(repeat_penalty=1.3)]


async def answer(route: Route, sampling: Sampling, model: ModelSpeculation | None) -> tuple[list[int], int]:
    """Returns: the answer's tokens, and how many steps it took."""
    stage = StageRef(node_id=node_id(1), address=None, first_shard=0, end_shard=2)
    spec = GenerationSpec("ab" * 32, PROMPT, sampling, 48, lambda _token: False)
    machine = Generation(spec, speculator=None if model is None else Speculator(model))
    machine.start(Pipeline("ab" * 32, (stage,), OPTIONS), 0.0)
    steps, clock = 0, 0.0
    while not machine.is_done:
        for send in machine.take_sends():
            task = send.message
            assert isinstance(task, ExecuteTask)
            assert send.payload is not None
            rows = array("i", send.payload).tolist()
            frame = await route.step(task.position, rows, samples=task.samples, sampling=task.sampling)
            steps, clock = steps + 1, clock + 0.01
            machine.on_result(
                TaskResult(
                    command_id=task.command_id,
                    sequence_id=task.sequence_id,
                    position=frame.message.position,
                    tokens=frame.message.tokens,
                ),
                clock,
            )
    assert machine.error is None
    route.forget()
    return [one.token for one in machine.take_emitted()], steps


@pytest.mark.timeout(60)
async def test_the_engine_gives_the_same_tokens(tmp_path: Path) -> None:
    async with two_stages(tmp_path) as stages:
        for sampling in SAMPLINGS:
            plain, plain_steps = await answer(Route(stages), sampling, None)
            speculation = ModelSpeculation(6, 1, 4, run_s=0.01, start_s=0.01, row_s=0.001)
            found, steps = await answer(Route(stages), sampling, speculation)
            assert found == plain
            assert speculation.proposed > 0
            assert steps == plain_steps + speculation.proposed - speculation.accepted
