"""Whether a model can be run, in words: its stages, or what is missing and what is to be done. Pure."""

from __future__ import annotations

from shardnet.coordinator.placement.arriving import Arriving, arriving
from shardnet.coordinator.placement.assign import layers_of
from shardnet.coordinator.placement.cluster import Cluster
from shardnet.coordinator.placement.planning import Route
from shardnet.errors import NoRoomError, PlacementError, ShardnetError
from shardnet.manifest import Manifest
from shardnet.messages import StageRef
from shardnet.shards import LayerRange, joined

RETRY_AFTER_S = 5
SOON_S = 1
"""Longer than a plan takes, once something changed."""


def not_ready(
    cluster: Cluster,
    manifest: Manifest,
    problem: ShardnetError | None,
    *,
    plan_is_due: bool = False,
    has_just_started: bool = False,
) -> ShardnetError:
    """Returns: why a model cannot be run now: which layers are missing, and what is being done or is to be done.

    Args:
        plan_is_due: something changed a moment ago, and where the layers go is being thought over: then nothing else is known to be wrong.
        has_just_started: so has the coordinator, and nodes that were there before it may not have found it yet.

    NoRoomError, with the problem's bytes, if nothing but more memory or disk would help; else PlacementError.
    """
    missing = cluster.missing_layers(manifest.model_id)
    layers = ", ".join(map(str, missing)) or "none"
    loading = joined(
        manifest.content.shards[shard].layers
        for node in cluster.nodes.values()
        for model, shard in node.loads
        if model == manifest.model_id
    )
    start = (
        f"model {manifest.name} is not ready: layers {layers} of {manifest.content.n_layers} are in no node's memory"
        + _leaving(cluster, manifest)
    )
    if not missing:
        start = f"model {manifest.name} is not ready: its layers are in memory, but in no order that makes a pipeline{mixed(cluster, manifest)}"
    sentence = start
    if loading and (come := arriving(cluster, manifest)) is not None:
        sentence = f"{start}; {', '.join(map(str, loading))} are being loaded: {come}"
        return PlacementError(sentence, retry_after_s=come.seconds_left or RETRY_AFTER_S, **come.facts())
    if plan_is_due and cluster.nodes:
        sentence = (
            f"{start}; the nodes have just changed, and where its layers go is being worked out: ask again in a moment"
        )
        return PlacementError(sentence, retry_after_s=SOON_S, **_about_to_arrive(manifest, missing).facts())
    if not cluster.nodes:
        sentence, problem = f"{start}; no node is connected, start one with `shardnet node`", None
        if has_just_started:
            sentence += " (the coordinator has just started: nodes that run already come within seconds)"
            return PlacementError(sentence, retry_after_s=SOON_S, **_about_to_arrive(manifest, missing).facts())
    elif problem is not None:
        rest = str(problem).removeprefix(f"model {manifest.name}")
        if rest.startswith(": layers"):  # the same layers, and what is wrong with them
            sentence = f"model {manifest.name} is not ready{rest}"
        elif rest.startswith(" "):
            sentence = f"{start}; it{rest}"
        else:
            sentence = f"{start}; {rest.removeprefix(': ')}"
    if isinstance(problem, NoRoomError):
        return NoRoomError(sentence, **problem.facts | {"retry_after_s": RETRY_AFTER_S})
    return PlacementError(sentence, retry_after_s=RETRY_AFTER_S)


def _about_to_arrive(manifest: Manifest, missing: list[LayerRange]) -> Arriving:
    """Returns: all bytes of the missing layers still to come."""
    layers = {layer for one in missing for layer in range(one.first, one.end)}
    return Arriving(0, sum(one.bytes for one in manifest.content.shards if one.layers.first in layers), 0.0)


def _leaving(cluster: Cluster, manifest: Manifest) -> str:
    """Returns: ` but that of node-1, which is leaving`; "" where nobody who leaves has layers in memory."""
    names = sorted(
        node.label
        for node in cluster.nodes.values()
        if node.draining and any(model == manifest.model_id for model, _ in node.ready)
    )
    if not names:
        return ""
    return f" but that of {', '.join(names)}, which {'is' if len(names) == 1 else 'are'} leaving"


def mixed(cluster: Cluster, manifest: Manifest) -> str:
    """Returns: `: shard 0 on node-0 is repacked, shard 1 on node-1 is not, and no pipeline mixes them`; "" where all are of one kind."""
    ready = sorted(
        (shard, node.label, node.held[model, shard].repacked)
        for node in cluster.nodes.values()
        for model, shard in node.ready
        if model == manifest.model_id
    )
    one, other = (next((each for each in ready if each[2] is kind), None) for kind in (True, False))
    if one is None or other is None:
        return ""
    return (
        f": shard {one[0]} on {one[1]} is repacked, shard {other[0]} on {other[1]} is not, and no pipeline mixes them"
    )


def node_label(cluster: Cluster, stage: StageRef) -> str:
    """Returns: what a stage's node is called, its id's beginning if it has gone."""
    node = cluster.nodes.get(stage.node_id)
    return node.label if node else stage.node_id[:12]


def stages_sentence(cluster: Cluster, manifest: Manifest, route: Route) -> str:
    """Returns: `node-0 [0, 10), node-1 [10, 20)`."""
    return ", ".join(
        f"{node_label(cluster, stage)} {layers_of(manifest, stage.first_shard, stage.end_shard)}"
        for stage in route.stages
    )
