"""The coordinator's view of its swarm follows what nodes say, and plans from it disturb nothing that runs."""

from __future__ import annotations

from shardnet.coordinator.placement.assign import Policy, needs_of
from shardnet.coordinator.placement.cluster import Cluster
from shardnet.coordinator.placement.events import (
    HeartbeatCame,
    LinkKnown,
    LoadFailed,
    LoadSent,
    ManifestKnown,
    NodeDied,
    NodeDrains,
    NodeJoined,
    NodeLeft,
    PlanNeeded,
    ShardIsReady,
    ShardsLost,
    TimePassed,
)
from shardnet.coordinator.placement.law import LinkTime
from shardnet.coordinator.placement.planning import Plan, plan, routes
from shardnet.coordinator.placement.readiness import not_ready
from shardnet.errors import NoRoomError, PlacementError, ShardError
from shardnet.messages import LoadProgress, ShardOptions
from tests.support.coordinator_world import heartbeat, held, hello, make_manifest, node_id, ready_cluster

OPTIONS = ShardOptions(n_ctx=256, n_seq=2, n_batch=64)
MODEL = make_manifest()


def planned(cluster: Cluster, *, stages: int = 0, replicas: int = 1) -> Plan:
    cluster.check()
    return plan(cluster, {MODEL.model_id: OPTIONS}, Policy(stages=stages), replicas=replicas)


def orders(found: Plan) -> list[tuple[int, int]]:
    return sorted((int(order.node_id, 16), order.shard_id) for order in found.orders)


def known(*nodes: tuple[int, tuple[int, ...]], loaded: bool = False) -> Cluster:
    cluster = Cluster()
    cluster.handle(ManifestKnown(MODEL))
    for number, shards in nodes:
        cluster.handle(NodeJoined(0.0, hello(number, [held(MODEL, shard, loaded=loaded) for shard in shards])))
    return cluster


# -- membership and time ---------------------------------------------------------------------------------------------------------


def test_a_joining_node_makes_a_plan_necessary() -> None:
    assert known().handle(NodeJoined(0.0, hello(1))) == [PlanNeeded("a node joined")]


def test_a_node_silent_for_five_seconds_is_dead() -> None:
    cluster = known((1, ()))
    cluster.handle(HeartbeatCame(1.0, node_id(1), heartbeat()))
    assert cluster.handle(TimePassed(5.9)) == []
    assert cluster.handle(TimePassed(6.1)) == [NodeDied(node_id(1), "no heartbeat for 5 s")]


def test_a_lost_node_takes_its_routes_with_it() -> None:
    cluster = ready_cluster(MODEL, {1: [0, 1], 2: [2]})
    assert routes(cluster, MODEL.model_id, OPTIONS, Policy())
    version = cluster.version
    cluster.handle(NodeLeft(1.0, node_id(2)))
    assert cluster.version > version
    assert not routes(cluster, MODEL.model_id, OPTIONS, Policy())
    assert [str(layers) for layers in cluster.missing_layers(MODEL.model_id)] == ["[4, 6)"]


def test_missing_layers_of_neighbouring_shards_are_joined() -> None:
    cluster = ready_cluster(MODEL, {1: [0]})
    assert [str(layers) for layers in cluster.missing_layers(MODEL.model_id)] == ["[2, 6)"]


def test_a_draining_node_gets_no_new_requests_and_no_shards() -> None:
    cluster = ready_cluster(MODEL, {1: [0, 1, 2]})
    cluster.handle(NodeDrains(1.0, node_id(1)))
    assert not routes(cluster, MODEL.model_id, OPTIONS, Policy())
    assert isinstance(planned(cluster).problems[MODEL.model_id], PlacementError)


def test_a_heartbeat_that_says_draining_counts_like_leaving() -> None:
    cluster = ready_cluster(MODEL, {1: [0, 1, 2]})
    cluster.handle(HeartbeatCame(1.0, node_id(1), heartbeat([held(MODEL, shard) for shard in range(3)], draining=True)))
    assert cluster.nodes[node_id(1)].draining


def test_a_node_that_joins_anew_starts_unconfirmed() -> None:
    cluster = ready_cluster(MODEL, {1: [0, 1, 2]})
    cluster.handle(NodeJoined(9.0, hello(1, [held(MODEL, shard) for shard in range(3)])))
    assert not routes(cluster, MODEL.model_id, OPTIONS, Policy())
    assert orders(planned(cluster)) == [(1, 0), (1, 1), (1, 2)]


