"""Carries out the effects of the node's state, and feeds each outcome back as an event. The only place where the two worlds meet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, assert_never

from shardnet.errors import ShardnetError, ShardNotFound
from shardnet.ids import ShardKey, new_id
from shardnet.inference.engine.interface import Engine
from shardnet.inference.engine.protocol import Load as EngineLoad
from shardnet.inference.engine.protocol import Loading
from shardnet.lifecycle import Spawn
from shardnet.log import get, human_bytes
from shardnet.messages import AnyMessage
from shardnet.node.shards.effects import (
    Effect,
    FailTask,
    Fetch,
    Load,
    Note,
    Offer,
    PreloadDone,
    Quarantine,
    RunTask,
    SaveManifest,
    Send,
    StartTimer,
    StopFetch,
    StopTimer,
    Unload,
    Verify,
    Withdraw,
)
from shardnet.node.shards.events import (
    DeadlinePassed,
    Event,
    FetchFailed,
    LoadFailed,
    Progressed,
    Quarantined,
    ShardFetched,
    ShardLoaded,
    ShardUnloaded,
    ShardVerified,
    VerifyFailed,
)
from shardnet.node.shards.machine import NodeState
from shardnet.node.weights.exchange import FetchProgress, ShardExchange
from shardnet.node.weights.store import ModelStore

log = get("node")

LOAD_LOG_S = 2.0
"""Between two lines about a load."""


class Performer:
    """The rim around `NodeState`.

    Args:
        run_task, fail_task: what becomes of tasks that waited for shards.
        tell: sends to the coordinator.
        spawn: starts a job that lives no longer than the daemon.
    """

    def __init__(
        self,
        state: NodeState,
        store: ModelStore,
        engine: Engine,
        exchange: ShardExchange | None,
        *,
        tell: Callable[[AnyMessage], None],
        run_task: Callable[[int], None],
        fail_task: Callable[[int, ShardnetError], None],
        spawn: Spawn,
    ) -> None:
        self._state = state
        self._store = store
        self._engine = engine
        self._exchange = exchange
        self._tell = tell
        self._run_task = run_task
        self._fail_task = fail_task
        self._spawn = spawn
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._fetches: dict[ShardKey, asyncio.Task[None]] = {}
        self.preloaded = asyncio.Event()
        """Set when everything that is to be in memory before joining is there, or cannot be."""

    def post(self, event: Event) -> None:
        """Let the state decide about an event, and begin what it says."""
        for effect in self._state.handle(event):
            self._perform(effect)

    def close(self) -> None:
        """No timer fires any more."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send():
                self._tell(effect.message)
            case Note():
                (log.warning if effect.level == "warning" else log.info)(effect.fact, **effect.facts)
            case RunTask():
                self._run_task(effect.ticket)
            case FailTask():
                self._fail_task(effect.ticket, effect.error)
            case StartTimer():
                self._start_timer(effect)
            case StopTimer():
                if (timer := self._timers.pop(effect.command_id, None)) is not None:
                    timer.cancel()
            case PreloadDone():
                self.preloaded.set()
            case Verify():
                self._job(lambda: self._verify(effect), effect.key, "verify", VerifyFailed)
            case Load():
                self._job(lambda: self._load(effect), effect.key, "load", LoadFailed)
            case Unload():
                self._spawn(self._unload(effect), f"unload {effect.key[1]}")
            case Fetch():
                self._fetches[effect.key] = self._job(lambda: self._fetch(effect), effect.key, "fetch", FetchFailed)
            case StopFetch():
                if (fetch := self._fetches.get(effect.key)) is not None:
                    fetch.cancel()
            case SaveManifest():
                self._spawn(self._store.keep_manifest(effect.folder, effect.manifest), "keep manifest")
            case Quarantine():
                self._spawn(self._quarantine(effect), "quarantine")
            case Offer():
                if self._exchange is not None:
                    offer = self._exchange.offer(effect.manifest, effect.key[1], effect.path)
                    self._spawn(offer, f"offer {effect.key[1]}")
            case Withdraw():
                if self._exchange is not None:
                    self._spawn(self._exchange.withdraw(*effect.key), f"withdraw {effect.key[1]}")
            case _:
                assert_never(effect)

    def _start_timer(self, effect: StartTimer) -> None:
        def ring() -> None:
            self._timers.pop(effect.command_id, None)
            self.post(DeadlinePassed(effect.command_id))

        self._timers[effect.command_id] = asyncio.get_running_loop().call_at(effect.at_s, ring)

    def _job(
        self,
        work: Callable[[], Coroutine[Any, Any, Event]],
        key: ShardKey,
        what: str,
        failed: Callable[[ShardKey, ShardnetError], Event],
    ) -> asyncio.Task[None]:
        """Start work whose outcome, whatever it is, comes back as an event."""

        async def run() -> None:
            try:
                outcome = await work()
            except ShardnetError as error:
                outcome = failed(key, error)
            except Exception:
                log.exception("shard_job_failed", what=what, shard_id=key[1])
                outcome = failed(
                    key, ShardnetError(f"an unexpected error while this node {what}s the shard; its log says more")
                )
            self.post(outcome)

        return self._spawn(run(), f"{what} {key[1]}")

    async def _verify(self, effect: Verify) -> Event:
        shard_id = effect.key[1]
        total = effect.manifest.content.shards[shard_id].bytes

        def on_done(done: int) -> None:
            self.post(Progressed(effect.key, "verify", done, total))

        await self._store.verify(effect.path, effect.manifest, shard_id, on_done)
        return ShardVerified(effect.key)

    async def _quarantine(self, effect: Quarantine) -> None:
        await self._store.quarantine(effect.path)
        self.post(Quarantined(effect.key))

    async def _load(self, effect: Load) -> Event:
        model_id, shard_id = effect.key
        request = EngineLoad(
            command_id=new_id(),
            model_id=model_id,
            shard_id=shard_id,
            path=str(effect.path.absolute()),
            options=effect.options,
        )

        now_s = asyncio.get_running_loop().time
        began_s = told_s = now_s()

        def on_progress(seen: Loading) -> None:
            nonlocal told_s
            self.post(
                Progressed(
                    effect.key,
                    "load",
                    seen.done_bytes,
                    seen.total_bytes,
                    seen.bytes_per_s,
                    memory_bytes=seen.memory_bytes,
                    cpu_cores=seen.cpu_cores,
                )
            )
            if now_s() - told_s >= LOAD_LOG_S:
                told_s = now_s()
                log.info(
                    "shard_loading",
                    shard_id=shard_id,
                    percent=100 * seen.done_bytes / max(1, seen.total_bytes),
                    done=human_bytes(seen.done_bytes),
                    total=human_bytes(seen.total_bytes),
                    rate=f"{human_bytes(seen.bytes_per_s)}/s",
                    memory=human_bytes(seen.memory_bytes),
                    cores=seen.cpu_cores,
                )

        try:
            loaded = await self._engine.load(request, on_progress)
        except ShardnetError:
            if await asyncio.to_thread(effect.path.exists):
                raise
            raise ShardNotFound(f"{effect.path} is gone") from None
        seconds = max(1e-3, now_s() - began_s)
        rate = f"{human_bytes(effect.nbytes / seconds)}/s"
        log.info("shard_in_memory", shard_id=shard_id, size=human_bytes(effect.nbytes), seconds=seconds, rate=rate)
        answer = loaded.answer
        if answer.why:
            log.info("shard_memory_mode", shard_id=shard_id, mode=answer.memory_mode, why=answer.why)
        return ShardLoaded(
            effect.key,
            effect.options.model_copy(update={"repack": answer.repacked}),
            answer.memory_bytes,
            answer.memory_mode,
        )

    async def _unload(self, effect: Unload) -> None:
        await self._engine.unload(*effect.key)
        self.post(ShardUnloaded(effect.key))

    async def _fetch(self, effect: Fetch) -> Event:
        shard_id = effect.key[1]

        def on_progress(seen: FetchProgress) -> None:
            self.post(Progressed(effect.key, "fetch", seen.done_bytes, seen.total_bytes, seen.bytes_per_s, seen.peers))

        try:
            if self._exchange is None:
                raise ShardNotFound(
                    f"shard {shard_id} of {effect.manifest.name} can be had from nobody: no exchange runs"
                )
            proved = await self._exchange.fetch(effect.manifest, shard_id, effect.target, effect.sources, on_progress)
            await self._store.note_proved(effect.target, effect.manifest.sha256_of(shard_id), proved)
        except asyncio.CancelledError:
            if not self._state.is_fetch_stopped(effect.key):
                raise  # the daemon ends
            return FetchFailed(effect.key, ShardNotFound("the download was stopped: nobody waits for it"))
        finally:
            self._fetches.pop(effect.key, None)
        return ShardFetched(effect.key, effect.target)
