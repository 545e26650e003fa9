"""The swarm as the page draws it: gaps, links, and who is missing."""

from __future__ import annotations

from typing import Any

from shardnet.coordinator.api.views import swarm_json
from shardnet.coordinator.page.picture import Departures, coverage, links, picture
from shardnet.coordinator.placement.cluster import Cluster
from shardnet.coordinator.placement.events import LinkKnown, LoadMoved, LoadSent, NodeJoined, NodeLeft
from shardnet.coordinator.placement.law import LinkTime
from shardnet.coordinator.placement.settings import ModelsSettings, PlacementSettings, SequenceSettings
from shardnet.coordinator.placement.standing import Standing
from shardnet.messages import LoadProgress
from tests.support.coordinator_world import hello, make_manifest, node_id, ready_cluster

MANIFEST = make_manifest()  # shards of layers 0-1, 2-3, 4-5


def seen(cluster: Cluster) -> dict[str, Any]:
    """The picture of a cluster."""
    standing = Standing(cluster, ModelsSettings(), PlacementSettings(), SequenceSettings())
    about = {"node_id": "c" * 40, "swarm_id": "5" * 40, "version": "1", "addresses": {}, "refused": []}
    return picture({"coordinator": about} | swarm_json(standing, 0.0))


def states(cluster: Cluster) -> list[tuple[int, int, str, int]]:
    (model,) = seen(cluster)["models"]
    return [(row["first"], row["end"], row["state"], row["copies"]) for row in model["coverage"]]


def test_layers_that_nobody_has_are_a_gap() -> None:
    assert states(ready_cluster(MANIFEST, {1: [0], 2: [0, 2]})) == [
        (0, 2, "ready", 2),
        (2, 4, "nobody", 0),
        (4, 6, "ready", 1),
    ]


def test_a_shard_on_its_way_is_no_gap_and_is_not_ready() -> None:
    cluster = ready_cluster(MANIFEST, {1: [0]})
    for shard in (1, 2):
        cluster.handle(LoadSent(0.0, node_id(1), (MANIFEST.model_id, shard), 10))
    progress = LoadProgress(command_id="0" * 16, stage="fetch", done_bytes=1, total_bytes=4)
    cluster.handle(LoadMoved(node_id(1), (MANIFEST.model_id, 1), progress))
    assert states(cluster)[0] == (0, 2, "ready", 1)
    assert {state for _, _, state, _ in states(cluster)[1:]} == {"coming"}


def test_how_far_a_load_is_does_not_change_the_picture() -> None:
    row = {"first": 0, "end": 2, "holders": [{"node_id": "a", "node": "a", "state": "fetch", "progress": 0.1}]}
    later = row | {"holders": [{"node_id": "a", "node": "a", "state": "fetch", "progress": 0.9}]}
    assert coverage([row]) == coverage([later])
    beside = later | {"first": 2, "end": 4}
    assert [(one["first"], one["end"]) for one in coverage([row, beside])] == [(0, 4)]


def test_a_file_that_is_only_on_a_disk_is_said() -> None:
    on_disk = {"node_id": "a", "node": "a", "state": "on disk", "progress": None}
    assert coverage([{"first": 0, "end": 1, "holders": [on_disk]}])[0]["state"] == "on disk"
    loaded = on_disk | {"state": "loaded"}
    assert coverage([{"first": 0, "end": 1, "holders": [on_disk, loaded]}])[0]["state"] == "coming"


def test_a_link_is_drawn_once_with_both_ways_and_its_slower_rate() -> None:
    cluster = ready_cluster(MANIFEST, {1: [0], 2: [1]})
    cluster.handle(LinkKnown(node_id(1), node_id(2), LinkTime(one_way_s=0.001, bytes_per_s=5e6)))
    cluster.handle(LinkKnown(node_id(2), node_id(1), LinkTime(one_way_s=0.003, bytes_per_s=2e6)))
    cluster.handle(LinkKnown("", node_id(1), LinkTime(one_way_s=0.002)))
    own, between = seen(cluster)["links"]
    assert (own["a"], own["round_trip_s"], own["bytes_per_s"]) == ("", 0.004, None)
    assert (between["a"], between["b"], between["round_trip_s"], between["bytes_per_s"]) == (
        node_id(1),
        node_id(2),
        0.004,
        2e6,
    )


def test_links_of_a_pipeline_are_marked_and_so_is_what_the_coordinator_carries() -> None:
    stages = [
        {"node_id": "a", "relayed": False},
        {"node_id": "b", "relayed": True},
        {"node_id": "c", "relayed": False},
    ]
    found = {(one["a"], one["b"]): (one["used"], one["relayed"]) for one in links([], [{"pipelines": [stages]}])}
    assert found == {("a", "b"): (True, True), ("b", "c"): (True, False), ("a", "c"): (True, False)}


def test_a_pipeline_of_one_node_has_no_link() -> None:
    assert links([], [{"pipelines": [[{"node_id": "a", "relayed": False}]]}]) == []


def test_who_left_is_missing_with_its_layers_until_it_comes_back() -> None:
    cluster, departures = ready_cluster(MANIFEST, {1: [0, 1], 2: [2]}), Departures()
    assert departures.look(seen(cluster), 1.0) == []
    cluster.handle(NodeLeft(2.0, node_id(1)))
    (gone,) = departures.look(seen(cluster), 2.0)
    assert gone == {"node_id": node_id(1), "name": "node-1", "layers": "0 to 3", "at_s": 2.0}
    assert len(departures.look(seen(cluster), 3.0)) == 1
    cluster.handle(NodeJoined(4.0, hello(1)))
    assert departures.look(seen(cluster), 4.0) == []


def test_a_missing_node_is_forgotten_after_a_while() -> None:
    cluster, departures = ready_cluster(MANIFEST, {1: [0]}), Departures()
    departures.look(seen(cluster), 0.0)
    cluster.handle(NodeLeft(1.0, node_id(1)))
    assert departures.look(seen(cluster), 1.0)
    assert departures.look(seen(cluster), 2 + Departures.KEPT_S) == []
