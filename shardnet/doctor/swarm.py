"""The swarm as its coordinator sees it: who can reach whom, what is served, and whether all run the same software."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from shardnet import __version__
from shardnet.coordinator.api.client import ApiClient
from shardnet.doctor.findings import Finding, Level
from shardnet.errors import ShardnetError, UsageError
from shardnet.ids import short
from shardnet.log import counted
from shardnet.messages import Address

Json = dict[str, Any]
DIAL_S = 2.0


@dataclass(frozen=True, slots=True)
class SwarmFacts:
    """What the coordinator says.

    Attributes:
        api: where it was asked.
        status: its `/status`; None: it could not be asked, and `trouble` says why.
        is_expected: there should be one: this machine's user named it, or it has run here, or a daemon here has met it.
        here_s: this machine's clock when `status` was made, as near as can be told.
        door: where nodes join, as this home knows it; "" if it does not. `door_trouble`: why it cannot be reached from here; "" if it can.
        running: node id -> name of the nodes that run on this machine, of this home.
    """

    api: str
    status: Json | None = None
    trouble: str = ""
    is_expected: bool = False
    here_s: float = 0.0
    door: str = ""
    door_trouble: str = ""
    running: dict[str, str] = field(default_factory=dict)


def look_at_swarm(api: str, *, is_expected: bool, door: Address | None, running: dict[str, str]) -> SwarmFacts:
    """Gather: ask the HTTP API, and open a connection where nodes join, which says nothing."""
    told = SwarmFacts(
        api,
        is_expected=is_expected,
        door=str(door or ""),
        door_trouble=_dial(door) if door is not None else "",
        running=running,
    )
    try:
        with ApiClient(api) as client:
            began_s = time.time()
            status = client.get("/status")
            return replace(told, status=status, here_s=(began_s + time.time()) / 2)
    except UsageError as error:  # it wants a key
        return replace(told, trouble=f"{api} does not tell: {error}")
    except ShardnetError as error:
        return replace(told, trouble=str(error))


def _dial(door: Address) -> str:
    """Returns: why nobody can be reached there; "" if somebody can."""
    try:
        socket.create_connection((door.host, door.port), DIAL_S).close()
    except TimeoutError:
        return f"nothing answers within {DIAL_S:g} s: a firewall in between drops it, or that machine is off"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""


def coordinator_clock_s(facts: SwarmFacts) -> float | None:
    """Returns: what the coordinator's clock said at `here_s`; None if it did not tell."""
    if facts.status is None:
        return None
    told = facts.status["coordinator"].get("clock_s")
    return float(told) if told is not None else None


def swarm_findings(facts: SwarmFacts) -> list[Finding]:
    """Decide about all of it."""
    if facts.status is None:
        return _without_status(facts)
    status = facts.status
    nodes = status["nodes"]
    return [
        *_coordinator(status["coordinator"], facts),
        *_nodes(nodes, facts.running),
        *_links(nodes, status["links"]),
        *_models(status),
        *_versions(status["coordinator"], nodes),
        *_dht(status["coordinator"], nodes),
    ]


def _without_status(facts: SwarmFacts) -> list[Finding]:
    if facts.door_trouble:
        level: Level = "fault" if facts.running else "warning"
        remedy = (
            "Start the coordinator, or let TCP through to that port; if it is elsewhere now, name it with --coordinator"
        )
        return [Finding("coordinator", level, f"nodes here would join at {facts.door}: {facts.door_trouble}", remedy)]
    level = "warning" if facts.is_expected or (facts.running and not facts.door) else "note"
    if facts.door:
        what = f"it is reached at {facts.door}, where nodes join, and not at its HTTP API: {facts.trouble}"
        return [Finding("coordinator", level, what, "What the swarm is like is not looked at")]
    return [Finding("coordinator", level, facts.trouble, "What the swarm is like is not looked at")]


def _coordinator(about: Json, facts: SwarmFacts) -> list[Finding]:
    found = [Finding("coordinator", "warning", f"its models cache: {one}") for one in about["refused"]]
    if about["version"] != __version__:
        found.append(
            Finding(
                "coordinator",
                "warning",
                f"it runs shardnet {about['version']}, and {__version__} is installed here",
                "Install the same version everywhere: the coordinator's first",
            )
        )
    return found or [Finding("coordinator", "ok", f"it answers at {facts.api}, swarm {short(about['swarm_id'])}")]


def _nodes(nodes: list[Json], running: dict[str, str]) -> list[Finding]:
    found = []
    known = {node["node_id"] for node in nodes}
    for node_id, name in sorted(running.items()):
        if node_id not in known:
            found.append(
                Finding(
                    "nodes",
                    "fault",
                    f"{name} ({short(node_id)}) runs on this machine, and the coordinator does not have it",
                    "Its log says why it could not join",
                )
            )
    for node in nodes:
        found += [
            Finding(
                "nodes", "warning", f"{node['name']}: shard {one['shard_id']} of {one['model']}: {one['file_trouble']}"
            )
            for one in node["held"]
            if one["file_trouble"]
        ]
        found += [Finding("nodes", "warning", f"{node['name']}: {one}") for one in node["reach"]]
        found += [Finding("nodes", "warning", f"{node['name']}: {one}") for one in node["bound_to_nothing"]]
        found += [
            Finding("nodes", "warning", f"{node['name']}: shard {one['shard_id']} failed: {one['reason']}")
            for one in node["failed"]
        ]
        found += [Finding("nodes", "warning", f"{node['name']}, in its models cache: {one}") for one in node["refused"]]
    if not nodes:
        found.append(Finding("nodes", "note", "no node is connected", "Start one with `shardnet node`"))
    return found or [
        Finding(
            "nodes",
            "ok",
            f"{len(nodes)} connected: {', '.join(node['name'] for node in nodes[:8])}{', ...' if len(nodes) > 8 else ''}",
        )
    ]