# -- shards ----------------------------------------------------------------------------------------------------------------------


def test_shards_loaded_before_joining_are_confirmed_without_memory_of_their_own() -> None:
    found = planned(known((1, (0, 1)), (2, (2,)), loaded=True))
    assert orders(found) == [(1, 0), (1, 1), (2, 2)]
    assert all(order.needed_bytes == 0 for order in found.orders)


def test_a_complete_model_is_left_alone_when_a_better_node_joins() -> None:
    cluster = ready_cluster(MODEL, {1: [0, 1], 2: [2]})
    cluster.handle(NodeJoined(1.0, hello(3, [held(MODEL, shard, loaded=False) for shard in range(3)])))
    assert orders(planned(cluster)) == []


def test_only_what_is_missing_is_loaded_after_a_node_is_lost() -> None:
    cluster = ready_cluster(MODEL, {1: [0, 1], 2: [2]})
    cluster.handle(NodeJoined(1.0, hello(3, [held(MODEL, 2, loaded=False)])))
    cluster.handle(NodeLeft(2.0, node_id(2)))
    assert orders(planned(cluster)) == [(3, 2)]


def test_nothing_is_ordered_twice_while_it_is_on_its_way() -> None:
    cluster = known((1, (0, 1, 2)))
    for order in planned(cluster).orders:
        cluster.handle(LoadSent(0.0, order.node_id, (order.model_id, order.shard_id), order.needed_bytes))
    assert orders(planned(cluster)) == []
    assert cluster.nodes[node_id(1)].free_bytes < cluster.nodes[node_id(1)].memory_free_bytes


def test_memory_promised_to_one_model_is_not_given_to_another() -> None:
    other = make_manifest((0, 3, 6), name="zweites")
    cluster = Cluster()
    cluster.handle(ManifestKnown(MODEL))
    cluster.handle(ManifestKnown(other))
    shards = [held(one, shard, loaded=False) for one in (MODEL, other) for shard in range(one.n_shards)]
    room = 3 * sum(needs_of(MODEL, OPTIONS)) // 2
    cluster.handle(NodeJoined(0.0, hello(1, shards, memory=room)))
    found = plan(cluster, {MODEL.model_id: OPTIONS, other.model_id: OPTIONS}, Policy(), replicas=1)
    assert {order.model_id for order in found.orders} == {MODEL.model_id}
    assert isinstance(found.problems[other.model_id], NoRoomError)


def test_a_failed_load_is_tried_elsewhere_at_once_and_here_again_later() -> None:
    cluster = known((1, (0, 1, 2)), (2, (0, 1, 2)))
    cluster.handle(LoadSent(0.0, node_id(1), (MODEL.model_id, 0), 0))
    cluster.handle(LoadFailed(1.0, node_id(1), (MODEL.model_id, 0), ShardError("no")))
    assert (2, 0) in orders(planned(cluster))
    cluster.handle(NodeLeft(1.0, node_id(2)))
    assert orders(planned(cluster)) == []
    for node in (1,):
        cluster.handle(HeartbeatCame(2.5, node_id(node), heartbeat([held(MODEL, s, loaded=False) for s in range(3)])))
    assert cluster.handle(TimePassed(2.0)) == []
    assert cluster.handle(TimePassed(3.0)) == [PlanNeeded("a shard that could not be loaded is tried again")]
    assert cluster.handle(TimePassed(3.5)) == []
    assert orders(planned(cluster)) == [(1, 0), (1, 1), (1, 2)]


def test_what_no_node_has_room_for_is_told_as_such() -> None:
    """It was told as a placement that cannot be found, so that `shardnet generate` ended with 1 instead of 6."""
    cluster = known((1, (0, 1, 2)))
    cluster.handle(HeartbeatCame(1.0, node_id(1), heartbeat([held(MODEL, s, loaded=False) for s in range(3)], free=1)))
    told = not_ready(cluster, MODEL, planned(cluster).problems[MODEL.model_id])
    assert isinstance(told, NoRoomError)
    assert "are missing" in str(told)
    assert told.facts["needed_bytes"]
    assert told.facts["retry_after_s"]


