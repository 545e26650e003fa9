"""Steps that the engine process has not got yet: it is being restarted, or they are rows of a run that somebody made up."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from shardnet.errors import EngineError, ShardnetError
from shardnet.inference.child import PACKETS, Child
from shardnet.inference.host import EngineProcess
from shardnet.inference.settings import InferenceSettings
from shardnet.inference.steps import OF_RUN, ROW, Step, StepDone
from shardnet.wire import Frame

STEP = Step("1" * 16, "d" * 64, 0, 1, "5" * 16, 0, 1, 0, ahead=7)


class Back:
    """An engine process that came back."""

    is_dead = False

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def step(self, step: Step, *_: Any) -> None:
        self.steps.append(step)


@pytest.mark.parametrize("end", ["forget", "halt"])
async def test_what_ends_while_the_engine_restarts_does_not_run_when_it_is_back(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, back, up = EngineProcess(InferenceSettings()), Back(), asyncio.Event()

    async def engine() -> Back:
        await up.wait()
        return back

    monkeypatch.setattr(host, "_engine", engine)
    answers: list[Frame[StepDone] | ShardnetError] = []
    host.step(STEP, (bytes(4),), answers.append)
    late = tuple(host._late_steps)
    if end == "forget":
        host.forget(STEP.sequence_id)
        host.forget(STEP.sequence_id)
    else:
        host.halt(STEP.command_id)
    up.set()
    await asyncio.gather(*late)
    if end == "forget":
        assert [type(answer) for answer in answers] == [EngineError]
        assert not back.steps
    else:
        assert [step.ahead for step in back.steps] == [0]
    assert not host._unsent


async def test_a_made_up_rows_negative_token_reaches_the_engine_which_refuses_it() -> None:
    ours, theirs = socket.socketpair(type=PACKETS)
    with ours, theirs:
        child = Child(None, None, ours)  # type: ignore[arg-type]
        child.step(STEP._replace(run=OF_RUN, ahead=0), ((-1).to_bytes(4, "little", signed=True),), lambda _: None)
        theirs.settimeout(10)
        assert ROW.unpack(theirs.recv(1024))[-1] == -1
        child._ready.cancel()