def _links(nodes: list[Json], links: list[Json]) -> list[Finding]:
    """Who can dial whom: where a link was measured, somebody could."""
    ids = {node["node_id"]: node["name"] for node in nodes}
    measured = {(link["source"], link["target"]) for link in links}
    pairs = [(a, b) for a in ids for b in ids if a < b]
    apart = [(a, b) for a, b in pairs if not {(a, b), (b, a)} & measured]
    found = []
    if apart:
        told = ", ".join(f"{ids[a]} and {ids[b]}" for a, b in apart[:8]) + (
            f" and {len(apart) - 8} more" if len(apart) > 8 else ""
        )
        found.append(
            Finding(
                "links",
                "note",
                f"not measured: {told}. They have just joined, or what they send each other goes through the coordinator",
            )
        )
    elif pairs:
        found.append(Finding("links", "ok", f"every two of {len(ids)} nodes have a link of their own"))
    return found


def _models(status: Json) -> list[Finding]:
    found = []
    for model in status["models"]:
        label = f"{model['model']} ({short(model['model_id'])})"
        if not model["ready"]:
            found.append(Finding("models", "warning", f"{label}: {model['reason']}"))
            continue
        relayed = sorted({stage["node"] for pipeline in model["pipelines"] for stage in pipeline if stage["relayed"]})
        if relayed:
            found.append(
                Finding(
                    "models",
                    "warning",
                    f"{label}: what goes to {', '.join(relayed)} takes the way through the coordinator",
                    "See what is said of that node",
                )
            )
        else:
            found.append(Finding("models", "ok", f"{label} is ready"))
    found += [Finding("models", "note", f"kept out: {one['reason']}") for one in status["kept_out"]]
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for node in status["nodes"]:
        for one in node["not_served"]:
            reasons.setdefault((one["model"], one["model_id"], one["reason"]), []).append(node["name"])
    found += [
        Finding(
            "models", "warning", f"{model} ({short(model_id)}), which {', '.join(names)} has, is not served: {reason}"
        )
        for (model, model_id, reason), names in sorted(reasons.items())
    ]
    return found or [
        Finding("models", "note", "no model is known", "Put one into the models cache with `shardnet split`")
    ]


def _versions(about: Json, nodes: list[Json]) -> list[Finding]:
    """Members that compute with another llama.cpp, or other instruction sets, give other last digits."""
    told = {node["name"]: node["software"] for node in nodes if node.get("software")}
    found = []
    for what, key, level, remedy in (
        ("shardnet", "shardnet", "warning", "Install the same version everywhere: the coordinator's first"),
        (
            "llama.cpp",
            "llama",
            "warning",
            "Install the same version everywhere: answers depend on which nodes ran them",
        ),
        (
            "llama.cpp's instruction sets",
            "arithmetic",
            "note",
            "Answers are equal to the bit only where these are equal: pipelines of different nodes differ in their last digits",
        ),
    ):
        kinds = sorted({software[key] for software in told.values()})
        if len(kinds) > 1:
            each = "; ".join(
                f"{kind or 'none named'}: {_few(name for name, one in told.items() if one[key] == kind)}"
                for kind in kinds
            )
            found.append(
                Finding(
                    "versions",
                    "warning" if level == "warning" else "note",
                    f"{what} differs between nodes: {each}",
                    remedy,
                )
            )
    silent = [node["name"] for node in nodes if not node.get("software")]
    if silent:
        found.append(
            Finding(
                "versions",
                "note",
                f"{_few(silent)} run an older shardnet, which does not tell its version",
                "Update it",
            )
        )
    off = [
        (node["name"], node["clock_ahead_s"])
        for node in nodes
        if abs(node.get("clock_ahead_s") or 0.0) > CLOCKS_APART_S
    ]
    found += [
        Finding(
            "versions",
            "warning",
            f"the clock of {name} was {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the coordinator's when it joined",
            "Set both clocks, best by NTP",
        )
        for name, ahead in off
    ]
    return found or ([Finding("versions", "ok", f"the same software on {counted(len(told), 'node')}")] if told else [])


CLOCKS_APART_S = 30.0
"""The DHT refuses what is stamped further away (`dht.max_clock_skew_s`)."""


def _few(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")


def _dht(about: Json, nodes: list[Json]) -> list[Finding]:
    contacts, where = about.get("dht_contacts"), about["addresses"].get("dht")
    if where is None:
        return [Finding("DHT", "note", "the coordinator takes no part in it: it alone tells nodes of each other")]
    if contacts is None:
        return []
    if nodes and not contacts:
        return [
            Finding(
                "DHT",
                "warning",
                f"the coordinator hears no node there: it listens at {where} (UDP)",
                "Let UDP through to that port, or set dht.enabled = false everywhere",
            )
        ]
    return [Finding("DHT", "ok", f"the coordinator knows {counted(contacts, 'member')} there")]
