"""One request's way to its answer: what to do with each step's answer, and after an error whether, when and how to go on. Sans-I/O.

The machine deals in tokens alone. Its owner sends what `take_sends` gives, feeds answers in, and acts on `need`: a new route, or a pause. It goes
along one route at a time, by an `Attempt`, which knows the steps; each step goes out in the very call that took the last token in.

A replay from the start uses a fresh sequence id: a step of the abandoned attempt that is still under way somewhere can then never touch the
new one's KV. With `keeps`, the sequence of an answer that came to its end is not freed but handed to the owner as `kept`; what
still runs on the stages is cancelled. `start` can take such a sequence over: it keeps its id, and its first step drops what does not belong to it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from enum import Enum
from functools import partial

from shardnet.coordinator.placement.planning import Route
from shardnet.coordinator.requests.attempt import MOST_UNDER_WAY, Attempt, Send
from shardnet.coordinator.requests.generation_spec import Emitted, GenerationSpec
from shardnet.coordinator.requests.prefixes import Kept
from shardnet.coordinator.requests.reading import PromptRead
from shardnet.coordinator.requests.setbacks import Setbacks
from shardnet.coordinator.requests.speculation import Speculator
from shardnet.errors import (
    Busy,
    DeadlineExceeded,
    EngineCrashed,
    RemoteProtocolError,
    SequenceGap,
    ShardnetError,
    ShardNotFound,
    UnreachableError,
)
from shardnet.ids import new_id
from shardnet.messages import CommandFailed, ExecuteTask, RowsRead
from shardnet.steps import StageTiming, TaskResult, row_tensors
from shardnet.wire import Frame


class Need(Enum):
    """What the machine waits for, other than answers."""

    NOTHING = "nothing"
    ROUTE = "route"
    PAUSE = "pause"
    BEGINNING = "beginning"
    """Another request computes what the prompt begins with."""


class Generation:
    """The request machine. Every method is synchronous; time is the argument `at_s`, seconds of one clock.

    Args:
        keeps: the sequence is handed over at the end, not freed.
        chunk: tells how many tokens of this prompt are to go at a time along a route, now; None: as many as a stage takes.
    """

    def __init__(
        self,
        spec: GenerationSpec,
        *,
        make_id: Callable[[], str] = new_id,
        speculator: Speculator | None = None,
        keeps: bool = False,
        chunk: Callable[[Generation, Route], int] | None = None,
    ) -> None:
        self.spec = spec
        self.keeps = keeps
        self.kept: Kept | None = None
        self.was_refused = False  # a stage did not begin with the sequence taken over, or with the copy of one
        self.is_copy = False  # it began with the copy of a sequence
        self.refused_copy = False  # of what was refused: that it was a copy
        self.is_awaited = False  # others wait for what it computes of its prompt
        self.speculator = speculator
        self.prompt = array("i", spec.prompt)
        self.tokens = self.prompt[:]
        self.emitted: list[Emitted] = []
        self.finish_reason: str | None = None
        self.error: ShardnetError | None = None
        self.need = Need.ROUTE
        self.pause_s = 0.0
        self.attempts = 0
        self.timings: list[list[StageTiming]] = []  # of each stage, decode steps only
        self.read = None if spec.reading is None else PromptRead(spec.reading, spec.prompt)
        self._make_id = make_id
        self._chunk = chunk
        self._sends: list[Send] = []
        self._attempt: Attempt | None = None
        self._setbacks = Setbacks(spec.recovery_timeout_s)
        self._resume_from = 0
        self._most_under_way = MOST_UNDER_WAY

    # -- what the owner does -------------------------------------------------------------------------------------------------

    @property
    def is_done(self) -> bool:
        """True once nothing more will be emitted."""
        return self.finish_reason is not None or self.error is not None

    @property
    def wants_route(self) -> bool:
        """True while it cannot go on without another route."""
        return self.need is Need.ROUTE and not self.is_done

    @property
    def route(self) -> Route | None:
        """Returns: the stages that it ran on last."""
        return self._attempt.route if self._attempt is not None else None

    @property
    def last_error(self) -> ShardnetError:
        """Returns: what went wrong last."""
        return self._setbacks.last_error

    @property
    def nodes(self) -> tuple[str, ...]:
        """Returns: those of its route, while it needs them."""
        return () if self.is_done or self._attempt is None else self._attempt.route.node_ids

    @property
    def sequence_id(self) -> str:
        """Returns: the sequence that is its own on every stage now; empty if there is none."""
        return self._attempt.sequence_id if self._attempt is not None else ""

    @property
    def n_reused(self) -> int:
        """Returns: prompt tokens that a sequence taken over had already."""
        return self._attempt.n_reused if self._attempt is not None else 0

    @property
    def n_ready(self) -> int:
        """Returns: prompt tokens whose KV is on every stage of its route; 0 where that is not known."""
        return self._attempt.n_ready if self._attempt is not None and not self.is_done else 0

    @property
    def n_cold(self) -> int:
        """Returns: prompt tokens that have, or will have, the numbers of a cold start."""
        return self._attempt.n_cold if self._attempt is not None else 0

    @property
    def n_unsent(self) -> int:
        """Returns: prompt tokens that are still to be handed to its route; 0 without one."""
        return self._attempt.n_unsent if self._attempt is not None else 0

    def prompt_rows(self, command_id: str) -> int:
        """Returns: rows of a step of the prompt whose answer is still to come; 0 for any other."""
        return 0 if self._attempt is None else self._attempt.prompt_rows(command_id)

    @property
    def begins_anew(self) -> bool:
        """True if after its pause it begins from the first token."""
        return self.need is Need.PAUSE and self._resume_from == 0 and not self.is_done

    @property
    def n_generated(self) -> int:
        """Returns: tokens of the answer so far."""
        return len(self.tokens) - len(self.spec.prompt)

    def take_sends(self) -> list[Send]:
        """Returns: the messages to send now, in order."""
        sends, self._sends = self._sends, []
        return sends

    def take_emitted(self) -> list[Emitted]:
        """Returns: tokens emitted since the last call."""
        emitted, self.emitted = self.emitted, []
        return emitted

    def owns(self, command_id: str) -> bool:
        """True if an answer with this id is still wanted."""
        return self._attempt is not None and self._attempt.owns(command_id)

    def wait_for_beginning(self) -> None:
        """Do nothing until `start`: another request computes what the prompt begins with."""
        self._abandon()
        self._setbacks.waits()
        self.need = Need.BEGINNING

    def start(
        self,
        route: Route,
        at_s: float,
        kept: tuple[Kept, int] | None = None,
        copied: tuple[str, int, int] | None = None,
    ) -> None:
        """Begin, or begin again, on a route: from the first token, with a sequence of its own.

        Args:
            kept: a sequence of that route to take over, and how many tokens of the prompt it has; fewer than all.
            copied: another sequence to copy the beginning from, how many tokens of the prompt, and how many of it have a cold start's numbers.
        """
        self._abandon()
        if self.read is not None:
            self.read.restart()
        spec, n_prompt = self.spec, len(self.spec.prompt)
        if kept is not None:
            sequence_id, n_reused, n_cold = kept[0].sequence_id, kept[1], kept[0].n_cold
        else:
            sequence_id, n_reused, n_cold = self._make_id(), 0, 0
        copy_from = None
        if copied is not None:
            copy_from, n_reused, n_cold = copied
        self.is_copy = copied is not None
        self.attempts += 1
        self.need = Need.NOTHING
        if len(self.timings) != len(route.stages):
            self.timings = [[] for _ in route.stages]
        template = ExecuteTask(
            command_id="0" * 16,
            deadline_s=spec.step_deadline_s,
            epoch=spec.epoch,
            model_id=spec.model_id,
            sequence_id=sequence_id,
            position=0,
            n_tokens=1,
            route=route.stages,
            stage=0,
            options=route.options,
            tensors=row_tensors(1, 0),
            samples=True,
            ahead_deadline_s=spec.step_deadline_s,
            copy_from=copy_from,
            sampling=spec.sampling.model_copy(update={"prompt_tokens": n_prompt}),
        )
        self._attempt = Attempt(
            template,
            route,
            self.tokens,
            n_prompt=n_prompt,
            n_reused=n_reused,
            limit=min(spec.max_tokens, route.options.n_ctx - n_prompt),
            is_end=self._ends,
            speculator=self.speculator,
            chunk=None if self._chunk is None else partial(self._chunk, self, route),
            make_id=self._make_id,
            read=self.read,
            most_under_way=self._most_under_way,
            n_cold=n_cold,
        )
        self._sends += self._attempt.next_steps(at_s)

    def resume(self, at_s: float) -> None:
        """The pause is over: go on along the same route."""
        if self.need is not Need.PAUSE or self._attempt is None:
            return
        self.need = Need.NOTHING
        if self._resume_from == 0:
            self.start(self._attempt.route, at_s)
        else:
            self._attempt.rewind(self._resume_from)
            self._sends += self._attempt.next_steps(at_s)

    def stop(self, reason: str = "stop") -> None:
        """End the answer here, and free every stage, or have its sequence kept."""
        if not self.is_done:
            self.finish_reason = reason
            attempt = self._attempt
            is_left = reason == "cancelled"
            has_some = attempt is not None and (attempt.n_settled or (attempt.n_ready and self.read is None))
            if self.keeps and attempt is not None and has_some and (not is_left or self.is_awaited):
                self.kept, self._sends = attempt.hand_over()
            else:
                self._abandon()

    def fail(self, error: ShardnetError) -> None:
        """Give up, and free every stage."""
        if not self.is_done:
            self.error = error
            self._abandon()

    # -- answers -------------------------------------------------------------------------------------------------------------

    def on_result(self, result: TaskResult, at_s: float) -> None:
        """The last stage answered a step."""
        attempt = self._attempt
        sent_at_s = attempt.answered(result.command_id) if attempt is not None else None
        if attempt is None or sent_at_s is None or self.is_done:
            return
        if result.ahead and not result.tokens:
            self.fail(RemoteProtocolError("a stage goes on with a run, and has nothing to go on with"))
            return
        if len(result.tokens) > 1:
            self.fail(RemoteProtocolError(f"a stage sampled {len(result.tokens)} tokens in a step that asked for one"))
            return
        if result.tokens and result.position != len(self.tokens):
            self.fail(
                RemoteProtocolError(f"a stage sampled position {result.position}, where {len(self.tokens)} was next")
            )
            return
        if result.tokens and not self._has_read():
            return
        attempt.take_answer(result, sent_at_s, at_s)
        if result.ahead:
            attempt.goes_on(result.command_id, at_s)
        for token in result.tokens:
            attempt.settle()
            self.tokens.append(token)
            self.emitted.append(Emitted(token, result.logprobs[0] if result.logprobs else ()))
            if self._ends(token):
                self.stop("stop")
                return
            if self.n_generated >= attempt.limit:
                self.stop("length")
                return
        self._setbacks.step_answered(has_token=bool(result.tokens))
        if result.ahead:
            attempt.catch_up()
            self._sends += attempt.leave_run(at_s)
        else:
            self._sends += attempt.next_steps(at_s)
            if not attempt.n_under_way:
                if not attempt.limit:
                    if self._has_read():
                        self.stop("length")
                    return
                self.fail(RemoteProtocolError("a stage sampled nothing in a step that asked for a token"))
                return
        if self.n_generated > 1:
            for timings, timing in zip(self.timings, result.timings, strict=False):
                timings.append(timing)

    def on_read(self, command_id: str, frame: Frame[RowsRead]) -> None:
        """A last stage told what it read of a step's rows."""
        if self.read is None or self.read.is_complete or self.is_done or not self.owns(command_id):
            return
        try:
            self.read.take(frame)
        except RemoteProtocolError as error:
            self.fail(error)

    def _has_read(self) -> bool:
        """The whole prompt was run. Returns: False if that ended the request: a stage did not tell what it read of it."""
        try:
            if self.read is not None and not self.read.is_complete:
                self.read.finish()
        except RemoteProtocolError as error:
            self.fail(error)
        return self.error is None

    def on_failed(self, failed: CommandFailed, at_s: float) -> None:
        """A stage could not do a step."""
        if self._attempt is not None and self._attempt.answered(failed.command_id) is not None and not self.is_done:
            self.on_error(failed.error.to_error(), at_s)

    def on_node_lost(self, node_id: str, at_s: float) -> None:
        """A node is gone. If it is on the route, another one is needed."""
        if self.route is not None and not self.is_done and node_id in self.route.node_ids:
            self.on_error(UnreachableError(f"node {node_id[:12]} was lost in the middle of the answer"), at_s)

    def on_time(self, at_s: float) -> None:
        """The clock moved: a step without an answer is overdue at its deadline, and so is a route that does not come."""
        if self.is_done:
            return
        if self._setbacks.lasts_too_long(at_s):
            self.fail(self._setbacks.last_error)
            return
        oldest_s = self._attempt.oldest_s() if self._attempt is not None else None
        if oldest_s is not None and at_s - oldest_s > self.spec.step_deadline_s:
            self.on_error(DeadlineExceeded(f"a step had no answer for {self.spec.step_deadline_s:.0f} s"), at_s)

    def on_error(self, error: ShardnetError, at_s: float) -> None:
        """Decide whether and how to go on after an error of the attempt in progress."""
        self._setbacks.note(error, at_s)
        self._resume_from = 0
        n_under_way = 0 if self._attempt is None else self._attempt.n_under_way
        rejected = self._attempt is not None and self._attempt.interrupt()
        has_begun = self._attempt is not None and self._attempt.has_answers
        match error:
            case SequenceGap() if self.n_reused and not has_begun and self.route is not None:
                self.was_refused, self.refused_copy = True, self.is_copy
                self._setbacks.excuse()
                self.attempts -= 1  # nobody need know of a shorter way that was none
                self.start(self.route, at_s)
            case SequenceGap():
                if rejected and self.speculator is not None:
                    self.speculator.model.rewindable = False  # its state cannot be taken back
                have = error.facts.get("have") if self.read is None or self.read.is_complete else 0
                self._resume_from = have if isinstance(have, int) and 0 < have < len(self.tokens) else 0
                self._wait_for(Need.PAUSE)
            case EngineCrashed() if self._setbacks.crashes_too_often:
                self.fail(error)
            case Busy():
                self._most_under_way = max(
                    1, min(self._most_under_way, n_under_way) // 2
                )  # it may be ours that are too many
                self._wait_for(Need.PAUSE)
            case EngineCrashed():
                self._wait_for(Need.PAUSE)
            case UnreachableError() | DeadlineExceeded() | ShardNotFound():
                self._abandon()
                self._wait_for(Need.ROUTE)
            case _:
                self.fail(error)

    # -- inside --------------------------------------------------------------------------------------------------------------

    def _wait_for(self, need: Need) -> None:
        self.need = need
        self.pause_s = self._setbacks.pause_s(is_rerouted=need is Need.ROUTE)

    def _ends(self, token: int) -> bool:
        return not self.spec.ignore_eos and self.spec.is_end(token)

    def _abandon(self) -> None:
        """Nothing that is under way is wanted; free the sequence on every stage."""
        self._sends = self._attempt.abandon() if self._attempt is not None else []
