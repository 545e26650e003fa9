"""Requests in progress: admission, routes, and the loop that keeps each pipeline busy.

The answer to a step arrives in a synchronous callback; the next step leaves in that same call. Turning tokens into text and events for the
client happens after that, in the task that serves the client. Several requests are in flight at once; the engines merge their steps into batches.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

from shardnet.coordinator.pipeline import Emitted, Generation, GenerationSpec, Need, StageStats
from shardnet.coordinator.planning import Route
from shardnet.coordinator.prefixes import Kept, Prefixes
from shardnet.coordinator.speculation import ModelSpeculation, Speculator
from shardnet.coordinator.text import TextStream
from shardnet.errors import Busy, PlacementError, SequenceGap, ShardnetError, ShardNotFound, UnreachableError
from shardnet.ids import new_id
from shardnet.log import get
from shardnet.messages import CancelTask, CommandFailed, ExecuteTask, FreeSequence
from shardnet.steps import TaskResult
from shardnet.wire import Buffer

RETRY_AFTER_S = 2.0

log = get("requests")


class Swarm(Protocol):
    """What requests need of the rest of the coordinator."""

    def now_s(self) -> float: ...

    def send(
        self, node_id: str, message: ExecuteTask | FreeSequence | CancelTask, payloads: Sequence[Buffer] = ()
    ) -> None:
        """Raises: PeerLost."""
        ...

    def routes(self, model_id: str) -> list[Route]: ...

    def not_ready(self, model_id: str) -> ShardnetError: ...

    def stage_failed(self, node_id: str, route: Route, error: ShardnetError) -> None: ...


@dataclass(frozen=True, slots=True)
class Piece:
    """What came since the last piece."""

    text: str = ""
    tokens: tuple[Emitted, ...] = ()
    finish_reason: str | None = None


class Running:
    """One request. Its owner calls `wait` and `take` until `take` gives a finish reason or raises, and `close` in any case."""

    def __init__(self, requests: Requests, generation: Generation, text: TextStream, at_s: float) -> None:
        self.request_id = new_id()
        self.generation = generation
        self.command_ids: set[str] = set()
        self.timer: asyncio.TimerHandle | None = None
        self.started_at_s = at_s
        self.first_token_at_s: float | None = None
        self._requests = requests
        self._text = text
        self._news = asyncio.Event()
        self._ended = False
        self._taken = 0

    @property
    def n_completion(self) -> int:
        """Returns: tokens of the answer that were taken."""
        return self._taken

    def wake(self) -> None:
        """There is something to take."""
        self._news.set()

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for something to take. Returns: False if nothing came in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            return False
        return True

    def take(self) -> Piece:
        """Returns: what came since the last call. Raises: the error that ended the request."""
        self._news.clear()
        tokens: list[Emitted] = []
        text = ""
        for emitted in self.generation.take_emitted():
            tokens.append(emitted)
            text += self._text.push(emitted.token)
            if self._text.stopped:
                self.generation.stop("stop")
                if self.generation.finish_reason == "length":  # the tokens behind came in the same step
                    self.generation.finish_reason = "stop"
                break
        self._taken += len(tokens)
        if not self.generation.is_done:
            return Piece(text, tuple(tokens))
        if self.generation.error is not None and tokens:
            self._news.set()  # these first, the error at the next call
            return Piece(text, tuple(tokens))
        self.close()
        if self.generation.error is not None:
            raise self.generation.error
        return Piece(text + self._text.flush(), tuple(tokens), self.generation.finish_reason)

    def close(self) -> None:
        """Nobody wants more: free every stage. Harmless when repeated."""
        if not self._ended:
            self._ended = True
            self.generation.stop("cancelled")
            self._requests.ended(self)

    def stages(self, describe: Callable[[Route, int], dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns: for each stage its description and median microseconds per decode step."""
        route = self.generation.route
        if route is None:
            return []
        return [describe(route, index) | _medians(stats) for index, stats in enumerate(self.generation.stats)]


def _medians(stats: StageStats) -> dict[str, Any]:
    def middle(values: Sequence[float]) -> float:
        return round(statistics.median(values), 1) if values else 0.0

    return {
        "queue_us": middle(stats.queue_us),
        "compute_us": middle(stats.compute_us),
        "engine_us": middle(stats.engine_us),
        "batch_tokens": round(statistics.fmean(stats.batch_tokens), 2) if stats.batch_tokens else 0,
    }


@dataclass(slots=True)
class _Waiting:
    """A request in the queue."""

    model_id: str
    place: asyncio.Future[Route]


@dataclass(slots=True)
class Totals:
    """Counters since the start."""

    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    retried: int = 0
    late_answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tokens_proposed: int = 0
    tokens_accepted: int = 0


