"""A recording as a file that trace viewers open: Chrome's trace event format, JSON (https://ui.perfetto.dev, or chrome://tracing). Pure.

Source: Google, "Trace Event Format" (complete events `X`, metadata `M`; times in microseconds).

One process of the file is the request, with a track for its phases and tracks for its steps; one more for each stage. Within a step lies, by the
coordinator's clock from sending to the answer, what each stage said that it spent, stage after stage. The rest of the step was on the wire (or in
the daemons' queues), and is shared out evenly between the hops, since nobody's clock tells them apart. Durations are measured, and in `args`; where
they stand within their step is computed. Steps that overlap stand in tracks of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from shardnet.coordinator.placement.planning import Route
from shardnet.coordinator.requests.recording import Recording, Step, Try
from shardnet.steps import StageTiming

Json = dict[str, Any]
Describe = Callable[[Route, int], Json]
"""Node and layers of a stage."""
PARTS = ("wait in queue", "compute", "hand over")
PER_REQUEST = 1000
"""Process numbers that one request takes."""


def trace_json(recordings: list[Recording], now_s: float, describe: Describe, *, at_unix_s: float) -> Json:
    """Returns: the file's content.

    Args:
        now_s: by the clock of the recordings; what is not over ends here.
        at_unix_s: Unix time at `now_s`.
    """
    start_s = min(one.arrived_s for one in recordings)
    events: list[Json] = []
    for number, one in enumerate(recordings):
        events += _Writer(one, start_s, now_s, describe, number * PER_REQUEST).events()
    return {
        "displayTimeUnit": "ms",
        "otherData": {"trace_id": recordings[0].trace_id, "started_at_unix_s": round(at_unix_s - (now_s - start_s), 6)},
        "traceEvents": events,
    }


class _Writer:
    """The events of one request."""

    def __init__(self, of: Recording, start_s: float, now_s: float, describe: Describe, first_pid: int) -> None:
        self._of = of
        self._start_s = start_s
        self._end_s = now_s if of.ended_s is None else of.ended_s
        self._describe = describe
        self._pid = first_pid + 1
        self._stages: dict[tuple[int, str], int] = {}
        self._lanes: set[tuple[int, int]] = set()

    def events(self) -> list[Json]:
        """Returns: all of them; names of processes and tracks last."""
        made = [*self._phases(), *self._steps()]
        names = {self._pid: f"request {self._of.request_id}"}
        names |= {pid: label for (_, label), pid in self._stages.items()}
        for pid, name in names.items():
            made.append(_named("process_name", pid, 0, name))
            made.append({"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": pid}})
        made.append(_named("thread_name", self._pid, 0, "phases"))
        made += [_named("thread_name", pid, lane, f"steps {lane}") for pid, lane in sorted(self._lanes)]
        return made

    def _span(self, name: str, pid: int, tid: int, begin_s: float, end_s: float, **args: Any) -> Json:
        begin_us, end_us = ((at_s - self._start_s) * 1e6 for at_s in (begin_s, end_s))
        span: Json = {"ph": "X", "cat": "shardnet", "name": name, "pid": pid, "tid": tid, "ts": round(begin_us, 3)}
        return span | {"dur": round(max(0.0, end_us - begin_us), 3), "args": args}

    # -- phases --------------------------------------------------------------------------------------------------------------

    def _phases(self) -> Iterator[Json]:
        of, pid = self._of, self._pid
        facts = {
            "prompt_tokens": of.prompt_tokens,
            "tokens": of.tokens,
            "outcome": of.outcome or "running",
            "steps_left_out": of.steps_left_out,
        }
        yield self._span("request", pid, 0, of.arrived_s, self._end_s, **facts)
        asked_s = self._end_s if of.asked_s is None else of.asked_s
        yield self._span("tokenize", pid, 0, of.arrived_s, asked_s)
        if of.asked_s is not None:
            yield self._span("wait for a place", pid, 0, asked_s, of.started_s or self._end_s)
        for begin_s, end_s in of.waits:
            wait_end_s = self._end_s if end_s is None else end_s
            yield self._span("wait for another's beginning", pid, 0, begin_s, wait_end_s)
        before: Try | None = None
        for number, one in enumerate(of.tries, 1):
            if before is not None and before.end_s is not None:
                yield self._span("recovery", pid, 0, before.end_s, one.begin_s, reason=before.error)
            yield from self._try(number, one)
            before = one
        if before is not None and before.error and before.end_s is not None:
            yield self._span("recovery", pid, 0, before.end_s, self._end_s, reason=before.error)

    def _try(self, number: int, one: Try) -> Iterator[Json]:
        end_s = self._end_s if one.end_s is None else one.end_s
        stages = [self._label(one.route, index) for index in range(len(one.route.stages))]
        facts = {"stages": stages, "prompt_tokens_from_kv": one.n_reused, "error": one.error}
        yield self._span(f"try {number}", self._pid, 0, one.begin_s, end_s, **facts)
        tokens = [
            step.end_s for step in self._of.steps if step.attempt == number and step.samples and step.end_s is not None
        ]
        first_s = min(tokens, default=end_s)
        yield self._span("prompt", self._pid, 0, one.begin_s, first_s)
        if tokens:
            yield self._span("decode", self._pid, 0, first_s, end_s)

    def _label(self, route: Route, index: int) -> str:
        told = self._describe(route, index)
        return f"stage {index}: {told['node']}, layers {told['layers']}"

    # -- steps ---------------------------------------------------------------------------------------------------------------

    def _steps(self) -> Iterator[Json]:
        free: list[float] = []  # until when each lane is taken
        for number, step in enumerate(self._of.steps):
            one = self._of.tries[step.attempt - 1]
            lost_s = self._end_s if one.end_s is None else one.end_s
            end_s = lost_s if step.end_s is None else step.end_s
            lane = next((index for index, until_s in enumerate(free) if until_s <= step.begin_s), len(free))
            if lane == len(free):
                free.append(0.0)
            free[lane] = end_s
            yield from self._step(number, step, one, lane + 1, end_s)

    def _step(self, number: int, step: Step, one: Try, lane: int, end_s: float) -> Iterator[Json]:
        self._lanes.add((self._pid, lane))
        rows = f"{step.position}" if step.tokens == 1 else f"{step.position} to {step.position + step.tokens - 1}"
        is_prompt = step.position + step.tokens <= self._of.prompt_tokens
        facts = {"step": number, "tokens": step.tokens, "unasked": step.goes_on, "answered": step.end_s is not None}
        yield self._span(f"{'prompt' if is_prompt else 'decode'} {rows}", self._pid, lane, step.begin_s, end_s, **facts)
        if step.end_s is None or not step.timings:
            return
        spent_s = [1e-6 * (one.queue_us + one.compute_us + one.engine_us) for one in step.timings]
        whole_s, took_s = sum(spent_s), end_s - step.begin_s
        # A run's next step began when the last stage sent its token, a little before the answer was here; an answer may have been heard of late.
        scale = min(1.0, took_s / whole_s) if whole_s else 1.0
        hops = len(spent_s) + (not step.goes_on)
        hop_s = max(0.0, took_s - scale * whole_s) / hops
        at_s = step.begin_s
        for index, (timing, stage_s) in enumerate(zip(step.timings, spent_s, strict=True)):
            yield self._span("on the wire", self._pid, lane, at_s, at_s + hop_s, to=f"stage {index}", step=number)
            at_s += hop_s
            yield from self._stage(number, step, one.route, index, timing, (lane, at_s, stage_s, scale))
            at_s += scale * stage_s
        if not step.goes_on:
            yield self._span("on the wire", self._pid, lane, at_s, end_s, to="coordinator", step=number)

    def _stage(
        self,
        number: int,
        step: Step,
        route: Route,
        index: int,
        timing: StageTiming,
        place: tuple[int, float, float, float],
    ) -> Iterator[Json]:
        lane, at_s, stage_s, scale = place
        label = self._label(route, index)
        pid = self._stages.setdefault((index, label), self._pid + 1 + len(self._stages))
        self._lanes.add((pid, lane))
        facts = {"step": number, "position": step.position, "rows_in_batch": timing.batch_tokens}
        yield self._span(f"step {number}", pid, lane, at_s, at_s + scale * stage_s, **facts)
        for name, us in zip(PARTS, (timing.queue_us, timing.compute_us, timing.engine_us), strict=True):
            part_s = scale * 1e-6 * us
            yield self._span(name, pid, lane, at_s, at_s + part_s, us=round(us, 1), step=number)
            at_s += part_s


def _named(kind: str, pid: int, tid: int, name: str) -> Json:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}
