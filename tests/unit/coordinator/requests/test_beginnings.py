"""A prompt is computed once: who waits for whose beginning, who copies it, and what happens when the one who computes it goes."""

from __future__ import annotations

import pytest

from shardnet.coordinator.requests.prefixes import MOST_REFUSALS
from shardnet.coordinator.requests.reading import PromptReading
from shardnet.errors import EngineCrashed, SequenceGap, ShardnetError
from tests.support.coordinator_world import node_id, route
from tests.support.sharing_requests import SYSTEM, Swarm, own, reach


async def test_eight_equal_beginnings_are_computed_once_and_the_others_wait_and_copy() -> None:
    swarm = Swarm()
    everybody = [await swarm.ask([*SYSTEM, *own(number)]) for number in range(8)]
    sent = swarm.take()
    assert {step.sequence_id for step in sent} == {everybody[0].generation.sequence_id}  # the others sent nothing
    assert swarm.requests.waiting == 7
    for step in sent[:3]:
        swarm.answer(step)
        assert all(step.copy_from is None for step in swarm.take())  # it has not come far enough
    swarm.answer(sent[3])
    followers = [step for step in swarm.take() if step.copy_from]
    assert [reach(step) for step in followers] == [(sent[0].sequence_id, 64, 12)] * 7
    assert len({step.sequence_id for step in followers}) == 7
    for step in (*sent[4:], *followers):
        swarm.answer(step)
    swarm.finish()
    assert all(running.take().finish_reason == "length" for running in everybody)
    assert (swarm.prefixes.hits, swarm.prefixes.copies, swarm.prefixes.waits) == (7, 7, 7)
    assert swarm.prefixes.tokens_reused == 7 * 64
    assert swarm.requests.totals.prompt_rows == dict.fromkeys((node_id(1), node_id(2)), 64 + 8 * 12)
    assert (swarm.requests.waiting, swarm.requests.totals.retried) == (0, 0)


async def test_a_warm_beginning_is_copied_by_all_at_once_and_the_last_place_takes_it_over() -> None:
    swarm = Swarm()
    await swarm.ask([*SYSTEM, *own(9)])
    swarm.finish()
    kept = swarm.steps[0].sequence_id
    for number in range(8):
        await swarm.ask([*SYSTEM, *own(number)])
    sent = swarm.take()
    assert [reach(step) for step in sent] == [(kept, 64, 12)] * 7 + [(None, 64, 12)]
    assert sent[7].sequence_id == kept  # which lost nothing that the seven still want
    for step in sent:
        swarm.answer(step)
    swarm.finish()
    assert (swarm.prefixes.hits, swarm.prefixes.copies, swarm.prefixes.waits) == (8, 7, 0)


@pytest.mark.parametrize(
    ("prompt", "count"),
    [
        ([*SYSTEM, *own(1)], 64),  # they part at a border of chunks
        ([*SYSTEM[:53], *own(1, 30)], 52),  # within a chunk, and within a block of rows
        ([*SYSTEM, *own(0, 6), *own(1)], 68),  # behind it
        ([*SYSTEM, *own(0)], 68),  # the same prompt: its last tokens are run
        ([*SYSTEM[:40]], 32),  # a shorter one
        ([*SYSTEM, *own(0), *own(1, 100)], 76),  # a longer one
    ],
)
async def test_as_many_whole_blocks_are_taken_as_two_prompts_have_in_common(prompt: list[int], count: int) -> None:
    swarm = Swarm()
    await swarm.ask([*SYSTEM, *own(0)])
    first = swarm.take()
    await swarm.ask(prompt)
    assert not swarm.take()
    for step in first:
        if any(one.copy_from for one in swarm.take()):
            break
        assert step.position < count
        swarm.answer(step)
    swarm.take()
    [copied] = [step for step in swarm.steps if step.copy_from]
    assert (copied.copy_from, copied.position) == (first[0].sequence_id, count)
    assert copied.position + copied.n_tokens <= len(prompt)


async def test_prompts_that_part_at_once_or_soon_do_not_wait_for_each_other() -> None:
    swarm = Swarm()
    await swarm.ask([*SYSTEM, *own(0)])
    await swarm.ask([7, *SYSTEM])
    await swarm.ask([*SYSTEM[:15], *own(1, 60)])
    assert len({step.sequence_id for step in swarm.take()}) == 3
    assert swarm.requests.waiting == 0


