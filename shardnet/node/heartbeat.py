"""What the node tells its coordinator every second. The heartbeat never waits for the engine, which may be in the middle of a long prompt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from shardnet.errors import ShardnetError
from shardnet.inference.engine.interface import Engine
from shardnet.inference.engine.protocol import Report
from shardnet.lifecycle import Spawn
from shardnet.messages import AnyMessage, DeviceInfo, Heartbeat, HeldShard, Reach
from shardnet.node.shards.machine import NodeState
from shardnet.node.tasks.runner import TaskRunner


class Pulse:
    """Sends heartbeats, from the latest report of the engine.

    Args:
        moved_to: where others reach this node, if that is not what the coordinator was told when we joined.
    """

    def __init__(
        self,
        state: NodeState,
        tasks: TaskRunner,
        engine: Engine,
        tell: Callable[[AnyMessage], None],
        spawn: Spawn,
        *,
        interval_s: float,
        memory_limit_bytes: int,
        moved_to: Callable[[], Reach | None] = lambda: None,
    ) -> None:
        self._state = state
        self._tasks = tasks
        self._engine = engine
        self._tell = tell
        self._spawn = spawn
        self._interval_s = interval_s
        self._memory_limit_bytes = memory_limit_bytes
        self._moved_to = moved_to
        self._asking: asyncio.Task[None] | None = None
        self._report: Report | None = None
        self._asked_s = 0.0
        self._load = 0.0
        self.devices: tuple[DeviceInfo, ...] = ()

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            if self._asking is None or self._asking.done():
                self._asking = self._spawn(self._ask(), "engine report")
            self._tasks.drop_overdue()
            self.beat()
            await asyncio.sleep(self._interval_s)

    def beat(self) -> None:
        """Send one heartbeat now."""
        held = self.held()
        self._tell(
            Heartbeat(
                memory_free_bytes=self._memory_free(held),
                load=self._load,
                devices=self.devices,
                held=held,
                sequences=self._report.sequences if self._report is not None else 0,
                handover_us=self._tasks.times.handover_us,
                draining=self._state.is_draining,
                reach=self._moved_to(),
            )
        )

    def held(self) -> tuple[HeldShard, ...]:
        """Returns: every shard here, with the times of steps through it."""
        held = self._state.held(self._tasks.times.per_shard(self._state.n_layers()))
        streamed = {(one.model_id, one.shard_id): one for one in (self._report.streamed if self._report else ())}
        return tuple(
            shard.model_copy(update={"memory_bytes": found.memory_bytes, "streamed": found.weights})
            if shard.loaded and (found := streamed.get((shard.model_id, shard.shard_id))) is not None
            else shard
            for shard in held
        )

    def memory_free(self) -> int:
        """Returns: bytes for more shards, by the engine's latest report."""
        return self._memory_free(self.held())

    @property
    def report(self) -> Report | None:
        """Returns: what the engine told last; None before it did."""
        return self._report

    async def _ask(self) -> None:
        try:
            report = await self._engine.report()
        except ShardnetError:
            return  # the engine is being started again; its supervisor logs that
        self._tasks.times.take(report.batches)
        now_s = time.monotonic()
        if self._report is not None and report.busy_s >= self._report.busy_s:
            self._load = min(1.0, (report.busy_s - self._report.busy_s) / max(now_s - self._asked_s, 1e-3))
        self._report, self._asked_s, self.devices = report, now_s, report.devices

    def _memory_free(self, held: tuple[HeldShard, ...]) -> int:
        """Returns: bytes for more shards: what the devices have free, within what the node's user allows."""
        free = sum(device.free_bytes for device in self.devices)
        if not self._memory_limit_bytes:
            return free
        return max(0, min(free, self._memory_limit_bytes - sum(shard.memory_bytes for shard in held)))
