"""Copies of shard files on idle nodes, and what others on the DHT mean for placement."""

from __future__ import annotations

from shardnet.coordinator.placement.assign import Policy
from shardnet.coordinator.placement.cluster import Cluster
from shardnet.coordinator.placement.events import (
    LoadFailed,
    LoadSent,
    ManifestKnown,
    NodeJoined,
    PlanNeeded,
    SeedersKnown,
)
from shardnet.coordinator.placement.planning import plan
from shardnet.coordinator.placement.spreading import spread
from shardnet.errors import NoRoomError
from shardnet.manifest import Manifest
from shardnet.messages import Capabilities, ShardOptions
from tests.support.coordinator_world import held, hello, make_manifest, node_id

PORT = 6881


def make_cluster(manifest: Manifest, *holdings: tuple[int, ...]) -> Cluster:
    """Node i has the files of `holdings[i]`; all can fetch."""
    cluster = Cluster()
    cluster.handle(ManifestKnown(manifest))
    for number, shards in enumerate(holdings):
        files = [held(manifest, shard, loaded=False) for shard in shards]
        cluster.handle(NodeJoined(0.0, hello(number, files, torrent_port=PORT)))
    return cluster


def test_one_copy_asks_for_nothing() -> None:
    manifest = make_manifest()
    assert spread(make_cluster(manifest, (0, 1, 2), ()), [manifest], 1) == []


def test_the_rarest_shard_goes_first_to_the_emptiest_node_and_one_at_a_time() -> None:
    manifest = make_manifest()
    cluster = make_cluster(manifest, (0, 1, 2), (0,), ())
    orders = spread(cluster, [manifest], 2)
    assert [(order.node_id, order.shard_id, order.keep_only) for order in orders] == [
        (node_id(2), 1, True),
        (node_id(1), 2, True),
    ]
    for order in orders:
        cluster.handle(LoadSent(0.0, order.node_id, (order.model_id, order.shard_id), 0, keep_only=True))
    assert spread(cluster, [manifest], 2) == [], "both are busy, and each shard will have its copies"


def test_what_nobody_has_cannot_be_copied() -> None:
    manifest = make_manifest()
    assert {order.shard_id for order in spread(make_cluster(manifest, (0,), ()), [manifest], 2)} == {0}


def test_a_node_with_a_full_disk_is_left_alone_for_a_while() -> None:
    manifest = make_manifest()
    cluster = make_cluster(manifest, (0, 1, 2), ())
    cluster.handle(LoadFailed(0.0, node_id(1), (manifest.model_id, 0), NoRoomError("the disk is full")))
    assert {order.shard_id for order in spread(cluster, [manifest], 2)} == {1}


def test_a_copy_on_its_way_is_not_taken_for_a_loaded_shard() -> None:
    manifest = make_manifest(cuts=(0, 6))
    cluster = make_cluster(manifest, (0,))
    cluster.handle(LoadSent(0.0, node_id(0), (manifest.model_id, 0), 0, keep_only=True))
    found = plan(cluster, {manifest.model_id: ShardOptions()}, Policy(), replicas=1)
    assert [(order.shard_id, order.keep_only) for order in found.orders] == [(0, False)]


def test_shards_that_others_on_the_dht_give_can_be_placed() -> None:
    manifest = make_manifest()
    cluster = make_cluster(manifest, ())
    everything = {manifest.model_id: ShardOptions()}
    assert manifest.model_id in plan(cluster, everything, Policy(), replicas=1).problems
    news = SeedersKnown(manifest.model_id, frozenset({0, 1, 2}))
    assert [type(effect) for effect in cluster.handle(news)] == [PlanNeeded]
    assert cluster.handle(news) == [], "that is no news"
    found = plan(cluster, everything, Policy(), replicas=1)
    assert {order.shard_id for order in found.orders} == {0, 1, 2}


def test_a_second_pipeline_may_fetch_what_the_first_one_has() -> None:
    manifest = make_manifest()
    cluster = make_cluster(manifest, (0, 1, 2), ())
    found = plan(cluster, {manifest.model_id: ShardOptions()}, Policy(), replicas=2)
    assert {order.node_id for order in found.orders} == {node_id(0), node_id(1)}


def test_a_node_bound_by_name_or_number_may_have_shards_of_a_model_that_it_does_not_know_yet() -> None:
    manifest = make_manifest()
    cluster = Cluster()
    meant: list[tuple[str, set[int]]] = [
        ("1", {1}),
        ("tiny:2", {2}),
        (f"{manifest.model_id[:8]}:0", {0}),
        ("other:1", set()),
    ]
    for bound, expected in meant:
        greeting = hello(0).model_copy(update={"capabilities": Capabilities(accepts_any=False, bound=(bound,))})
        cluster.handle(NodeJoined(0.0, greeting))
        assert cluster.nodes[node_id(0)].allowed(manifest.model_id, manifest.name) == frozenset(expected)
