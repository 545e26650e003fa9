"""What should be loaded where, and which routes there are: decisions over the cluster's state. Pure.

What runs is not disturbed: as long as a model has its pipelines, nothing is moved. A shard that a node has in memory before it was asked is confirmed
by LOAD_SHARD (answered at once when the options agree), since all shards of a route must have the same options.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import NamedTuple

from shardnet.coordinator.placement.assign import (
    NodeOffer,
    Policy,
    Stage,
    hop_between,
    memory_needed,
    place,
    stage_s,
)
from shardnet.coordinator.placement.chain import find_chain
from shardnet.coordinator.placement.cluster import Cluster
from shardnet.coordinator.placement.law import Law, Pace, RowCosts, law_of, step_bytes
from shardnet.coordinator.placement.node_view import NodeView, is_whole
from shardnet.coordinator.placement.streaming import Streaming, computing_s
from shardnet.errors import NoRoomError, PlacementError, ShardnetError
from shardnet.ids import short
from shardnet.log import human_bytes
from shardnet.manifest import Manifest
from shardnet.messages import HeldShard, ShardOptions, StageRef


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """Send LOAD_SHARD to a node."""

    node_id: str
    model_id: str
    shard_id: int
    needed_bytes: int
    keep_only: bool = False
    """Have the file, do not take it into memory."""
    repack: bool = True
    """As `ShardOptions.repack`: all shards of a pipeline are of one kind."""


@dataclass(slots=True)
class Plan:
    """What to send now, and why a model cannot be had whole."""

    orders: list[LoadOrder] = field(default_factory=list)
    problems: dict[str, ShardnetError] = field(default_factory=dict)
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Route:
    """A pipeline that is ready now."""

    model_id: str
    stages: tuple[StageRef, ...]
    options: ShardOptions

    @property
    def node_ids(self) -> tuple[str, ...]:
        """Returns: the nodes in order; one may come again."""
        return tuple(stage.node_id for stage in self.stages)


def plan(
    cluster: Cluster,
    models: dict[str, ShardOptions],
    policy: Policy,
    *,
    replicas: int,
) -> Plan:
    """Decide what to load for each model of `models` (model_id -> options), by name."""
    result = Plan()
    for model_id in sorted(models, key=lambda one: (cluster.manifests[one].name, one)):
        _plan_model(cluster, cluster.manifests[model_id], models[model_id], policy, replicas, result)
    if held := _held_by_others(cluster, models):
        for model_id, error in result.problems.items():
            if isinstance(error, NoRoomError):
                result.problems[model_id] = NoRoomError(f"{error}; {held}", **error.facts)
    return result


def _held_by_others(cluster: Cluster, models: Collection[str]) -> str:
    """Returns: which nodes hold shards of models that are not to be in memory, and how to free that; "" if none does."""
    told = []
    for node in sorted(cluster.nodes.values(), key=lambda one: one.label):
        others = [held for (model_id, _), held in node.held.items() if held.loaded and model_id not in models]
        if taken := sum(one.memory_bytes for one in others):
            known = [cluster.manifests.get(model_id) for model_id in sorted({one.model_id for one in others})]
            names = ", ".join(f"{one.name} ({short(one.model_id)})" if one else "another model" for one in known)
            told.append(f"{node.label} holds {human_bytes(taken)} of {names}")
    return f"{', '.join(told)}, which is not to be in memory any more: start that node again to free it" if told else ""


def _plan_model(
    cluster: Cluster,
    manifest: Manifest,
    options: ShardOptions,
    policy: Policy,
    replicas: int,
    result: Plan,
) -> None:
    model_id = manifest.model_id
    ordered: set[tuple[str, int]] = set()

    def order(node: NodeView, shard_id: int, needed: int, *, repack: bool) -> None:
        if (node.node_id, shard_id) not in ordered:
            ordered.add((node.node_id, shard_id))
            result.orders.append(LoadOrder(node.node_id, model_id, shard_id, needed, repack=repack))

    usable = [node for node in cluster.nodes.values() if not node.draining]
    given = frozenset(shard.shard_id for shard in manifest.content.shards if cluster.holders(model_id, shard.shard_id))
    given |= cluster.seeded.get(model_id, frozenset())
    offers, repack = _one_kind(cluster, usable, manifest, options, policy, given, result)
    for node in usable:
        for (model, shard_id), held in node.held.items():
            key = (model, shard_id)
            asked = key in node.ready or (key in node.loads and not node.loads[key].keep_only)
            refusal = node.refusals.get(key)
            asked = asked or (refusal is not None and refusal.keeps_from(repack=repack))
            if model == model_id and held.loaded and held.repacked == repack and not asked:
                order(node, shard_id, 0, repack=repack)
    taken: set[str] = set()
    for replica in range(replicas):
        free = [offer for node_id, offer in offers.items() if node_id not in taken]
        try:
            found = place(
                manifest, _only_present(free, manifest, policy) or free, options, policy, cluster.links, given
            )
        except ShardnetError as error:
            if replica == 0:
                result.problems[model_id] = _with_refusals(cluster, manifest, error)
            return
        if replica == 0:
            result.notes[model_id] = found.notes
        taken |= {stage.node_id for stage in found.stages}
        for stage in found.stages:
            for shard_id in stage.shards:
                if shard_id not in offers[stage.node_id].loaded:
                    needed = memory_needed(manifest, shard_id, options)
                    order(cluster.nodes[stage.node_id], shard_id, needed, repack=repack)


def _one_kind(
    cluster: Cluster,
    nodes: Sequence[NodeView],
    manifest: Manifest,
    options: ShardOptions,
    policy: Policy,
    given: frozenset[int],
    result: Plan,
) -> tuple[dict[str, NodeOffer], bool]:
    """Decide whether a model runs repacked: numbers of the two kinds differ in their last digits, so that no pipeline mixes them.

    What is in memory as a whole stays as it is. Else repacked shards are quicker, and the others are for where not everything fits, or where a node
    has such shards already: only they can be streamed.

    Returns: what each node offers for shards of that kind (node id -> offer), and which it is.
    """
    repacked, stored = (
        {node.node_id: _offer(cluster, node, manifest, result, repack=repack) for node in nodes}
        for repack in (True, False)
    )
    if not any(offer.streaming or offer.loaded for offer in stored.values()):
        return repacked, True
    kinds = ((repacked, True), (stored, False))
    for offers, repack in kinds:
        if _only_present(list(offers.values()), manifest, policy) is not None:
            return offers, repack
    for offers, repack in kinds:
        try:
            place(manifest, list(offers.values()), options, policy, cluster.links, given)
        except ShardnetError:
            continue
        return offers, repack
    return stored, False


def _only_present(offers: list[NodeOffer], manifest: Manifest, policy: Policy) -> list[NodeOffer] | None:
    """Returns: the offers cut down to what is in memory or on its way there, if that makes a pipeline already: then nothing is moved."""
    present = [replace(one, free_bytes=0, allowed=frozenset(), on_disk=frozenset(), can_fetch=False) for one in offers]
    chain = find_chain(
        manifest.n_shards,
        len(present),
        lambda node, first, end: 0.0 if present[node].loaded.issuperset(range(first, end)) else None,
        lambda _a, _b: 1.0,
        stages=policy.stages,
        repeats=True,
    )
    return present if chain is not None else None


def _with_refusals(cluster: Cluster, manifest: Manifest, error: ShardnetError) -> ShardnetError:
    """Returns: the error; NoRoomError, with the node's own words, where a node found no room for a shard that nobody has in memory."""
    if not isinstance(error, PlacementError):
        return error
    loaded = {key for node in cluster.nodes.values() for key, held in node.held.items() if held.loaded}
    for node in sorted(cluster.nodes.values(), key=lambda one: one.node_id):
        for key, refusal in sorted(node.refusals.items()):
            is_ours = key[0] == manifest.model_id and key not in loaded and refusal.waits
            if is_ours and isinstance(refusal.error, NoRoomError):
                return NoRoomError(f"{error}; {node.label} says: {refusal.error}", **refusal.error.facts)
    return error


