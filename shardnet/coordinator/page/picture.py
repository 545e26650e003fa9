"""The swarm as the page draws it, made of what `/status` says. Pure.

Only what changes seldom: nodes, layers, links, loads begun. Figures that move all the time are in `pulse`, so that the picture is sent again
only where something happened.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
PAGE_WORDS = {"leaving": "loaded"}
"""What a node that leaves has in memory can be run by nobody new: to the page it is there, and not ready."""


def picture(status: Json) -> Json:
    """Returns: nodes, models with their coverage, links, and what is wrong; of `/status`."""
    about = status["coordinator"]
    return {
        "coordinator": {
            "node_id": about["node_id"],
            "swarm_id": about["swarm_id"],
            "version": about["version"],
            "addresses": about["addresses"],
        },
        "nodes": [_node(one) for one in status["nodes"]],
        "models": [_model(one) for one in status["models"]],
        "links": links(status["links"], status["models"]),
        "kept_out": [one["reason"] for one in status["kept_out"]],
        "refused": list(about["refused"]),
    }


def _node(node: Json) -> Json:
    return {
        "node_id": node["node_id"],
        "name": node["name"],
        "address": node["address"],
        "state": node["state"],
        "devices": [
            {"name": one["name"], "kind": one["kind"], "about": one["description"], "total_bytes": one["total_bytes"]}
            for one in node["devices"]
        ],
        "memory_limit": node["memory_limit"],
        "shards_held": len(node["held"]),
        "shards_loaded": sum(1 for one in node["held"] if one["loaded"]),
        "streamed": sum(1 for one in node["held"] if one["loaded"] and one["memory_mode"] == "streamed"),
        "problems": [
            *node["bound_to_nothing"],
            *(f"shard {one['shard_id']} failed: {one['reason']}" for one in node["failed"]),
            *(f"model {one['model']} is not served: {one['reason']}" for one in node["not_served"]),
            *(f"refused: {reason}" for reason in node["refused"]),
        ],
    }


def _model(model: Json) -> Json:
    return {
        "model": model["model"],
        "model_id": model["model_id"],
        "ready": model["ready"],
        "reason": model["reason"],
        "architecture": model["architecture"],
        "quantisation": model["quantisation"],
        "n_layers": model["n_layers"],
        "n_params": model["n_params"],
        "total_bytes": model["total_bytes"],
        "unproved_reason": model["unproved_reason"],
        "notes": model["notes"],
        "coverage": coverage(model["layers"]),
        "pipelines": [
            [{"node_id": stage["node_id"], "node": stage["node"], "layers": stage["layers"]} for stage in pipeline]
            for pipeline in model["pipelines"]
        ],
    }


def coverage(layers: list[Json]) -> list[Json]:
    """Returns: for each run of layers the best state that anybody has them in, how many have them ready, and who has them at all.

    `state`: "ready" (they can be run), "coming" (somebody loads or fetches them), "on disk" (the file alone, or its node leaves), "nobody" (a gap).
    """
    runs: list[Json] = []
    for row in layers:
        run = {
            "first": row["first"],
            "end": row["end"],
            "state": _state(row["holders"]),
            "copies": sum(1 for one in row["holders"] if one["state"] == "ready"),
            "holders": [
                {"node_id": one["node_id"], "node": one["node"], "state": PAGE_WORDS.get(one["state"], one["state"])}
                for one in row["holders"]
            ],
        }
        before = runs[-1] if runs else None
        if before is not None and {**before, "first": 0, "end": 0} == {**run, "first": 0, "end": 0}:
            before["end"] = run["end"]  # they differ in how far their loads are, which is told elsewhere
        else:
            runs.append(run)
    return runs


def _state(holders: list[Json]) -> str:
    states = {one["state"] for one in holders}
    if not states:
        return "nobody"
    if "ready" in states:
        return "ready"
    return "on disk" if states <= {"on disk", "leaving"} else "coming"


def links(found: list[Json], models: list[Json]) -> list[Json]:
    """Returns: each pair of nodes once, with seconds there and back and the smaller bytes a second of the two directions.

    "" is the coordinator, to which only the round trip is measured. `used` where a pipeline goes from one to the other; `relayed` where the
    coordinator carries what goes there.
    """
    pairs: dict[tuple[str, str], Json] = {}
    for one in found:
        pair = _pair(one["source"], one["target"])
        link = pairs.setdefault(pair, _link(pair))
        link["round_trip_s"] = link["_s"] + one["one_way_s"] if "_s" in link else 2 * one["one_way_s"]
        link["_s"] = one["one_way_s"]
        if pair[0]:
            link["bytes_per_s"] = min(link["bytes_per_s"] or one["bytes_per_s"], one["bytes_per_s"])
    for pipeline in (pipeline for model in models for pipeline in model["pipelines"]):
        for index, stage in enumerate(pipeline):
            before = pipeline[index - 1]["node_id"]  # the last stage sends its token to the first
            if before == stage["node_id"]:
                continue
            pair = _pair(before, stage["node_id"])
            link = pairs.setdefault(pair, _link(pair))
            link["used"], link["relayed"] = True, link["relayed"] or stage["relayed"]
    return [{key: value for key, value in link.items() if key != "_s"} for _, link in sorted(pairs.items())]


def _pair(a: str, b: str) -> tuple[str, str]:
    return (a, b) if a < b else (b, a)


def _link(pair: tuple[str, str]) -> Json:
    return {
        "a": pair[0],
        "b": pair[1],
        "round_trip_s": None,
        "bytes_per_s": None,
        "used": False,
        "relayed": False,
    }


class Departures:
    """Nodes that were there and are gone, for a while: whoever looks sees who is missing, not only that something is."""

    KEPT_S = 600.0

    def __init__(self) -> None:
        self._here: dict[str, Json] = {}
        self._gone: dict[str, Json] = {}

    def look(self, picture: Json, at_s: float) -> list[Json]:
        """Take the swarm's present picture in. Returns: who is missing, each with the layers that it had ready; the last to leave first."""
        here = {one["node_id"]: one for one in picture["nodes"]}
        for node_id, before in self._here.items():
            if node_id not in here:
                self._gone[node_id] = before | {"at_s": at_s}
        self._here = {
            node_id: {"node_id": node_id, "name": one["name"], "layers": self._layers(one, picture["models"])}
            for node_id, one in here.items()
        }
        self._gone = {
            node_id: one
            for node_id, one in self._gone.items()
            if node_id not in here and at_s - one["at_s"] < self.KEPT_S
        }
        return sorted(self._gone.values(), key=lambda one: (-one["at_s"], one["name"]))

    def _layers(self, node: Json, models: list[Json]) -> str:
        """Returns: what a node has ready; of one that leaves, what it had before."""
        before = self._here.get(node["node_id"])
        if node["state"] == "leaving" and before is not None:
            return str(before["layers"])
        return _layers_of(node["node_id"], models)


def _layers_of(node_id: str, models: list[Json]) -> str:
    """Returns: the layers that a node has ready: "0 to 3, 8 to 11"."""
    runs = [
        f"{row['first']} to {row['end'] - 1}"
        for model in models
        for row in model["coverage"]
        if any(one["node_id"] == node_id and one["state"] == "ready" for one in row["holders"])
    ]
    return ", ".join(runs)
