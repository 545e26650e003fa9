"""Kept sequences: who is found, who makes room, what the request machine keeps and takes over, and what loses them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardnet.coordinator.placement.chunks import LEAST
from shardnet.coordinator.placement.planning import Route
from shardnet.coordinator.requests.beginnings import Asked, TakeOver, choose
from shardnet.coordinator.requests.driver import Requests
from shardnet.coordinator.requests.generation_spec import GenerationSpec
from shardnet.coordinator.requests.pipeline import Generation
from shardnet.coordinator.requests.prefixes import MOST_REFUSALS, Kept, Prefixes
from shardnet.coordinator.requests.running import Running
from shardnet.coordinator.requests.speculation import ModelSpeculation, Speculator
from shardnet.coordinator.text.answering import PlainStream
from shardnet.errors import EngineCrashed, PlacementError, SequenceGap
from shardnet.messages import (
    CancelTask,
    CommandFailed,
    ErrorInfo,
    ExecuteTask,
    FreeSequence,
    Sampling,
)
from shardnet.token_arrays import common_length
from tests.support.coordinator_world import MODEL_ID, node_id, route
from tests.support.requests_world import World, result

END = 2
TAIL = list(range(900, 900 + LEAST))
"""What a prompt ends with that is always run."""


def kept(name: str, tokens: Sequence[int], where: Route | None = None) -> Kept:
    return Kept(name, where or route(1, 2), array("i", tokens))


def used(count: int, *numbers: int) -> dict[tuple[str, str], int]:
    return {(MODEL_ID, node_id(number)): count for number in numbers}


# -- the pure part -----------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_the_common_length_is_that_of_a_plain_comparison(left: list[int], right: list[int]) -> None:
    plain = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    assert common_length(array("i", left), array("i", right)) == plain


def found(
    cache: Prefixes, routes: Sequence[Route], prompt: Sequence[int], in_use: dict[tuple[str, str], int]
) -> TakeOver | None:
    """Returns: what a prompt takes over, where nothing can be copied."""
    beginning = choose(Asked(1, [*prompt, *TAIL], routes[0], routes, ()), cache, (), in_use)
    return beginning if isinstance(beginning, TakeOver) else None


def test_the_longest_common_beginning_wins_and_the_last_tokens_of_a_prompt_are_always_run() -> None:
    cache = Prefixes(2)
    for one in (kept("a", [1, 2, 3]), kept("b", [1, 2, 3, 4, *TAIL]), kept("c", [1, 9])):
        assert cache.keep(one)
    taken = found(cache, [route(1, 2)], [1, 2, 3, 4], used(2, 1, 2))
    assert taken is not None
    assert (taken.kept.sequence_id, taken.count) == ("b", 4)
    cache.take(taken.kept)
    assert len(cache) == 2


def test_what_is_short_or_on_another_route_is_not_found() -> None:
    cache = Prefixes(3)
    assert not cache.keep(kept("short", [1, 2]))
    assert cache.keep(kept("a", [1, 2, 3]))
    assert found(cache, [route(2, 1), route(1)], [1, 2, 3], {}) is None
    assert found(cache, [route(1, 2)], [1, 2, 9], {}) is None
    assert found(cache, [route(1, 2)], [1, 2], {}) is None
    assert found(cache, [route(1, 2)], [1, 2, 3], {}) is not None


def test_a_long_sequence_is_not_taken_for_a_short_beginning_while_a_place_is_free() -> None:
    cache = Prefixes(2)
    cache.keep(kept("chat", [1, 2, *range(10, 20)]))
    assert found(cache, [route(1, 2)], [1, 2], used(0, 1, 2)) is None
    assert found(cache, [route(1, 2)], [1, 2], used(1, 1, 2)) is not None  # it would have to go in any case


def test_the_least_recently_used_makes_room_and_only_where_room_is_needed() -> None:
    cache = Prefixes(1)
    for name in "abc":
        cache.keep(kept(name, [1, 2], route(1, 2, n_seq=4)))
    cache.keep(kept("elsewhere", [1, 2], route(3, n_seq=4)))
    where = route(2, 4, n_seq=4)
    assert cache.make_room(where, used(0, 2)) == []
    assert [one.sequence_id for one in cache.make_room(where, used(2, 2))] == ["a", "b"]
    assert [one.sequence_id for one in cache.make_room(where, used(4, 2))] == ["c"]  # never one that runs
    assert (len(cache), cache.evicted) == (1, 3)


def test_a_model_that_refuses_again_and_again_is_kept_no_longer_but_one_success_clears_it() -> None:
    cache = Prefixes(1)
    cache.was_refused(route(1, 2))
    cache.worked(MODEL_ID, 5)
    for _ in range(MOST_REFUSALS):
        assert cache.keep(kept("a", [1, 2]))
        assert [one.sequence_id for one in cache.was_refused(route(1, 2))] == ["a"]
    assert not cache.keep(kept("a", [1, 2]))
    assert (cache.hits, cache.tokens_reused, cache.refused) == (1, 5, 1 + MOST_REFUSALS)


# -- the machine -------------------------------------------------------------------------------------------------------------------


def spec(prompt: Sequence[int], max_tokens: int = 4) -> GenerationSpec:
    return GenerationSpec(MODEL_ID, prompt, Sampling(), max_tokens, lambda token: token == END)


def first_task(machine: Generation) -> ExecuteTask:
    return next(send.message for send in machine.take_sends() if isinstance(send.message, ExecuteTask))


def test_an_answer_that_ends_in_a_run_is_kept_without_its_last_token_and_the_run_is_cancelled() -> None:
    machine = Generation(spec([10, 11, 12]), keeps=True)
    machine.start(route(1, 2), 0.0)
    task = first_task(machine)
    machine.on_result(result(task, 20, ahead=3), 1.0)
    machine.on_result(result(task, END, ahead=2, at=4), 2.0)
    assert machine.finish_reason == "stop"
    assert machine.kept is not None
    assert (machine.kept.sequence_id, machine.kept.tokens.tolist()) == (task.sequence_id, [10, 11, 12, 20])
    sends = machine.take_sends()
    assert [send.node_id for send in sends] == [node_id(1), node_id(2)]
    assert {send.message for send in sends} == {CancelTask(command_id=task.command_id)}


def cancelled(machine: Generation) -> set[str]:
    sends = machine.take_sends()
    of_each = [
        {send.message.command_id for send in sends if isinstance(send.message, CancelTask) and send.node_id == one}
        for one in (node_id(1), node_id(2))
    ]
    assert of_each[0] == of_each[1]
    return of_each[0]


def proposing() -> tuple[Generation, ExecuteTask, list[ExecuteTask]]:
    """Returns: a machine that has just left a run for proposals; the run's task; those of the rows that are under way."""
    model = ModelSpeculation(3, 1, 2, run_s=1.0, start_s=1.0, row_s=0.1)
    machine = Generation(spec([5, 6, 7, 5], 9), keeps=True, speculator=Speculator(model))
    machine.start(route(1, 2), 0.0)
    run = first_task(machine)
    machine.on_result(result(run, 6, ahead=8), 1.0)
    return machine, run, [send.message for send in machine.take_sends() if isinstance(send.message, ExecuteTask)]


