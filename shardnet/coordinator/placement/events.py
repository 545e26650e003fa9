"""What can happen to the coordinator's view of its swarm, and what is to be done about it. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from shardnet.coordinator.placement.law import LinkTime
from shardnet.errors import ShardnetError
from shardnet.manifest import Manifest
from shardnet.messages import Heartbeat, HeldShard, Hello, LoadProgress


@dataclass(frozen=True, slots=True)
class NodeJoined:
    """A node greeted. It replaces an older view of the same node."""

    at_s: float
    hello: Hello
    clock_s: float | None = None
    """Unix time here."""


@dataclass(frozen=True, slots=True)
class HeartbeatCame:
    """A node told its state."""

    at_s: float
    node_id: str
    heartbeat: Heartbeat


@dataclass(frozen=True, slots=True)
class NodeLeft:
    """A node's connection is gone."""

    at_s: float
    node_id: str


@dataclass(frozen=True, slots=True)
class NodeDrains:
    """A node finishes what it runs and takes nothing new."""

    at_s: float
    node_id: str


@dataclass(frozen=True, slots=True)
class LoadSent:
    """LOAD_SHARD is on its way; `reserved_bytes` of the node's free memory are promised to it."""

    at_s: float
    node_id: str
    key: tuple[str, int]
    reserved_bytes: int
    keep_only: bool = False
    repack: bool = True


@dataclass(frozen=True, slots=True)
class LoadMoved:
    """LOAD_SHARD makes progress."""

    node_id: str
    key: tuple[str, int]
    progress: LoadProgress


@dataclass(frozen=True, slots=True)
class ShardIsReady:
    """LOAD_SHARD succeeded."""

    at_s: float
    node_id: str
    held: HeldShard


@dataclass(frozen=True, slots=True)
class ShardsLost:
    """A stage said that it does not have these shards in memory after all."""

    node_id: str
    keys: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """LOAD_SHARD failed."""

    at_s: float
    node_id: str
    key: tuple[str, int]
    error: ShardnetError


@dataclass(frozen=True, slots=True)
class ManifestKnown:
    """A manifest that may be served."""

    manifest: Manifest


@dataclass(frozen=True, slots=True)
class ManifestRefused:
    """A node offered a manifest that may not be served."""

    node_id: str
    manifest: Manifest
    reason: str


@dataclass(frozen=True, slots=True)
class SeedersKnown:
    """Shards of a model that no connected node has, and others on the DHT do. Replaces what was known."""

    model_id: str
    shards: frozenset[int]


@dataclass(frozen=True, slots=True)
class LinkKnown:
    """A link was measured; `link` None: the source cannot reach the target, the coordinator has to relay."""

    source: str
    target: str
    link: LinkTime | None


@dataclass(frozen=True, slots=True)
class TimePassed:
    """The clock moved."""

    at_s: float


Event = (
    NodeJoined
    | HeartbeatCame
    | NodeLeft
    | NodeDrains
    | LoadSent
    | LoadMoved
    | ShardIsReady
    | ShardsLost
    | LoadFailed
    | ManifestKnown
    | ManifestRefused
    | SeedersKnown
    | LinkKnown
    | TimePassed
)


@dataclass(frozen=True, slots=True)
class PlanNeeded:
    """What should be loaded where has to be thought over."""

    why: str


@dataclass(frozen=True, slots=True)
class NodeDied:
    """A node is silent: its connection is to be cut."""

    node_id: str
    reason: str


Effect = PlanNeeded | NodeDied
