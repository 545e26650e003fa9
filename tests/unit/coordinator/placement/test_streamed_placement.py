"""Shards that do not fit: resident before streamed, at what reading costs, in pipelines of one kind, and refused with bytes where nothing does."""

from __future__ import annotations

import pytest

from shardnet.coordinator.placement.assign import NodeOffer, Policy, memory_needed, place
from shardnet.coordinator.placement.cluster import Cluster
from shardnet.coordinator.placement.events import (
    HeartbeatCame,
    LoadFailed,
    LoadSent,
    ManifestKnown,
    NodeJoined,
    ShardIsReady,
)
from shardnet.coordinator.placement.planning import plan, routes
from shardnet.coordinator.placement.prospects import prospects
from shardnet.coordinator.placement.readiness import mixed
from shardnet.coordinator.placement.streaming import Streaming, share_of, stays_sentence
from shardnet.errors import NoRoomError, ShardNotFound
from shardnet.manifest import Manifest
from shardnet.messages import Heartbeat, HeldShard, ShardOptions, StreamedWeights
from tests.support.coordinator_world import held, hello, make_manifest, node_id

MB = 1_000_000
OPTIONS = ShardOptions(n_ctx=256, n_seq=1, n_batch=64)
ROOMY = Policy(headroom_share=0.0)
MODEL = make_manifest((0, 10, 20), shard_bytes=[100 * MB, 100 * MB])
NEED = memory_needed(MODEL, 0, OPTIONS)


def offer(number: int, free: int, *, reads: float | None = None, pace: float = 1e9) -> NodeOffer:
    streaming = None if reads is None else Streaming(reads)
    return NodeOffer(node_id(number), f"node-{number}", free, pace, on_disk=frozenset((0, 1)), streaming=streaming)


def weights(stays: int) -> StreamedWeights:
    return StreamedWeights(
        weights_bytes=100 * MB, stays_bytes=stays, budget_bytes=stays + 10 * MB, least_bytes=20 * MB, bytes_per_s=5e8
    )


def streamed(shard: int, stays: int = 40 * MB) -> HeldShard:
    told = {"memory_mode": "streamed", "repacked": False, "streamed": weights(stays), "memory_bytes": 60 * MB}
    return held(MODEL, shard).model_copy(update=told)


