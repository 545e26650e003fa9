"""What should be loaded where, and which routes there are: decisions over the cluster's state. Pure.

What runs is not disturbed: as long as a model has its pipelines, nothing is moved. A shard that a node has in memory before it was asked is confirmed
by LOAD_SHARD (answered at once when the options agree), since all shards of a route must have the same options.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from statistics import median

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
from shardnet.errors import NoRoomError, PlacementError, ShardnetError
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
    return result


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

    def order(node: NodeView, shard_id: int, needed: int) -> None:
        if (node.node_id, shard_id) not in ordered:
            ordered.add((node.node_id, shard_id))
            result.orders.append(LoadOrder(node.node_id, model_id, shard_id, needed))

    usable = [node for node in cluster.nodes.values() if not node.draining]
    for node in usable:
        for (model, shard_id), held in node.held.items():
            key = (model, shard_id)
            asked = key in node.ready or (key in node.loads and not node.loads[key].keep_only) or _waits(node, key)
            if model == model_id and held.loaded and not asked:
                order(node, shard_id, 0)
    given = frozenset(shard.shard_id for shard in manifest.content.shards if cluster.holders(model_id, shard.shard_id))
    given |= cluster.seeded.get(model_id, frozenset())
    offers = {node.node_id: _offer(cluster, node, manifest, result) for node in usable}
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
                    order(cluster.nodes[stage.node_id], shard_id, memory_needed(manifest, shard_id, options))


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


def _waits(node: NodeView, key: tuple[str, int]) -> bool:
    refusal = node.refusals.get(key)
    return refusal is not None and refusal.waits


def _offer(cluster: Cluster, node: NodeView, manifest: Manifest, result: Plan) -> NodeOffer:
    """What a node offers for one model, after the orders that this plan has made so far."""
    model_id = manifest.model_id
    waiting = {shard for model, shard in node.refusals if model == model_id and _waits(node, (model, shard))}
    here = {shard for model, shard in node.held if model == model_id}
    loaded = {shard for shard in here if node.held[model_id, shard].loaded}
    loaded |= {shard for (model, shard), load in node.loads.items() if model == model_id and not load.keep_only}
    on_disk = {shard for shard in here if is_whole(node.held[model_id, shard])}
    allowed = node.allowed(model_id, manifest.name)
    if waiting:
        allowed = frozenset(range(manifest.n_shards)) - waiting if allowed is None else allowed - waiting
    pace = measured_pace(cluster, node, manifest.model_id)
    promised = sum(order.needed_bytes for order in result.orders if order.node_id == node.node_id)
    return NodeOffer(
        node_id=node.node_id,
        name=node.label,
        free_bytes=max(0, node.free_bytes - promised),
        bytes_per_s=pace.bytes_per_s,
        row_costs=pace.row_costs,
        handover_s=pace.handover_s,
        allowed=allowed,
        loaded=frozenset(loaded - waiting),
        on_disk=frozenset(on_disk),
        can_fetch=node.capabilities.torrent_port > 0,
        limit=node.limit,
    )


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
    """Returns: how quick a node is.

    Args:
        told: (bytes of weights that a step reads, what the node said of the shard); those that are not loaded or were not run do not count.
    """
    nbytes = seconds = 0.0
    times_longer: dict[int, list[float]] = {}
    for read, held in told:
        if not held.loaded or not held.step_us:
            continue
        nbytes += read
        seconds += held.step_us * 1e-6
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
    found: list[Route] = []
    while nodes:
        stages = _ready_chain(cluster, manifest, nodes, policy)
        if stages is None:
            break
        found.append(Route(model_id, stage_refs(cluster, stages), options))
        used = {stage.node_id for stage in stages}
        nodes = [node for node in nodes if node.node_id not in used]
    return found


def law_of_route(cluster: Cluster, route: Route, policy: Policy) -> Law:
    """Returns: what a route's steps cost, by what its nodes told last."""
    manifest = cluster.manifests[route.model_id]
    runs = []
    for stage in route.stages:
        node = cluster.nodes.get(stage.node_id)
        pace = Pace() if node is None else measured_pace(cluster, node, route.model_id)
        runs.append((stage.node_id, pace, stage.first_shard, stage.end_shard))
    return law_of(manifest, runs, cluster.links, policy.default_link, policy.hop_fixed_s)


def _ready_chain(
    cluster: Cluster, manifest: Manifest, nodes: list[NodeView], policy: Policy
) -> tuple[Stage, ...] | None:
    ready = [frozenset(shard for model, shard in node.ready if model == manifest.model_id) for node in nodes]
    offers = []
    for node in nodes:
        pace = measured_pace(cluster, node, manifest.model_id)
        offers.append(NodeOffer(node.node_id, node.label, 0, pace.bytes_per_s, handover_s=pace.handover_s))

    def run_cost(node: int, first: int, end: int) -> float | None:
        if end - 1 not in ready[node] or not ready[node].issuperset(range(first, end)):
            return None
        cost = stage_s(manifest, offers[node], first, end)
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