def test_rows_behind_a_wrong_proposal_are_cancelled_if_the_answer_ends_there() -> None:
    machine, _, rows = proposing()
    machine.on_result(result(rows[0], END), 2.0)
    assert machine.kept is not None
    assert machine.kept.tokens.tolist() == [5, 6, 7, 5, 6]
    assert len(rows) > 1
    assert cancelled(machine) == {row.command_id for row in rows[1:]}


def test_a_run_that_was_left_is_cancelled_if_the_answer_ends_before_the_step_in_its_place_was_done() -> None:
    machine, run, rows = proposing()
    machine.stop("stop")
    assert cancelled(machine) == {run.command_id, *(row.command_id for row in rows)}


@pytest.mark.parametrize("reason", ["cancelled", "error"])
def test_an_answer_that_does_not_end_normally_is_freed(reason: str) -> None:
    machine = Generation(spec([10, 11, 12]), keeps=True)
    machine.start(route(1, 2), 0.0)
    machine.on_result(result(first_task(machine), 20), 1.0)
    machine.take_sends()
    if reason == "error":
        machine.fail(PlacementError("no more"))
    else:
        machine.stop("cancelled")
    assert machine.kept is None
    assert all(isinstance(send.message, FreeSequence) for send in machine.take_sends())


def test_after_an_error_nothing_counts_as_kept_until_a_token_came_again() -> None:
    machine = Generation(spec([10, 11, 12]), keeps=True)
    machine.start(route(1, 2), 0.0)
    machine.on_result(result(first_task(machine), 20), 1.0)
    machine.on_error(EngineCrashed("gone"), 2.0)
    machine.stop("stop")
    assert machine.kept is None


def test_a_sequence_taken_over_keeps_its_id_and_begins_at_the_common_length() -> None:
    machine = Generation(spec(range(10, 30)), keeps=True)
    machine.start(route(1, 2, n_batch=8), 0.0, (kept("ee" * 8, range(10, 25)), 13))
    tasks = [send.message for send in machine.take_sends() if isinstance(send.message, ExecuteTask)]
    assert [(task.sequence_id, task.position, task.n_tokens) for task in tasks] == [("ee" * 8, 13, 7)]


