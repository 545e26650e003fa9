"""Steps that the engine process has not got yet: it is being restarted, or they are rows of a run that somebody made up."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

import pytest

from shardnet.errors import Busy, EngineError, ShardnetError
from shardnet.inference.engine.child import Child
from shardnet.inference.engine.late_steps import LateSteps
from shardnet.inference.engine.spawning import PACKETS
from shardnet.inference.engine.steps import TOKEN, Step, StepDone
from shardnet.steps import NEXT_STEP, NextStep
from shardnet.wire import Frame

STEP = Step("1" * 16, "d" * 64, 0, 1, "5" * 16, 0, 1, True, ahead=7)


class Back:
    """An engine process that came back."""

    is_dead = False

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def step(self, step: Step, *_: Any) -> None:
        self.steps.append(step)


@pytest.mark.parametrize("end", ["forget", "halt"])
async def test_what_ends_while_the_engine_restarts_does_not_run_when_it_is_back(
    end: str,
) -> None:
    back, up = Back(), asyncio.Event()

    async def engine() -> Child:
        await up.wait()
        return cast("Child", back)

    late = LateSteps(engine)
    answers: list[Frame[StepDone] | ShardnetError] = []
    late.put(STEP, (bytes(4),), answers.append, None)
    tasks = tuple(late.tasks)
    if end == "forget":
        late.forget(STEP.sequence_id)
        late.forget(STEP.sequence_id)
    else:
        late.halt(STEP.command_id)
    up.set()
    await asyncio.gather(*tasks)
    if end == "forget":
        assert [type(answer) for answer in answers] == [EngineError]
        assert not back.steps
    else:
        assert [step.ahead for step in back.steps] == [0]
    assert not late.tasks


async def test_a_made_up_rows_negative_token_reaches_the_engine_which_refuses_it() -> None:
    ours, theirs = socket.socketpair(type=PACKETS)
    with ours, theirs:
        child = Child(None, None, ours, lambda _: None)  # type: ignore[arg-type]
        child.row(NextStep("1" * 16, "5" * 16, 0, 3, 1, 30.0), (TOKEN.pack(-1),))
        theirs.settimeout(10)
        assert TOKEN.unpack_from(theirs.recv(1024), NEXT_STEP.size) == (-1,)
        child._ready.cancel()


async def test_a_row_that_the_engine_does_not_take_ends_its_run_as_busy() -> None:
    ours, theirs = socket.socketpair(type=PACKETS)
    theirs.close()
    with ours:
        child = Child(None, None, ours, lambda _: None)  # type: ignore[arg-type]
        answers: list[Frame[StepDone] | ShardnetError] = []
        child.step(STEP._replace(begins_run=True), (bytes(4),), answers.append, lambda _: None)
        child.row(NextStep(STEP.command_id, STEP.sequence_id, 0, 3, 1, 30.0), (TOKEN.pack(1),))
        assert [type(answer) for answer in answers] == [Busy]
        child._ready.cancel()
