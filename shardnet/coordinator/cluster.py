"""What the coordinator knows of its swarm. Pure: events in, effects out; time is a number in the event.

`Cluster.handle(event)` is the only way to change it. `version` grows whenever a route may have changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from shardnet.coordinator.events import (
    Effect,
    Event,
    HeartbeatCame,
    LinkKnown,
    LoadFailed,
    LoadMoved,
    LoadSent,
    ManifestKnown,
    NodeDied,
    NodeDrains,
    NodeJoined,
    NodeLeft,
    PlanNeeded,
    SeedersKnown,
    ShardIsReady,
    ShardsLost,
    TimePassed,
)
from shardnet.coordinator.law import LinkTime
from shardnet.errors import ShardnetError
from shardnet.manifest import Manifest
from shardnet.messages import Address, Capabilities, HeldShard, Hello, LoadProgress
from shardnet.shards import LayerRange

Key = tuple[str, int]
"""`(model_id, shard_id)`"""

FIRST_RETRY_S, MOST_RETRY_S = 2.0, 60.0
CONFIRMED_S = 1.5
"""One heartbeat interval and a half."""


@dataclass(slots=True)
class Load:
    """A LOAD_SHARD on its way."""

    since_s: float
    reserved_bytes: int
    keep_only: bool = False
    progress: LoadProgress | None = None


@dataclass(slots=True)
class Refusal:
    """A node could not load a shard; it is asked again after a while. `waits` until then."""

    error: ShardnetError
    retry_at_s: float
    delay_s: float
    waits: bool = True


@dataclass(slots=True)
class NodeView:
    """One connected node.

    Invariants: a key of `ready` is loaded in `held`; no key is in both `loads` and `ready`.

    Attributes:
        ready: shards that the node confirmed to have in memory with this coordinator's options -> when it did.
    """

    node_id: str
    name: str
    address: Address | None
    capabilities: Capabilities
    joined_at_s: float
    heard_at_s: float
    held: dict[Key, HeldShard] = field(default_factory=dict)
    ready: dict[Key, float] = field(default_factory=dict)
    loads: dict[Key, Load] = field(default_factory=dict)
    refusals: dict[Key, Refusal] = field(default_factory=dict)
    memory_free_bytes: int = 0
    load: float = 0.0
    sequences: int = 0
    handover_us: float | None = None
    draining: bool = False

    @property
    def label(self) -> str:
        """Returns: what people read."""
        return self.name or self.node_id[:12]

    @property
    def free_bytes(self) -> int:
        """Returns: memory for more shards, what is promised to loads under way left out."""
        return max(0, self.memory_free_bytes - sum(load.reserved_bytes for load in self.loads.values()))

    def allowed(self, model_id: str, name: str) -> frozenset[int] | None:
        """Returns: shards of a model that this node may be given; None: any."""
        if self.capabilities.accepts_any:
            return None
        known = {shard for model, shard in self.capabilities.assigned if model == model_id}
        return frozenset(known.union(*(_meant(text, model_id, name) for text in self.capabilities.bound)))

    def check(self) -> None:
        """Raises: AssertionError if an invariant is broken."""
        assert all(self.held[key].loaded for key in self.ready), self
        assert not self.ready.keys() & self.loads.keys(), self


class Cluster:
    """Nodes, models, links."""

    def __init__(self, *, dead_after_s: float = 5.0) -> None:
        self.nodes: dict[str, NodeView] = {}
        self.manifests: dict[str, Manifest] = {}
        self.seeded: dict[str, frozenset[int]] = {}
        """model_id -> shards that somebody who is not connected gives."""
        self.links: dict[tuple[str, str], LinkTime] = {}
        self.unreachable: set[tuple[str, str]] = set()
        self.version = 0
        self._dead_after_s = dead_after_s

    def check(self) -> None:
        """Raises: AssertionError if an invariant is broken."""
        for node in self.nodes.values():
            node.check()

    def handle(self, event: Event) -> list[Effect]:
        """Take one event in. Returns: what is to be done about it."""
        match event:
            case NodeJoined():
                return self._joined(event)
            case HeartbeatCame():
                return self._heartbeat(event)
            case NodeLeft():
                return self._left(event)
            case NodeDrains():
                return self._drains(event)
            case LoadSent():
                self.nodes[event.node_id].loads[event.key] = Load(event.at_s, event.reserved_bytes, event.keep_only)
                if not event.keep_only:
                    self.nodes[event.node_id].ready.pop(event.key, None)
                return []
            case LoadMoved():
                if (node := self.nodes.get(event.node_id)) and (load := node.loads.get(event.key)):
                    load.progress = event.progress
                return []
            case ShardIsReady():
                return self._ready(event)
            case ShardsLost():
                return self._lost(event)
            case LoadFailed():
                return self._failed(event)
            case ManifestKnown():
                return self._manifest(event)
            case SeedersKnown():
                if self.seeded.get(event.model_id, frozenset()) == event.shards:
                    return []
                self.seeded[event.model_id] = event.shards
                return [PlanNeeded("others on the DHT have shards")]
            case LinkKnown():
                return self._link(event)
            case TimePassed():
                return self._time(event)

    # -- nodes ---------------------------------------------------------------------------------------------------------------

    def _joined(self, event: NodeJoined) -> list[Effect]:
        hello = event.hello
        node = NodeView(
            node_id=hello.node_id,
            name=hello.name,
            address=hello.listen,
            capabilities=hello.capabilities,
            joined_at_s=event.at_s,
            heard_at_s=event.at_s,
            held={(shard.model_id, shard.shard_id): shard for shard in hello.held},
            memory_free_bytes=_free_of(hello),
        )
        self.nodes[hello.node_id] = node
        self.version += 1
        return [PlanNeeded("a node joined")]

    def _heartbeat(self, event: HeartbeatCame) -> list[Effect]:
        node = self.nodes.get(event.node_id)
        if node is None:
            return []
        beat = event.heartbeat
        held_before = node.held
        node.heard_at_s = event.at_s
        node.memory_free_bytes, node.load, node.sequences = beat.memory_free_bytes, beat.load, beat.sequences
        node.handover_us = beat.handover_us
        node.held = {(shard.model_id, shard.shard_id): shard for shard in beat.held}
        if beat.devices:
            node.capabilities = node.capabilities.model_copy(update={"devices": beat.devices})
        effects: list[Effect] = []
        gone = [key for key in node.ready if key not in node.held or not node.held[key].loaded]
        for key in gone:
            if (
                event.at_s - node.ready[key] < CONFIRMED_S
            ):  # this heartbeat may have been written before the shard was ready
                node.held[key] = held_before[key]
                continue
            del node.ready[key]
            self.version += 1
        if _states(node.held) != _states(held_before):
            for key in node.held.keys() - held_before.keys():
                node.refusals.pop(key, None)
            effects.append(PlanNeeded("a node's shards changed"))
        if beat.draining and not node.draining:
            effects += self._drains(NodeDrains(event.at_s, event.node_id))
        return effects

    def _left(self, event: NodeLeft) -> list[Effect]:
        if self.nodes.pop(event.node_id, None) is None:
            return []
        self.links = {pair: link for pair, link in self.links.items() if event.node_id not in pair}
        self.unreachable = {pair for pair in self.unreachable if event.node_id not in pair}
        self.version += 1
        return [PlanNeeded("a node left")]

    def _drains(self, event: NodeDrains) -> list[Effect]:
        node = self.nodes.get(event.node_id)
        if node is None or node.draining:
            return []
        node.draining = True
        self.version += 1
        return [PlanNeeded("a node is leaving")]

    # -- shards --------------------------------------------------------------------------------------------------------------

    def _ready(self, event: ShardIsReady) -> list[Effect]:
        node = self.nodes.get(event.node_id)
        if node is None:
            return []
        key = (event.held.model_id, event.held.shard_id)
        load = node.loads.pop(key, None)
        node.refusals.pop(key, None)
        node.held[key] = event.held
        if event.held.loaded:
            node.ready[key] = event.at_s
            if load is not None:  # until the next heartbeat says it, so that nobody gives this memory away twice
                node.memory_free_bytes = max(0, node.memory_free_bytes - load.reserved_bytes)
        self.version += 1
        return [PlanNeeded("a shard is ready")]

    def _failed(self, event: LoadFailed) -> list[Effect]:
        node = self.nodes.get(event.node_id)
        if node is None:
            return []
        node.loads.pop(event.key, None)
        if node.ready.pop(event.key, None) is not None:
            self.version += 1
        before = node.refusals.get(event.key)
        delay = min(MOST_RETRY_S, before.delay_s * 2) if before else FIRST_RETRY_S
        node.refusals[event.key] = Refusal(event.error, event.at_s + delay, delay)
        return [PlanNeeded("a shard could not be loaded")]

    def _lost(self, event: ShardsLost) -> list[Effect]:
        node = self.nodes.get(event.node_id)
        if node is None:
            return []
        for key in event.keys:
            if node.ready.pop(key, None) is not None:
                node.held[key] = node.held[key].model_copy(update={"loaded": False})
                self.version += 1
        return [PlanNeeded("a stage does not have its shards")]

    def _manifest(self, event: ManifestKnown) -> list[Effect]:
        known = self.manifests.get(event.manifest.model_id)
        if known is not None and known.signature is not None:
            return []
        self.manifests[event.manifest.model_id] = event.manifest
        self.version += 1
        return [PlanNeeded("a model became known")]

    # -- links and time ------------------------------------------------------------------------------------------------------

    def _link(self, event: LinkKnown) -> list[Effect]:
        pair = (event.source, event.target)
        if event.link is None:
            self.unreachable.add(pair)
        else:
            self.links[pair] = event.link
            self.unreachable.discard(pair)
        self.version += 1
        return []

    def _time(self, event: TimePassed) -> list[Effect]:
        effects: list[Effect] = []
        for node in self.nodes.values():
            silent_s = event.at_s - node.heard_at_s
            if silent_s > self._dead_after_s:
                effects.append(NodeDied(node.node_id, f"no heartbeat for {silent_s:.0f} s"))
            due = [one for one in node.refusals.values() if one.waits and one.retry_at_s <= event.at_s]
            for refusal in due:
                refusal.waits = False
            if due:
                effects.append(PlanNeeded("a shard that could not be loaded is tried again"))
        return effects

    # -- questions -----------------------------------------------------------------------------------------------------------

    def holders(self, model_id: str, shard_id: int) -> list[NodeView]:
        """Returns: nodes that have the shard's whole file or tensors, by id."""
        key = (model_id, shard_id)
        found = [node for node in self.nodes.values() if key in node.held and is_whole(node.held[key])]
        return sorted(found, key=lambda node: node.node_id)

    def missing_layers(self, model_id: str) -> list[LayerRange]:
        """Returns: layers that no connected node is ready to run, neighbours joined."""
        shards = self.manifests[model_id].content.shards
        ready = {
            shard
            for node in self.nodes.values()
            if not node.draining
            for model, shard in node.ready
            if model == model_id
        }
        return joined(shard.layers for shard in shards if shard.shard_id not in ready)


