"""What the coordinator knows of its swarm. Pure: events in, effects out; time is a number in the event.

`Cluster.handle(event)` is the only way to change it. `version` grows whenever a route may have changed.
"""

from __future__ import annotations

from collections import Counter

from shardnet.coordinator.placement.events import (
    Effect,
    Event,
    HeartbeatCame,
    LinkKnown,
    LoadFailed,
    LoadMoved,
    LoadSent,
    ManifestKnown,
    ManifestRefused,
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
from shardnet.coordinator.placement.law import LinkTime
from shardnet.coordinator.placement.node_view import MAX_UNSERVED, Key, Load, NodeView, Refusal, Unserved, is_whole
from shardnet.manifest import Manifest
from shardnet.messages import HeldShard
from shardnet.shards import LayerRange, joined

FIRST_RETRY_S, MOST_RETRY_S = 2.0, 60.0
CONFIRMED_S = 1.5
"""One heartbeat interval and a half."""


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
                self.nodes[event.node_id].loads[event.key] = Load(
                    event.at_s, event.reserved_bytes, event.keep_only, event.repack
                )
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
            case ManifestRefused(node_id, manifest, reason):
                if (node := self.nodes.get(node_id)) and len(node.unserved) < MAX_UNSERVED:
                    node.unserved[manifest.model_id] = Unserved(manifest.model_id, manifest.name, reason)
                return []
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
        before = self.nodes.get(event.hello.node_id)
        if before is not None and before.address != event.hello.listen:
            self._forget_links(event.hello.node_id)
        self.nodes[event.hello.node_id] = NodeView.of(event.hello, event.at_s, event.clock_s)
        self._tell_names_apart()
        self.version += 1
        return [PlanNeeded("a node joined")]

    def _tell_names_apart(self) -> None:
        counts = Counter(node.name for node in self.nodes.values())
        for node in self.nodes.values():
            node.shares_name = counts[node.name] > 1

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
        if beat.reach is not None and (beat.reach.listen, beat.reach.trouble) != (node.address, node.trouble):
            node.address, node.trouble = beat.reach.listen, beat.reach.trouble
            self._forget_links(event.node_id)
            self.version += 1
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
        self._forget_links(event.node_id)
        self._tell_names_apart()
        self.version += 1
        return [PlanNeeded("a node left")]

    def _forget_links(self, node_id: str) -> None:
        self.links = {pair: link for pair, link in self.links.items() if node_id not in pair}
        self.unreachable = {pair for pair in self.unreachable if node_id not in pair}

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
        load = node.loads.pop(event.key, None)
        if node.ready.pop(event.key, None) is not None:
            self.version += 1
        before = node.refusals.get(event.key)
        delay = min(MOST_RETRY_S, before.delay_s * 2) if before else FIRST_RETRY_S
        node.refusals[event.key] = Refusal(event.error, event.at_s + delay, delay, repack=load is None or load.repack)
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


def _states(held: dict[Key, HeldShard]) -> dict[Key, tuple[bool, bool, bool]]:
    return {key: (shard.loaded, is_whole(shard), shard.repacked) for key, shard in held.items()}
