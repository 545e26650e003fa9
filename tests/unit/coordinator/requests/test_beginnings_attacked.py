"""Shared beginnings where things go wrong at the worst moment, and where there is more than one pipeline."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from shardnet.coordinator.placement.planning import Route
from shardnet.coordinator.requests.beginnings import CROWDING
from shardnet.coordinator.requests.driver import Requests
from shardnet.coordinator.requests.generation_spec import GenerationSpec
from shardnet.coordinator.requests.prefixes import Prefixes
from shardnet.coordinator.requests.recording import Recording
from shardnet.coordinator.text.answering import PlainStream
from shardnet.errors import EngineCrashed, SequenceGap, ShardnetError
from shardnet.messages import ExecuteTask, Sampling
from tests.support.coordinator_world import MODEL_ID, node_id, route
from tests.support.requests_world import result
from tests.support.sharing_requests import SYSTEM, Swarm, own, reach
from tests.support.sharing_stages import Stages

LOST = SequenceGap("it is not here", have=0)


def replicas(*numbers: tuple[int, int], n_seq: int = 8) -> list[Route]:
    return [route(*one, n_seq=n_seq, n_batch=64, n_ctx=4096) for one in numbers]


async def begun(swarm: Swarm, followers: int = 1) -> list[ExecuteTask]:
    """A leader has computed what it shares, and its followers are about to copy it. Returns: the steps that copy."""
    await swarm.ask([*SYSTEM, *own(0)])
    for number in range(followers):
        await swarm.ask([*SYSTEM, *own(1 + number)])
    for step in swarm.take()[:4]:
        swarm.answer(step)
    copying = [step for step in swarm.take() if step.copy_from]
    assert len(copying) == followers
    return copying


async def test_a_leader_that_goes_away_while_it_is_being_copied_is_not_freed_before_that_is_done() -> None:
    swarm = Swarm()
    [copying] = await begun(swarm)
    next(iter(swarm.requests.running)).close()
    swarm.take()
    assert copying.copy_from not in swarm.freed  # a later stage might hear of that before it hears of the copy
    swarm.answer(copying)
    swarm.finish()
    assert (swarm.prefixes.copies, swarm.prefixes.refused, len(swarm.prefixes)) == (1, 0, 2)


async def test_a_chat_that_is_copied_and_taken_over_and_cancelled_at_once_is_not_freed_either() -> None:
    swarm = Swarm(n_seq=3)
    await swarm.ask([*SYSTEM, *own(9)])
    swarm.finish()
    kept = swarm.steps[0].sequence_id
    for number in range(2):
        await swarm.ask([*SYSTEM, *own(number)])
    last = await swarm.ask([*SYSTEM, *own(2)])  # the last place is that of the kept one itself
    *copying, taking = swarm.take()
    assert ([one.copy_from for one in copying], taking.sequence_id) == ([kept, kept], kept)
    last.close()
    swarm.take()
    assert kept not in swarm.freed
    for step in copying:
        swarm.answer(step)
    swarm.finish()
    assert swarm.prefixes.copies == 2


async def test_leaders_that_fail_while_they_are_copied_say_nothing_against_copying() -> None:
    swarm = Swarm()
    for _ in range(3):
        [copying] = await begun(swarm)
        swarm.fail([step for step in swarm.steps if step.sequence_id == copying.copy_from][-1], ShardnetError("no"))
        swarm.take()
        assert copying.copy_from in swarm.freed
        swarm.fail(copying, LOST)
        swarm.finish()
        for one in tuple(swarm.requests.running):
            one.close()
        swarm.requests.fail_all()
    assert swarm.prefixes.refused == 3
    await begun(swarm)  # they still wait, and copy


async def test_an_engine_that_died_refuses_many_at_once_and_copying_goes_on() -> None:
    swarm = Swarm()
    copying = await begun(swarm, followers=5)
    for step in copying:
        swarm.fail(step, LOST)
    assert all((step.position, step.copy_from) == (0, None) for step in swarm.take()[::5])
    swarm.finish()
    assert swarm.prefixes.refused == 5
    swarm.requests.fail_all()
    assert len(await begun(swarm, followers=2)) == 2


async def test_a_kept_sequence_that_was_refused_is_offered_to_nobody_again() -> None:
    swarm = Swarm()
    await swarm.ask([*SYSTEM, *own(0)])
    swarm.finish()
    await swarm.ask([*SYSTEM, *own(1)])
    [copying] = swarm.take()
    swarm.fail(copying, LOST)
    assert len(swarm.prefixes) == 0
    assert reach(swarm.take()[0])[:2] == (None, 0)
    assert copying.copy_from in swarm.freed


async def test_who_waits_after_a_setback_waits_as_long_as_the_leader_gets_on() -> None:
    swarm = Swarm(max_wait_s=600.0)
    everybody = [await swarm.ask([*SYSTEM, *own(number)]) for number in range(2)]
    swarm.take()
    swarm.world.ready = []
    swarm.requests.on_node_lost(node_id(2))
    swarm.world.ready = replicas((1, 3))
    swarm.requests.pump()
    again = swarm.take()
    assert swarm.requests.waiting == 1
    for step in again:
        swarm.world.at_s += 20.0  # a long prompt on a slow machine: longer than anybody bears that nothing goes right
        swarm.answer(step)
        swarm.requests.on_time()
    swarm.finish()
    assert [one.generation.error for one in everybody] == [None, None]
    assert swarm.prefixes.copies == 1


async def test_a_step_that_goes_on_where_the_copy_ended_does_not_copy_again() -> None:
    swarm = Swarm()
    [copying] = await begun(swarm)
    end = copying.position + copying.n_tokens
    swarm.requests.on_result(copying.route[-1].node_id, result(copying, 50, at=end))
    [following] = [step for step in swarm.take() if step.sequence_id == copying.sequence_id]
    swarm.fail(following, SequenceGap("some of it is gone", have=copying.position))
    follower = list(swarm.requests.running)[1]
    assert follower.timer is not None
    follower.timer.cancel()
    swarm.requests._after_pause(follower)
    again = [step for step in swarm.take() if step.sequence_id == copying.sequence_id]
    assert (again[0].position, again[0].copy_from) == (copying.position, None)


async def test_a_long_prompt_that_gets_on_is_waited_for_and_not_computed_by_all_at_once_when_time_is_up() -> None:
    swarm = Swarm(max_wait_s=5.0)
    for number in range(4):
        await swarm.ask([*SYSTEM, *own(number)])
    for step in swarm.take()[:4]:
        for _ in range(4):
            swarm.world.at_s += 1.0
            swarm.requests.on_time()
        assert (swarm.requests.waiting, swarm.take()) == (3, [])
        swarm.answer(step)
    assert [reach(step)[1] for step in swarm.take()] == [64, 64, 64]
    assert swarm.prefixes.waited.total == 3 * 16.0


async def test_no_time_to_wait_is_no_waiting() -> None:
    swarm = Swarm(max_wait_s=0.0)
    for number in range(2):
        await swarm.ask([*SYSTEM, *own(number)])
    assert swarm.requests.waiting == 0
    assert len({step.sequence_id for step in swarm.take()}) == 2


async def test_an_answer_that_begins_anew_with_a_copy_of_what_is_gone_begins_cold_and_does_not_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shardnet.coordinator.requests.setbacks.FIRST_PAUSE_S", 0.0)
    swarm = Swarm()
    for number in range(2):
        await swarm.ask([*SYSTEM, *own(number)])
    leader, follower = swarm.requests.running
    for step in swarm.take():
        swarm.requests.on_result(step.route[-1].node_id, result(step, *([50] * step.samples)))
    [copying] = [step for step in swarm.take() if step.copy_from]
    swarm.requests.on_result(copying.route[-1].node_id, result(copying, 50))
    [following] = [step for step in swarm.take() if step.sequence_id == copying.sequence_id]
    swarm.fail(following, EngineCrashed("gone"))
    again = [step for step in swarm.take() if step.copy_from]
    assert (again[0].copy_from, follower.generation.n_generated) == (leader.generation.sequence_id, 1)
    swarm.fail(again[0], LOST)  # the leader's was lost in the same crash; it does not know yet
    cold = [step for step in swarm.take() if step.sequence_id == follower.generation.sequence_id]
    assert (cold[0].position, cold[0].copy_from, swarm.prefixes.refused) == (0, None, 1)
    assert follower.generation.error is None


async def test_a_prompt_that_is_run_without_an_answer_is_kept_for_those_that_follow() -> None:
    swarm = Swarm()
    warm = await swarm.ask([*SYSTEM, *own(0)], max_tokens=0)
    await swarm.ask([*SYSTEM, *own(0)])  # waits for the last whole block of it
    swarm.finish()
    assert warm.take().finish_reason == "length"
    await swarm.ask([*SYSTEM, *own(2)])
    assert reach(swarm.take()[0])[1:] == (64, 12)
    assert swarm.requests.totals.prompt_rows[node_id(1)] == 76 + 8


async def test_a_trace_tells_from_when_to_when_it_was_waited() -> None:
    swarm = Swarm()
    await swarm.ask([*SYSTEM, *own(0)])
    recording = Recording("t", 0.0)
    spec = GenerationSpec(MODEL_ID, [*SYSTEM, *own(1)], Sampling(), 2, lambda _token: False, recording=recording)
    await swarm.requests.open(spec, PlainStream(lambda _token: b"x", ()))
    swarm.world.at_s = 3.0
    swarm.finish()
    assert recording.waits == [(0.0, 3.0)]
    assert [one.n_reused for one in recording.tries] == [64]


# -- several pipelines -------------------------------------------------------------------------------------------------------


async def test_a_short_beginning_that_all_share_does_not_bring_everybody_to_one_of_two_pipelines() -> None:
    swarm = Swarm()
    swarm.world.ready = replicas((1, 2), (3, 4))
    await swarm.ask([*SYSTEM, *own(9)])
    swarm.finish()  # its beginning is warm on the first one
    for number in range(8):
        await swarm.ask([*SYSTEM, *own(number)])
    used = swarm.requests._places.used
    assert {node: count for (_, node), count in used.items()} == dict.fromkeys(map(node_id, (1, 2, 3, 4)), 4)


@pytest.mark.parametrize(("n_busy", "there"), [(1, True), (3, False)])
async def test_a_longer_beginning_is_worth_a_busier_pipeline_as_long_as_it_saves_more_than_the_crowd_costs(
    n_busy: int, *, there: bool
) -> None:
    swarm = Swarm()
    swarm.world.ready = replicas((1, 2))
    chat = [5000 + index for index in range(2 * CROWDING)]
    await swarm.ask([*chat, *own(0)])
    swarm.finish()
    for number in range(n_busy):
        await swarm.ask([9000 + number, *own(number)])
    swarm.world.ready = replicas((1, 2), (3, 4))
    swarm.take()
    await swarm.ask([*chat, *own(1)])
    step = swarm.take()[0]
    assert (step.route[0].node_id == node_id(1), step.position > 0) == (there, there)


async def test_a_source_that_pipelines_share_a_node_of_is_not_crowded_out_by_the_other_one() -> None:
    swarm = Swarm(n_seq=2)
    await swarm.ask([*SYSTEM, *own(9)])
    swarm.finish()
    await swarm.ask([*SYSTEM, *own(0)])
    [copying] = swarm.take()
    swarm.world.ready = replicas((1, 3), n_seq=2)
    await swarm.ask([7, *own(1)])  # node 1 has two sequences, of which one is being copied
    assert (swarm.take(), swarm.requests.waiting) == ([], 1)
    swarm.answer(copying)
    assert swarm.take()[0].position == 0


async def test_two_models_share_nothing_though_their_prompts_are_the_same() -> None:
    other = replace(route(3, 4, n_seq=8, n_batch=64, n_ctx=1024), model_id="cd" * 32)
    stages = Stages([route(1, 2, n_seq=8, n_batch=64, n_ctx=1024), other], random.Random(1))
    requests = stages.requests = Requests(stages, prefixes=Prefixes(16))
    asked = [
        await requests.open(
            GenerationSpec(model_id, [*SYSTEM, *own(0)], Sampling(), 2, lambda _token: False),
            PlainStream(lambda _token: b"x", ()),
        )
        for model_id in (other.model_id, MODEL_ID, other.model_id)
    ]
    assert requests.waiting == 1
    stages.settle()
    assert [one.generation.n_reused for one in asked] == [0, 0, 68]