def test_a_model_on_its_way_says_how_far_it_is() -> None:
    cluster = known((1, (0, 1, 2)))
    keys = [(MODEL.model_id, shard) for shard in (0, 1)]
    for key in keys:
        cluster.handle(LoadSent(0.0, node_id(1), key, 0))
    size = MODEL.content.shards[1].bytes
    progress = LoadProgress(command_id="0" * 16, stage="load", done_bytes=50, total_bytes=200, bytes_per_s=10.0)
    cluster.nodes[node_id(1)].loads[keys[0]].progress = progress
    told = not_ready(cluster, MODEL, None)
    assert told.facts["loading_done_bytes"] == 50
    assert told.facts["loading_total_bytes"] == 200 + size
    assert told.facts["loading_seconds_left"] == told.facts["retry_after_s"] == (150 + size) / 10
    assert "are being loaded: " in str(told)
    cluster.nodes[node_id(1)].loads[keys[0]].progress = None
    assert not_ready(cluster, MODEL, None).facts["loading_seconds_left"] is None  # and nobody makes one up


def test_between_a_change_of_nodes_and_the_plan_a_model_counts_as_about_to_be_loaded() -> None:
    """A question that came in that moment failed at once, and waited when it came a second later."""
    cluster = known((1, (0, 1, 2)))
    told = not_ready(cluster, MODEL, NoRoomError("of the plan before"), plan_is_due=True)
    assert not isinstance(told, NoRoomError)
    assert told.facts["loading_done_bytes"] == 0
    assert told.facts["loading_total_bytes"] == sum(shard.bytes for shard in MODEL.content.shards)
    assert told.facts["loading_seconds_left"] is None
    assert told.facts["retry_after_s"] == 1
    cluster.handle(NodeLeft(1.0, node_id(1)))
    alone = not_ready(cluster, MODEL, None, plan_is_due=True)
    assert "no node is connected" in str(alone)  # nothing is to be waited for
    assert "loading_done_bytes" not in alone.facts


def test_layers_of_a_node_that_leaves_are_told_as_such() -> None:
    """They were told as in nobody's memory, below a strip that was full."""
    cluster = ready_cluster(MODEL, {1: (0, 1), 2: (2,)})
    cluster.handle(NodeDrains(1.0, node_id(2)))
    assert "layers [4, 6) of 6 are in no node's memory but that of node-2, which is leaving" in str(
        not_ready(cluster, MODEL, None)
    )


def test_a_node_that_found_no_room_is_quoted() -> None:
    cluster = known((1, (0, 1, 2)))
    key = (MODEL.model_id, 0)
    cluster.handle(LoadSent(0.0, node_id(1), key, 0))
    assert isinstance(not_ready(cluster, MODEL, NoRoomError("from before")), PlacementError)  # it is being loaded
    cluster.handle(LoadFailed(1.0, node_id(1), key, NoRoomError("5 GB are needed, 1 GB is free", needed_bytes=5)))
    told = not_ready(cluster, MODEL, planned(cluster).problems[MODEL.model_id])
    assert isinstance(told, NoRoomError)
    assert "node's memory; no connected node may run layers [0, 2)" in str(told)
    assert "node-1 says: 5 GB are needed, 1 GB is free" in str(told)
    assert told.facts["needed_bytes"] == 5
    cluster.handle(LoadSent(1.0, node_id(1), (MODEL.model_id, 1), 0))
    cluster.handle(LoadFailed(1.0, node_id(1), key, ShardError("no")))
    assert isinstance(planned(cluster).problems[MODEL.model_id], PlacementError)


def test_a_shard_that_a_heartbeat_no_longer_lists_as_loaded_is_confirmed_again() -> None:
    cluster = ready_cluster(MODEL, {1: [0, 1, 2]})
    beat = heartbeat([held(MODEL, 0), held(MODEL, 1), held(MODEL, 2, loaded=False)])
    assert cluster.handle(HeartbeatCame(5.0, node_id(1), beat))
    assert orders(planned(cluster)) == [(1, 2)]


