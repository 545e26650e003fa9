"""Every link is measured once, and one that did not work again later."""

from __future__ import annotations

from shardnet.coordinator.nodes.measuring import REMEASURE_S, LinkSchedule
from shardnet.coordinator.placement.events import LinkKnown, NodeLeft
from tests.support.coordinator_world import make_manifest, node_id, ready_cluster

HERE, A, B = "", node_id(1), node_id(2)


def due(schedule: LinkSchedule, at_s: float) -> list[tuple[str, str]]:
    return [pair for pair in schedule.pairs() if schedule.begin(pair, at_s)]


def test_each_link_of_the_coordinator_and_between_nodes_is_measured_once() -> None:
    schedule = LinkSchedule(ready_cluster(make_manifest(), {1: [0, 1, 2], 2: [0]}))
    assert due(schedule, 0.0) == [(HERE, A), (HERE, B), (A, B)]
    assert due(schedule, 10 * REMEASURE_S) == []


def test_a_link_that_did_not_work_is_tried_again_after_a_while() -> None:
    cluster = ready_cluster(make_manifest(), {1: [0, 1, 2], 2: [0]})
    schedule = LinkSchedule(cluster)
    due(schedule, 0.0)
    cluster.handle(LinkKnown(A, B, None))
    assert due(schedule, REMEASURE_S) == []
    assert due(schedule, REMEASURE_S + 1) == [(A, B)]
    assert due(schedule, REMEASURE_S + 2) == []


def test_a_node_that_comes_back_is_measured_anew() -> None:
    cluster = ready_cluster(make_manifest(), {1: [0, 1, 2], 2: [0]})
    schedule = LinkSchedule(cluster)
    due(schedule, 0.0)
    gone = cluster.nodes[B]
    cluster.handle(NodeLeft(1.0, B))
    assert due(schedule, 1.0) == []
    cluster.nodes[B] = gone
    assert due(schedule, 2.0) == [(HERE, B), (A, B)]