def _offer(cluster: Cluster, node: NodeView, manifest: Manifest, result: Plan, *, repack: bool) -> NodeOffer:
    """What a node offers for shards of one model and kind, after the orders that this plan has made so far. One of the other kind would go for it."""
    model_id = manifest.model_id
    waiting = {
        shard
        for (model, shard), refusal in node.refusals.items()
        if model == model_id and refusal.keeps_from(repack=repack)
    }
    if repack:  # a node that may stream found no room for these as a whole
        waiting |= {
            shard for (model, shard), held in node.held.items() if model == model_id and held.memory_mode == "streamed"
        }
    here = {shard for model, shard in node.held if model == model_id}
    in_memory = {shard for shard in here if node.held[model_id, shard].loaded}
    loaded = {shard for shard in in_memory if node.held[model_id, shard].repacked == repack}
    loaded |= {
        shard
        for (model, shard), load in node.loads.items()
        if model == model_id and not load.keep_only and load.repack == repack
    }
    others_bytes = sum(node.held[model_id, shard].memory_bytes for shard in in_memory - loaded)
    on_disk = {shard for shard in here if is_whole(node.held[model_id, shard])}
    allowed = node.allowed(model_id, manifest.name)
    if waiting:
        allowed = frozenset(range(manifest.n_shards)) - waiting if allowed is None else allowed - waiting
    if repack and node.capabilities.memory_mode == "streamed":
        allowed = frozenset()
    pace = measured_pace(cluster, node, manifest.model_id)
    promised = sum(order.needed_bytes for order in result.orders if order.node_id == node.node_id)
    return NodeOffer(
        node_id=node.node_id,
        name=node.label,
        free_bytes=max(0, node.free_bytes + others_bytes - promised),
        bytes_per_s=pace.bytes_per_s,
        row_costs=pace.row_costs,
        handover_s=pace.handover_s,
        allowed=allowed,
        loaded=frozenset(loaded - waiting),
        on_disk=frozenset(on_disk),
        can_fetch=node.capabilities.torrent_port > 0,
        limit=node.limit,
        streaming=None if repack or node.capabilities.memory_mode == "resident" else streaming_of(node, model_id),
    )


