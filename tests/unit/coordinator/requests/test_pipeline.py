"""The request machine: chunks ahead, a decode step per token, exact replays, bounded retries. And text without half characters or stops."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import pytest

from shardnet.coordinator.placement.planning import Route
from shardnet.coordinator.requests.attempt import MOST_UNDER_WAY, Send
from shardnet.coordinator.requests.generation_spec import GenerationSpec
from shardnet.coordinator.requests.pipeline import Generation, Need
from shardnet.coordinator.requests.setbacks import MAX_CRASHES
from shardnet.coordinator.requests.speculation import ModelSpeculation, Speculator
from shardnet.coordinator.text.stream import TextStream
from shardnet.errors import (
    Busy,
    EngineCrashed,
    EngineError,
    PeerLost,
    RemoteProtocolError,
    SequenceGap,
    ShardnetError,
)
from shardnet.messages import (
    CommandFailed,
    ErrorInfo,
    ExecuteTask,
    FreeSequence,
    Sampling,
)
from shardnet.steps import TaskResult
from tests.support.coordinator_world import MODEL_ID, node_id, route

END = 2


def generation(prompt: Sequence[int] = (10, 11, 12), *, max_tokens: int = 8, ignore_eos: bool = False) -> Generation:
    ids = iter(f"{number:016x}" for number in range(1, 10_000))
    spec = GenerationSpec(
        MODEL_ID, prompt, Sampling(seed=5), max_tokens, lambda token: token == END, ignore_eos=ignore_eos, epoch=3
    )
    return Generation(spec, make_id=lambda: next(ids))


def tasks(sends: list[Send]) -> list[ExecuteTask]:
    return [send.message for send in sends if isinstance(send.message, ExecuteTask)]


def freed(sends: list[Send]) -> list[str]:
    return [send.node_id for send in sends if isinstance(send.message, FreeSequence)]


def rows(send: Send) -> list[int]:
    assert send.payload is not None
    return array("i", send.payload).tolist()


def result(task: ExecuteTask, *tokens: int) -> TaskResult:
    return TaskResult(
        command_id=task.command_id,
        sequence_id=task.sequence_id,
        position=task.position + task.n_tokens,
        tokens=tokens if task.samples else (),
    )


def failed(task: ExecuteTask, error: ShardnetError) -> CommandFailed:
    return CommandFailed(command_id=task.command_id, error=ErrorInfo.of(error))


def started(machine: Generation, where: Route | None = None) -> list[Send]:
    machine.start(where or route(1, 2), 0.0)
    return machine.take_sends()


# -- the plain course ------------------------------------------------------------------------------------------------------------


def test_a_short_prompt_is_one_task_that_samples_its_last_row() -> None:
    [send] = started(generation())
    task = send.message
    assert isinstance(task, ExecuteTask)
    assert (send.node_id, task.position, task.n_tokens, task.samples, task.stage, task.epoch) == (
        node_id(1),
        0,
        3,
        True,
        0,
        3,
    )
    assert rows(send) == [10, 11, 12]
    assert task.tensors[0].shape == (3,)
    assert task.sampling is not None
    assert (task.sampling.seed, task.sampling.prompt_tokens) == (5, 3)
    ExecuteTask.model_validate_json(task.model_dump_json())  # what was put together without checks is a valid message


def test_a_long_prompt_goes_in_chunks_that_do_not_wait_for_answers() -> None:
    sends = started(generation(range(10, 20)))
    assert [(task.position, task.n_tokens, task.samples) for task in tasks(sends)] == [
        (0, 4, False),
        (4, 4, False),
        (8, 2, True),
    ]
    assert [task.sampling is None for task in tasks(sends)] == [True, True, False]
    assert [row for send in sends for row in rows(send)] == list(range(10, 20))


def test_no_more_chunks_are_under_way_than_keep_the_stages_busy() -> None:
    machine = generation([9] * 48)
    first = tasks(started(machine, route(1, n_batch=4)))
    assert len(first) == 4
    machine.on_result(result(first[0]), 0.1)
    assert [task.position for task in tasks(machine.take_sends())] == [16]


def test_a_long_prompt_in_the_smallest_chunks_does_not_fill_the_nodes() -> None:
    machine = generation([9] * 2000)
    machine_of_ones = Generation(machine.spec, chunk=lambda _machine, _route: 1)
    assert len(started(machine_of_ones, route(1, 2, n_ctx=4096, n_batch=512))) == MOST_UNDER_WAY


@pytest.mark.parametrize("takes", [1, 2, 5])
def test_nodes_that_take_few_tasks_at_a_time_get_fewer_after_they_refused(takes: int) -> None:
    """Else each try would be refused again, however long it is tried."""
    model = ModelSpeculation(15, 1, 4, run_s=1.0, start_s=1.0, row_s=0.01)
    spec = generation([4, 5, 6] * 9, max_tokens=20).spec
    machine = Generation(spec, speculator=Speculator(model))
    waiting: list[ExecuteTask] = []
    machine.start(route(1, 2), 0.0)
    for at_s in range(400):
        for task in tasks(machine.take_sends()):
            if len(waiting) < takes:
                waiting.append(task)
            else:
                machine.on_failed(failed(task, Busy("too many", retry_after_s=1)), at_s)
        if machine.is_done:
            break
        if machine.need is Need.PAUSE:
            waiting.clear()
            machine.resume(at_s)
            continue
        task = waiting.pop(0)
        position = task.position + task.n_tokens
        machine.on_result(result(task, 4 + position % 3), at_s)
    assert machine.finish_reason == "length"


def test_each_token_sends_the_next_step_at_once() -> None:
    machine = generation()
    [first] = tasks(started(machine))
    machine.on_result(result(first, 20), 0.1)
    [send] = machine.take_sends()
    task = send.message
    assert isinstance(task, ExecuteTask)
    assert (task.position, task.n_tokens, task.samples, rows(send)) == (3, 1, True, [20])
    assert [emitted.token for emitted in machine.take_emitted()] == [20]
    assert machine.take_emitted() == []


def ran(task: ExecuteTask, position: int, token: int, ahead: int) -> TaskResult:
    return TaskResult(task.command_id, task.sequence_id, position, (token,), ahead=ahead)


def test_the_stages_are_offered_to_go_on_until_the_answer_is_long_enough() -> None:
    machine = generation(max_tokens=5)
    (task,) = tasks(started(machine))
    assert task.ahead == 4
    for number in range(5):
        machine.on_result(ran(task, 3 + number, 20 + number, 4 - number), 1.0 + number)
        assert not tasks(machine.take_sends()), "nobody has to ask"
        assert machine.owns(task.command_id) == (number < 4)
    assert (machine.finish_reason, [one.token for one in machine.take_emitted()]) == ("length", [20, 21, 22, 23, 24])


def test_only_the_step_that_samples_may_go_on() -> None:
    sends = tasks(started(generation(range(10, 20), max_tokens=5)))
    assert [task.ahead for task in sends] == [0, 0, 4]


def test_a_run_that_a_stage_ends_early_is_taken_up_where_it_ended() -> None:
    machine = generation(max_tokens=5)
    (task,) = tasks(started(machine))
    machine.on_result(ran(task, 3, 20, 4), 1.0)
    machine.on_result(ran(task, 4, 21, 0), 2.0)
    [send] = machine.take_sends()
    (following,) = tasks([send])
    assert (following.position, following.ahead, rows(send)) == (4, 2, [21])
    assert following.command_id != task.command_id


def test_a_run_that_fails_is_replayed_from_its_prompt_with_every_token_so_far() -> None:
    machine = generation(max_tokens=9)
    (task,) = tasks(started(machine))
    for number in range(3):
        machine.on_result(ran(task, 3 + number, 20 + number, 8 - number), 1.0)
    machine.take_sends()
    machine.on_failed(failed(task, PeerLost("gone")), 2.0)
    assert machine.need is Need.ROUTE
    sends = [send for send in started(machine, route(3)) if send.payload is not None]
    assert [rows(send) for send in sends] == [[10, 11, 12], [20], [21], [22]]
    assert [task.ahead for task in tasks(sends)] == [0, 0, 0, 5]


def test_a_step_that_asked_for_a_token_and_brings_none_ends_the_request_since_nothing_else_would() -> None:
    machine = generation()
    (task,) = tasks(started(machine))
    machine.on_result(TaskResult(task.command_id, task.sequence_id, 3), 1.0)
    assert isinstance(machine.error, RemoteProtocolError)
    assert len(freed(machine.take_sends())) == 2


def test_a_run_that_ends_without_a_token_ends_the_request() -> None:
    machine = generation()
    (task,) = tasks(started(machine))
    machine.on_result(ran(task, 3, 20, 6), 1.0)
    machine.on_result(TaskResult(task.command_id, task.sequence_id, 4), 2.0)
    assert isinstance(machine.error, RemoteProtocolError)


def test_a_run_is_overdue_when_its_next_result_does_not_come() -> None:
    machine = generation(max_tokens=9)
    (task,) = tasks(started(machine))
    machine.on_result(ran(task, 3, 20, 8), 100.0)
    machine.on_time(200.0)
    assert not machine.wants_route
    machine.on_time(221.0)
    assert machine.wants_route


def test_the_end_of_a_text_in_the_middle_of_a_run_frees_every_stage() -> None:
    machine = generation(max_tokens=9)
    (task,) = tasks(started(machine))
    machine.on_result(ran(task, 3, END, 8), 1.0)
    assert machine.finish_reason == "stop"
    assert freed(machine.take_sends()) == [node_id(1), node_id(2)]


def test_a_result_of_another_position_than_the_next_ends_the_request() -> None:
    machine = generation()
    (task,) = tasks(started(machine))
    machine.on_result(ran(task, 7, 20, 3), 1.0)
    assert isinstance(machine.error, RemoteProtocolError)


def test_a_run_that_goes_on_without_a_token_ends_the_request() -> None:
    machine = generation()
    (task,) = tasks(started(machine))
    machine.on_result(TaskResult(task.command_id, task.sequence_id, 3, (), ahead=3), 1.0)
    assert isinstance(machine.error, RemoteProtocolError)


def test_several_tokens_of_one_step_are_refused() -> None:
    machine = generation()
    [first] = tasks(started(machine))
    machine.on_result(result(first, 20, 21, 22), 0.1)
    assert isinstance(machine.error, RemoteProtocolError)


def test_the_end_token_stops_and_frees_every_stage() -> None:
    machine = generation()
    [first] = tasks(started(machine))
    machine.on_result(result(first, END), 0.1)
    assert machine.finish_reason == "stop"
    assert freed(machine.take_sends()) == [node_id(1), node_id(2)]
    assert [emitted.token for emitted in machine.take_emitted()] == [END]


def test_the_end_token_is_one_like_any_other_when_it_is_ignored() -> None:
    machine = generation(ignore_eos=True)
    [first] = tasks(started(machine))
    machine.on_result(result(first, END), 0.1)
    assert not machine.is_done


@pytest.mark.parametrize(("max_tokens", "n_ctx", "expected"), [(2, 64, 2), (50, 8, 5)])
def test_length_ends_the_answer_whether_asked_or_by_the_context(max_tokens: int, n_ctx: int, expected: int) -> None:
    machine = generation(max_tokens=max_tokens)
    pending = tasks(started(machine, route(1, n_ctx=n_ctx)))
    while not machine.is_done:
        machine.on_result(result(pending[0], 20), 0.1)
        pending = tasks(machine.take_sends())
    assert (machine.finish_reason, machine.n_generated) == ("length", expected)


# -- failures --------------------------------------------------------------------------------------------------------------------


def answered(machine: Generation, *tokens: int) -> ExecuteTask:
    """Start, answer with these tokens, and return the step that is under way then."""
    pending = tasks(started(machine))
    for token in tokens:
        machine.on_result(result(pending[-1], token), 0.1)
        pending = tasks(machine.take_sends())
    return pending[-1]


def test_a_lost_node_needs_another_route_and_frees_the_old_one() -> None:
    machine = generation()
    answered(machine, 20, 21)
    machine.on_node_lost(node_id(2), 1.0)
    assert machine.wants_route
    assert machine.pause_s == 0
    assert set(freed(machine.take_sends())) == {node_id(1), node_id(2)}


def test_a_node_that_is_not_on_the_route_may_go() -> None:
    machine = generation()
    answered(machine, 20)
    machine.on_node_lost(node_id(9), 1.0)
    assert machine.need is Need.NOTHING


def test_a_replay_has_the_same_batches_as_the_first_time_and_a_sequence_of_its_own() -> None:
    machine = generation(range(10, 16))
    old = answered(machine, 20, 21, 22)
    machine.on_node_lost(node_id(2), 1.0)
    machine.take_sends()
    sends = started(machine, route(1, 3))
    replay = tasks(sends)
    assert [(task.position, task.n_tokens) for task in replay] == [(0, 4), (4, 2), (6, 1), (7, 1), (8, 1)]
    assert [task.samples for task in replay] == [False, False, False, False, True]
    assert [row for send in sends for row in rows(send)] == [10, 11, 12, 13, 14, 15, 20, 21, 22]
    assert {task.sequence_id for task in replay} == {machine.sequence_id} != {old.sequence_id}
    machine.on_result(result(replay[-1], 23), 2.0)
    assert [emitted.token for emitted in machine.take_emitted()] == [20, 21, 22, 23]


def test_answers_of_an_abandoned_attempt_change_nothing() -> None:
    machine = generation()
    old = answered(machine, 20)
    machine.on_node_lost(node_id(2), 1.0)
    started(machine, route(1, 3))
    machine.on_result(result(old, 99), 1.1)
    machine.on_failed(failed(old, EngineError("late")), 1.2)
    assert machine.n_generated == 1
    assert not machine.is_done


def test_an_engine_crash_is_repeated_on_the_same_route_after_a_pause() -> None:
    machine = generation()
    task = answered(machine, 20)
    machine.on_failed(failed(task, EngineCrashed("signal 9")), 1.0)
    assert machine.need is Need.PAUSE
    assert machine.pause_s > 0
    machine.resume(1.1)
    assert [one.position for one in tasks(machine.take_sends())] == [0, 3]


def test_a_request_that_crashes_every_engine_is_given_up() -> None:
    machine = generation()
    task = answered(machine, 20)
    for attempt in range(MAX_CRASHES):
        assert not machine.is_done, attempt
        machine.on_failed(failed(task, EngineCrashed("signal 9")), 1.0)
        machine.resume(1.0)
        task = (tasks(machine.take_sends()) or [task])[-1]
    assert isinstance(machine.error, EngineCrashed)


def test_a_gap_is_filled_from_what_the_stage_has() -> None:
    machine = generation(range(10, 20))
    pending = tasks(started(machine))
    machine.on_failed(failed(pending[2], SequenceGap("gap", have=4)), 1.0)
    machine.resume(1.1)
    again = tasks(machine.take_sends())
    assert [task.position for task in again] == [4, 8]
    assert again[0].sequence_id == pending[0].sequence_id


def test_a_busy_stage_is_asked_again_later_and_later() -> None:
    machine = generation()
    [task] = tasks(started(machine))
    pauses = []
    for _ in range(4):
        machine.on_failed(failed(task, Busy("full")), 1.0)
        pauses.append(machine.pause_s)
        machine.resume(1.0)
        [task] = tasks(machine.take_sends())
    assert pauses == sorted(pauses)
    assert pauses[-1] > pauses[0]


def test_what_cannot_be_mended_ends_the_request_with_that_error() -> None:
    machine = generation()
    task = answered(machine, 20)
    machine.on_failed(failed(task, EngineError("llama.cpp says no")), 1.0)
    assert str(machine.error) == "llama.cpp says no"
    assert freed(machine.take_sends())


def test_a_route_that_does_not_come_back_ends_the_request_with_the_cause() -> None:
    machine = generation()
    answered(machine, 20)
    machine.on_node_lost(node_id(1), 10.0)
    machine.on_time(39.0)
    assert not machine.is_done
    machine.on_time(41.0)
    assert "was lost" in str(machine.error)


def test_a_step_without_an_answer_is_overdue_at_its_deadline() -> None:
    machine = generation()
    answered(machine, 20)
    machine.on_time(119.0)
    assert machine.need is Need.NOTHING
    machine.on_time(121.0)
    assert machine.wants_route


def test_chunks_that_wait_for_those_before_them_are_not_overdue_as_long_as_those_come() -> None:
    machine = generation(prompt=list(range(1, 25)))
    chunks = tasks(started(machine))
    assert len(chunks) > 2
    assert [task.deadline_s for task in chunks] == [120.0 * (1 + before) for before in range(len(chunks))]
    for number, task in enumerate(chunks[:-1], 1):
        machine.on_time(100.0 * number)
        machine.on_result(result(task), 100.0 * number)
    assert machine.need is Need.NOTHING
    machine.on_time(100.0 * (len(chunks) - 1) + 121.0)
    assert machine.wants_route


def test_the_first_new_route_is_taken_at_once_and_the_next_after_a_pause() -> None:
    machine = generation()
    task = answered(machine, 20)
    pauses = []
    for _ in range(3):
        machine.on_failed(failed(task, PeerLost("gone")), 1.0)
        pauses.append(machine.pause_s)
        task = tasks(started(machine))[-1]
    assert pauses[0] == 0 < pauses[1] < pauses[2]


def test_a_stopped_request_frees_every_stage_and_emits_no_more() -> None:
    machine = generation()
    task = answered(machine, 20)
    machine.stop("cancelled")
    assert freed(machine.take_sends()) == [node_id(1), node_id(2)]
    machine.take_emitted()
    machine.on_result(result(task, 21), 1.0)
    assert machine.take_emitted() == []
    assert machine.take_sends() == []


# -- text ------------------------------------------------------------------------------------------------------------------------


def stream(pieces: Sequence[bytes], stops: Sequence[str] = ()) -> tuple[list[str], TextStream]:
    text = TextStream(lambda token: pieces[token], stops)
    shown = [text.push(token) for token in range(len(pieces))]
    return [*shown, text.flush()], text


def test_bytes_are_held_back_until_a_character_is_whole() -> None:
    shown, _ = stream(["ö".encode()[:1], "ö".encode()[1:], b"x"])
    assert shown == ["", "ö", "x", ""]


def test_a_character_that_never_becomes_whole_is_marked_at_the_end() -> None:
    assert "".join(stream([b"a", "ö".encode()[:1]])[0]) == "a\ufffd"


def test_a_stop_string_ends_the_text_before_it_even_across_tokens() -> None:
    shown, text = stream([b"one E", b"N", b"D two"], ["END"])
    assert "".join(shown) == "one "
    assert text.stopped


def test_what_only_looked_like_a_stop_string_is_shown() -> None:
    assert "".join(stream([b"E", b"N", b"x"], ["END"])[0]) == "ENx"


def test_of_several_stops_the_one_that_is_whole_first_counts() -> None:
    assert "".join(stream([b"a b c d"], ["c", "b"])[0]) == "a "
    assert "".join(stream([b"a b c d"], ["b c d", "c"])[0]) == "".join(stream([b"a b c", b" d"], ["b c d", "c"])[0])