def test_a_node_that_has_room_comes_before_a_quicker_one_that_would_stream() -> None:
    found = place(MODEL, [offer(1, 3 * NEED, pace=1e9), offer(2, NEED // 2, reads=5e8, pace=4e9)], OPTIONS, ROOMY)
    assert [stage.node_id for stage in found.stages] == [node_id(1)]


def test_a_streamed_stage_costs_what_it_reads_and_computing() -> None:
    found = place(MODEL, [offer(1, NEED + 20 * MB, reads=5e8)], OPTIONS, ROOMY)
    share = share_of(MODEL, (0, 1), [NEED, memory_needed(MODEL, 1, OPTIONS)], NEED + 20 * MB)
    assert share is not None
    assert 60 * MB < share.read_bytes < 120 * MB
    assert found.seconds_per_token == pytest.approx(share.read_bytes / 5e8 + 200 * MB / 1e9, rel=0.01)


def test_more_memory_never_reads_more_and_two_layers_are_the_least() -> None:
    shares = [share_of(MODEL, (0,), [NEED, NEED], free * MB) for free in range(10, 140)]
    read = [share.read_bytes for share in shares if share is not None]
    assert read == sorted(read, reverse=True)
    assert 98 * MB < read[0] <= 100 * MB  # free memory goes up by 1 MB
    assert read[-1] == 0
    assert shares[0] is None


def test_where_nothing_else_covers_the_layers_a_streaming_node_is_used() -> None:
    small = NEED // 2
    with pytest.raises(NoRoomError):
        place(MODEL, [offer(1, NEED), offer(2, small)], OPTIONS, ROOMY)
    found = place(MODEL, [offer(1, NEED), offer(2, small, reads=5e8)], OPTIONS, ROOMY)
    assert [stage.node_id for stage in found.stages] in ([node_id(1), node_id(2)], [node_id(2), node_id(1)])


def test_what_can_neither_be_resident_nor_streamed_is_refused_with_bytes() -> None:
    with pytest.raises(
        NoRoomError, match=r"streamed, shard \d needs 2.* MB at least, and node-1 has 5.0 MB"
    ) as refused:
        place(MODEL, [offer(1, 5 * MB, reads=5e8)], OPTIONS, ROOMY)
    assert refused.value.facts["missing_bytes"]


def test_the_planner_says_how_many_layers_stay() -> None:
    found = prospects(MODEL, [offer(1, NEED, reads=5e8)], OPTIONS, ROOMY)
    (stage,) = found.layouts[0].pipelines[0]
    assert stage.streamed.startswith("streamed, ")
    assert " of 20 layers stay, " in stage.streamed
    assert stays_sentence(100, 45, 55, 10) == "streamed, 4 of 10 layers stay, 55 B are read for each token"


def cluster_with(*nodes: tuple[int, list[HeldShard], str, int]) -> Cluster:
    cluster = Cluster()
    cluster.handle(ManifestKnown(MODEL))
    for number, shards, mode, free in nodes:
        greeting = hello(number, shards)
        told = greeting.capabilities.model_copy(update={"memory_mode": mode})
        cluster.handle(NodeJoined(0.0, greeting.model_copy(update={"capabilities": told})))
        cluster.nodes[node_id(number)].memory_free_bytes = free
    return cluster


def orders(cluster: Cluster) -> set[tuple[int, int, bool]]:
    found = plan(cluster, {MODEL.model_id: OPTIONS}, ROOMY, replicas=1)
    return {(int(order.node_id, 16), order.shard_id, order.repack) for order in found.orders}


def on_disk(manifest: Manifest) -> list[HeldShard]:
    return [held(manifest, shard, loaded=False) for shard in (0, 1)]


def test_a_model_that_fits_is_loaded_repacked_even_where_nodes_could_stream() -> None:
    found = orders(cluster_with((1, on_disk(MODEL), "auto", 3 * NEED), (2, on_disk(MODEL), "streamed", 3 * NEED)))
    assert found == {(1, 0, True), (1, 1, True)}


def test_all_shards_of_a_pipeline_with_a_streamed_one_are_loaded_without_repacking() -> None:
    found = orders(cluster_with((1, on_disk(MODEL), "resident", NEED), (2, on_disk(MODEL), "auto", NEED // 2)))
    assert {repack for _, _, repack in found} == {False}
    assert {(node, shard) for node, shard, _ in found} in ({(1, 0), (2, 1)}, {(1, 1), (2, 0)})


def test_a_repacked_shard_beside_a_streamed_one_is_loaded_anew() -> None:
    resident = held(MODEL, 0).model_copy(update={"memory_bytes": NEED})
    cluster = cluster_with((1, [resident], "resident", 0), (2, [streamed(1)], "streamed", 0))
    assert orders(cluster) == {(1, 0, False), (2, 1, False)}


def test_no_route_mixes_the_kinds_and_the_reason_names_both_shards() -> None:
    cluster = cluster_with((1, [held(MODEL, 0)], "resident", 0), (2, [streamed(1)], "streamed", 0))
    cluster.handle(ShardIsReady(1.0, node_id(1), held(MODEL, 0)))
    cluster.handle(ShardIsReady(1.0, node_id(2), streamed(1)))
    assert routes(cluster, MODEL.model_id, OPTIONS, ROOMY) == []
    assert "is repacked, shard 1 on " in mixed(cluster, MODEL)
    stored = held(MODEL, 0).model_copy(update={"repacked": False})
    cluster.handle(ShardIsReady(2.0, node_id(1), stored))
    (route,) = routes(cluster, MODEL.model_id, OPTIONS, ROOMY)
    assert route.options.repack is False
    assert mixed(cluster, MODEL) == ""


def test_a_shard_that_came_back_in_the_other_kind_is_planned_for_anew() -> None:
    cluster = cluster_with((1, [held(MODEL, 0)], "auto", 0))
    beat = Heartbeat(memory_free_bytes=0, load=0.0, held=(streamed(0),), sequences=0)
    assert cluster.handle(HeartbeatCame(1.0, node_id(1), beat))


def test_a_shard_that_a_node_streams_is_not_asked_for_as_a_whole() -> None:
    """The node's engine knows better than the coordinator's estimate."""
    cluster = cluster_with((1, [held(MODEL, 0)], "resident", 5 * NEED), (2, [streamed(1)], "auto", 5 * NEED))
    assert orders(cluster) == {(1, 0, False), (2, 1, False)}


def test_a_refusal_for_want_of_room_is_followed_by_an_order_for_the_other_kind() -> None:
    cluster = cluster_with((1, on_disk(MODEL), "auto", 3 * NEED))
    for shard in (0, 1):
        key = (MODEL.model_id, shard)
        cluster.handle(LoadSent(1.0, node_id(1), key, 0, repack=True))
        cluster.handle(LoadFailed(1.0, node_id(1), key, NoRoomError("shard needs more")))
    assert orders(cluster) == {(1, 0, False), (1, 1, False)}
    for shard in (0, 1):
        key = (MODEL.model_id, shard)
        cluster.handle(LoadSent(2.0, node_id(1), key, 0, repack=False))
        cluster.handle(LoadFailed(2.0, node_id(1), key, ShardNotFound("the file is gone")))
    assert orders(cluster) == set()
