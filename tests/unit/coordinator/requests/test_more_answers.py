"""Several answers to one request: they begin as there are places, and end where their words say, also while nobody takes them."""

from __future__ import annotations

import asyncio

import pytest

from shardnet.coordinator.requests.driver import STOPPING, Requests
from shardnet.coordinator.requests.generation_spec import GenerationSpec
from shardnet.coordinator.requests.running import Running
from shardnet.coordinator.text.answering import AnswerStream, PlainStream
from shardnet.errors import Busy, EngineError, PlacementError
from shardnet.messages import CommandFailed, ErrorInfo, ExecuteTask, Sampling
from tests.support.coordinator_world import MODEL_ID, route
from tests.support.requests_world import World, result

STOP, BAD = 7, 8


def words(token: int) -> bytes:
    if token == BAD:
        raise ValueError("no such token")
    return b"%d." % token


def part(n_prompt: int = 4, max_tokens: int = 99) -> tuple[GenerationSpec, AnswerStream]:
    spec = GenerationSpec(MODEL_ID, range(n_prompt), Sampling(), max_tokens, lambda _token: False)
    return spec, PlainStream(words, ("7.",))


class Swarm:
    """Two nodes with room for so many sequences, of which only the steps are looked at."""

    def __init__(self, n_seq: int, *, max_queued: int = 0) -> None:
        self.world = World(route(1, 2, n_seq=n_seq))
        self.requests = Requests(self.world, max_queued=max_queued, queue_timeout_s=0.01)

    async def open(self, count: int) -> tuple[list[Running], list[ExecuteTask]]:
        """Begin so many answers. Returns: them, and the steps that left."""
        first = await self.requests.open(*part())
        ones = [first, *self.requests.open_behind([part() for _ in range(count - 1)])]
        return ones, await self.steps()

    async def steps(self) -> list[ExecuteTask]:
        for _ in range(9):
            await asyncio.sleep(0)
        return self.world.take()[0]

    def answer(self, step: ExecuteTask, token: int, at: int = 0) -> None:
        told = result(step, token, ahead=1, at=step.position + step.n_tokens + at)
        self.requests.on_result(step.route[-1].node_id, told)

    def fail(self, step: ExecuteTask) -> None:
        failed = CommandFailed(command_id=step.command_id, error=ErrorInfo.of(EngineError("no")))
        self.requests.on_failed(step.route[-1].node_id, failed)


async def test_an_answer_that_nobody_takes_ends_at_its_stop_string_and_frees_its_place() -> None:
    swarm = Swarm(1)
    (one, another), (step,) = await swarm.open(2)
    swarm.answer(step, 5)
    assert await swarm.steps() == []
    swarm.answer(step, STOP, at=1)
    assert swarm.world.take()[1] == [step.sequence_id]
    (behind,) = await swarm.steps()
    piece = one.take()
    assert (piece.text, piece.finish_reason, one.n_completion) == ("5.", "stop", 2)
    swarm.answer(behind, STOP)
    assert another.take().finish_reason == "stop"
    assert swarm.requests.idle.is_set()
    assert not swarm.requests.running


async def test_what_came_before_anybody_waited_is_taken_once_and_in_order() -> None:
    swarm = Swarm(1)
    (one,), (step,) = await swarm.open(1)
    for at, token in enumerate((1, 2)):
        swarm.answer(step, token, at)
    assert one.take().text == "1.2."
    waiting = asyncio.ensure_future(one.wait(20))
    await asyncio.sleep(0)
    for at, token in enumerate((3, 4)):
        swarm.answer(step, token, 2 + at)
    assert await waiting
    assert one.take().text == "3.4."
    assert one.n_completion == 4


async def test_answers_wait_for_places_of_their_own_request_for_as_long_as_that_takes() -> None:
    swarm = Swarm(2)
    ones, steps = await swarm.open(4)
    assert len(steps) == 2
    await asyncio.sleep(0.05)  # longer than anybody else may wait, and the line has no room for anybody
    assert swarm.requests.queued == 1, "one at a time stands in line"
    with pytest.raises(Busy, match="in line already"):
        await swarm.requests.open(*part())
    for step in steps:
        swarm.answer(step, STOP)
    steps = await swarm.steps()
    assert len(steps) == 2
    for step in steps:
        swarm.answer(step, STOP)
    assert [one.take().finish_reason for one in ones] == ["stop"] * 4
    assert swarm.requests.idle.is_set()


async def test_whoever_goes_takes_the_answers_that_have_not_begun_along() -> None:
    swarm = Swarm(1)
    ones, _ = await swarm.open(3)
    assert swarm.requests.queued == 1
    for one in ones:
        one.close()
    assert await swarm.steps() == []
    assert (swarm.requests.queued, dict(swarm.requests._places.used)) == (0, {})
    assert swarm.requests.idle.is_set()
    assert len((await swarm.open(1))[1]) == 1, "the place is free"


async def test_an_answer_that_cannot_begin_says_so_to_who_waits_for_it() -> None:
    swarm = Swarm(1)
    (one, another, last), (step,) = await swarm.open(3)
    waiting = asyncio.ensure_future(another.wait(20))
    await asyncio.sleep(0)
    swarm.requests.refuse_new()
    assert await waiting
    with pytest.raises(Busy, match=STOPPING):
        another.take()
    swarm.answer(step, STOP)
    assert one.take().finish_reason == "stop"
    for left in (another, last):
        left.close()
    assert swarm.requests.idle.is_set()


async def test_a_pipeline_that_goes_meanwhile_is_waited_for() -> None:
    swarm = Swarm(1)
    _, (step,) = await swarm.open(2)
    ready, swarm.world.ready = swarm.world.ready, []
    swarm.requests.pump()
    await swarm.steps()
    with pytest.raises(PlacementError):
        await swarm.requests.open(*part())
    swarm.world.ready = ready
    swarm.answer(step, STOP)
    assert len(await swarm.steps()) == 1


async def test_words_that_cannot_be_made_are_the_error_of_who_takes_them_and_of_nobody_else() -> None:
    swarm = Swarm(1)
    (one,), (step,) = await swarm.open(1)
    swarm.answer(step, BAD)
    with pytest.raises(ValueError, match="no such token"):
        one.take()
    one.close()
    assert swarm.requests.idle.is_set()


async def test_late_failures_of_a_request_that_is_over_are_nothing() -> None:
    swarm = Swarm(1)
    running = await swarm.requests.open(*part(8))
    first, second = await swarm.steps()
    for _ in range(4):  # a failed step is tried again, a few times
        swarm.fail(first)
        if running.generation.is_done:
            break
        (first, second), _ = swarm.world.take()
    assert running.generation.is_done
    swarm.fail(second)
    with pytest.raises(EngineError):
        running.take()
    assert swarm.requests.idle.is_set()
