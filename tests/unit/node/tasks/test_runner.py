"""The path of a task through a node, with an engine and links that the test plays itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from shardnet.errors import EngineCrashed, PeerLost, ShardnetError, ShardNotFound, UnreachableError
from shardnet.ids import ShardKey
from shardnet.inference.engine.interface import Engine, OnRow, OnStep
from shardnet.inference.engine.protocol import BatchTime
from shardnet.inference.engine.steps import NO_TOKEN, READINGS, RowDone, Step, StepDone, parse_sampling
from shardnet.messages import (
    Address,
    AnyMessage,
    CommandFailed,
    ExecuteTask,
    Reading,
    RowsRead,
    Sampling,
    ShardOptions,
    StageRef,
)
from shardnet.node.tasks import leaving
from shardnet.node.tasks.legs import Flight
from shardnet.node.tasks.runner import TaskRunner
from shardnet.node.tasks.timings import ShardTimes, StepTimes
from shardnet.shards import Dtype, TensorSpec
from shardnet.steps import NextStep, StageTiming, TaskResult, pack_timing, unpack_timings
from shardnet.wire import Buffer, Frame

US, NEXT, LAST = "a" * 40, "b" * 40, "c" * 40
MODEL = "d" * 64
SEQUENCE = "5" * 16
TOKENS = TensorSpec(name="tokens", dtype=Dtype.INT32, shape=(1,))
HIDDEN = TensorSpec(name="hidden", dtype=Dtype.FLOAT32, shape=(1, 4))


class FakeEngine:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.steps: list[tuple[Step, Sequence[Buffer], OnStep]] = []
        self.forgotten: list[str] = []
        self.halted: list[str] = []
        self.rows: list[tuple[NextStep, Sequence[Buffer]]] = []
        self.on_row: dict[tuple[str, int], OnRow] = {}

    def step(self, step: Step, payloads: Sequence[Buffer], on_answer: OnStep, on_row: OnRow | None = None) -> None:
        self.steps.append((step, payloads, on_answer))
        assert (on_row is not None) == step.begins_run
        if on_row is not None:
            self.on_row[step.command_id, step.stage] = on_row

    def row(self, row: NextStep, payloads: Sequence[Buffer]) -> None:
        self.rows.append((row, payloads))

    def finish_row(
        self, number: int = 1, *, stage: int = 0, last: bool = False, went_on: bool = False, **more: Any
    ) -> None:
        """Tell what became of a row, of the oldest that it got or of one that another engine handed it."""
        row = self.rows.pop(0)[0] if self.rows else next_step(number, stage=stage)
        hidden = 0 if last or went_on else 4
        done = RowDone(
            row.command_id,
            row.stage,
            row.position + last,
            row.ahead,
            9 if last else 7,
            row.deadline_s,
            1.0,
            100.0,
            2.0,
            1,
            went_on,
            hidden,
            row.timings,
            memoryview(bytes(4 * hidden)),
        )
        self.on_row[row.command_id, row.stage](done._replace(**more))

    def halt(self, command_id: str) -> None:
        self.halted.append(command_id)

    def forget(self, sequence_id: str) -> None:
        self.forgotten.append(sequence_id)

    async def finish(self, *, last: bool = False, ahead: int = 0) -> None:
        """Answer the oldest step; with `ahead` it stays, as a run does."""
        step, payloads, on_answer = self.steps.pop(0)
        position = step.position + step.n_tokens
        if ahead:
            self.steps.insert(0, (step._replace(position=position), payloads, on_answer))
        done = StepDone(
            command_id=step.command_id,
            position=position,
            tokens=(9,) if last else (),
            ahead=ahead,
            queue_us=1,
            compute_us=100,
            batch_tokens=1,
            rows=0 if last else 1,
            n_embd=0 if last else 4,
        )
        on_answer(Frame(done, () if last else (memoryview(bytes(16)),)))

    async def fail(self, error: ShardnetError) -> None:
        self.steps.pop(0)[2](error)


@dataclass
class FakePeers:
    sent: list[tuple[str, AnyMessage, Sequence[Buffer]]] = field(default_factory=list)
    unreachable: bool = False

    def send(
        self,
        node_id: str,
        address: Address | None,
        message: AnyMessage,
        payloads: Sequence[Buffer],
        on_unreachable: Callable[[ShardnetError], None],
    ) -> None:
        if self.unreachable or address is None:
            on_unreachable(UnreachableError("no way"))
        else:
            self.sent.append((node_id, message, payloads))


class World:
    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.peers = FakePeers()
        self.told: list[AnyMessage] = []
        self.ready = True
        self.waiting: list[Flight] = []
        self.wanted_links: list[str] = []
        self.no_longer_waiting: list[int] = []
        engine: Engine = self.engine  # type: ignore[assignment]
        self.runner = TaskRunner(
            US,
            engine,
            self.peers,
            lambda message, _payloads: self.told.append(message),
            is_ready=lambda _model, _first, _end: self.ready,
            wait_for_shards=lambda flight, _stage: self.waiting.append(flight),
            forget_wait=self.no_longer_waiting.append,
            want_link=lambda stage: self.wanted_links.append(stage.node_id),
            max_tasks=3,
        )

    def accept(self, number: int = 1, **more: object) -> ExecuteTask:
        message = task(number, **more)
        self.runner.accept(message, (bytes(4),) if len(message.tensors) == 1 else (bytes(4), bytes(16)))
        return message

    def failure(self) -> CommandFailed:
        (message,) = self.told
        assert isinstance(message, CommandFailed)
        self.told.clear()
        return message


def stage(node_id: str, first: int, address: bool = True) -> StageRef:
    where = Address(host="127.0.0.1", port=7) if address else None
    return StageRef(node_id=node_id, address=where, first_shard=first, end_shard=first + 1)


def task(number: int = 1, **more: object) -> ExecuteTask:
    plain = ExecuteTask(
        tensors=(TOKENS,),
        command_id=f"{number:016x}",
        deadline_s=30,
        epoch=1,
        model_id=MODEL,
        sequence_id=SEQUENCE,
        position=number,
        n_tokens=1,
        route=(stage(US, 0), stage(NEXT, 1), stage(LAST, 2)),
        stage=0,
        samples=True,
        sampling=Sampling(),
    )
    return plain.model_copy(update=more)


@pytest.fixture
async def world() -> World:
    return World()


async def test_a_step_goes_straight_to_the_next_node_with_tokens_and_hidden_states(world: World) -> None:
    asked = world.accept()
    step = world.engine.steps[0][0]
    assert (step.first_shard, step.end_shard, step.position, step.sampling) == (0, 1, 1, b"")
    await world.engine.finish()
    ((node_id, onward, payloads),) = world.peers.sent
    assert node_id == NEXT
    assert isinstance(onward, ExecuteTask)
    assert (onward.stage, onward.command_id, onward.route) == (1, asked.command_id, asked.route)
    assert onward.tensors == (TOKENS, HIDDEN)
    assert [len(payload) for payload in payloads] == [4, 16]
    assert 0 < onward.deadline_s <= 30
    assert [(timing.queue_us, timing.compute_us) for timing in onward.timings] == [(1, 100)]
    assert not world.told
    assert world.runner.n_tasks == 0


async def test_the_last_stage_samples_and_answers_the_coordinator_alone(world: World) -> None:
    world.accept(route=(stage(NEXT, 0), stage(US, 1)), stage=1, tensors=(TOKENS, HIDDEN))
    assert parse_sampling(world.engine.steps[0][0].sampling) == Sampling()
    assert world.engine.steps[0][0].sampling
    assert len(world.engine.steps[0][1]) == 2
    await world.engine.finish(last=True)
    (result,) = world.told
    assert isinstance(result, TaskResult)
    assert (result.tokens, result.position, len(result.timings)) == ((9,), 2, 1)
    assert not world.peers.sent


async def test_what_the_engine_read_of_a_prompt_is_told_before_the_result_and_by_the_last_stage_alone(
    world: World,
) -> None:
    reading = Reading(kind="logprobs", top=3, next_token=5)
    world.accept(reading=reading, samples=False)
    assert (world.engine.steps[0][0].reads, world.engine.steps[0][0].next_token) == (0, NO_TOKEN)
    await world.engine.finish()
    onward = world.peers.sent[0][1]
    assert isinstance(onward, ExecuteTask)
    assert onward.reading == reading
    world.accept(2, route=(stage(NEXT, 0), stage(US, 1)), stage=1, tensors=(TOKENS, HIDDEN), reading=reading)
    step, _, on_answer = world.engine.steps.pop(0)
    assert (READINGS[step.reads], step.top, step.next_token) == ("logprobs", 3, 5)
    done = StepDone(step.command_id, step.position, n_read=1, read_width=4)
    on_answer(Frame(done, (memoryview(bytes(16)), memoryview(bytes(16)))))
    read, result = world.told
    assert isinstance(read, RowsRead)
    assert isinstance(result, TaskResult)
    assert [(spec.name, spec.shape) for spec in read.tensors] == [("tokens", (1, 4)), ("logprobs", (1, 4))]
    assert (read.position, read.command_id, result.payload_sizes) == (2, result.command_id, ())


async def test_two_stages_in_a_row_on_this_node_need_no_link(world: World) -> None:
    world.accept(route=(stage(US, 0), stage(US, 1)))
    await world.engine.finish()
    assert world.engine.steps[0][0].first_shard == 1
    await world.engine.finish(last=True)
    assert [type(message) for message in world.told] == [TaskResult]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"stage": 1}, "not this one"),
        ({"stage": 7}, "route of 3"),
        ({"epoch": 0}, "epoch 0"),
        ({"route": (StageRef(node_id=US, address=None, first_shard=3, end_shard=3),)}, "no shards"),
    ],
)
async def test_a_task_that_is_not_for_us_is_refused(world: World, more: dict[str, Any], words: str) -> None:
    world.runner.follow_epoch(1)
    world.accept(**more)
    assert words in world.failure().error.message
    assert not world.engine.steps


async def test_what_the_engine_refuses_is_told_with_the_commands_id(world: World) -> None:
    asked = world.accept()
    await world.engine.fail(EngineCrashed("it died"))
    failed = world.failure()
    assert (failed.command_id, failed.error.code) == (asked.command_id, "ENGINE_CRASHED")


async def test_a_node_that_cannot_be_reached_is_reached_through_the_coordinator(world: World) -> None:
    world.peers.unreachable = True
    world.accept()
    await world.engine.finish()
    (relayed,) = world.told
    assert isinstance(relayed, ExecuteTask)
    assert relayed.stage == 1
    # and so is the rest of the sequence, so that no step overtakes another
    world.peers.unreachable = False
    world.accept(2)
    await world.engine.finish()
    assert len(world.told) == 2
    assert not world.peers.sent


async def test_a_task_waits_for_its_shard_and_then_runs(world: World) -> None:
    world.ready = False
    world.accept(1)
    world.accept(2)
    assert not world.engine.steps
    for flight in world.waiting:
        world.runner.run(flight.ticket)
    assert [step.position for step, _, _ in world.engine.steps] == [1, 2]
    world.accept(3)
    world.runner.fail(world.waiting[-1].ticket, ShardNotFound("gone"))
    assert world.failure().error.code == "SHARD_NOT_FOUND"


async def test_a_repeated_step_is_simply_run_again(world: World) -> None:
    world.accept()
    await world.engine.finish()
    world.accept()
    await world.engine.finish()
    assert world.peers.sent[0][1].command_id == world.peers.sent[1][1].command_id  # type: ignore[union-attr]


async def test_too_many_tasks_are_refused_as_busy(world: World) -> None:
    for number in range(4):
        world.accept(number)
    assert world.failure().error.code == "BUSY"


async def test_a_cancelled_task_is_not_handed_on(world: World) -> None:
    running = world.accept(1)
    world.runner.cancel(running.command_id)
    await world.engine.finish()
    assert not world.peers.sent
    world.ready = False
    waiting = world.accept(2)
    world.runner.cancel(waiting.command_id)
    assert world.no_longer_waiting == [world.waiting[0].ticket]
    assert world.runner.n_tasks == 0
    assert not world.told


async def test_an_overdue_task_is_answered_once(world: World) -> None:
    world.accept(deadline_s=1e-9)
    await asyncio.sleep(0.001)
    world.runner.drop_overdue()
    assert world.failure().error.code == "DEADLINE"
    await world.engine.finish()
    assert not world.peers.sent
    assert not world.told


async def test_a_new_coordinator_frees_what_the_old_one_began(world: World) -> None:
    world.accept()
    world.runner.follow_epoch(2)
    assert world.engine.forgotten == [SEQUENCE]
    world.accept(2, epoch=1)
    assert "epoch" in world.failure().error.message


async def test_a_late_step_cannot_bring_a_freed_sequence_back(world: World) -> None:
    world.accept(1)
    world.runner.free(SEQUENCE)
    assert world.engine.forgotten == [SEQUENCE]
    world.accept(2)
    assert "freed" in world.failure().error.message
    await world.engine.finish()
    assert not world.peers.sent, "the step that was running is not wanted further on either"


async def test_a_broken_link_is_told_for_the_steps_that_may_be_lost(world: World) -> None:
    world.accept(1)
    await world.engine.finish()
    second = world.accept(2)  # the coordinator sends it when the first is answered
    await world.engine.finish()
    world.runner.peer_lost(LAST, PeerLost("broke"))
    assert not world.told
    world.runner.peer_lost(NEXT, PeerLost("broke"))
    failed = world.failure()
    assert (failed.command_id, failed.error.code) == (second.command_id, "PEER_LOST")
    world.runner.peer_lost(NEXT, PeerLost("broke"))
    assert not world.told


async def test_a_leaving_node_finishes_its_sequences_and_begins_none(world: World) -> None:
    world.accept(1)
    draining = asyncio.create_task(world.runner.drain())
    await asyncio.sleep(0)
    world.accept(2)  # of the same sequence
    world.accept(3, sequence_id="6" * 16)
    assert world.failure().error.code == "UNREACHABLE"
    await world.engine.finish()
    await world.engine.finish()
    assert not draining.done()
    world.runner.free(SEQUENCE)
    await draining


async def test_an_idle_node_leaves_at_once(world: World) -> None:
    await asyncio.wait_for(world.runner.drain(), 1)


def test_a_chains_time_is_shared_out_by_layers_and_by_rows() -> None:
    times = StepTimes()
    for compute_us, handover_us in ((90, 7.0), (100, 8.0), (500, 90.0)):
        times.add((MODEL, 0, 2), 1, compute_us, handover_us)
    times.add((MODEL, 0, 2), 8, 400, 1000.0)
    times.add((MODEL, 0, 2), 512, 8000)
    found = times.per_shard({(MODEL, 0): 1, (MODEL, 1): 3})  # type: ignore[dict-item]
    assert found == {
        (MODEL, 0): ShardTimes(25, ((8, 100), (512, 2000))),
        (MODEL, 1): ShardTimes(75, ((8, 300), (512, 6000))),
    }
    assert times.handover_us == 8.0, "of single rows alone: a batch waits for others"


def test_of_batches_of_rows_the_engines_word_counts() -> None:
    times, chain = StepTimes(), (MODEL, 0, 2)
    for rows, compute_us in ((1, 100), (4, 999), (512, 8000)):
        times.add(chain, rows, compute_us, 7.0)
    times.take(
        [BatchTime(chain=chain, rows=1, us=90, beside_us=10), BatchTime(chain=chain, rows=4, us=330, beside_us=30)]
    )
    assert times.per_shard({ShardKey((MODEL, 0)): 2}) == {(MODEL, 0): ShardTimes(80, ((4, 320), (512, 8000)))}
    assert times.handover_us == 10, "what a row costs beside computing is told apart"
    times.take([])
    assert times.handover_us == 7, "a new engine has told nothing yet"


# -- runs ------------------------------------------------------------------------------------------------------------------------


def next_step(number: int = 1, **more: Any) -> NextStep:
    return NextStep(f"{number:016x}", SEQUENCE, stage=0, position=5, ahead=3, deadline_s=30.0)._replace(**more)


async def test_one_node_with_the_whole_model_lets_its_engine_run_and_tells_each_result(world: World) -> None:
    world.accept(route=(stage(US, 0),), ahead=2)
    assert world.engine.steps[0][0].ahead == 2
    await world.engine.finish(last=True, ahead=2)
    for position, left in ((3, 1), (4, 0)):
        world.engine.finish_row(last=True, went_on=left > 0, ahead=left, position=position)
    assert [(result.ahead, result.position) for result in world.told if isinstance(result, TaskResult)] == [
        (2, 2),
        (1, 3),
        (0, 4),
    ]
    assert world.runner.n_tasks == 0
    assert not world.wanted_links


async def test_the_last_stage_sends_its_token_to_the_first_and_the_result_to_the_coordinator(world: World) -> None:
    world.accept(route=(stage(NEXT, 0), stage(US, 1)), stage=1, tensors=(TOKENS, HIDDEN), ahead=2)
    assert world.engine.steps[0][0].ahead == 0, "the engine has not the whole model"
    assert (world.engine.steps[0][0].source, world.engine.steps[0][0].onward) == (NEXT, NEXT)
    assert world.wanted_links == [NEXT]
    await world.engine.finish(last=True)
    ((node_id, following, payloads),) = world.peers.sent
    assert (node_id, payloads) == (NEXT, ((9).to_bytes(4, "little"),))
    assert following == NextStep(f"{1:016x}", SEQUENCE, stage=0, position=2, ahead=1, deadline_s=120.0)
    (result,) = world.told
    assert isinstance(result, TaskResult)
    assert (result.ahead, result.tokens) == (2, (9,))
    # the next round comes by, and is the last but one; then the last
    for ahead in (1, 0):
        world.told.clear()
        world.peers.sent.clear()
        world.runner.accept_next(
            next_step(stage=1, position=3 - ahead, ahead=ahead, n_embd=4), (bytes(4), memoryview(bytes(16))), NEXT
        )
        world.engine.finish_row(last=True)
        assert len(world.peers.sent) == ahead
        assert [result.ahead for result in world.told if isinstance(result, TaskResult)] == [ahead]
    assert world.runner.n_tasks == 0


async def test_what_the_engines_hand_over_is_not_sent_again_and_each_token_is_told(world: World) -> None:
    world.accept(route=(stage(NEXT, 0), stage(US, 1)), stage=1, tensors=(TOKENS, HIDDEN), ahead=3)
    await world.engine.finish(last=True)
    world.peers.sent.clear()
    world.told.clear()
    timing = pack_timing(StageTiming(1, 50, 2))
    for ahead in (2, 1, 0):
        world.engine.finish_row(stage=1, last=True, went_on=ahead > 0, ahead=ahead, timings=timing)
    results = [result for result in world.told if isinstance(result, TaskResult)]
    assert [(result.tokens, result.ahead) for result in results] == [((9,), 2), ((9,), 1), ((9,), 0)]
    assert [timing.compute_us for timing in results[0].timings] == [50, 100]
    assert not world.peers.sent
    assert world.runner.n_tasks == 0


async def test_a_stage_in_between_hears_of_the_end_of_a_run_that_passed_by(world: World) -> None:
    world.accept(ahead=4)
    await world.engine.finish()
    world.peers.sent.clear()
    world.engine.finish_row(went_on=True, ahead=2)
    assert world.runner.n_tasks == 1
    world.engine.finish_row(went_on=True, ahead=0)
    assert world.runner.n_tasks == 0
    assert not world.told
    assert not world.peers.sent


async def test_a_run_that_fails_in_the_engine_is_told_once(world: World) -> None:
    asked = world.accept(ahead=4)
    on_answer = world.engine.steps[0][2]
    await world.engine.finish()
    on_answer(PeerLost("the link to the next stage's engine broke"))
    assert world.failure().command_id == asked.command_id
    assert world.runner.n_tasks == 0
    world.runner.accept_next(next_step(), (bytes(4),))
    assert world.failure().error.code == "SEQUENCE_GAP"


async def test_a_new_command_of_the_sequence_ends_its_run(world: World) -> None:
    asked = world.accept(1, ahead=4)
    await world.engine.finish()
    world.accept(2)
    assert world.engine.halted == [asked.command_id]
    assert world.runner.n_tasks == 1


async def test_a_repeated_command_begins_its_run_anew(world: World) -> None:
    asked = world.accept(1, ahead=4)
    await world.engine.finish()
    world.accept(1, ahead=4)
    assert world.engine.halted == [asked.command_id]
    await world.engine.finish()
    assert world.runner.n_tasks == 1


async def test_a_step_from_a_node_that_has_no_part_in_the_run_is_not_taken(world: World) -> None:
    world.accept(ahead=4)
    await world.engine.finish()
    world.runner.accept_next(next_step(), (bytes(4),), NEXT)
    assert not world.engine.rows
    world.runner.accept_next(next_step(), (bytes(4),), LAST)
    assert len(world.engine.rows) == 1, "the last stage hands its token to the first"


async def test_results_with_more_than_a_token_go_through_the_daemons(world: World) -> None:
    world.accept(route=(stage(NEXT, 0), stage(US, 1)), stage=1, tensors=(TOKENS, HIDDEN), ahead=2, return_logits=True)
    await world.engine.finish(last=True)
    for ahead in (1, 0):
        world.runner.accept_next(next_step(stage=1, ahead=ahead, n_embd=4), (bytes(4), memoryview(bytes(16))), NEXT)
        assert world.engine.steps[0][0].sampling, "the run's own sampling"
        await world.engine.finish(last=True)
    assert [result.ahead for result in world.told if isinstance(result, TaskResult)] == [2, 1, 0]
    assert world.runner.n_tasks == 0
    assert not world.wanted_links


async def test_a_stage_in_between_passes_a_next_step_on_with_its_hidden_states(world: World) -> None:
    world.accept(ahead=4)
    await world.engine.finish()
    world.peers.sent.clear()
    world.runner.accept_next(next_step(), (bytes(4),))
    world.engine.finish_row()
    ((node_id, onward, payloads),) = world.peers.sent
    assert isinstance(onward, NextStep)
    assert (node_id, onward.stage, onward.n_embd, onward.ahead, onward.position) == (NEXT, 1, 4, 3, 5)
    assert [len(payload) for payload in payloads] == [4, 16]
    assert [timing.compute_us for timing in unpack_timings(onward.timings)] == [100]


async def test_a_next_step_of_a_run_that_is_not_known_is_a_gap(world: World) -> None:
    world.runner.accept_next(next_step(), (bytes(4),))
    assert world.failure().error.code == "SEQUENCE_GAP"
    world.accept(2)
    world.runner.accept_next(next_step(1), (bytes(4),))
    assert world.failure().error.code == "SEQUENCE_GAP", "of an earlier command: the coordinator began another since"


async def test_a_run_ends_when_its_context_is_full(world: World) -> None:
    options = ShardOptions(n_ctx=8)
    world.accept(7, route=(stage(NEXT, 0), stage(US, 1)), stage=1, tensors=(TOKENS, HIDDEN), ahead=9, options=options)
    await world.engine.finish(last=True)
    assert not world.peers.sent
    (result,) = world.told
    assert isinstance(result, TaskResult)
    assert (result.position, result.ahead) == (8, 0)


@pytest.mark.parametrize("why", ["cancel", "free", "no coordinator"])
async def test_a_run_ends_when_nobody_wants_it(world: World, why: str) -> None:
    asked = world.accept(route=(stage(NEXT, 0), stage(US, 1)), stage=1, tensors=(TOKENS, HIDDEN), ahead=9)
    if why == "cancel":
        world.runner.cancel(asked.command_id)
    elif why == "free":
        world.runner.free(SEQUENCE)
    else:
        world.runner.coordinator_lost()
    await world.engine.finish(last=True)
    assert not world.peers.sent
    assert world.runner.n_tasks == 0


@pytest.mark.parametrize("why", ["cancel", "no coordinator", "free"])
@pytest.mark.parametrize("logits", [False, True])
async def test_an_engines_run_is_halted_when_nobody_wants_it(world: World, why: str, logits: bool) -> None:
    asked = world.accept(route=(stage(US, 0),), ahead=9, return_logits=logits)
    await world.engine.finish(last=True, ahead=9)
    if why == "cancel":
        world.runner.cancel(asked.command_id)
    elif why == "free":
        world.runner.free(SEQUENCE)
    else:
        world.runner.coordinator_lost()
    assert world.engine.halted == [asked.command_id]
    await world.engine.finish(last=True)
    assert world.runner.n_tasks == 0


async def test_an_engines_overdue_run_of_steps_is_halted(world: World) -> None:
    asked = world.accept(route=(stage(US, 0),), ahead=9, ahead_deadline_s=1e-9, return_logits=True)
    await world.engine.finish(last=True, ahead=9)
    await asyncio.sleep(0.001)
    world.runner.drop_overdue()
    assert world.engine.halted == [asked.command_id]


async def test_a_task_whose_tensors_are_not_its_rows_is_refused(world: World) -> None:
    for tensors in ((), (HIDDEN,), (HIDDEN, TOKENS), (TOKENS, HIDDEN, HIDDEN)):
        world.accept(tensors=tensors)
        assert "as many rows" in world.failure().error.message


@pytest.mark.parametrize(
    ("more", "short"),
    [
        ({}, True),
        ({"ahead": 0}, False),
        ({"return_logits": True}, False),
        ({"sampling": Sampling(top_logprobs=1)}, False),
    ],
)
async def test_only_what_a_packet_can_carry_takes_the_engines_short_way(
    world: World, more: dict[str, Any], short: bool
) -> None:
    world.accept(**({"ahead": 3} | more))
    assert world.engine.steps[0][0].begins_run == short
    await world.engine.finish()
    world.runner.accept_next(next_step(), (bytes(4),))
    assert (len(world.engine.rows), len(world.engine.steps)) == ((1, 0) if short else (0, 1))


@pytest.mark.parametrize("route", [(stage(US, 0),), (stage(US, 0), stage(NEXT, 1))])
async def test_a_freed_sequences_task_that_waits_for_its_shard_never_runs(
    world: World, route: tuple[StageRef, ...]
) -> None:
    world.ready = False
    world.accept(route=route, ahead=5)
    (flight,) = world.waiting
    world.runner.free(SEQUENCE)
    world.runner.run(flight.ticket)
    assert not world.engine.steps
    assert world.no_longer_waiting == [flight.ticket]
    assert world.runner.n_tasks == 0


async def test_a_run_over_two_stages_of_one_node_is_known_after_prompt_chunks_overtook_each_other(world: World) -> None:
    route = (stage(US, 0), stage(NEXT, 1), stage(US, 2))
    last = {"stage": 2, "tensors": (TOKENS, HIDDEN), "ahead": 5, "route": route}
    for number, more in ((1, {"route": route}), (2, {"route": route, "ahead": 5}), (1, last | {"ahead": 0}), (2, last)):
        world.accept(number, **more)
        await world.engine.finish()
    world.told.clear()
    world.runner.accept_next(next_step(2, stage=0, n_embd=0), (bytes(4),))
    assert not world.told
    assert world.engine.rows[0][0].stage == 0


@pytest.mark.parametrize("bad", [(float("nan"), 0.0, 0.0, 1), (0.0, -1.0, 0.0, 1), (0.0, 0.0, float("inf"), 1)])
def test_an_earlier_stages_impossible_times_are_not_passed_on(bad: tuple[float, float, float, int]) -> None:
    assert unpack_timings(pack_timing(StageTiming(*bad))) == ()


async def test_a_run_whose_first_answer_was_under_way_when_the_coordinator_went_is_over(world: World) -> None:
    world.accept(route=(stage(US, 0),), ahead=9)
    world.runner.coordinator_lost()
    await world.engine.finish(last=True, ahead=9)
    assert world.runner.n_tasks == 0
    assert not world.told


async def test_what_a_lost_coordinator_began_leaves_no_kv_behind(world: World) -> None:
    """It gives up its sequences when it loses a node, also if that was for a moment only: nobody would free them after."""
    world.accept()
    await world.engine.finish()
    world.accept(2, sequence_id="cd" * 8)
    world.runner.coordinator_lost()
    await world.engine.finish()
    assert (world.runner.n_sequences, world.runner.n_tasks) == (0, 0)
    assert world.engine.forgotten == [SEQUENCE, "cd" * 8]


async def test_a_leaving_node_waits_for_a_run_however_long_its_rows_take(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaving, "QUIET_S", 0.0)
    world.accept(ahead=4)
    await world.engine.finish()
    draining = asyncio.create_task(world.runner.drain())
    assert not (await asyncio.wait([draining], timeout=0.05))[0]
    world.engine.finish_row(went_on=True, ahead=0)
    await asyncio.wait_for(draining, 10)


async def test_a_run_does_not_hold_on_to_its_prompts_hidden_states(world: World) -> None:
    world.accept(route=(stage(NEXT, 0), stage(US, 1)), stage=1, tensors=(TOKENS, HIDDEN), ahead=2)
    (run,) = world.runner._flights.values()
    await world.engine.finish(last=True)
    assert world.runner.n_tasks == 1
    assert not run.payloads
