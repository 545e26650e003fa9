"""One request's way through the stages: which EXECUTE_TASK to send next, what to do with each answer, when to begin again. Sans-I/O.

The machine deals in tokens alone. Its owner sends what `take_sends` gives, feeds answers in, and acts on `needs`: a new route, or a pause.
Prompt chunks go ahead of their answers. The last chunk, and each decode step, offers the stages to go on by themselves until the answer is long
enough (`ExecuteTask.ahead`); where they do not, the next step goes out in the very call that took the last token in. With speculation each step is
our own: it may propose more tokens than the one it brings, and the last stage says how many of them it would have sampled itself.

A replay from the start uses a fresh sequence id: a step of the abandoned attempt that is still under way somewhere can then never touch the
new one's KV. With `keeps`, the sequence of an answer that came to its end is not freed but handed to the owner as `kept`; what
still runs on the stages is cancelled. `start` can take such a sequence over: it keeps its id, and its first step drops what does not belong to it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from shardnet.coordinator.planning import Route
from shardnet.coordinator.prefixes import Kept
from shardnet.coordinator.speculation import Speculator
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
from shardnet.messages import (
    CancelTask,
    CommandFailed,
    ExecuteTask,
    FreeSequence,
    Sampling,
)
from shardnet.steps import StageTiming, TaskResult, TokenLogprob, row_tensors

FIRST_PAUSE_S, MOST_PAUSE_S = 0.05, 2.0
MAX_CRASHES = 3
"""A request whose every attempt takes the engine down is given up rather than repeated for ever."""


class Need(Enum):
    """What the machine waits for, other than answers."""

    NOTHING = "nothing"
    ROUTE = "route"
    PAUSE = "pause"


@dataclass(frozen=True, slots=True)
class Send:
    """A message for a node. `payload` holds the tokens, int32."""

    node_id: str
    message: ExecuteTask | FreeSequence | CancelTask
    payload: bytes | None = None


@dataclass(frozen=True, slots=True)
class Emitted:
    """One token of the answer."""

    token: int
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """What is asked for.

    Attributes:
        max_tokens: length of the answer at most; the context sets another bound.
        speculate: tokens may be proposed, if the coordinator does so at all.
        is_end: tells end-of-text tokens; they are emitted, and end the answer unless `ignore_eos`.
    """

    model_id: str
    prompt: Sequence[int]
    sampling: Sampling
    max_tokens: int
    is_end: Callable[[int], bool]
    ignore_eos: bool = False
    step_deadline_s: float = 120.0
    recovery_timeout_s: float = 30.0
    epoch: int = 0
    speculate: bool = True


@dataclass(slots=True)
class StageStats:
    """Clock readings of one stage, decode steps only, microseconds."""

    queue_us: list[float] = field(default_factory=list)
    compute_us: list[float] = field(default_factory=list)
    engine_us: list[float] = field(default_factory=list)
    batch_tokens: list[int] = field(default_factory=list)

    def add(self, timing: StageTiming) -> None:
        """Note one step."""
        self.queue_us.append(timing.queue_us)
        self.compute_us.append(timing.compute_us)
        self.engine_us.append(timing.engine_us)
        self.batch_tokens.append(timing.batch_tokens)


class Generation:
    """The request machine. Every method is synchronous; time is the argument `at_s`, seconds of one clock."""

    def __init__(
        self,
        spec: GenerationSpec,
        *,
        make_id: Callable[[], str] = new_id,
        speculator: Speculator | None = None,
        keeps: bool = False,
    ) -> None:
        self.spec = spec
        self.keeps = keeps
        self.kept: Kept | None = None
        self.n_reused = 0  # prompt tokens that a sequence taken over had already
        self.was_refused = False  # a stage did not go on with the sequence taken over
        self.speculator = speculator
        self.route: Route | None = None
        self.sequence_id = ""
        self.tokens = array("i", spec.prompt)
        self.emitted: list[Emitted] = []
        self.finish_reason: str | None = None
        self.error: ShardnetError | None = None
        self.need = Need.ROUTE
        self.pause_s = 0.0
        self.attempts = 0
        self.stats: list[StageStats] = []
        self._make_id = make_id
        self._sends: list[Send] = []
        self._in_flight: dict[str, float] = {}
        self._sent_to = 0  # tokens handed to the route so far: positions [0, sent_to)
        self._lone: tuple[str, int] | None = (
            None  # a decode step that alone is in flight, and how many tokens it proposes
        )
        self._rejected = False  # KV of a refuted proposal is to be dropped by the step in flight
        self._settled = 0  # tokens whose KV is on every stage for certain; 0: not known
        self._failing_since_s: float | None = None
        self._failures = 0  # since the last token
        self._crashes = 0
        self._resume_from = 0
        self._limit = spec.max_tokens
        self._last_error = ShardnetError("the request was never tried")

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
        return command_id in self._in_flight

    def start(self, route: Route, at_s: float, kept: tuple[Kept, int] | None = None) -> None:
        """Begin, or begin again, on a route: from the first token, with a sequence of its own.

        Args:
            kept: a sequence of that route to take over, and how many tokens of the prompt it has; fewer than all.
        """
        self._abandon()
        self.route = route
        self.sequence_id, self.n_reused = (self._make_id(), 0) if kept is None else (kept[0].sequence_id, kept[1])
        self.attempts += 1
        self.need = Need.NOTHING
        self._limit = min(self.spec.max_tokens, route.options.n_ctx - len(self.spec.prompt))
        if len(self.stats) != len(route.stages):
            self.stats = [StageStats() for _ in route.stages]
        self._template = ExecuteTask(
            command_id="0" * 16,
            deadline_s=self.spec.step_deadline_s,
            epoch=self.spec.epoch,
            model_id=self.spec.model_id,
            sequence_id=self.sequence_id,
            position=0,
            n_tokens=1,
            route=route.stages,
            stage=0,
            options=route.options,
            tensors=row_tensors(1, 0),
            sample_from=0,
            ahead_deadline_s=self.spec.step_deadline_s,
            sampling=self.spec.sampling.model_copy(update={"prompt_tokens": len(self.spec.prompt)}),
        )
        self._sent_to = self.n_reused
        self._send_chunks(at_s)

    def resume(self, at_s: float) -> None:
        """The pause is over: go on along the same route."""
        if self.need is not Need.PAUSE or self.route is None:
            return
        self.need = Need.NOTHING
        if self._resume_from == 0:
            self.start(self.route, at_s)
        else:
            self._sent_to = self._resume_from
            self._send_chunks(at_s)

    def stop(self, reason: str = "stop") -> None:
        """End the answer here, and free every stage, or have its sequence kept."""
        if not self.is_done:
            self.finish_reason = reason
            if self.keeps and self._settled and reason != "cancelled":
                self._hand_over()
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
        sent_at_s = self._in_flight.pop(result.command_id, None)
        if sent_at_s is None or self.is_done:
            return
        if result.ahead and not result.tokens:
            self.fail(RemoteProtocolError("a stage goes on with a run, and has nothing to go on with"))
            return
        if result.tokens and result.position != len(self.tokens):
            self.fail(
                RemoteProtocolError(f"a stage sampled position {result.position}, where {len(self.tokens)} was next")
            )
            return
        if result.ahead:
            self._in_flight[result.command_id] = at_s
        self._check_draft(result, at_s - sent_at_s)
        for token, logprobs in _with_logprobs(result):
            self._settled = len(self.tokens)
            self.tokens.append(token)
            self.emitted.append(Emitted(token, logprobs))
            if self.spec.is_end(token) and not self.spec.ignore_eos:
                self.stop("stop")
                return
            if self.n_generated >= self._limit:
                self.stop("length")
                return
        self._failing_since_s = None  # a long replay is no failure, as long as its steps are answered
        if result.tokens:
            self._failures, self._crashes = 0, 0
        if result.ahead:
            self._sent_to = len(self.tokens)  # the stages have it already
        else:
            self._send_chunks(at_s)
        if self.n_generated > 1:
            for stats, timing in zip(self.stats, result.timings, strict=False):
                stats.add(timing)

    def on_failed(self, failed: CommandFailed, at_s: float) -> None:
        """A stage could not do a step."""
        if self._in_flight.pop(failed.command_id, None) is not None and not self.is_done:
            self.on_error(failed.error.to_error(), at_s)

    def on_node_lost(self, node_id: str, at_s: float) -> None:
        """A node is gone. If it is on the route, another one is needed."""
        if self.route is not None and not self.is_done and node_id in self.route.node_ids:
            self.on_error(UnreachableError(f"node {node_id[:12]} was lost in the middle of the answer"), at_s)

    def on_time(self, at_s: float) -> None:
        """The clock moved: a step without an answer is overdue at its deadline, and so is a route that does not come."""
        if self.is_done:
            return
        if self._failing_since_s is not None and at_s - self._failing_since_s > self.spec.recovery_timeout_s:
            self.fail(self._last_error)
        elif self._in_flight and at_s - next(iter(self._in_flight.values())) > self.spec.step_deadline_s:
            self.on_error(DeadlineExceeded(f"a step had no answer for {self.spec.step_deadline_s:.0f} s"), at_s)

    def on_error(self, error: ShardnetError, at_s: float) -> None:
        """Decide whether and how to go on after an error of the attempt in progress."""
        self._last_error = error
        if self._failing_since_s is None:
            self._failing_since_s = at_s
        self._failures += 1
        self._in_flight.clear()
        self._resume_from = 0
        self._settled = 0
        self._lone = None
        rejected, self._rejected = self._rejected, False
        match error:
            case SequenceGap() if self.n_reused and not self.n_generated and self.route is not None:
                self.was_refused = True
                self._failing_since_s, self._failures = None, 0
                self.attempts -= 1  # nobody need know of a shorter way that was none
                self.start(self.route, at_s)
            case SequenceGap():
                if rejected and self.speculator is not None:
                    self.speculator.model.rewindable = False  # its state cannot be taken back
                have = error.facts.get("have")
                self._resume_from = have if isinstance(have, int) and 0 < have < len(self.tokens) else 0
                self._wait_for(Need.PAUSE)
            case EngineCrashed():
                self._crashes += 1
                if self._crashes >= MAX_CRASHES:
                    self.fail(error)
                else:
                    self._wait_for(Need.PAUSE)
            case Busy():
                self._wait_for(Need.PAUSE)
            case UnreachableError() | DeadlineExceeded() | ShardNotFound():
                self._abandon()
                self._wait_for(Need.ROUTE)
            case _:
                self.fail(error)

    # -- inside --------------------------------------------------------------------------------------------------------------

    def _wait_for(self, need: Need) -> None:
        """The first new route is taken at once; what fails again and again waits longer each time."""
        self.need = need
        doublings = self._failures - (2 if need is Need.ROUTE else 1)
        self.pause_s = min(MOST_PAUSE_S, FIRST_PAUSE_S * 2**doublings) if doublings >= 0 else 0.0

    def _send_chunks(self, at_s: float) -> None:
        """Hand over what is not handed over yet, as far as the window goes.

        The prompt goes in chunks. A replayed answer goes token by token, as it came into being (llama.cpp's numbers depend on how many rows a batch
        has), but without waiting in between: the rebuilt sequence is the same to the bit.
        """
        assert self.route is not None
        window = 2 * len(self.route.stages) + 2
        total, chunk, n_prompt = len(self.tokens), self.route.options.n_batch, len(self.spec.prompt)
        while self._sent_to < total and len(self._in_flight) < window:
            end = min(n_prompt, self._sent_to + chunk) if self._sent_to < n_prompt else self._sent_to + 1
            count = end - self._sent_to
            command_id = self._make_id()
            update: dict[str, object] = {"command_id": command_id, "position": self._sent_to}
            if end < total:
                update |= {"sample_from": None, "sampling": None}
            else:
                update["sample_from"] = count - 1
                if self.speculator is None:
                    update["ahead"] = self._limit - self.n_generated - 1
            rows = self.tokens[self._sent_to : end]
            if self.speculator is not None and self._sent_to >= n_prompt and end == total and not self._in_flight:
                rows.extend(self._draft())
                count = len(rows)
                self._lone = command_id, count - 1
            if count > 1:
                update |= {"n_tokens": count, "tensors": row_tensors(count, 0)}
            message = self._template.model_copy(update=update)
            self._sends.append(Send(self.route.stages[0].node_id, message, rows.tobytes()))
            self._in_flight[command_id] = at_s
            self._sent_to = end

    def _draft(self) -> list[int]:
        """Returns: tokens that the next step proposes. The step's own token stands before them; its answer must not pass the limit."""
        assert self.route is not None
        assert self.speculator is not None
        most = min(self._limit - self.n_generated, self.route.options.n_batch) - 1
        draft = self.speculator.propose(self.tokens, most)
        if not self.spec.ignore_eos:
            ends = (index for index, token in enumerate(draft, 1) if self.spec.is_end(token))
            del draft[next(ends, len(draft)) :]
        return draft

    def _check_draft(self, result: TaskResult, seconds: float) -> None:
        """Rows of a proposal that agreed are in the KV already; what stands behind them the next step drops."""
        self._rejected = False
        if self._lone is None or self._lone[0] != result.command_id or self.speculator is None:
            return
        n_drafts, self._lone = self._lone[1], None
        self.speculator.answered(n_drafts, len(result.tokens), seconds)
        if n_drafts and result.tokens:
            agreed = min(n_drafts, len(result.tokens) - 1)
            self._sent_to += agreed
            self._rejected = agreed < n_drafts

    def _abandon(self) -> None:
        """Nothing that is under way is wanted; free the sequence on every stage."""
        self._in_flight.clear()
        self._lone = None
        self._settled = 0
        self._sends = []
        if self.route is not None and self.sequence_id:
            message = FreeSequence(sequence_id=self.sequence_id)
            self._sends = [Send(node_id, message) for node_id in dict.fromkeys(self.route.node_ids)]
            self.sequence_id = ""

    def _hand_over(self) -> None:
        """Leave the sequence as it is, with what is certainly there; a run that goes on is stopped."""
        assert self.route is not None
        self.kept = Kept(self.sequence_id, self.route, self.tokens[: self._settled])
        cancels = [CancelTask(command_id=command_id) for command_id in self._in_flight]
        self._sends = [Send(node_id, one) for one in cancels for node_id in dict.fromkeys(self.route.node_ids)]
        self._in_flight.clear()
        self._lone = None
        self.sequence_id = ""


def _with_logprobs(result: TaskResult) -> list[tuple[int, tuple[TokenLogprob, ...]]]:
    if len(result.logprobs) == len(result.tokens):
        return list(zip(result.tokens, result.logprobs, strict=True))
    return [(token, ()) for token in result.tokens]