def _meant(binding: str, model_id: str, name: str) -> set[int]:
    """Returns: the shard of this model that a node's `--shard MODEL:ID` or `--shard ID` means, if it means one."""
    model, _, number = binding.rpartition(":")
    if not (number.isascii() and number.isdecimal()) or (
        model not in ("", name) and not (len(model) >= 6 and model_id.startswith(model))
    ):
        return set()
    return {int(number[:6])}


def _states(held: dict[Key, HeldShard]) -> dict[Key, tuple[bool, bool]]:
    return {key: (shard.loaded, is_whole(shard)) for key, shard in held.items()}


def is_whole(held: HeldShard) -> bool:
    """True if the holder has all of the shard: it is not still being fetched."""
    return held.loaded or held.progress is None or held.progress >= 1


def joined(ranges: Iterable[LayerRange]) -> list[LayerRange]:
    """Returns: the ranges in order, neighbours joined."""
    result: list[LayerRange] = []
    for one in sorted(ranges, key=lambda layers: layers.first):
        if result and result[-1].end == one.first:
            result[-1] = LayerRange(first=result[-1].first, end=one.end)
        else:
            result.append(one)
    return result


def _free_of(hello: Hello) -> int:
    """Until the first heartbeat, one second later: the limit less what is loaded, or what the processor's memory has free."""
    limit = hello.capabilities.memory_limit_bytes
    if limit:
        return max(0, limit - sum(shard.memory_bytes for shard in hello.held if shard.loaded))
    return max((device.free_bytes for device in hello.capabilities.devices), default=0)