def streaming_of(node: NodeView, model_id: str) -> Streaming:
    """Returns: what streaming costs on a node, by what it told of its streamed shards."""
    told = {key: held for key, held in node.held.items() if held.loaded and held.streamed is not None}
    return streaming_by([(key[1] if key[0] == model_id else None, held) for key, held in told.items()])


def streaming_by(told: Iterable[tuple[int | None, HeldShard]]) -> Streaming:
    """Returns: what streaming costs on a node; `told`: shards that it streams, with their numbers where they are of the model that is meant."""
    found = [(shard, held.streamed) for shard, held in told if held.streamed is not None]
    rates = [weights.bytes_per_s for _, weights in found if weights.bytes_per_s]
    return Streaming(
        bytes_per_s=median(rates) if rates else 0.0,
        yielding_bytes=sum(max(0, weights.budget_bytes - weights.least_bytes) for _, weights in found),
        held={shard: weights for shard, weights in found if shard is not None},
    )


class NodePace(NamedTuple):
    """How quick a node is with the shards of one model that it has in memory."""

    measured: Pace
    streaming: Streaming

    @classmethod
    def of(cls, cluster: Cluster, node: NodeView, model_id: str) -> NodePace:
        """Returns: the pace by what the node told."""
        return cls(measured_pace(cluster, node, model_id), streaming_of(node, model_id))

    def over(self, shards: range) -> Pace:
        """Returns: the pace in a stage of these shards."""
        return replace(self.measured, read_s=self.streaming.held_read_s(shards))


def measured_pace(cluster: Cluster, node: NodeView, model_id: str) -> Pace:
    """Returns: how quick a node is, by what it told of its loaded shards: those of this model if any of them was run, else of all models."""
    own = [key for key in node.held if key[0] == model_id and node.held[key].step_us]
    told = [
        (step_bytes(cluster.manifests[model], shard, shard + 1), node.held[model, shard])
        for model, shard in (own or node.held)
        if model in cluster.manifests and shard < cluster.manifests[model].n_shards
    ]
    return pace_of(told, node.handover_us)


