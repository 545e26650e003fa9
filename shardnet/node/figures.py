"""A node's figures for Prometheus, beside those of every daemon: which there are, and where they are read when somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client import ProcessCollector
from prometheus_client.metrics_core import Metric

from shardnet.inference.engine.interface import Engine
from shardnet.messages import HeldShard
from shardnet.metrics.family import counter, gauge
from shardnet.metrics.vitals import n_threads
from shardnet.node.heartbeat import Pulse
from shardnet.node.shards.machine import NodeState
from shardnet.node.shards.records import Phase
from shardnet.node.tasks.runner import TaskRunner
from shardnet.node.weights.swarming import SwarmExchange

JOINED = gauge("joined", "1 while this node is joined to a coordinator.")
DRAINING = gauge("draining", "1 while this node is leaving.")
PEERS = gauge("peer_links", "Nodes that this one is linked with.")
SHARDS = gauge("shards", "Shards here, by what is so with them.", "state")
SHARDS_MEMORY = gauge(
    "shards_memory_bytes", "Memory of all loaded shards, as the engine says: weights, KV cache, compute buffers."
)
WEIGHTS = gauge("weights_bytes", "Weights of all loaded shards, as large as their files.")
KV_CACHE = gauge("kv_cache_bytes", "KV caches of all loaded shards, by the context that they were loaded with.")
FREE = gauge("memory_free_bytes", "Memory left for more shards, within what this node may use.")
LIMIT = gauge("memory_limit_bytes", "What this node's user allows for shards; not there where there is no such limit.")
DEVICE_FREE = gauge("device_memory_free_bytes", "Free memory of a device, as the engine sees it.", "device")
DEVICE_TOTAL = gauge("device_memory_total_bytes", "Memory of a device, as the engine sees it.", "device")
TASKS = gauge("tasks", "Tasks and runs that are here.")
SEQUENCES = gauge("sequences", "Sequences with KV in the engine.")
ENGINE_UP = gauge("engine_up", "1 while the engine process runs.")
ENGINE_RESTARTS = counter("engine_restarts", "Times that the engine process died and was started again.")
ENGINE_BUSY = counter("engine_busy_seconds", "Seconds inside llama.cpp since the engine process started.")
ENGINE_THREADS = gauge("engine_threads", "Threads of the engine process.")
ENGINE = "shardnet_engine"
"""What the engine process's own figures begin with: `shardnet_engine_process_resident_memory_bytes`, ..."""
TORRENTS = gauge("torrents", "Shards that travel: given to whoever wants them, or being fetched.", "state")
TORRENT_PEERS = gauge("torrent_peers", "Connections over which shards travel.")
TORRENT_SENT = counter("torrent_sent_bytes", "Bytes of shards that were given.")
TORRENT_TAKEN = counter("torrent_received_bytes", "Bytes of shards that were fetched, bad and repeated ones included.")

IN_MEMORY, ON_DISK = "in_memory", "on_disk"


@dataclass(slots=True)
class NodeFigures:
    """All of a node's own.

    Attributes:
        is_joined: the coordinator has taken it in. `n_peers`: nodes that it is linked with.
        swarming: gives and takes shards; None: it does not.
        restarts: of the engine, so far; whoever is told of one counts it here.
    """

    state: NodeState
    pulse: Pulse
    tasks: TaskRunner
    engine: Engine
    is_joined: Callable[[], bool]
    n_peers: Callable[[], int]
    swarming: SwarmExchange | None
    memory_limit_bytes: int
    restarts: int = 0

    def read(self) -> Iterable[Metric]:
        """Yield what is known on the event loop."""
        yield JOINED.one(self.is_joined())
        yield DRAINING.one(self.state.is_draining)
        yield PEERS.one(self.n_peers())
        yield from self._shards()
        yield TASKS.one(self.tasks.n_tasks)
        report = self.pulse.report
        yield SEQUENCES.one(report.sequences if report is not None else 0)
        yield ENGINE_UP.one(self.engine.pid is not None)
        yield ENGINE_RESTARTS.one(self.restarts)
        yield ENGINE_BUSY.one(report.busy_s if report is not None else 0.0)
        if self.swarming is not None:
            yield from _traffic(self.swarming)

    def _shards(self) -> Iterable[Metric]:
        held = self.pulse.held()
        yield SHARDS.of(count_states(held))
        yield SHARDS_MEMORY.one(sum(one.memory_bytes for one in held))
        weights, kv = self.state.memory_wanted()
        yield WEIGHTS.one(weights)
        yield KV_CACHE.one(kv)
        yield FREE.one(self.pulse.memory_free())
        if self.memory_limit_bytes:
            yield LIMIT.one(self.memory_limit_bytes)
        yield DEVICE_FREE.of({device.name: device.free_bytes for device in self.pulse.devices})
        yield DEVICE_TOTAL.of({device.name: device.total_bytes for device in self.pulse.devices})

    def slow(self) -> Iterable[Metric]:
        """Yield what the kernel says of the engine process. Blocking."""
        pid = self.engine.pid
        if pid is not None:
            yield from ProcessCollector(namespace=ENGINE, pid=lambda: pid, registry=None).collect()
            yield ENGINE_THREADS.one(n_threads(pid))


def count_states(held: Iterable[HeldShard]) -> dict[str, int]:
    """Returns: state -> shards in it: what is being done with one, or else where it is, whatever there is to say of its file."""
    found = dict.fromkeys((IN_MEMORY, ON_DISK, *(phase.name.lower() for phase in Phase if phase is not Phase.IDLE)), 0)
    for one in held:
        still = IN_MEMORY if one.loaded else ON_DISK
        found[still if one.progress is None else Phase(one.detail).name.lower()] += 1
    return found


def _traffic(swarming: SwarmExchange) -> Iterable[Metric]:
    stats = swarming.stats().values()
    seeding = sum(one.is_seeding for one in stats)
    yield TORRENTS.of({"seeding": seeding, "fetching": len(stats) - seeding})
    yield TORRENT_PEERS.one(sum(one.peers for one in stats))
    sent, taken = swarming.traffic()
    yield TORRENT_SENT.one(sent)
    yield TORRENT_TAKEN.one(taken)