@dataclass(slots=True)
class Requests:
    """All requests in progress. Belongs to the event loop's thread. `idle` is set while there is none."""

    swarm: Swarm
    max_queued: int = 64
    queue_timeout_s: float = 60.0
    make_speculation: Callable[[], ModelSpeculation] | None = None
    prefixes: Prefixes | None = None
    totals: Totals = field(default_factory=Totals)
    running: set[Running] = field(default_factory=set)
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    _owners: dict[str, Running] = field(default_factory=dict)
    _places: dict[Running, tuple[str, ...]] = field(default_factory=dict)
    _used: Counter[tuple[str, str]] = field(default_factory=Counter)
    _queue: deque[_Waiting] = field(default_factory=deque)
    _closed: bool = False
    _speculations: dict[str, ModelSpeculation] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.idle.set()

    @property
    def queued(self) -> int:
        """Returns: requests that wait for a sequence."""
        return len(self._queue)

    def check_ready(self, model_id: str) -> None:
        """Raises: what `open` would raise for a model without a pipeline."""
        if not self.swarm.routes(model_id):
            raise self.swarm.not_ready(model_id)

    async def open(self, spec: GenerationSpec, text: TextStream) -> Running:
        """Begin a request, waiting for a free sequence if need be.

        Raises: PlacementError, NoRoomError, ... if the model is not ready; Busy if the queue is full or the wait too long.
        """
        if self._closed:
            raise Busy("the coordinator is stopping", retry_after_s=RETRY_AFTER_S)
        self.check_ready(spec.model_id)
        routes = self.swarm.routes(spec.model_id)
        others = any(waiting.model_id == spec.model_id for waiting in self._queue)
        route = None if others else self._pick(routes)
        if route is None:
            route = await self._wait_in_queue(spec.model_id)
        model, speculator = self._speculation(spec.model_id), None
        if model is not None:
            model.streams += 1
            speculator = Speculator(model) if spec.speculate else None
        keeps = self.prefixes is not None and self.prefixes.accepts(spec.model_id)
        running = Running(self, Generation(spec, speculator=speculator, keeps=keeps), text, self.swarm.now_s())
        self.running.add(running)
        self.idle.clear()
        self._begin(running, route)
        return running

    def _speculation(self, model_id: str) -> ModelSpeculation | None:
        if model_id not in self._speculations and self.make_speculation is not None:
            self._speculations[model_id] = self.make_speculation()
        return self._speculations.get(model_id)

    async def _wait_in_queue(self, model_id: str) -> Route:
        if len(self._queue) >= self.max_queued:
            raise Busy(
                f"all sequences are in use and {len(self._queue)} requests wait already: try again later",
                retry_after_s=RETRY_AFTER_S,
            )
        waiting = _Waiting(model_id, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        try:
            async with asyncio.timeout(self.queue_timeout_s):
                route = await waiting.place
        except BaseException as error:
            if waiting in self._queue:
                self._queue.remove(waiting)
            elif waiting.place.done() and not waiting.place.cancelled() and not waiting.place.exception():
                self._give_back(
                    model_id, waiting.place.result().node_ids
                )  # it came in the last moment: the next one's turn
                self.pump()
            if isinstance(error, TimeoutError):
                raise Busy(
                    f"no sequence became free within {self.queue_timeout_s:.0f} s: try again later",
                    retry_after_s=RETRY_AFTER_S,
                ) from None
            raise
        self._give_back(model_id, route.node_ids)  # `_begin` takes it again at once
        return route

    # -- places --------------------------------------------------------------------------------------------------------------

    def _pick(self, routes: Sequence[Route], without: Collection[str] = ()) -> Route | None:
        """Returns: the route with the most room, the quickest of equal ones; None if all sequences are in use."""
        best: tuple[int, Route] | None = None
        for route in routes:
            used = max(self._used[route.model_id, node_id] for node_id in route.node_ids)
            if used < route.options.n_seq and (best is None or used < best[0]):
                best = (used, route)
        return best[1] if best else None

    def _take_place(self, model_id: str, node_ids: tuple[str, ...]) -> None:
        for node_id in set(node_ids):
            self._used[model_id, node_id] += 1

    def _give_back(self, model_id: str, node_ids: tuple[str, ...]) -> None:
        for node_id in set(node_ids):
            self._used[model_id, node_id] -= 1
            if self._used[model_id, node_id] <= 0:
                del self._used[model_id, node_id]

    def _release(self, running: Running) -> bool:
        """Returns: False if it had no place."""
        node_ids = self._places.pop(running, None)
        if node_ids is not None:
            self._give_back(running.generation.spec.model_id, node_ids)
        return node_ids is not None

    def pump(self) -> None:
        """Places or routes may have become free: go on with stalled requests first, then with the queue."""
        if self.prefixes is not None:
            routes_of = cache(self.swarm.routes)  # once for a model, not once for each of its kept sequences
            self._free(self.prefixes.drop(lambda kept: kept.route not in routes_of(kept.route.model_id)))
        for running in tuple(self.running):
            if running.generation.wants_route and running.timer is None:
                self._find_route(running)
        for waiting in tuple(self._queue):
            if waiting.place.done():
                continue
            routes = self.swarm.routes(waiting.model_id)
            route = self._pick(routes)
            if route is not None:
                self._queue.remove(waiting)
                self._take_place(waiting.model_id, route.node_ids)
                waiting.place.set_result(route)
            elif not routes:
                self._queue.remove(waiting)
                waiting.place.set_exception(self.swarm.not_ready(waiting.model_id))

    # -- the loop of each request ----------------------------------------------------------------------------------------------

    def _begin(self, running: Running, route: Route) -> None:
        self._release(running)
        kept = self._take_kept(running.generation, route)
        if kept is not None:
            route = kept[0].route
        self._places[running] = route.node_ids
        self._take_place(route.model_id, route.node_ids)
        running.generation.start(route, self.swarm.now_s(), kept)
        self._go_on(running)

    # -- kept sequences --------------------------------------------------------------------------------------------------------

    def _take_kept(self, generation: Generation, route: Route) -> tuple[Kept, int] | None:
        """Returns: the sequence that a new request begins with, if one fits; else the least recently used make room on `route`."""
        if self.prefixes is None:
            return None
        found: tuple[Kept, int] | None = None
        if not generation.attempts:
            model_id = route.model_id
            free = [one for one in self.swarm.routes(model_id) if self._pick([one]) is not None]
            found = self.prefixes.take(free, generation.spec.prompt, self._used)
        if found is None:
            self._free(self.prefixes.make_room(route, self._used))
        return found

    def _keep(self, generation: Generation) -> None:
        """An answer has ended: its sequence stays, if it may."""
        kept, generation.kept = generation.kept, None
        if kept is not None and (self.prefixes is None or self._closed or not self.prefixes.keep(kept)):
            self._free([kept])

    def _free(self, lost: Sequence[Kept]) -> None:
        for kept in lost:
            for node_id in dict.fromkeys(kept.route.node_ids):
                with contextlib.suppress(UnreachableError):
                    self.swarm.send(node_id, FreeSequence(sequence_id=kept.sequence_id))

    def _note_refusal(self, generation: Generation) -> None:
        if self.prefixes is not None and generation.was_refused and generation.route is not None:
            generation.was_refused = False
            log.debug("prefix_refused", model_id=generation.spec.model_id)
            self._free(self.prefixes.was_refused(generation.route))

    def _go_on(self, running: Running) -> None:
        """Carry out what the machine decided."""
        generation = running.generation
        while sends := generation.take_sends():
            for send in sends:
                try:
                    if send.payload is None:
                        self.swarm.send(send.node_id, send.message)
                        continue
                    self._owners[send.message.command_id] = running  # type: ignore[union-attr]
                    running.command_ids.add(send.message.command_id)  # type: ignore[union-attr]
                    self.swarm.send(send.node_id, send.message, (send.payload,))
                except UnreachableError as error:
                    if send.payload is not None and not generation.is_done:
                        generation.on_error(error, self.swarm.now_s())
                        break
        if generation.is_done:
            running.wake()
            if self._release(running):
                self._keep(generation)
                self.pump()
            return
        if generation.need is not Need.NOTHING and running.timer is None:
            if generation.pause_s > 0:
                loop = asyncio.get_running_loop()
                running.timer = loop.call_later(generation.pause_s, self._after_pause, running)
            else:
                self._find_route(running)

    def _after_pause(self, running: Running) -> None:
        running.timer = None
        if running.generation.is_done:
            return
        if running.generation.wants_route:
            self._find_route(running)
        else:
            running.generation.resume(self.swarm.now_s())
            self._go_on(running)

    def _find_route(self, running: Running) -> None:
        """Go on along a new route, if there is one now; else a change of the cluster tries again."""
        self._release(running)
        route = self._pick(self.swarm.routes(running.generation.spec.model_id))
        if route is not None:
            log.info("request_rerouted", request_id=running.request_id, stages=len(route.stages))
            self._begin(running, route)

    def ended(self, running: Running) -> None:
        """A request is over, whatever way."""
        self._go_on(running)
        if running.timer is not None:
            running.timer.cancel()
            running.timer = None
        for command_id in running.command_ids:
            self._owners.pop(command_id, None)
        self.running.discard(running)
        model = self._speculation(running.generation.spec.model_id)
        if model is not None:
            model.streams -= 1
        if not self.running:
            self.idle.set()
        self._account(running)

    def _account(self, running: Running) -> None:
        generation = running.generation
        seconds = self.swarm.now_s() - running.started_at_s
        self.totals.retried += max(0, generation.attempts - 1)
        self.totals.prompt_tokens += len(generation.spec.prompt)
        self.totals.completion_tokens += running.n_completion
        if generation.speculator is not None:
            self.totals.tokens_proposed += generation.speculator.proposed
            self.totals.tokens_accepted += generation.speculator.accepted
        if generation.error is not None:
            self.totals.failed += 1
            log.warning("request_failed", request_id=running.request_id, reason=str(generation.error))
            return
        if generation.finish_reason == "cancelled":
            self.totals.cancelled += 1
        else:
            self.totals.finished += 1
        decoding = seconds - ((running.first_token_at_s or 0.0) - running.started_at_s)
        log.info(
            "request_finished" if generation.finish_reason != "cancelled" else "request_cancelled",
            request_id=running.request_id,
            prompt_tokens=len(generation.spec.prompt),
            completion_tokens=running.n_completion,
            seconds=round(seconds, 3),
            tokens_per_s=round(max(0, running.n_completion - 1) / decoding, 2) if decoding > 0 else 0.0,
            attempts=generation.attempts,
        )

    # -- what happens --------------------------------------------------------------------------------------------------------

    def on_result(self, node_id: str, result: TaskResult) -> None:
        """A last stage answered."""
        running = self._owners.get(result.command_id)
        if running is None or not self._is_from_route(running, node_id):
            self.totals.late_answers += 1
            return
        if not result.ahead:
            del self._owners[result.command_id]
            running.command_ids.discard(result.command_id)
        generation = running.generation
        generation.on_result(result, self.swarm.now_s())
        self._go_on(running)
        if generation.emitted:
            if running.first_token_at_s is None:
                running.first_token_at_s = self.swarm.now_s()
                if self.prefixes is not None and generation.n_reused:
                    self.prefixes.worked(generation.spec.model_id, generation.n_reused)
            running.wake()

    def on_failed(self, node_id: str, failed: CommandFailed) -> None:
        """A stage could not do its step."""
        running = self._owners.get(failed.command_id)
        if running is None or not self._is_from_route(running, node_id):
            self.totals.late_answers += 1
            return
        del self._owners[failed.command_id]
        running.command_ids.discard(failed.command_id)
        generation = running.generation
        if generation.owns(failed.command_id) and generation.route is not None:
            error = failed.error.to_error()
            tell = log.debug if generation.n_reused and isinstance(error, SequenceGap) else log.warning
            tell("step_failed", request_id=running.request_id, node=node_id[:12], code=error.code, reason=str(error))
            if isinstance(error, UnreachableError | ShardNotFound):
                self.swarm.stage_failed(node_id, generation.route, error)
        generation.on_failed(failed, self.swarm.now_s())
        self._note_refusal(generation)
        self._go_on(running)

    def node_of_stage(self, command_id: str, stage: int) -> str | None:
        """Returns: the node that a step of this command goes to at a stage of its route; None if nobody wants it any more."""
        running = self._owners.get(command_id)
        route = None if running is None else running.generation.route
        return route.stages[stage].node_id if route is not None and stage < len(route.stages) else None

    def _is_from_route(self, running: Running, node_id: str) -> bool:
        route = running.generation.route
        return route is not None and node_id in route.node_ids

    def on_node_lost(self, node_id: str) -> None:
        """A node is gone: whoever ran there needs another route, and what was kept there is lost."""
        if self.prefixes is not None:
            self._free(self.prefixes.drop(lambda kept: node_id in kept.route.node_ids))
        for running in tuple(self.running):
            if not running.generation.is_done and not running.generation.wants_route:
                running.generation.on_node_lost(node_id, self.swarm.now_s())
                self._leave_lost_route(running)

    def _leave_lost_route(self, running: Running) -> None:
        if running.generation.wants_route and running.timer is not None:  # it paused before another try on that route
            running.timer.cancel()
            running.timer = None
        self._go_on(running)

    def on_time(self) -> None:
        """The clock moved."""
        for running in tuple(self.running):
            running.generation.on_time(self.swarm.now_s())
            self._go_on(running)

    # -- the end -------------------------------------------------------------------------------------------------------------

    def refuse_new(self) -> None:
        """The coordinator stops: nobody comes in any more."""
        self._closed = True
        for waiting in tuple(self._queue):
            if not waiting.place.done():
                waiting.place.set_exception(Busy("the coordinator is stopping", retry_after_s=RETRY_AFTER_S))
        self._queue.clear()

    def fail_all(self) -> None:
        """Give up what is still running, and free what was kept."""
        if self.prefixes is not None:
            self._free(self.prefixes.drop(lambda _kept: True))
        for running in tuple(self.running):
            running.generation.fail(PlacementError("the coordinator stopped before the answer was complete"))
            self._go_on(running)
