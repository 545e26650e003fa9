"""Requests in progress: the loop that keeps each one's pipeline busy.

The answer to a step arrives in a synchronous callback; the next step leaves in that same call. Turning tokens into text and events for the
client happens after that, in the task that serves the client (`running`). Several requests are in flight at once; the engines merge their steps into
batches. Who may begin is for `places`, what begins with a kept sequence for `keeping`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, assert_never

from shardnet.coordinator.placement.chunks import Chunks, size_now
from shardnet.coordinator.placement.planning import Route
from shardnet.coordinator.requests.beginnings import Cold, Copy, TakeOver, Wait
from shardnet.coordinator.requests.figures import Figures
from shardnet.coordinator.requests.generation_spec import GenerationSpec
from shardnet.coordinator.requests.keeping import Keeper
from shardnet.coordinator.requests.pipeline import Generation, Need
from shardnet.coordinator.requests.places import RETRY_AFTER_S, PlaceQueue, Places
from shardnet.coordinator.requests.prefixes import Prefixes
from shardnet.coordinator.requests.running import Running
from shardnet.coordinator.requests.speculation import ModelSpeculation, Speculator
from shardnet.coordinator.requests.totals import Totals
from shardnet.coordinator.text.answering import AnswerStream
from shardnet.errors import (
    Busy,
    NoRoomError,
    PlacementError,
    SequenceGap,
    ShardnetError,
    ShardNotFound,
    UnreachableError,
)
from shardnet.log import get
from shardnet.messages import CancelTask, CommandFailed, ExecuteTask, FreeSequence, RowsRead
from shardnet.steps import TaskResult
from shardnet.wire import Buffer, Frame

STOPPING = "the coordinator is stopping"

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

    def chunks(self, route: Route, prompt_tokens: int) -> Chunks: ...

    def can_copy(self, route: Route) -> bool: ...

    def stage_failed(self, node_id: str, route: Route, error: ShardnetError) -> None: ...


class Requests:
    """All requests in progress. Belongs to the event loop's thread.

    Attributes:
        idle: set while there is none.
        prefixes: finished sequences that are kept; None: none is.
    """

    def __init__(
        self,
        swarm: Swarm,
        *,
        max_queued: int = 64,
        queue_timeout_s: float = 60.0,
        make_speculation: Callable[[], ModelSpeculation] | None = None,
        prefixes: Prefixes | None = None,
    ) -> None:
        self.prefixes = prefixes
        self.totals = Totals()
        self.figures = Figures()
        self.running: dict[Running, None] = {}  # in order of arrival
        self.idle = asyncio.Event()
        self.idle.set()
        self._swarm = swarm
        self._make_speculation = make_speculation
        self._speculations: dict[str, ModelSpeculation] = {}
        self._owners: dict[str, Running] = {}
        self._places = Places()
        self._queue = PlaceQueue(
            self._places, swarm.routes, swarm.not_ready, self.pump, max_queued=max_queued, timeout_s=queue_timeout_s
        )
        self._keeper = Keeper(prefixes, self._places, swarm.routes, swarm.can_copy, swarm.send)
        self._is_closed = False
        self._openers: dict[Running, asyncio.Task[None]] = {}  # of those that have not begun
        self._changed = asyncio.Event()  # set, and another one made, when places or routes change

    @property
    def waiting(self) -> int:
        """Returns: requests that wait for what another one computes of their prompt."""
        return self._keeper.waiting

    @property
    def queued(self) -> int:
        """Returns: requests that wait for a sequence."""
        return len(self._queue)

    def queued_for(self, model_id: str) -> int:
        """Returns: those of them that wait for this model."""
        return self._queue.count(model_id)

    def now_s(self) -> float:
        """Returns: seconds of the clock that all times of requests are of."""
        return self._swarm.now_s()

    def check_ready(self, model_id: str) -> None:
        """Raises: what `open` would raise for a model without a pipeline."""
        if not self._swarm.routes(model_id):
            raise self._swarm.not_ready(model_id)

    async def open(self, spec: GenerationSpec, answer: AnswerStream) -> Running:
        """Begin a request, waiting for a free sequence if need be.

        Raises: PlacementError, NoRoomError, ... if the model is not ready; Busy if the queue is full or the wait too long.
        """
        running = self._made(spec, answer)
        self._start(running, await self._place(spec.model_id))
        return running

    async def open_another(self, spec: GenerationSpec, answer: AnswerStream) -> Running:
        """As `open`, for more of a request that has begun: it waits for as long as that may take, also for a node that is lost meanwhile."""
        running = self._made(spec, answer)
        self._start(running, await self._place_for_more(spec))
        return running

    def open_behind(self, parts: Iterable[tuple[GenerationSpec, AnswerStream]]) -> list[Running]:
        """As `open_another` for each, in order. Returns: all of them at once; what prevents one from beginning is its error."""
        made = [self._made(spec, answer) for spec, answer in parts]
        if made:
            self._openers |= dict.fromkeys(made, asyncio.create_task(self._open_each(made)))
        return made

    async def _open_each(self, made: Sequence[Running]) -> None:
        for running in made:
            running.asked_at_s = self._swarm.now_s()
            try:
                route = await self._place_for_more(running.generation.spec)
                del self._openers[running]
                self._start(running, route)
            except Exception as error:  # of whatever kind: whoever takes the answer is waiting for it
                running.fail(error)
                return  # those behind it end with it

    def _made(self, spec: GenerationSpec, answer: AnswerStream) -> Running:
        model = self._speculation(spec.model_id)
        speculator = Speculator(model) if model is not None and spec.speculate else None
        generation = Generation(
            spec, speculator=speculator, keeps=self._keeper.accepts(spec.model_id), chunk=self._chunk
        )
        return Running(generation, answer, self._go_on, self._ended, self._swarm.now_s())

    async def _place(self, model_id: str, *, is_more: bool = False) -> Route:
        """Returns: a route with a place, which is to be taken before anything else happens. Raises: as `open`."""
        if self._is_closed:
            raise Busy(STOPPING, retry_after_s=RETRY_AFTER_S)
        self.check_ready(model_id)
        route = None if self._queue.has(model_id) else self._places.pick(self._swarm.routes(model_id))
        return route or await self._queue.wait(model_id, is_more=is_more)

    async def _place_for_more(self, spec: GenerationSpec) -> Route:
        while True:
            try:
                return await self._place(spec.model_id, is_more=True)
            except (PlacementError, NoRoomError):
                await self._until_ready(spec)

    def _start(self, running: Running, route: Route) -> None:
        spec, now_s = running.generation.spec, self._swarm.now_s()
        running.started_at_s = now_s
        if spec.recording is not None:
            spec.recording.begins(running.request_id, running.asked_at_s, now_s)
        self.running[running] = None
        self.figures.began(running.generation, now_s - running.asked_at_s)
        model = self._speculation(spec.model_id)
        if model is not None:
            model.streams += 1
        self.idle.clear()
        self._begin(running, route)

    async def _until_ready(self, spec: GenerationSpec) -> None:
        try:
            async with asyncio.timeout(spec.recovery_timeout_s):
                while not self._swarm.routes(spec.model_id):
                    await self._changed.wait()
        except TimeoutError:
            raise self._swarm.not_ready(spec.model_id) from None

    def _speculation(self, model_id: str) -> ModelSpeculation | None:
        if model_id not in self._speculations and self._make_speculation is not None:
            self._speculations[model_id] = self._make_speculation()
        return self._speculations.get(model_id)

    def pump(self) -> None:
        """Places or routes may have become free: go on with stalled requests first, then with the queue."""
        self._keeper.routes_changed()
        self._changed.set()
        self._changed = asyncio.Event()
        for running in tuple(self.running):
            if running.generation.wants_route and running.timer is None:
                self._find_route(running)
        self._queue.serve()

    def _chunk(self, generation: Generation, route: Route) -> int:
        """Returns: how many tokens of a prompt go at a time: few where others decode on the same stages, or will before this prompt is through."""
        nodes = set(route.node_ids)
        others = [
            one.generation
            for one in self.running
            if one.generation is not generation and nodes.intersection(one.generation.nodes)
        ]
        return size_now(
            self._swarm.chunks(route, len(generation.spec.prompt)),
            generation.n_unsent,
            are_others=bool(others),
            do_others_decode=any(one.n_generated for one in others),
        )

    # -- the loop of each request ----------------------------------------------------------------------------------------------

    def _begin(self, running: Running, route: Route, *, may_wait: bool = True) -> None:
        self._places.release(running)
        at_s, generation = self._swarm.now_s(), running.generation
        found = self._keeper.before_start(running, route, at_s, may_wait=may_wait)
        self._places.take(running, found.route)
        match found:
            case Wait():
                generation.wait_for_beginning()
            case TakeOver(kept=kept, count=count):
                generation.start(found.route, at_s, (kept, count))
            case Copy(sequence_id=sequence_id, count=count, n_cold=n_cold):
                generation.start(found.route, at_s, copied=(sequence_id, count, n_cold))
            case Cold():
                generation.start(found.route, at_s)
            case _:
                assert_never(found)
        recording = generation.spec.recording
        if recording is not None and isinstance(found, Wait):
            recording.waits_for_another(at_s)
        elif recording is not None:
            recording.began_try(found.route, generation.n_reused, at_s)
        self._keeper.began(running)
        self._go_on(running)

    def _choose_again(self, waited: Iterable[tuple[Running, Route]], *, may_wait: bool = True) -> None:
        """What these requests waited for is there, or will not come."""
        for running, route in waited:
            generation = running.generation
            if generation.need is not Need.BEGINNING or generation.is_done:
                continue
            if route in self._swarm.routes(route.model_id):
                self._begin(running, route, may_wait=may_wait)
            else:
                generation.on_error(UnreachableError("its pipeline went before it had begun"), self._swarm.now_s())
                self._go_on(running)

    def _go_on(self, running: Running) -> None:
        """Carry out what the machine decided."""
        generation = running.generation
        recording = generation.spec.recording
        while sends := generation.take_sends():
            for send in sends:
                try:
                    if send.payload is None:
                        self._swarm.send(send.node_id, send.message)
                        continue
                    if recording is not None:
                        recording.sent(send.message, self._swarm.now_s())  # type: ignore[arg-type]
                    self._owners[send.message.command_id] = running  # type: ignore[union-attr]
                    running.command_ids.add(send.message.command_id)  # type: ignore[union-attr]
                    self._swarm.send(send.node_id, send.message, (send.payload,))
                except UnreachableError as error:
                    if send.payload is not None and not generation.is_done:
                        generation.on_error(error, self._swarm.now_s())
                        break
        if generation.is_done:
            running.wake()
            had_place = self._places.release(running)
            if had_place:
                self._keeper.at_end(generation)
            self._choose_again(self._keeper.leave(running, self._swarm.now_s()))
            if had_place:
                self.pump()
            return
        if recording is not None and generation.need in (Need.ROUTE, Need.PAUSE):
            recording.set_back(generation.last_error.code, self._swarm.now_s())
        self._choose_again(self._keeper.ripe(running))
        if generation.need in (Need.ROUTE, Need.PAUSE) and running.timer is None:
            if generation.pause_s > 0:
                loop = asyncio.get_running_loop()
                running.timer = loop.call_later(generation.pause_s, self._after_pause, running)
            else:
                self._find_route(running)

    def _after_pause(self, running: Running) -> None:
        running.timer = None
        if running.generation.is_done:
            return
        route = running.generation.route
        if running.generation.wants_route:
            self._find_route(running)
        elif running.generation.begins_anew and route is not None:
            self._begin(running, route)
        else:
            now_s, recording = self._swarm.now_s(), running.generation.spec.recording
            if recording is not None and running.generation.route is not None:
                recording.began_try(running.generation.route, 0, now_s)
            running.generation.resume(now_s)
            self._go_on(running)

    def _find_route(self, running: Running) -> None:
        """Go on along a new route, if there is one now; else a change of the cluster tries again."""
        self._places.release(running)
        route = self._places.pick(self._swarm.routes(running.generation.spec.model_id))
        if route is not None:
            log.info("request_rerouted", request_id=running.request_id, stages=len(route.stages))
            self._begin(running, route)

    def _ended(self, running: Running) -> None:
        if running not in self.running:  # it had not begun
            opener = self._openers.pop(running, None)
            if opener is not None and opener not in self._openers.values():
                opener.cancel()
            return
        self._go_on(running)
        if running.timer is not None:
            running.timer.cancel()
            running.timer = None
        for command_id in running.command_ids:
            self._owners.pop(command_id, None)
        self.running.pop(running, None)
        model = self._speculation(running.generation.spec.model_id)
        if model is not None:
            model.streams -= 1
        if not self.running:
            self.idle.set()
        now_s = self._swarm.now_s()
        self.totals.account(running, now_s)
        self.figures.ended(running.generation, now_s - running.arrived_at_s, running.longest_gap_s)
        if running.generation.spec.recording is not None:
            error = running.generation.error
            running.generation.spec.recording.ended(
                running.generation.finish_reason or (error.code if error else ""), now_s
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
        if rows := generation.prompt_rows(result.command_id):
            self.totals.note_prompt(generation.nodes, rows)
        route = generation.route if generation.owns(result.command_id) else None
        n_tokens, now_s = generation.n_generated, self._swarm.now_s()
        if route is not None and generation.spec.recording is not None:
            generation.spec.recording.answered(result, now_s)
        generation.on_result(result, now_s)
        has_tokens = bool(generation.emitted)
        self._go_on(running)
        if has_tokens:
            if running.first_token_at_s is None:
                running.first_token_at_s = self._swarm.now_s()
                self.totals.began(running, running.first_token_at_s)
                self._keeper.note_first_token(generation)
            running.wake()
        if route is not None:  # the next step is on its way: now there is time for figures
            self.figures.step(route, result.timings)
            if generation.n_generated > n_tokens:
                is_first = running.token_at_s is None
                gap_s = now_s - (running.token_at_s or running.arrived_at_s)
                self.figures.token(generation.spec.model_id, gap_s, is_first=is_first)
                running.token_at_s = now_s
                if not is_first and gap_s > (running.longest_gap_s or -1.0):
                    running.longest_gap_s = gap_s

    def on_read(self, node_id: str, frame: Frame[RowsRead]) -> None:
        """A last stage told what it read of a prompt's rows; its result follows."""
        running = self._owners.get(frame.message.command_id)
        if running is None or not self._is_from_route(running, node_id):
            self.totals.late_answers += 1
            return
        running.generation.on_read(frame.message.command_id, frame)
        self._go_on(running)

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
                self._swarm.stage_failed(node_id, generation.route, error)
        generation.on_failed(failed, self._swarm.now_s())
        self._keeper.note_refusal(running)
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
        self._keeper.node_lost(node_id)
        for running in tuple(self.running):
            if not running.generation.is_done and not running.generation.wants_route:
                running.generation.on_node_lost(node_id, self._swarm.now_s())
                self._leave_lost_route(running)

    def _leave_lost_route(self, running: Running) -> None:
        if running.generation.wants_route and running.timer is not None:  # it paused before another try on that route
            running.timer.cancel()
            running.timer = None
        self._go_on(running)

    def on_time(self) -> None:
        """The clock moved."""
        for running in tuple(self.running):
            running.generation.on_time(self._swarm.now_s())
            self._go_on(running)
        self._choose_again(self._keeper.overdue(self._swarm.now_s()), may_wait=False)

    # -- the end -------------------------------------------------------------------------------------------------------------

    def refuse_new(self) -> None:
        """The coordinator stops: nobody comes in any more."""
        self._is_closed = True
        self._keeper.close()
        self._queue.refuse_all(STOPPING)

    def fail_all(self) -> None:
        """Give up what is still running, and free what was kept."""
        self._keeper.free_all()
        for running in tuple(self.running):
            running.generation.fail(PlacementError("the coordinator stopped before the answer was complete"))
            self._go_on(running)
