"""The coordinator's state as JSON: what `/status`, `/healthz` and `shardnet status` show. Pure."""

from __future__ import annotations

from typing import Any

from shardnet.coordinator.placement.assign import layers_of
from shardnet.coordinator.placement.cluster import Cluster
from shardnet.coordinator.placement.node_view import NodeView
from shardnet.coordinator.placement.planning import Route, measured_pace
from shardnet.coordinator.placement.reach import reach_notes
from shardnet.coordinator.placement.readiness import node_label
from shardnet.coordinator.placement.standing import Standing
from shardnet.coordinator.placement.streaming import stays_sentence
from shardnet.coordinator.requests.driver import Requests
from shardnet.coordinator.requests.prefixes import Prefixes
from shardnet.manifest import Manifest
from shardnet.messages import HeldShard


def node_json(standing: Standing, node: NodeView, at_s: float) -> dict[str, Any]:
    """Returns: one node."""
    cluster = standing.cluster
    held = []
    for (model_id, shard_id), shard in sorted(node.held.items()):
        manifest = cluster.manifests.get(model_id)
        known = manifest is not None and shard_id < manifest.n_shards
        held.append(
            {
                "model": manifest.name if manifest else model_id,
                "model_id": model_id,
                "shard_id": shard_id,
                "layers": str(manifest.content.shards[shard_id].layers) if manifest and known else "",
                "loaded": shard.loaded,
                "ready": (model_id, shard_id) in node.ready,
                "memory_bytes": shard.memory_bytes,
                "memory_mode": shard.memory_mode,
                "repacked": shard.repacked,
                "streamed": None if shard.streamed is None else shard.streamed.model_dump(),
                "streamed_sentence": _stays(manifest if known else None, shard),
                "step_us": shard.step_us,
                "rows_us": [list(one) for one in shard.rows_us],
                "progress": shard.progress,
                "detail": shard.detail,
                "file_trouble": shard.detail if shard.loaded and shard.progress is None else "",
            }
        )
    return {
        "node_id": node.node_id,
        "name": node.label,
        "address": str(node.address) if node.address else None,
        "reach": reach_notes(cluster, node),
        "state": "leaving" if node.draining else "up",
        "spare": standing.spare(node),
        "heartbeat_age_s": round(at_s - node.heard_at_s, 1),
        "connected_s": round(at_s - node.joined_at_s, 1),
        "memory_free_bytes": node.memory_free_bytes,
        "memory_limit": node.limit or None,
        "bytes_per_s": measured_pace(cluster, node, "").bytes_per_s,
        "handover_us": node.handover_us,
        "load": node.load,
        "sequences": node.sequences,
        "devices": [device.model_dump(mode="json") for device in node.capabilities.devices],
        "memory_mode": node.capabilities.memory_mode,
        "software": _software(node),
        "clock_ahead_s": None if node.clock_ahead_s is None else round(node.clock_ahead_s, 3),
        "accepts_any": node.capabilities.accepts_any,
        "bound_to_nothing": node.bound_to_nothing(cluster.manifests.values()),
        "held": held,
        "loading": [_loading(cluster, node, key) for key in sorted(node.loads)],
        "failed": [
            {"model_id": key[0], "shard_id": key[1], "reason": str(refusal.error)}
            for key, refusal in sorted(node.refusals.items())
        ],
        "not_served": [
            {"model": one.name, "model_id": one.model_id, "reason": one.reason} for one in standing.unserved(node)
        ],
        "refused": list(node.refused),
    }


def _software(node: NodeView) -> dict[str, str] | None:
    """Returns: versions of what the node runs; None of an older node, which does not tell."""
    told = node.capabilities.software
    return None if told is None else {"shardnet": told.shardnet, "llama": told.llama, "arithmetic": told.arithmetic}


def _stays(manifest: Manifest | None, shard: HeldShard) -> str:
    """Returns: how much of a streamed shard stays, "" of another."""
    if not shard.loaded or shard.memory_mode != "streamed":
        return ""
    told = shard.streamed
    if told is None or manifest is None:
        return "streamed: what does not fit is read from its file for each token"
    layers = len(manifest.content.shards[shard.shard_id].layers)
    return stays_sentence(told.weights_bytes, told.stays_bytes, told.read_bytes, layers)


def _loading(cluster: Cluster, node: NodeView, key: tuple[str, int]) -> dict[str, Any]:
    progress = node.loads[key].progress
    manifest = cluster.manifests.get(key[0])
    return {
        "model": manifest.name if manifest else key[0],
        "model_id": key[0],
        "shard_id": key[1],
        "stage": progress.stage if progress else "asked",
        "done_bytes": progress.done_bytes if progress else 0,
        "total_bytes": progress.total_bytes if progress else 0,
        "bytes_per_s": progress.bytes_per_s if progress else 0.0,
        "peers": progress.peers if progress else 0,
        "memory_bytes": progress.memory_bytes if progress else 0,
        "cpu_cores": progress.cpu_cores if progress else 0.0,
    }


def layer_map(cluster: Cluster, manifest: Manifest) -> list[dict[str, Any]]:
    """Returns: every layer and who holds it: one entry for each run of neighbouring shards with the same holders."""
    rows: list[dict[str, Any]] = []
    for shard in manifest.content.shards:
        key = (manifest.model_id, shard.shard_id)
        holders = []
        for node in sorted(cluster.nodes.values(), key=lambda one: (one.label, one.node_id)):
            if key in node.held or key in node.loads:
                holders.append({"node": node.label, "node_id": node.node_id} | _holding(node, key))
        if rows and rows[-1]["holders"] == holders:
            rows[-1]["end"], rows[-1]["end_shard"] = shard.layers.end, shard.shard_id + 1
        else:
            rows.append(
                {
                    "first": shard.layers.first,
                    "end": shard.layers.end,
                    "first_shard": shard.shard_id,
                    "end_shard": shard.shard_id + 1,
                    "holders": holders,
                }
            )
    return rows