def test_a_heartbeat_written_before_the_shard_was_ready_changes_nothing() -> None:
    cluster = known((1, (0, 1, 2)))
    cluster.handle(ShardIsReady(10.0, node_id(1), held(MODEL, 0)))
    cluster.handle(HeartbeatCame(10.2, node_id(1), heartbeat([held(MODEL, s, loaded=False) for s in range(3)])))
    cluster.check()
    assert (MODEL.model_id, 0) in cluster.nodes[node_id(1)].ready


def test_a_stage_without_its_shards_has_them_confirmed_again() -> None:
    cluster = ready_cluster(MODEL, {1: [0, 1, 2]})
    assert cluster.handle(ShardsLost(node_id(1), ((MODEL.model_id, 1),)))
    assert orders(planned(cluster)) == [(1, 1)]


def test_a_signed_manifest_replaces_an_unsigned_one_and_not_the_other_way() -> None:
    signed = MODEL.model_copy(update={"signature": "x"})
    cluster = known()
    cluster.handle(ManifestKnown(signed))
    assert cluster.handle(ManifestKnown(MODEL)) == []
    assert cluster.manifests[MODEL.model_id].signature == "x"


# -- plans and routes ------------------------------------------------------------------------------------------------------------


def test_forced_stages_wait_for_enough_nodes() -> None:
    cluster = known((1, (0, 1, 2)), loaded=True)
    assert isinstance(planned(cluster, stages=2).problems[MODEL.model_id], PlacementError)
    cluster.handle(NodeJoined(0.0, hello(2, [held(MODEL, shard, loaded=False) for shard in range(3)])))
    found = planned(cluster, stages=2)
    assert not found.problems
    assert {order.node_id for order in found.orders} == {node_id(1), node_id(2)}


def test_replicas_are_loaded_on_nodes_of_their_own() -> None:
    found = planned(known((1, (0, 1, 2)), (2, (0, 1, 2)), (3, ())), replicas=3)
    assert orders(found) == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
    assert not found.problems


def test_routes_share_no_node_and_the_quickest_is_first() -> None:
    cluster = ready_cluster(MODEL, {1: [0, 1, 2], 2: [0, 1], 3: [2], 4: [1]})
    found = routes(cluster, MODEL.model_id, OPTIONS, Policy())
    assert [route.node_ids for route in found] == [(node_id(1),), (node_id(2), node_id(3))]


def test_a_route_has_exactly_the_forced_stages() -> None:
    cluster = ready_cluster(MODEL, {1: [0, 1, 2], 2: [0, 1, 2]})
    [route] = routes(cluster, MODEL.model_id, OPTIONS, Policy(stages=2))
    assert len(route.stages) == 2


def test_stages_that_cannot_reach_each_other_are_relayed() -> None:
    cluster = ready_cluster(MODEL, {1: [0, 1], 2: [2]})
    cluster.handle(LinkKnown(node_id(1), node_id(2), None))
    [route] = routes(cluster, MODEL.model_id, OPTIONS, Policy())
    assert [stage.address is None for stage in route.stages] == [False, True]
    cluster.handle(LinkKnown(node_id(1), node_id(2), LinkTime()))
    [route] = routes(cluster, MODEL.model_id, OPTIONS, Policy())
    assert route.stages[1].address is not None


def test_a_measured_node_is_judged_by_its_measure() -> None:
    cluster = known()
    for number, step_us in ((1, 900.0), (2, 100.0)):
        shards = [held(MODEL, shard, step_us=step_us) for shard in range(3)]
        cluster.handle(NodeJoined(0.0, hello(number, shards)))
        for shard in shards:
            cluster.handle(ShardIsReady(0.0, node_id(number), shard))
    assert routes(cluster, MODEL.model_id, OPTIONS, Policy())[0].node_ids == (node_id(2),)


def test_nodes_of_one_name_are_told_apart_as_long_as_there_are_several() -> None:
    cluster = Cluster()
    for number in (1, 2, 3):
        greeting = hello(number).model_copy(update={"name": "node" if number < 3 else "other"})
        cluster.handle(NodeJoined(0.0, greeting))
    labels = [cluster.nodes[node_id(number)].label for number in (1, 2, 3)]
    assert labels == [f"node ({node_id(1)[:6]})", f"node ({node_id(2)[:6]})", "other"]
    cluster.handle(NodeLeft(1.0, node_id(2)))
    assert cluster.nodes[node_id(1)].label == "node"
