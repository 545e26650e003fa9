"""The daemon's side of the engine: keeps one engine process running, with its shards, through crashes. Implements `engine.Engine`.

An engine process may end: for want of memory, by a signal, by a fault in native code. Then every task that was under way gets EngineCrashed, a new
process is started after a short wait, and takes the same shards in again; sequences are lost, and their next step learns so by SequenceGap. A shard
whose loading ends the process twice, or once for want of memory, is given up.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from shardnet.errors import EngineCrashed, EngineError, LocalProtocolError, NoRoomError, ShardnetError
from shardnet.ids import ShardKey, new_id
from shardnet.inference.engine.child import Child
from shardnet.inference.engine.huge_pages import environment_for
from shardnet.inference.engine.interface import LoadedShard, OnLink, OnProgress, OnRow, OnStep
from shardnet.inference.engine.late_steps import LateSteps
from shardnet.inference.engine.memory import need_of, no_room
from shardnet.inference.engine.protocol import (
    CutRows,
    DialRows,
    EngineSettings,
    Forget,
    Load,
    Loaded,
    Loading,
    Membership,
    Query,
    Ready,
    Report,
    RowsLost,
    RowsMet,
    TakeRows,
    Unload,
)
from shardnet.inference.engine.settings import InferenceSettings
from shardnet.inference.engine.shard_cost import cost_of
from shardnet.inference.engine.steps import Step
from shardnet.lifecycle import Backoff
from shardnet.limits.memory import room_here
from shardnet.log import get
from shardnet.steps import NextStep
from shardnet.wire import Buffer

log = get("engine")

LOAD_ATTEMPTS = 2
CALM_AFTER_S = 30.0
"""A process that lived this long is no part of a series of crashes."""


@dataclass(frozen=True, slots=True)
class Restored:
    """The engine is back after a crash: with these shards, without those, and with no sequence."""

    shards: tuple[LoadedShard, ...]
    lost: tuple[tuple[ShardKey, ShardnetError], ...]


class EngineProcess:
    """The engine process of one node.

    Args:
        settings: threads, devices and memory.
        membership: who the node is, for the engine's own links to other engines; None: it makes none.
        on_restart: called on the event loop when the engine is back after a crash.
        environment: variables for the process: which GPUs it may see, say.
    """

    def __init__(
        self,
        settings: InferenceSettings | None = None,
        *,
        membership: Membership | None = None,
        on_restart: Callable[[Restored], None] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._settings = settings or InferenceSettings()
        self._membership = membership
        self._on_restart = on_restart
        self._environment = dict(environment or {})
        self.on_link: OnLink | None = None
        self._shards: dict[ShardKey, LoadedShard] = {}
        self._loading: dict[ShardKey, tuple[Load, list[OnProgress], asyncio.Task[LoadedShard]]] = {}
        self._process: tuple[Child, asyncio.Task[EngineCrashed]] | None = None  # the last one started, and its end
        self._child: Child | None = None  # set while it is up, with its shards
        self._up = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._late = LateSteps(self._engine)

    @property
    def shards(self) -> tuple[LoadedShard, ...]:
        """Returns: what is loaded, or will be again when the engine is back."""
        return tuple(self._shards.values())

    @property
    def pid(self) -> int | None:
        """Returns: the engine's process id, None while it is down."""
        return None if self._child is None else self._child.pid

    # -- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> Ready:
        """Start the engine process. Raises: EngineError if it cannot be started."""
        if self._supervisor is not None:
            raise LocalProtocolError("the engine was started already")
        child, death, ready = await self._spawn()
        self._set_up(child, death)
        self._supervisor = asyncio.create_task(self._supervise(), name="engine")
        log.info("engine_started", pid=ready.pid, devices=", ".join(device.name for device in ready.devices))
        return ready

    async def _spawn(self) -> tuple[Child, asyncio.Task[EngineCrashed], Ready]:
        """Returns: a process that is ready, and the task that ends with it. Raises: EngineError; then nothing is left."""
        settings = EngineSettings(inference=self._settings, membership=self._membership)
        wished = environment_for(os.environ | self._environment) if self._settings.huge_pages else {}
        child = await Child.start(settings, self._tell_link, self._environment | wished)
        death = asyncio.create_task(child.wait(), name="engine-process")
        try:
            return child, death, await child.ready(self._settings.start_timeout_s)
        except BaseException:
            await self._end(child, death)
            raise

    def _set_up(self, child: Child, death: asyncio.Task[EngineCrashed]) -> None:
        self._process = child, death
        self._child = child
        self._up.set()

    async def _supervise(self) -> None:
        """Wait for the process to die, start another, for ever."""
        loop = asyncio.get_running_loop()
        backoff = Backoff()
        while self._process is not None:
            began_s = loop.time()
            crash = await asyncio.shield(self._process[1])
            self._child = None
            self._up.clear()
            log.warning("engine_crashed", reason=crash.message, shards=len(self._shards))
            if loop.time() - began_s > CALM_AFTER_S:
                backoff.reset()
            child, death, restored = await self._restore(backoff)
            self._set_up(child, death)
            log.info("engine_restored", shards=len(restored.shards), pid=child.pid)
            if self._on_restart is not None:
                self._on_restart(restored)

    async def _restore(self, backoff: Backoff) -> tuple[Child, asyncio.Task[EngineCrashed], Restored]:
        """Start a new process and load the shards again, as often as it takes."""
        crashes: dict[ShardKey, int] = {}
        lost: list[tuple[ShardKey, ShardnetError]] = []
        while True:
            await asyncio.sleep(backoff.next_delay_s())
            try:
                child, death, _ = await self._spawn()
            except EngineError as error:
                log.error("engine_not_started", reason=error.message)
                continue
            try:
                if await self._reload(child, crashes, lost):
                    return child, death, Restored(self.shards, tuple(lost))
            except BaseException:
                await self._end(child, death)
                raise
            await self._end(child, death)

    async def _reload(
        self, child: Child, crashes: dict[ShardKey, int], lost: list[tuple[ShardKey, ShardnetError]]
    ) -> bool:
        """Returns: False if the process died over it."""
        for key, shard in list(self._shards.items()):
            if key not in self._shards:
                continue  # unloaded meanwhile
            try:
                frame = await child.request(shard.request)
            except EngineCrashed as error:
                crashes[key] = crashes.get(key, 0) + 1
                if error.facts.get("out_of_memory"):
                    self._give_up(key, await asyncio.to_thread(_no_room, shard.request, error), lost)
                elif crashes[key] >= LOAD_ATTEMPTS:
                    self._give_up(key, error, lost)
                return False
            except ShardnetError as error:
                self._give_up(key, error, lost)
                continue
            if key in self._shards:
                self._shards[key] = LoadedShard(shard.request, cast("Loaded", frame.message))
        return True

    def _give_up(self, key: ShardKey, error: ShardnetError, lost: list[tuple[ShardKey, ShardnetError]]) -> None:
        self._shards.pop(key, None)
        lost.append((key, error))
        log.error("engine_shard_given_up", model_id=key[0], shard_id=key[1], reason=error.message)

    async def _end(self, child: Child, death: asyncio.Task[EngineCrashed]) -> None:
        """Close a process; kill it if it does not end in time."""
        child.close()
        done, _ = await asyncio.wait([death], timeout=self._settings.stop_timeout_s)
        if not done:
            child.kill()
            await death

    async def close(self) -> None:
        """End the engine process; nothing of it is left afterwards."""
        tasks: list[asyncio.Task[LoadedShard] | asyncio.Task[None]] = [task for _, _, task in self._loading.values()]
        if self._supervisor is not None:
            tasks.append(self._supervisor)
        tasks += self._late.tasks
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError, ShardnetError):
                await task
        self._supervisor = self._child = None
        self._up.clear()
        self._shards.clear()
        if self._process is not None:
            await self._end(*self._process)
            self._process = None

    async def _engine(self) -> Child:
        """Returns: the running process; waits for it while it is being restarted. Raises: EngineCrashed if that takes too long."""
        if self._child is not None and self._child.is_dead:  # the supervisor has yet to notice
            self._child = None
            self._up.clear()
        if self._child is None:
            if self._supervisor is None:
                raise EngineCrashed("the engine is not running")
            try:
                await asyncio.wait_for(self._up.wait(), self._settings.start_timeout_s)
            except TimeoutError:
                raise EngineCrashed("the engine died and is not back yet") from None
        if self._child is None:
            raise EngineCrashed("the engine died and is not back yet")
        return self._child

    # -- shards ------------------------------------------------------------------------------------------------------

    async def load(self, request: Load, on_progress: OnProgress | None = None) -> LoadedShard:
        """Take a shard into memory; at once if it is there with the same options.

        A load goes on when its caller is cancelled: others may wait for it too.

        Raises: NoRoomError, GgufError, EngineError, EngineCrashed.
        """
        key = ShardKey((request.model_id, request.shard_id))
        await self._engine()
        while (running := self._loading.get(key)) is not None and not _is_same(running[0], request):
            await asyncio.wait([running[2]])  # one after the other
        held = self._shards.get(key)
        if running is None and held is not None and _is_same(held.request, request):
            return held
        if running is None:
            listeners: list[OnProgress] = []
            task = asyncio.create_task(self._load(key, request, listeners), name=f"load-{request.shard_id}")
            running = self._loading[key] = (request, listeners, task)
            task.add_done_callback(_look_at)
        if on_progress is not None:
            running[1].append(on_progress)
        return await asyncio.shield(running[2])

    async def _load(self, key: ShardKey, request: Load, listeners: list[OnProgress]) -> LoadedShard:
        try:
            return await self._load_or_give_up(key, request, listeners)
        finally:
            del self._loading[key]

    async def _load_or_give_up(self, key: ShardKey, request: Load, listeners: list[OnProgress]) -> LoadedShard:
        def tell(seen: Loading) -> None:
            for listener in listeners:
                listener(seen)

        for attempt in range(1, LOAD_ATTEMPTS + 1):
            child = await self._engine()
            self._shards.pop(key, None)  # with other options: the engine replaces it
            try:
                frame = await child.request(request, tell)
            except EngineCrashed as error:
                if error.facts.get("out_of_memory"):
                    raise await asyncio.to_thread(_no_room, request, error) from None
                if attempt == LOAD_ATTEMPTS:
                    raise EngineCrashed(
                        f"the engine died twice while it loaded shard {request.shard_id} from {request.path}, which is given up: "
                        f"{error.message}"
                    ) from None
                continue
            self._shards[key] = LoadedShard(request, cast("Loaded", frame.message))
            return self._shards[key]
        raise AssertionError("unreachable")

    async def unload(self, model_id: str, shard_id: int, *, keep_sequences: bool = False) -> None:
        """Free a shard; nothing happens if it is not loaded.

        Args:
            keep_sequences: keep its sequences' KV in main memory, and go on with it when the shard is loaded again with the same options.

        Raises: EngineError if llama.cpp cannot save a sequence; the shard stays then.
        """
        key = ShardKey((model_id, shard_id))
        self._shards.pop(key, None)
        with suppress(EngineCrashed):  # a dead engine holds nothing
            child = await self._engine()
            await child.request(
                Unload(command_id=new_id(), model_id=model_id, shard_id=shard_id, keep_sequences=keep_sequences)
            )
        self._shards.pop(key, None)  # a load that was under way came first

    # -- steps -------------------------------------------------------------------------------------------------------

    def step(self, step: Step, payloads: Sequence[Buffer], on_answer: OnStep, on_row: OnRow | None = None) -> None:
        """Run one step or a run; answers as `Engine.step` says, and UsageError for a bad grammar."""
        child = self._child
        if child is not None and not child.is_dead:
            child.step(step, payloads, on_answer, on_row)
            return
        self._late.put(step, payloads, on_answer, on_row)

    def row(self, row: NextStep, payloads: Sequence[Buffer]) -> None:
        """Run a row of a run. If the engine that knew the run is dead, the run's listener has been told."""
        if self._child is not None:
            self._child.row(row, payloads)

    def halt(self, command_id: str) -> None:
        """End a run after the step under way."""
        self._late.halt(command_id)
        if self._child is not None:
            self._child.halt(command_id)

    def forget(self, sequence_id: str) -> None:
        """Drop a sequence's KV and state; steps of it that still wait are answered with EngineError."""
        self._late.forget(sequence_id)
        if self._child is not None:
            self._child.send(Forget(sequence_id=sequence_id))

    # -- row links ---------------------------------------------------------------------------------------------------

    def link(self, order: DialRows | TakeRows | CutRows) -> None:
        """Make, use or end a row link; a dead engine has none."""
        if self._child is not None:
            self._child.send(order)

    def adopt(self, link_id: int, connection: socket.socket) -> None:
        """Hand over a connection that another engine dialled."""
        if self._child is None:
            connection.close()
        else:
            self._child.adopt(link_id, connection)

    def _tell_link(self, news: RowsMet | RowsLost) -> None:
        if self.on_link is not None:
            self.on_link(news)

    async def report(self) -> Report:
        """Ask for memory and load. Raises: EngineCrashed."""
        child = await self._engine()
        return cast("Report", (await child.request(Query(command_id=new_id()))).message)


def _no_room(request: Load, error: EngineCrashed) -> NoRoomError:
    """Returns: why this shard is not tried again: the kernel would kill the engine over and over."""
    what, needed = f"shard {request.shard_id}", need_of(cost_of(Path(request.path)), request.options).total
    found = no_room(what, needed, room_here(), used_bytes=0, limit_bytes=0)
    return NoRoomError(f"{found.message}; while it was loaded {error.message}", **found.facts)


def _look_at(task: asyncio.Task[LoadedShard]) -> None:
    """A load's error belongs to those who wait for it; asyncio need not complain when they have gone."""
    if not task.cancelled():
        task.exception()


def _is_same(one: Load, other: Load) -> bool:
    return (one.path, one.options) == (other.path, other.options)
