"""Placement covers every layer, respects memory, is as quick as the quickest assignment, and says why when it cannot be done."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardnet.coordinator.placement.assign import NodeOffer, Placement, Policy, memory_needed, place
from shardnet.coordinator.placement.chain import find_chain
from shardnet.coordinator.placement.law import LinkTime
from shardnet.errors import NoRoomError, PlacementError
from shardnet.manifest import Manifest
from shardnet.messages import ShardOptions
from tests.support.coordinator_world import make_manifest, node_id

OPTIONS = ShardOptions(n_ctx=256, n_seq=1, n_batch=64)
ROOMY = Policy(headroom_share=0.0)


def offer(
    number: int, shards: range | tuple[int, ...] = range(100), *, free: int = 10**12, **more: object
) -> NodeOffer:
    return NodeOffer(node_id(number), f"node-{number}", free, on_disk=frozenset(shards), **more)  # type: ignore[arg-type]


def layout(placement: Placement) -> list[tuple[int, int, int]]:
    return [(int(stage.node_id, 16), stage.first_shard, stage.end_shard) for stage in placement.stages]


def room_for(manifest: Manifest, *shard_ids: int) -> int:
    return sum(memory_needed(manifest, shard, OPTIONS) for shard in shard_ids)


# -- what is chosen --------------------------------------------------------------------------------------------------------------


def test_a_model_that_fits_on_one_node_is_placed_whole_and_the_notes_say_so() -> None:
    found = place(make_manifest(), [offer(2), offer(1)], OPTIONS, ROOMY)
    assert layout(found) == [(1, 0, 3)]
    assert "whole" in found.notes[0]


def test_the_quicker_node_gets_the_model() -> None:
    assert layout(place(make_manifest(), [offer(1, bytes_per_s=1e9), offer(2, bytes_per_s=4e9)], OPTIONS, ROOMY)) == [
        (2, 0, 3)
    ]


def test_a_model_too_large_for_one_node_is_split_into_contiguous_runs() -> None:
    manifest = make_manifest()
    space = room_for(manifest, 1, 2)
    found = place(manifest, [offer(1, free=space), offer(2, free=space)], OPTIONS, ROOMY)
    assert [stage.first_shard for stage in found.stages] == [0, found.stages[0].end_shard]
    assert found.stages[-1].end_shard == 3
    assert not found.notes


def test_headroom_is_left_alone() -> None:
    manifest = make_manifest()
    exact = room_for(manifest, 0, 1, 2)
    assert len(place(manifest, [offer(1, free=exact)], OPTIONS, ROOMY).stages) == 1
    with pytest.raises(NoRoomError):
        place(manifest, [offer(1, free=exact)], OPTIONS, Policy(headroom_share=0.1))


def test_loaded_shards_need_no_memory_and_are_kept_where_they_are() -> None:
    manifest = make_manifest()
    nodes = [
        offer(1, free=0, loaded=frozenset({0})),
        offer(2, free=0, loaded=frozenset({1, 2})),
        offer(3, free=room_for(manifest, 0)),
    ]
    assert layout(place(manifest, nodes, OPTIONS, ROOMY)) == [(1, 0, 1), (2, 1, 3)]


def test_a_node_with_the_file_is_preferred_over_one_that_would_have_to_fetch_it() -> None:
    nodes = [offer(1, (), can_fetch=True), offer(2)]
    assert layout(place(make_manifest(), nodes, OPTIONS, ROOMY)) == [(2, 0, 3)]


def test_a_node_may_fetch_what_another_holds() -> None:
    manifest = make_manifest()
    nodes = [offer(1, free=room_for(manifest, 0), loaded=frozenset()), offer(2, (), can_fetch=True)]
    assert layout(place(manifest, nodes, OPTIONS, ROOMY)) == [(2, 0, 3)]


def test_a_node_bound_to_shards_gets_no_others() -> None:
    manifest = make_manifest()
    nodes = [offer(number, allowed=frozenset({number})) for number in range(3)]
    assert layout(place(manifest, nodes, OPTIONS, ROOMY)) == [(0, 0, 1), (1, 1, 2), (2, 2, 3)]


def test_a_node_bound_to_the_first_and_last_shard_comes_twice() -> None:
    manifest = make_manifest()
    nodes = [offer(1, allowed=frozenset({0, 2})), offer(2, allowed=frozenset({1}))]
    assert layout(place(manifest, nodes, OPTIONS, ROOMY)) == [(1, 0, 1), (2, 1, 2), (1, 2, 3)]


def test_a_slow_link_is_avoided() -> None:
    manifest = make_manifest()
    space = room_for(manifest, 1, 2)
    nodes = [offer(number, free=space) for number in (1, 2, 3)]
    slow, quick = LinkTime(0.1, 1e6), LinkTime(1e-4, 1e9)
    pairs = {(node_id(a), node_id(b)): quick if {a, b} == {2, 3} else slow for a in (1, 2, 3) for b in (1, 2, 3)}
    found = place(manifest, nodes, OPTIONS, ROOMY, pairs)
    assert {stage.node_id for stage in found.stages} == {node_id(2), node_id(3)}


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_a_forced_number_of_stages_is_kept_and_balanced(stages: int) -> None:
    manifest = make_manifest(range(13))
    found = place(manifest, [offer(1), offer(2), offer(3)], OPTIONS, Policy(stages=stages, headroom_share=0.0))
    assert [len(stage.shards) for stage in found.stages] == [12 // stages] * stages
    if stages > 1:
        assert "were asked for" in found.notes[0]


def test_equal_nodes_are_decided_by_node_id_whatever_their_order() -> None:
    manifest = make_manifest()
    nodes = [offer(number) for number in (3, 1, 2)]
    assert {layout(place(manifest, list(order), OPTIONS, ROOMY))[0][0] for order in itertools.permutations(nodes)} == {
        1
    }


# -- when it cannot be done ------------------------------------------------------------------------------------------------------


def test_layers_that_nobody_holds_are_named() -> None:
    with pytest.raises(PlacementError, match=r"layers \[2, 4\) \(shard 1\) are on no connected node"):
        place(make_manifest(), [offer(1, (0, 2))], OPTIONS, ROOMY)


def test_neighbouring_missing_shards_are_named_together() -> None:
    with pytest.raises(PlacementError, match=r"layers \[0, 4\) \(shards 0 to 1\) are on no connected node"):
        place(make_manifest(), [offer(1, (2,))], OPTIONS, ROOMY)


def test_no_node_at_all_names_every_layer() -> None:
    with pytest.raises(PlacementError, match=r"layers \[0, 6\)"):
        place(make_manifest(), [], OPTIONS, ROOMY)


def test_too_little_memory_names_the_missing_bytes() -> None:
    manifest = make_manifest()
    with pytest.raises(NoRoomError, match="are missing") as caught:
        place(manifest, [offer(1, free=1_000_000), offer(2, free=500_000)], OPTIONS, ROOMY)
    assert caught.value.facts["missing_bytes"] == room_for(manifest, 0, 1, 2) - 1_500_000


def test_too_little_memory_names_the_limits_that_leave_so_little_but_not_a_hundred_of_them() -> None:
    limit = "300.0 MB by memory.max of cgroup /x"
    nodes = [offer(number, free=1_000, limit=limit if number else "") for number in range(100)]
    with pytest.raises(NoRoomError) as caught:
        place(make_manifest(), nodes, OPTIONS, ROOMY)
    assert caught.value.message.endswith(
        f"; node-1 may have {limit}; node-2 may have {limit}; node-3 may have {limit}; 96 more are limited"
    )


def test_memory_in_too_many_pieces_is_said_to_be_so() -> None:
    manifest = make_manifest(shard_bytes=[1_000_000, 5_000_000, 1_000_000])
    small = room_for(manifest, 0) + 1
    with pytest.raises(
        NoRoomError, match=r"largest shard alone needs .*: split into more shards, or with --balance memory"
    ):
        place(manifest, [offer(number, free=small) for number in range(9)], OPTIONS, ROOMY)


def test_more_stages_than_nodes_is_refused_with_both_numbers() -> None:
    with pytest.raises(PlacementError, match=r"exactly 3 stages over 2 nodes"):
        place(make_manifest(), [offer(1), offer(2)], OPTIONS, Policy(stages=3))


# -- properties ------------------------------------------------------------------------------------------------------------------

Table = list[list[float]]


def brute_force(n_shards: int, costs: Table, limits: list[int], hops: Table, stages: int) -> float:
    """The least cost of a ring over all ordered choices of nodes and all cuts."""
    best = math.inf
    nodes = range(len(costs))
    for count in range(1, len(costs) + 1):
        if stages and count != stages:
            continue
        for order in itertools.permutations(nodes, count):
            for cuts in itertools.combinations(range(1, n_shards), count - 1):
                ends = [0, *cuts, n_shards]
                runs = [(order[i], ends[i], ends[i + 1]) for i in range(count)]
                if any(end - first > limits[node] for node, first, end in runs):
                    continue
                cost = sum(sum(costs[node][first:end]) for node, first, end in runs)
                if count > 1:
                    cost += sum(hops[a][b] for a, b in itertools.pairwise((*order, order[0])))
                best = min(best, cost)
    return best


@settings(max_examples=150)
@given(st.data())
def test_the_ring_is_as_cheap_as_the_best_of_all(data: st.DataObject) -> None:
    n_nodes, n_shards = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    value = st.integers(1, 50).map(float)
    costs = data.draw(
        st.lists(st.lists(value, min_size=n_shards, max_size=n_shards), min_size=n_nodes, max_size=n_nodes)
    )
    hops = data.draw(st.lists(st.lists(value, min_size=n_nodes, max_size=n_nodes), min_size=n_nodes, max_size=n_nodes))
    limits = data.draw(st.lists(st.integers(0, n_shards), min_size=n_nodes, max_size=n_nodes))
    stages = data.draw(st.integers(0, n_nodes))
    found = find_chain(
        n_shards,
        n_nodes,
        lambda node, first, end: sum(costs[node][first:end]) if end - first <= limits[node] else None,
        lambda a, b: hops[a][b],
        stages=stages,
    )
    best = brute_force(n_shards, costs, limits, hops, stages)
    assert (found is None) == (best == math.inf)
    if found is not None:
        assert found.cost == pytest.approx(best)
        assert [first for _, first, _ in found.runs] == [0, *(end for _, _, end in found.runs[:-1])]
        assert found.runs[-1][2] == n_shards
        assert len({node for node, _, _ in found.runs}) == len(found.runs)


@pytest.mark.parametrize("n_nodes", [9, 11, 16])
def test_many_forced_stages_are_found_where_each_node_can_hold_one_shard(n_nodes: int) -> None:
    """More nodes than can be searched exactly, of which only one order will do; the quickest is not the first."""
    dice = random.Random(n_nodes)
    for _ in range(10):
        places = dice.sample(range(n_nodes), n_nodes)
        found = find_chain(
            n_nodes,
            n_nodes,
            lambda node, first, end, places=places: (
                1.0 + node if (first, end) == (places[node], places[node] + 1) else None
            ),  # type: ignore[misc]
            lambda _a, _b: 1.0,
            stages=n_nodes,
        )
        assert found is not None
        assert [places[node] for node, _, _ in found.runs] == list(range(n_nodes))


@settings(max_examples=60)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.integers(2, 8))
def test_every_layer_is_covered_and_memory_respected(rooms: list[int], n_shards: int) -> None:
    manifest = make_manifest(range(n_shards + 1))
    unit = max(memory_needed(manifest, shard, OPTIONS) for shard in range(n_shards))
    nodes = [offer(number, free=unit * room) for number, room in enumerate(rooms)]
    try:
        found = place(manifest, nodes, OPTIONS, ROOMY)
    except NoRoomError:
        assert sum(rooms) < n_shards  # every shard takes at most one unit
        return
    assert [shard for stage in found.stages for shard in stage.shards] == list(range(n_shards))
    for stage in found.stages:
        free = nodes[int(stage.node_id, 16)].free_bytes
        assert sum(memory_needed(manifest, shard, OPTIONS) for shard in stage.shards) <= free


def test_a_large_swarm_is_placed_within_a_moment() -> None:
    manifest = make_manifest(range(61))
    unit = max(memory_needed(manifest, shard, OPTIONS) for shard in range(60))
    nodes = [offer(number, free=unit * (3 + number % 4), bytes_per_s=1e9 * (1 + number % 5)) for number in range(24)]
    found = place(manifest, nodes, OPTIONS, ROOMY)
    assert [shard for stage in found.stages for shard in stage.shards] == list(range(60))