async def test_a_leader_that_is_cancelled_hands_on_what_it_has_computed() -> None:
    swarm = Swarm()
    leader = await swarm.ask([*SYSTEM, *own(0)])
    for number in (1, 2):
        await swarm.ask([*SYSTEM, *own(number)])
    sent = swarm.take()
    for step in sent[:2]:
        swarm.answer(step)
    swarm.take()
    leader.close()
    heir = swarm.take()
    assert {step.sequence_id for step in heir} == {sent[0].sequence_id}
    assert heir[0].position == 32
    assert sent[0].sequence_id not in swarm.freed
    assert swarm.requests.waiting == 1
    for step in heir:
        swarm.answer(step)
    [last] = [step for step in swarm.take() if step.copy_from]
    assert reach(last) == (sent[0].sequence_id, 64, 12)
    swarm.answer(last)
    swarm.finish()
    assert swarm.requests.totals.prompt_rows[node_id(1)] == 64 + 2 * 12


async def test_a_leader_that_fails_leaves_the_lead_to_the_next_one() -> None:
    swarm = Swarm()
    leader = await swarm.ask([*SYSTEM, *own(0)])
    for number in (1, 2):
        await swarm.ask([*SYSTEM, *own(number)])
    sent = swarm.take()
    swarm.answer(sent[0])
    swarm.take()
    swarm.fail(sent[1], ShardnetError("no"))
    assert leader.generation.error is not None
    heir = swarm.take()
    assert heir[0].position == 0
    assert len({step.sequence_id for step in heir}) == 1
    assert swarm.requests.waiting == 1
    for step in heir:
        swarm.answer(step)
    swarm.finish()
    assert swarm.prefixes.copies == 1


async def test_who_waits_and_goes_away_leaves_nothing_behind() -> None:
    swarm = Swarm(n_seq=2)
    leader = await swarm.ask([*SYSTEM, *own(0)])
    follower = await swarm.ask([*SYSTEM, *own(1)])
    assert swarm.requests.waiting == 1
    follower.close()
    assert swarm.requests.waiting == 0
    third = await swarm.ask([*SYSTEM, *own(2)])  # its place is free at once
    swarm.finish()
    assert leader.take().finish_reason == third.take().finish_reason == "length"


async def test_after_a_node_is_lost_one_computes_again_and_the_others_copy_again() -> None:
    swarm = Swarm()
    everybody = [await swarm.ask([*SYSTEM, *own(number)]) for number in range(3)]
    for step in swarm.take()[:4]:
        swarm.answer(step)
    assert len({step.sequence_id for step in swarm.take()}) == 2  # the followers have begun
    swarm.world.ready = [route(1, 3, n_seq=8, n_batch=64, n_ctx=1024)]
    swarm.requests.on_node_lost(node_id(2))
    again = swarm.take()
    assert {step.sequence_id for step in again} == {everybody[0].generation.sequence_id}
    assert swarm.requests.waiting == 2
    for step in again:
        swarm.answer(step)
    assert [reach(step) for step in swarm.take()] == [(again[0].sequence_id, 64, 12)] * 2
    assert swarm.requests.waiting == 0


async def test_those_who_wait_on_a_route_that_goes_take_another_one() -> None:
    swarm = Swarm()
    for number in range(2):
        await swarm.ask([*SYSTEM, *own(number)])
    swarm.take()
    swarm.world.ready = []
    swarm.requests.on_node_lost(node_id(2))
    assert not swarm.take()
    swarm.world.ready = [route(1, 3, n_seq=8, n_batch=64, n_ctx=1024)]
    swarm.requests.pump()
    assert len({step.sequence_id for step in swarm.take()}) == 1
    assert swarm.requests.waiting == 1
    swarm.finish()


async def test_a_stage_that_lost_the_source_costs_a_cold_start_and_twice_in_a_row_ends_copying() -> None:
    swarm = Swarm()
    for _ in range(MOST_REFUSALS):
        leader = await swarm.ask([*SYSTEM, *own(0)])
        await swarm.ask([*SYSTEM, *own(1)])
        for step in swarm.take()[:4]:
            swarm.answer(step)
        [copied] = [step for step in swarm.take() if step.copy_from]
        swarm.fail(copied, SequenceGap("it is not here", have=0))
        cold = swarm.take()
        assert (cold[0].position, cold[0].copy_from) == (0, None)
        leader.close()
        for step in cold:
            swarm.answer(step)
        swarm.finish()
        swarm.requests.fail_all()
    assert (swarm.prefixes.refused, swarm.requests.totals.retried) == (MOST_REFUSALS, 0)
    await swarm.ask([*SYSTEM, *own(0)])
    await swarm.ask([*SYSTEM, *own(1)])
    assert swarm.requests.waiting == 0


