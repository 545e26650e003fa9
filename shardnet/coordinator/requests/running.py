"""One request in progress as the task sees it that serves its client: what came so far, as text, calls and tokens, and how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shardnet.coordinator.placement.planning import Route
from shardnet.coordinator.requests.generation_spec import Emitted
from shardnet.coordinator.requests.pipeline import Generation
from shardnet.coordinator.requests.stage_stats import stage_stats
from shardnet.coordinator.text.answering import AnswerStream
from shardnet.coordinator.text.calls.events import Content, Event, Reasoning
from shardnet.ids import new_id


@dataclass(frozen=True, slots=True)
class Piece:
    """What came since the last piece."""

    events: tuple[Event, ...] = ()
    tokens: tuple[Emitted, ...] = ()
    finish_reason: str | None = None

    @property
    def text(self) -> str:
        """Its content."""
        return "".join([event.text for event in self.events if isinstance(event, Content)])


class Running:
    """One request. Its owner calls `wait` and `take` until `take` gives a finish reason or raises, and `close` in any case.

    Args:
        stopped: called when its own words have ended it, and the stages are to be told.
        ended: called once, when nobody wants more of it.
        at_s: now, seconds of the clock that `first_token_at_s` will be of.
    """

    def __init__(
        self,
        generation: Generation,
        answer: AnswerStream,
        stopped: Callable[[Running], None],
        ended: Callable[[Running], None],
        at_s: float,
    ) -> None:
        self.request_id = new_id()
        self.generation = generation
        self.command_ids: set[str] = set()
        self.timer: asyncio.TimerHandle | None = None
        self.started_at_s = at_s
        self.asked_at_s = at_s
        """When it began to wait for its place."""
        arrived_at_s = generation.spec.arrived_at_s
        self.arrived_at_s = self.asked_at_s if arrived_at_s is None else arrived_at_s
        self.first_token_at_s: float | None = None
        self.token_at_s: float | None = None
        """When the last token came."""
        self.longest_gap_s: float | None = None
        """Between two tokens."""
        self._answer = answer
        self._tell_stopped = stopped
        self._tell_ended = ended
        self._tokens: list[Emitted] = []
        self._events: list[Event] = []
        self._broken: Exception | None = None
        self.has_news = False
        """There is something to take."""
        self.waiter: asyncio.Future[None] | None = None
        """Of `wait_for_news`."""
        self._ended = False
        self.n_completion = 0
        """Tokens of the answer that were taken."""
        self.n_reasoning = 0
        """Those that brought reasoning."""

    @property
    def is_over(self) -> bool:
        """True once all of it was taken, or it was closed."""
        return self._ended

    @property
    def stop_met(self) -> str:
        """The stop string that ended the answer; empty where none did."""
        return self._answer.stop_met

    def wake(self) -> None:
        """There is something to take. While nobody waits for it what came is looked over, so that an answer ends where its words say."""
        self.has_news = True
        if self.waiter is None or self.waiter.done():
            self._look_over()
        else:
            self.waiter.set_result(None)

    def fail(self, error: Exception) -> None:
        """It cannot begin: whoever takes it is told."""
        self._broken = error
        self.wake()

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for something to take; one task at a time does. Returns: False if nothing came in time."""
        await wait_for_news([self], timeout_s)
        return self.has_news

    def take(self) -> Piece:
        """Returns: what came since the last call. Raises: the error that ended the request."""
        self._look_over()
        self.has_news = False
        if self._broken is not None:
            raise self._broken
        tokens, self._tokens = self._tokens, []
        events, self._events = self._events, []
        self.n_completion += len(tokens)
        if not self.generation.is_done:
            return Piece(tuple(events), tuple(tokens))
        if self.generation.error is not None and tokens:
            self.has_news = True  # these first, the error at the next call
            return Piece(tuple(events), tuple(tokens))
        self.close()
        if self.generation.error is not None:
            raise self.generation.error
        events += self._answer.flush()
        # What was held back may have had a stop string.
        reason = "stop" if self._answer.stop_met else self.generation.finish_reason
        return Piece(
            tuple(events), tuple(tokens), "tool_calls" if reason == "stop" and self._answer.n_calls else reason
        )

    def _look_over(self) -> None:
        """Turn the tokens that came into events; the first that its words make the last one ends it."""
        try:
            for emitted in self.generation.take_emitted():
                self._tokens.append(emitted)
                made = self._answer.push(emitted.token)
                self.n_reasoning += any(isinstance(one, Reasoning) for one in made)
                self._events += made
                if self._answer.stopped:
                    self._stop()
                    return
        except Exception as error:  # whoever takes it is told, not the stage whose answer this was
            self._broken = error

    def _stop(self) -> None:
        is_news = not self.generation.is_done
        self.generation.stop("stop")
        if self.generation.finish_reason == "length":  # the tokens behind came in the same step
            self.generation.finish_reason = "stop"
        if is_news:
            self._tell_stopped(self)

    def close(self) -> None:
        """Nobody wants more: free every stage. Harmless when repeated."""
        if not self._ended:
            self._ended = True
            self.generation.stop("cancelled")
            self._tell_ended(self)

    def stages(self, describe: Callable[[Route, int], dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns: for each stage its description and median microseconds per decode step."""
        route = self.generation.route
        if route is None:
            return []
        return [describe(route, index) | stage_stats(timings) for index, timings in enumerate(self.generation.timings)]


async def wait_for_news(ones: Sequence[Running], timeout_s: float | None = None) -> None:
    """Wait until one of them has something to take, or for so long; one task at a time waits for each."""
    if any(one.has_news for one in ones):
        return
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()
    for one in ones:
        one.waiter = waiter
    # Every token comes by here: asyncio's own timeout costs as much again as all the rest.
    timer = None if timeout_s is None else loop.call_later(timeout_s, _end_wait, waiter)
    try:
        await waiter
    finally:
        if timer is not None:
            timer.cancel()


def _end_wait(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
