"""Where a node is reached changes while it is connected; who cannot dial it stands in `status`, with the cost and what to do."""

from __future__ import annotations

from shardnet.coordinator.nodes.measuring import LinkSchedule
from shardnet.coordinator.placement.assign import Stage
from shardnet.coordinator.placement.cluster import Cluster
from shardnet.coordinator.placement.events import HeartbeatCame, LinkKnown, NodeJoined
from shardnet.coordinator.placement.law import LinkTime
from shardnet.coordinator.placement.planning import stage_refs
from shardnet.coordinator.placement.reach import reach_notes
from shardnet.messages import Address, Reach
from tests.support.coordinator_world import heartbeat, held, hello, make_manifest, node_id, ready_cluster

A, B = node_id(1), node_id(2)
THERE = Address(host="198.51.100.9", port=9002)


def cluster() -> Cluster:
    return ready_cluster(make_manifest(), {1: [0, 1], 2: [2]})


def say(here: Cluster, number: int, reach: Reach) -> None:
    shards = here.nodes[node_id(number)].held.values()
    here.handle(HeartbeatCame(1.0, node_id(number), heartbeat(shards).model_copy(update={"reach": reach})))


def test_a_node_that_moved_is_dialled_where_it_is_now() -> None:
    here = cluster()
    version = here.version
    say(here, 2, Reach(listen=THERE))
    assert here.nodes[B].address == THERE
    assert here.version > version
    refs = stage_refs(here, (Stage(A, 0, 2), Stage(B, 2, 3)))
    assert refs[1].address == THERE


def test_what_was_measured_of_a_node_that_moved_counts_no_more_and_is_measured_anew() -> None:
    here = cluster()
    schedule = LinkSchedule(here)
    assert [pair for pair in schedule.pairs() if schedule.begin(pair, 0.0)] == [("", A), ("", B), (A, B)]
    here.handle(LinkKnown(A, B, None))
    say(here, 2, Reach(listen=THERE))
    assert here.unreachable == set()
    assert [pair for pair in schedule.pairs() if schedule.begin(pair, 1.0)] == [("", B), (A, B)]


def test_a_node_that_joined_again_elsewhere_counts_as_moved_too() -> None:
    here = cluster()
    here.handle(LinkKnown(A, B, None))
    here.handle(NodeJoined(2.0, hello(2).model_copy(update={"listen": THERE})))
    assert here.unreachable == set()


def test_all_is_well_where_nothing_is_known_to_be_wrong() -> None:
    here = cluster()
    assert [reach_notes(here, node) for node in here.nodes.values()] == [[], []]


def test_a_node_that_some_cannot_dial_is_named_with_the_cost_of_the_detour() -> None:
    here = cluster()
    for node, one_way_s in ((A, 0.001), (B, 0.0005)):
        here.handle(LinkKnown("", node, LinkTime(one_way_s=one_way_s)))
    here.handle(LinkKnown(A, B, None))
    who, cost = reach_notes(here, here.nodes[B])
    assert (
        who
        == f"node-1 cannot dial it at {here.nodes[B].address}: open that port, or set node.advertise to where they reach it"
    )
    assert cost == (
        "what they send it goes through the coordinator: about 1.5 ms a step, "
        "and 256 B for each token into the coordinator's machine and out again"
    )
    assert reach_notes(here, here.nodes[A]) == []


def test_what_a_node_says_of_itself_reaches_status() -> None:
    here = cluster()
    say(here, 2, Reach(trouble="it listens at 127.0.0.1:7710, which only its own machine can dial"))
    assert reach_notes(here, here.nodes[B]) == [
        "others cannot dial it: it listens at 127.0.0.1:7710, which only its own machine can dial"
    ]
    said = hello(2, [held(make_manifest(), 2)]).model_copy(update={"listen": None, "trouble": "it is lost"})
    here.handle(NodeJoined(2.0, said))
    assert reach_notes(here, here.nodes[B]) == ["others cannot dial it: it is lost"]


def test_the_last_stages_tokens_go_by_way_of_the_coordinator_where_it_cannot_dial_the_first() -> None:
    here = cluster()
    here.handle(LinkKnown(B, A, None))
    refs = stage_refs(here, (Stage(A, 0, 2), Stage(B, 2, 3)))
    assert [ref.address is None for ref in refs] == [True, False]