def pace_of(told: Iterable[tuple[int, HeldShard]], handover_us: float | None) -> Pace:
    """Returns: how quick a node is, reading of streamed weights left out.

    Args:
        told: (bytes of weights that a step reads, what the node said of the shard); those that are not loaded or were not run do not count.
    """
    nbytes = seconds = 0.0
    times_longer: dict[int, list[float]] = {}
    for read, held in told:
        if not held.loaded or not held.step_us:
            continue
        nbytes += read
        seconds += computing_s(held.step_us * 1e-6, held.streamed)
        for rows, rows_us in held.rows_us:
            times_longer.setdefault(rows, []).append(rows_us / held.step_us)
    costs: RowCosts = tuple((rows, median(found)) for rows, found in sorted(times_longer.items()))
    handover_s = None if handover_us is None else handover_us * 1e-6
    return Pace(nbytes / seconds if seconds else None, costs, handover_s)


# -- routes ----------------------------------------------------------------------------------------------------------------------


def routes(
    cluster: Cluster,
    model_id: str,
    options: ShardOptions,
    policy: Policy,
    *,
    without: Collection[str] = (),
) -> list[Route]:
    """Returns: pipelines that are ready now, the quickest first; no two share a node."""
    manifest = cluster.manifests[model_id]
    nodes = sorted(
        (node for node in cluster.nodes.values() if not node.draining and node.node_id not in without),
        key=lambda node: node.node_id,
    )
    for repack in (True, False):
        found: list[Route] = []
        left = nodes
        while left:
            stages = _ready_chain(cluster, manifest, left, policy, repack=repack)
            if stages is None:
                break
            kind = options.model_copy(update={"repack": repack})
            found.append(Route(model_id, stage_refs(cluster, stages), kind))
            used = {stage.node_id for stage in stages}
            left = [node for node in left if node.node_id not in used]
        if found:
            return found  # of one kind: an answer that is taken up by another pipeline goes on with the same numbers
    return []


def law_of_route(cluster: Cluster, route: Route, policy: Policy) -> Law:
    """Returns: what a route's steps cost, by what its nodes told last."""
    manifest = cluster.manifests[route.model_id]
    runs = []
    for stage in route.stages:
        node = cluster.nodes.get(stage.node_id)
        shards = range(stage.first_shard, stage.end_shard)
        pace = Pace() if node is None else NodePace.of(cluster, node, route.model_id).over(shards)
        runs.append((stage.node_id, pace, stage.first_shard, stage.end_shard))
    return law_of(manifest, runs, cluster.links, policy.default_link, policy.hop_fixed_s)


def _ready_chain(
    cluster: Cluster, manifest: Manifest, nodes: list[NodeView], policy: Policy, *, repack: bool
) -> tuple[Stage, ...] | None:
    ready = [
        frozenset(
            shard
            for model, shard in node.ready
            if model == manifest.model_id and node.held[model, shard].repacked == repack
        )
        for node in nodes
    ]

    paces = [NodePace.of(cluster, node, manifest.model_id) for node in nodes]

    def run_cost(node: int, first: int, end: int) -> float | None:
        if end - 1 not in ready[node] or not ready[node].issuperset(range(first, end)):
            return None
        cost = stage_s(manifest, paces[node].over(range(first, end)), first, end)
        return cost + 1e-3 * cost * cost

    def hop_cost(a: int, b: int) -> float:
        source, target = nodes[a].node_id, nodes[b].node_id
        if (source, target) in cluster.unreachable:  # by way of the coordinator
            to_us = hop_between(manifest, source, "", cluster.links, policy)
            return to_us + hop_between(manifest, "", target, cluster.links, policy)
        return hop_between(manifest, source, target, cluster.links, policy)

    chain = find_chain(manifest.n_shards, len(nodes), run_cost, hop_cost, stages=policy.stages, repeats=True)
    return None if chain is None else tuple(Stage(nodes[node].node_id, first, end) for node, first, end in chain.runs)


def stage_refs(cluster: Cluster, stages: tuple[Stage, ...]) -> tuple[StageRef, ...]:
    """Returns: the stages as they travel. A stage that the one before cannot dial has no address: the coordinator relays."""
    refs = []
    for index, stage in enumerate(stages):
        before = stages[index - 1].node_id  # the last one sends the first its tokens
        relayed = (before, stage.node_id) in cluster.unreachable
        address = None if relayed else cluster.nodes[stage.node_id].address
        refs.append(
            StageRef(node_id=stage.node_id, address=address, first_shard=stage.first_shard, end_shard=stage.end_shard)
        )
    return tuple(refs)