def test_a_gap_at_the_beginning_starts_over_cold_at_once_and_is_no_retry() -> None:
    machine = Generation(spec(range(10, 16)), keeps=True)
    machine.start(route(1, 2, n_batch=8), 0.0, (kept("ee" * 8, range(10, 14)), 4))
    task = first_task(machine)
    error = ErrorInfo.of(SequenceGap("it is not here", have=0, position=4))
    machine.on_failed(CommandFailed(command_id=task.command_id, error=error), 1.0)
    sends = machine.take_sends()
    assert [send.message for send in sends[:2]] == [FreeSequence(sequence_id="ee" * 8)] * 2
    again = sends[2].message
    assert isinstance(again, ExecuteTask)
    assert (again.position, again.n_tokens, again.sequence_id != "ee" * 8) == (0, 6, True)
    assert (machine.attempts, machine.was_refused, machine.n_reused) == (1, True, 0)


# -- all requests ------------------------------------------------------------------------------------------------------------------


async def answer(requests: Requests, world: World, prompt: Sequence[int]) -> tuple[ExecuteTask, list[str]]:
    """One request with an answer of two tokens. Returns: its first step, and the sequences freed meanwhile."""
    running = await requests.open(spec(prompt, 2), PlainStream(lambda _token: b"x", ()))
    return finish(requests, world, running)


def finish(requests: Requests, world: World, running: Running) -> tuple[ExecuteTask, list[str]]:
    tasks, freed = world.take()
    last = tasks[-1]
    at = last.position + last.n_tokens
    requests.on_result(last.route[-1].node_id, result(last, 50, ahead=1))
    requests.on_result(last.route[-1].node_id, result(last, 51, at=at + 1))
    assert running.take().finish_reason == "length"
    return tasks[0], freed + world.take()[1]


async def test_the_next_turn_of_a_chat_starts_from_the_last_one() -> None:
    world = World(route(1, 2, n_batch=64))
    requests = Requests(world, prefixes=Prefixes(4))
    first, freed = await answer(requests, world, range(10, 20))
    assert (first.position, freed) == (0, [])
    second, freed = await answer(requests, world, [*range(10, 20), 50, 51, *TAIL])
    assert (second.sequence_id, second.position, second.n_tokens, freed) == (first.sequence_id, 8, 12, [])
    assert requests.prefixes is not None
    assert (requests.prefixes.hits, requests.prefixes.tokens_reused, len(requests.prefixes)) == (1, 8, 1)


async def test_kept_sequences_make_room_for_new_ones_and_never_take_their_place() -> None:
    world = World(route(1, 2, n_seq=2, n_batch=64))
    requests = Requests(world, prefixes=Prefixes(4))
    a, _ = await answer(requests, world, range(10, 20))
    b, _ = await answer(requests, world, range(110, 120))
    c, freed = await answer(requests, world, range(210, 220))
    assert freed == [a.sequence_id]
    d, freed = await answer(requests, world, [*range(110, 120), *TAIL])
    assert (d.sequence_id, d.position, freed) == (b.sequence_id, 8, [])
    _, freed = await answer(requests, world, range(310, 320))
    assert freed == [c.sequence_id]


async def test_a_lost_node_a_changed_route_and_the_end_lose_what_is_kept() -> None:
    world = World(route(1, 2, n_batch=64))
    requests = Requests(world, prefixes=Prefixes(4))
    a, _ = await answer(requests, world, range(10, 20))
    requests.on_node_lost(node_id(2))
    assert world.take()[1] == [a.sequence_id]
    b, _ = await answer(requests, world, range(10, 20))
    assert b.position == 0
    world.ready = [route(1, 3, n_batch=64)]
    requests.pump()
    assert world.take()[1] == [b.sequence_id]
    c, _ = await answer(requests, world, range(10, 20))
    assert c.position == 0
    requests.refuse_new()
    requests.fail_all()
    assert world.take()[1] == [c.sequence_id]


async def test_a_stage_that_lost_the_sequence_costs_a_cold_start_and_nothing_else() -> None:
    world = World(route(1, 2, n_batch=64))
    requests = Requests(world, prefixes=Prefixes(4))
    await answer(requests, world, range(10, 20))
    running = await requests.open(spec([*range(10, 20), *TAIL], 2), PlainStream(lambda _token: b"x", ()))
    [warm], _ = world.take()
    assert warm.position == 8
    gap = ErrorInfo.of(SequenceGap("it is not here", have=0, position=8))
    requests.on_failed(node_id(2), CommandFailed(command_id=warm.command_id, error=gap))
    cold, _ = finish(requests, world, running)
    assert (cold.position, cold.n_tokens) == (0, 18)
    assert requests.prefixes is not None
    assert (requests.prefixes.hits, requests.prefixes.refused, requests.totals.retried) == (0, 1, 0)


async def test_switched_off_every_sequence_is_freed_at_its_end() -> None:
    world = World(route(1, 2, n_batch=64))
    requests = Requests(world)
    first, freed = await answer(requests, world, range(10, 20))
    assert freed == [first.sequence_id]
