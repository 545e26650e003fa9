"""What happened to one request, step by step, where somebody asked for it: the raw material of a trace. Bounded; costs nothing where nobody asks.

All times are the coordinator's own clock. What a stage did within a step is known by that stage's durations alone, which each answer brings
(`TaskResult.timings`): no machine's clock is compared with another's. Refuses to know files and spans (`api/trace_events.py`).
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field

from shardnet.coordinator.placement.planning import Route
from shardnet.messages import ExecuteTask
from shardnet.steps import StageTiming, TaskResult

MOST_STEPS = 10_000
"""Of one request; later ones are counted only."""


@dataclass(slots=True)
class Step:
    """One step through the stages.

    Attributes:
        position: of its first row. `tokens`: rows. `samples`: a token came, or was to come.
        end_s: when its answer came; None: none ever did.
        goes_on: its stages went on by themselves: it began when the answer before it came, and nobody sent it.
    """

    position: int
    tokens: int
    begin_s: float
    attempt: int
    samples: bool = False
    goes_on: bool = False
    end_s: float | None = None
    timings: tuple[StageTiming, ...] = ()


@dataclass(slots=True)
class Try:
    """A try along one route, from its first step to its end, or to what went wrong with it."""

    route: Route
    begin_s: float
    n_reused: int = 0
    end_s: float | None = None
    error: str = ""


@dataclass(slots=True)
class Recording:
    """One request.

    Attributes:
        arrived_s: when it was received. `asked_s`: when its prompt was tokens. `started_s`: when it had its place.
        first_token_s: when the first token came.
        waits: from when to when it waited for another request to compute what both begin with; None: it still does.
        outcome: how it ended, once it did (`ended_s`).
        steps_left_out: beyond MOST_STEPS.
    """

    trace_id: str
    arrived_s: float
    asked_s: float | None = None
    started_s: float | None = None
    first_token_s: float | None = None
    ended_s: float | None = None
    outcome: str = ""
    request_id: str = ""
    prompt_tokens: int = 0
    tokens: int = 0
    tries: list[Try] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    waits: list[tuple[float, float | None]] = field(default_factory=list)
    steps_left_out: int = 0
    _open: dict[str, Step] = field(default_factory=dict)

    def begins(self, request_id: str, asked_s: float, started_s: float) -> None:
        """It has its place."""
        self.request_id, self.asked_s, self.started_s = request_id, asked_s, started_s

    def began_try(self, route: Route, n_reused: int, at_s: float) -> None:
        """Its first step is about to be sent along a route."""
        self._end_wait(at_s)
        self.set_back("begun anew", at_s)
        self.tries.append(Try(route, at_s, n_reused))

    def waits_for_another(self, at_s: float) -> None:
        """Another request computes what it begins with. Harmless when repeated."""
        self._end_wait(at_s)
        self.waits.append((at_s, None))

    def _end_wait(self, at_s: float) -> None:
        if self.waits and self.waits[-1][1] is None:
            self.waits[-1] = self.waits[-1][0], at_s

    def set_back(self, error: str, at_s: float) -> None:
        """The try in progress, or the wait for one, is over before the answer is. Harmless when repeated."""
        self._end_wait(at_s)
        if self.tries and self.tries[-1].end_s is None:
            self.tries[-1].end_s, self.tries[-1].error = at_s, error
            self._open.clear()

    def sent(self, task: ExecuteTask, at_s: float) -> None:
        """A step goes out."""
        step = Step(task.position, task.n_tokens, at_s, len(self.tries), task.samples)
        self._begin(task.command_id, step)

    def answered(self, result: TaskResult, at_s: float) -> None:
        """The last stage answered a step; with `ahead`, the next one of its run is under way."""
        if result.tokens:
            self.tokens += 1
            if self.first_token_s is None:
                self.first_token_s = at_s
        step = self._open.pop(result.command_id, None)
        if step is None:
            return
        step.end_s, step.timings = at_s, result.timings
        if result.ahead:
            following = Step(result.position, 1, at_s, len(self.tries), samples=True, goes_on=True)
            self._begin(result.command_id, following)

    def ended(self, outcome: str, at_s: float) -> None:
        """It is over."""
        self._end_wait(at_s)
        if self.tries and self.tries[-1].end_s is None:
            self.tries[-1].end_s = at_s
        self._open.clear()
        self.ended_s, self.outcome = at_s, outcome

    def _begin(self, command_id: str, step: Step) -> None:
        self._open[command_id] = step
        if len(self.steps) < MOST_STEPS:
            self.steps.append(step)
        else:
            self.steps_left_out += 1


@dataclass(slots=True)
class Traced:
    """All requests that one HTTP request became (`n` of them, or one a prompt), while somebody wants them traced."""

    trace_id: str
    arrived_s: float
    recordings: list[Recording] = field(default_factory=list)

    def recording(self, prompt_tokens: int) -> Recording:
        """Returns: that of another request."""
        made = Recording(self.trace_id, self.arrived_s, prompt_tokens=prompt_tokens)
        self.recordings.append(made)
        return made


TRACED: ContextVar[Traced | None] = ContextVar("TRACED", default=None)
"""Of the HTTP request that is being answered; None: nobody wants a trace."""
