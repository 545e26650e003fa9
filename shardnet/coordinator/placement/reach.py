"""Who cannot dial whom, in sentences for people: why, what it costs, what to do. Pure."""

from __future__ import annotations

from shardnet.coordinator.placement.cluster import Cluster
from shardnet.coordinator.placement.node_view import NodeView
from shardnet.log import human_bytes

MAX_NAMED = 3


def reach_notes(cluster: Cluster, node: NodeView) -> list[str]:
    """Returns: what is wrong with how others reach a node; nothing where all is well."""
    notes = []
    if node.trouble:
        notes.append(f"others cannot dial it: {node.trouble}" if node.address is None else node.trouble)
    senders = [cluster.nodes[a] for a, b in cluster.unreachable if b == node.node_id and a in cluster.nodes]
    if senders:
        where = f" at {node.address}" if node.address is not None else ""
        remedy = "" if node.trouble else ": open that port, or set node.advertise to where they reach it"
        notes.append(f"{_names(senders)} cannot dial it{where}{remedy}")
        notes.append(f"what they send it goes through the coordinator: {_cost(cluster, senders, node)}")
    return notes


def _names(nodes: list[NodeView]) -> str:
    labels = sorted(node.label for node in nodes)
    rest = len(labels) - MAX_NAMED
    return ", ".join(labels[:MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _cost(cluster: Cluster, senders: list[NodeView], node: NodeView) -> str:
    """Returns: what the detour of one token's step takes."""
    ways = [cluster.links.get(("", one.node_id)) for one in (node, *senders)]
    known = [way.one_way_s for way in ways if way is not None]
    time = (
        f"about {1e3 * (known[0] + max(known[1:])):.1f} ms a step" if len(known) == len(ways) else "a way more a step"
    )
    widths = [cluster.manifests[model_id].content.n_embd for model_id, _ in node.held if model_id in cluster.manifests]
    if not widths:
        return time
    return f"{time}, and {human_bytes(4 * max(widths))} for each token into the coordinator's machine and out again"