async def test_a_source_is_not_freed_for_room_before_it_is_copied_everywhere() -> None:
    swarm = Swarm(n_seq=2)
    await swarm.ask([*SYSTEM, *own(9)])
    swarm.finish()
    await swarm.ask([*SYSTEM, *own(0)])
    [copied] = swarm.take()
    assert copied.copy_from == swarm.steps[0].sequence_id
    await swarm.ask([7, *SYSTEM])  # has nothing in common, and would have its place
    assert (swarm.take(), swarm.freed, swarm.requests.waiting) == ([], [], 1)
    swarm.answer(copied)
    assert swarm.take()[0].position == 0
    assert swarm.freed == [copied.copy_from]


async def test_a_wait_has_an_end() -> None:
    swarm = Swarm(max_wait_s=5.0)
    await swarm.ask([*SYSTEM, *own(0)])
    await swarm.ask([*SYSTEM, *own(1)])
    swarm.take()
    swarm.world.at_s = 4.0
    swarm.requests.on_time()
    assert swarm.requests.waiting == 1
    swarm.world.at_s = 6.0
    swarm.requests.on_time()
    assert (swarm.requests.waiting, swarm.take()[0].position) == (0, 0)
    assert (swarm.prefixes.waited.count, swarm.prefixes.waited.total) == (1, 6.0)


async def test_every_wait_is_timed_once_until_the_request_begins_or_goes_away() -> None:
    swarm = Swarm()
    leader = await swarm.ask([*SYSTEM, *own(0)])
    for number in (1, 2):
        await swarm.ask([*SYSTEM, *own(number)])
    gone = await swarm.ask([*SYSTEM, *own(3)])
    swarm.take()
    swarm.world.at_s = 1.0
    gone.close()
    swarm.world.at_s = 2.0
    leader.close()  # the next one leads, and the third waits for it
    assert (swarm.requests.waiting, swarm.prefixes.waited.count) == (1, 2)
    swarm.world.at_s = 5.0
    swarm.finish()
    assert (swarm.prefixes.waits, swarm.prefixes.waited.count, swarm.prefixes.waited.total) == (3, 3, 1.0 + 2.0 + 5.0)


async def test_rows_that_are_read_are_neither_copied_nor_waited_for() -> None:
    swarm = Swarm()
    await swarm.ask([*SYSTEM, *own(0)], PromptReading("logprobs"))
    await swarm.ask([*SYSTEM, *own(0)])
    await swarm.ask([*SYSTEM, *own(0)], PromptReading("logprobs"))
    assert len({step.sequence_id for step in swarm.take()}) == 3
    assert swarm.requests.waiting == 0


async def test_switched_off_nobody_waits_and_nodes_that_do_not_know_how_are_not_asked_to_copy() -> None:
    for swarm in (Swarm(shares=False), Swarm()):
        swarm.world.copies = swarm.prefixes.shares is False
        await swarm.ask([*SYSTEM, *own(0)])
        await swarm.ask([*SYSTEM, *own(1)])
        assert len({step.sequence_id for step in swarm.take()}) == 2
        assert swarm.requests.waiting == 0


async def test_after_a_crash_of_an_engine_a_request_begins_with_what_is_computed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shardnet.coordinator.requests.setbacks.FIRST_PAUSE_S", 0.0)
    swarm = Swarm()
    leader = await swarm.ask([*SYSTEM, *own(0)])
    await swarm.ask([*SYSTEM, *own(1)])
    sent = swarm.take()
    swarm.answer(sent[0])
    swarm.take()
    swarm.fail(sent[1], EngineCrashed("gone"))
    assert leader.generation.error is None
    again = swarm.take()
    assert again[0].position == 0
    assert swarm.requests.waiting == 1
    for step in again:
        swarm.answer(step)
    swarm.finish()
    assert swarm.prefixes.copies == 1