def _holding(node: NodeView, key: tuple[str, int]) -> dict[str, Any]:
    shard, load = node.held.get(key), node.loads.get(key)
    if key in node.ready:
        return {"state": "leaving" if node.draining else "ready", "progress": None}
    if load is not None:
        progress = load.progress
        share = progress.done_bytes / progress.total_bytes if progress and progress.total_bytes else 0.0
        return {"state": progress.stage if progress else "asked", "progress": round(min(1.0, share), 3)}
    if shard is not None and shard.progress is not None and shard.progress < 1:
        return {"state": "fetch", "progress": round(shard.progress, 3)}
    return {"state": "loaded" if shard is not None and shard.loaded else "on disk", "progress": None}


def health_model(standing: Standing, manifest: Manifest) -> dict[str, Any]:
    """Returns: one model in short."""
    cluster, routes = standing.cluster, standing.routes(manifest.model_id)
    missing = [] if routes else [str(layers) for layers in cluster.missing_layers(manifest.model_id)]
    reason = None if routes else str(standing.not_ready(manifest.model_id))
    return {
        "model": manifest.name,
        "model_id": manifest.model_id,
        "ready": bool(routes),
        "missing_layers": missing,
        "reason": reason,
        "proved": not manifest.unproved,
        "unproved_reason": manifest.unproved or None,
    }


def model_json(standing: Standing, manifest: Manifest) -> dict[str, Any]:
    """Returns: one model in full."""
    cluster, content = standing.cluster, manifest.content
    return health_model(standing, manifest) | {
        "architecture": content.architecture,
        "quantisation": content.quantisation,
        "n_layers": content.n_layers,
        "n_shards": manifest.n_shards,
        "n_params": content.n_params,
        "total_bytes": manifest.total_bytes,
        "signed": manifest.signature is not None,
        "pipelines": [route_json(cluster, manifest, route) for route in standing.routes(manifest.model_id)],
        "layers": layer_map(cluster, manifest),
        "notes": list(standing.notes(manifest)),
    }


def route_json(cluster: Cluster, manifest: Manifest, route: Route) -> list[dict[str, Any]]:
    """Returns: the stages of a pipeline."""
    return [stage_json(cluster, manifest, route, index) for index in range(len(route.stages))]


def stage_json(cluster: Cluster, manifest: Manifest, route: Route, index: int) -> dict[str, Any]:
    """Returns: one stage; `bytes_on` is what it sends on to the next for each token: a hidden state, or nothing from the last."""
    stage = route.stages[index]
    return {
        "node": node_label(cluster, stage),
        "node_id": stage.node_id,
        "first_shard": stage.first_shard,
        "end_shard": stage.end_shard,
        "layers": str(layers_of(manifest, stage.first_shard, stage.end_shard)),
        "repacked": route.options.repack is not False,
        "relayed": index > 0 and stage.address is None,
        "bytes_on": 4 * manifest.content.n_embd if index + 1 < len(route.stages) else 0,
    }


def describe_stage(cluster: Cluster, route: Route, index: int) -> dict[str, Any]:
    """Returns: node, layers and bytes sent on of one stage of a model's pipeline."""
    return stage_json(cluster, cluster.manifests[route.model_id], route, index)


def health(standing: Standing) -> dict[str, Any]:
    """Returns: the models in short; `ready` if any is."""
    models = [health_model(standing, one) for one in standing.served()]
    ready = any(one["ready"] for one in models)
    return {
        "ready": ready,
        "status": "ok" if ready else "not ready",
        "nodes": len(standing.cluster.nodes),
        "models": models,
    }


def swarm_json(standing: Standing, at_s: float) -> dict[str, Any]:
    """Returns: nodes, models and links in full."""
    cluster = standing.cluster
    nodes = sorted(cluster.nodes.values(), key=lambda one: (one.label, one.node_id))
    return {
        "nodes": [node_json(standing, node, at_s) for node in nodes],
        "models": [model_json(standing, one) for one in standing.served()],
        "kept_out": [
            {"model": one.name, "model_id": one.model_id, "reason": reason} for one, reason in standing.all_kept_out()
        ],
        "links": [
            {"source": a, "target": b, "one_way_s": link.one_way_s, "bytes_per_s": link.bytes_per_s}
            for (a, b), link in sorted(cluster.links.items())
        ],
    }


def requests_json(requests: Requests, *, relayed_steps: int) -> dict[str, float]:
    """Returns: requests in progress, and counters since the start."""
    totals = requests.totals
    prefixes = Prefixes() if requests.prefixes is None else requests.prefixes
    return {
        "running": len(requests.running),
        "queued": requests.queued,
        "waiting": requests.waiting,
        "finished": totals.finished,
        "failed": totals.failed,
        "cancelled": totals.cancelled,
        "retried": totals.retried,
        "late_answers": totals.late_answers,
        "relayed_steps": relayed_steps,
        "prompt_tokens": totals.prompt_tokens,
        "prompt_rows": max(totals.prompt_rows.values(), default=0),
        "completion_tokens": totals.completion_tokens,
        "tokens_proposed": totals.tokens_proposed,
        "tokens_accepted": totals.tokens_accepted,
        "sequences_kept": len(prefixes),
        "prefix_hits": prefixes.hits,
        "prefix_copies": prefixes.copies,
        "prefix_waits": prefixes.waits,
        "prefix_waited_s": round(prefixes.waited.total, 3),
        "prefix_tokens_reused": prefixes.tokens_reused,
        "prefix_refused": prefixes.refused,
        "prefix_evicted": prefixes.evicted,
    }
