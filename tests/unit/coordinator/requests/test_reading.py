"""What a request wants of its prompt's own rows: which step tells what, and what happens where it is not told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shardnet.coordinator.requests.attempt import Send
from shardnet.coordinator.requests.generation_spec import GenerationSpec, answer_limit
from shardnet.coordinator.requests.pipeline import Generation, Need
from shardnet.coordinator.requests.reading import Kind, PromptRead, PromptReading
from shardnet.errors import ContextExceeded, EngineCrashed, RemoteProtocolError, SequenceGap
from shardnet.messages import CommandFailed, ErrorInfo, ExecuteTask, RowsRead, Sampling
from shardnet.shards import Dtype, TensorSpec
from shardnet.steps import TaskResult, TokenLogprob
from shardnet.wire import Frame
from tests.support.coordinator_world import MODEL_ID, node_id, route

PROMPT = list(range(10, 20))
"""In chunks of four, as `route` takes them: 4, 4, 2."""


def generation(kind: Kind, *, top: int = 0, max_tokens: int = 0, prompt: Sequence[int] = PROMPT) -> Generation:
    ids = iter(f"{number:016x}" for number in range(1, 10_000))
    reading = PromptReading(kind, top)
    spec = GenerationSpec(MODEL_ID, prompt, Sampling(), max_tokens, lambda token: token == 2, reading=reading)
    machine = Generation(spec, make_id=lambda: next(ids), keeps=True)
    machine.start(route(1, 2), 0.0)
    return machine


def tasks(sends: list[Send]) -> list[ExecuteTask]:
    return [send.message for send in sends if isinstance(send.message, ExecuteTask)]


def frame(task: ExecuteTask, **tensors: NDArray[Any]) -> Frame[RowsRead]:
    specs = tuple(
        TensorSpec(name=name, dtype=Dtype.INT32 if data.dtype == np.int32 else Dtype.FLOAT32, shape=data.shape)
        for name, data in tensors.items()
    )
    message = RowsRead(command_id=task.command_id, sequence_id=task.sequence_id, position=task.position, tensors=specs)
    return Frame(message, tuple(memoryview(data.tobytes()) for data in tensors.values()))


def pooled(task: ExecuteTask, *numbers: float) -> Frame[RowsRead]:
    return frame(task, pooled=np.array([numbers], dtype=np.float32))


def told(task: ExecuteTask, prompt: Sequence[int] = PROMPT) -> Frame[RowsRead]:
    """What an honest stage tells of log-probabilities: of the token that follows, and of token 5."""
    assert task.reading is not None
    end = task.position + task.n_tokens
    following = [*prompt[task.position + 1 : end], *([task.reading.next_token] if task.reading.next_token else [])]
    tokens = np.array([[token, 5] for token in following], dtype=np.int32)
    return frame(task, tokens=tokens, logprobs=-0.5 * np.ones(tokens.shape, dtype=np.float32))


def done(machine: Generation, task: ExecuteTask, *tokens: int) -> None:
    position = task.position + (task.n_tokens if tokens else 0)
    machine.on_result(TaskResult(task.command_id, task.sequence_id, position, tokens), 1.0)


# -- which step tells what -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mean", ["sum", "sum", "sum"]),
        ("cls", ["first", None, None]),
        ("last", [None, None, "last"]),
        ("logprobs", ["logprobs", "logprobs", "logprobs"]),
    ],
)
def test_each_step_is_asked_for_what_its_own_rows_can_tell(kind: Kind, expected: list[str | None]) -> None:
    steps = tasks(generation(kind, top=3).take_sends())
    assert [task.n_tokens for task in steps] == [4, 4, 2]
    assert [task.reading.kind if task.reading else None for task in steps] == expected
    assert not any(task.samples or task.ahead or task.sampling for task in steps)
    for task in steps:
        ExecuteTask.model_validate_json(
            task.model_dump_json()
        )  # what was put together without checks is a valid message


def test_a_step_is_told_the_token_behind_it_and_the_last_one_that_there_is_none() -> None:
    steps = tasks(generation("logprobs", top=3).take_sends())
    assert [(task.reading.top, task.reading.next_token) for task in steps if task.reading] == [
        (3, 14),
        (3, 18),
        (3, None),
    ]
    [single] = tasks(generation("logprobs", prompt=[10]).take_sends())
    assert single.reading is None


def test_nothing_is_read_where_nobody_asks() -> None:
    spec = GenerationSpec(MODEL_ID, PROMPT, Sampling(), 3, lambda _token: False)
    machine = Generation(spec)
    machine.start(route(1, 2), 0.0)
    assert [task.reading for task in tasks(machine.take_sends())] == [None] * 3


# -- what comes of it ------------------------------------------------------------------------------------------------------------------


def test_a_mean_is_the_sums_of_all_steps_over_all_tokens_and_its_end_frees_the_stages() -> None:
    machine = generation("mean")
    for task, number in zip(tasks(machine.take_sends()), (1.0, 2.0, 7.0), strict=True):
        machine.on_read(task.command_id, pooled(task, number, 10.0))
        done(machine, task)
    assert (machine.finish_reason, machine.error, machine.n_generated) == ("length", None, 0)
    assert machine.read is not None
    assert machine.read.pooled.tolist() == [1.0, 3.0]
    assert machine.kept is None
    assert [send.message.type for send in machine.take_sends()] == ["FREE_SEQUENCE"] * 2


def test_logprobs_come_before_the_first_token_and_the_answer_goes_on() -> None:
    machine = generation("logprobs", top=1, max_tokens=2)
    steps = tasks(machine.take_sends())
    for task in steps[:2]:
        machine.on_read(task.command_id, told(task))
        done(machine, task)
    machine.on_read(steps[2].command_id, told(steps[2]))
    done(machine, steps[2], 7)
    assert machine.read is not None
    assert machine.read.is_complete
    assert [one[0] for one in machine.read.logprobs] == [TokenLogprob(token, -0.5) for token in PROMPT[1:]]
    assert all(len(one) == 2 for one in machine.read.logprobs)
    [after] = tasks(machine.take_sends())
    assert after.reading is None
    assert [one.token for one in machine.emitted] == [7]


def test_a_prompt_that_was_not_read_whole_is_read_anew_and_one_that_was_is_not() -> None:
    machine = generation("logprobs", top=1, max_tokens=4)
    first = tasks(machine.take_sends())
    machine.on_read(first[0].command_id, told(first[0]))
    done(machine, first[0])
    machine.on_node_lost(node_id(2), 2.0)
    assert machine.need is Need.ROUTE
    machine.start(route(1, 3), 3.0)
    machine.on_read(first[1].command_id, told(first[1]))  # of the abandoned attempt: nobody wants it
    second = tasks(machine.take_sends())
    assert [task.reading is not None for task in second] == [True] * 3
    for task in second:
        machine.on_read(task.command_id, told(task))
        done(machine, task, *([7] if task.samples else []))
    machine.on_node_lost(node_id(3), 4.0)
    machine.start(route(1, 2), 5.0)
    third = tasks(machine.take_sends())
    assert [task.reading for task in third] == [None] * len(third)
    assert machine.read is not None
    assert len(machine.read.logprobs) == len(PROMPT) - 1


def test_a_gap_in_the_middle_of_reading_is_no_place_to_go_on_from() -> None:
    machine = generation("mean")
    [first, *_] = tasks(machine.take_sends())
    machine.on_read(first.command_id, pooled(first, 1.0))
    done(machine, first)
    gap = SequenceGap("gap", have=4)
    machine.take_sends()
    machine.on_error(gap, 2.0)
    machine.resume(3.0)
    again = tasks(machine.take_sends())
    assert again[0].position == 0
    assert again[0].sequence_id != first.sequence_id
    for task in again:
        machine.on_read(task.command_id, pooled(task, 10.0))
        done(machine, task)
    assert machine.read is not None
    assert machine.read.pooled.tolist() == [3.0]


def test_engines_that_crash_again_and_again_end_it() -> None:
    machine = generation("last")
    for second in range(10):
        machine.take_sends()
        machine.on_error(EngineCrashed("gone"), float(second))
        machine.resume(second + 0.5)
    assert isinstance(machine.error, EngineCrashed)


# -- what a stage may not tell -----------------------------------------------------------------------------------------------------


def test_a_step_that_ends_without_telling_ends_the_request() -> None:
    for kind, max_tokens in (("last", 0), ("mean", 0), ("logprobs", 0), ("logprobs", 3)):
        machine = generation(kind, max_tokens=max_tokens)  # type: ignore[arg-type]
        for task in tasks(machine.take_sends()):
            done(machine, task, *([7] if task.samples else []))
        assert isinstance(machine.error, RemoteProtocolError)
        assert "did not tell" in str(machine.error)
        assert machine.n_generated == 0


@pytest.mark.parametrize(
    "change",
    [
        {"pooled": np.array([[1.0]], dtype=np.float32)},
        {"tokens": np.array([[11, 5]], dtype=np.int32)},
        {},
        {"tokens": np.array([[12, 5]], dtype=np.int32), "logprobs": np.zeros((1, 2), dtype=np.float32)},
        {"tokens": np.array([[11]], dtype=np.int32), "logprobs": np.zeros((1, 1), dtype=np.float32)},
        {"tokens": np.array([[11, -2]], dtype=np.int32), "logprobs": np.zeros((1, 2), dtype=np.float32)},
        {"tokens": np.array([[11, 5]], dtype=np.int32), "logprobs": np.zeros((2, 2), dtype=np.float32)},
        {"tokens": np.array([[11, 5]], dtype=np.int32), "logprobs": np.array([[np.nan, 0]], dtype=np.float32)},
        {"tokens": np.array([[11, 5]], dtype=np.float32), "logprobs": np.zeros((1, 2), dtype=np.float32)},
        {"tokens": np.array([11, 5], dtype=np.int32), "logprobs": np.zeros(2, dtype=np.float32)},
    ],
    ids=range(10),
)
def test_other_logprobs_than_the_prompts_end_the_request(change: dict[str, NDArray[Any]]) -> None:
    machine = generation("logprobs", top=1)
    [task, *_] = tasks(machine.take_sends())
    machine.on_read(task.command_id, frame(task, **change))
    assert isinstance(machine.error, RemoteProtocolError)


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("last", [(1, 4), (1, 4)]),
        ("mean", [(1, 4), (1, 5)]),
        ("last", [(2, 4)]),
        ("last", [(4,)]),
    ],
)
def test_other_hidden_states_than_the_one_that_is_wanted_are_refused(kind: Kind, shapes: list[tuple[int, ...]]) -> None:
    read = PromptRead(PromptReading(kind), PROMPT)
    for shape in shapes[:-1]:
        read.take_pooled(np.ones(shape, dtype=np.float32))
    with pytest.raises(RemoteProtocolError):
        read.take_pooled(np.ones(shapes[-1], dtype=np.float32))
    with pytest.raises(RemoteProtocolError, match="not numbers"):
        PromptRead(PromptReading(kind), PROMPT).take_pooled(np.full((1, 4), np.inf, dtype=np.float32))


def test_places_without_a_token_are_left_out() -> None:
    read = PromptRead(PromptReading("logprobs", 2), [10, 11])
    tokens, logprobs = np.array([[11, 5, -1]], dtype=np.int32), np.array([[-1, -2, 0]], dtype=np.float32)
    read.take_logprobs(tokens, logprobs)
    assert read.logprobs == [(TokenLogprob(11, -1.0), TokenLogprob(5, -2.0))]


def test_a_prompt_alone_may_fill_the_context() -> None:
    assert answer_limit(64, 64, 0) == 0
    with pytest.raises(ContextExceeded):
        answer_limit(65, 64, 0)
    with pytest.raises(ContextExceeded):
        answer_limit(64, 64, 1)


def test_failures_of_a_stage_are_those_of_any_other_step() -> None:
    machine = generation("last")
    [task, *_] = tasks(machine.take_sends())
    error = ErrorInfo.of(EngineCrashed("gone"))
    machine.on_failed(CommandFailed(command_id=task.command_id, error=error), 1.0)
    assert machine.need is Need.PAUSE
