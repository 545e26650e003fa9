"""The law of time: stages by bytes and rows, hops by latency and bytes, in a ring."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardnet.coordinator.placement.assign import NodeOffer, Policy, place
from shardnet.coordinator.placement.cluster import Cluster
from shardnet.coordinator.placement.events import HeartbeatCame, ManifestKnown, NodeJoined
from shardnet.coordinator.placement.law import ATTENTION_COST, LinkTime, Pace, attention_growth, law_of, step_bytes
from shardnet.coordinator.placement.planning import measured_pace, pace_of
from shardnet.manifest import Manifest
from shardnet.messages import Heartbeat, HeldShard, ShardOptions
from tests.support.coordinator_world import held, hello, make_manifest, node_id

MANIFEST = make_manifest(shard_bytes=[1_000_000] * 3)
LINK = LinkTime(one_way_s=0.01, bytes_per_s=1e6)
PACE = Pace(bytes_per_s=1e8, row_costs=((4, 2.0), (8, 3.0)), handover_s=0.001)


def with_step_bytes(manifest: Manifest, sizes: list[int]) -> Manifest:
    files = tuple(
        file.model_copy(update={"step_bytes": size}) for file, size in zip(manifest.files, sizes, strict=True)
    )
    return manifest.model_copy(update={"files": files})


# -- one stage -----------------------------------------------------------------------------------------------------------------------


def test_a_step_reads_what_the_manifest_says_else_all_bytes() -> None:
    assert step_bytes(MANIFEST, 0, 3) == 3_000_000
    assert step_bytes(with_step_bytes(MANIFEST, [100, 1000, 500]), 0, 2) == 1100


@pytest.mark.parametrize(("rows", "longer"), [(1, 1.0), (2, 4 / 3), (4, 2.0), (6, 2.5), (8, 3.0), (80, 30.0)])
def test_batches_take_what_was_measured_and_straight_lines_between(rows: int, longer: float) -> None:
    assert PACE.times_longer(rows) == pytest.approx(longer)
    assert PACE.step_s(1_000_000, rows) == pytest.approx(0.01 * longer + 0.001)


def test_nothing_measured_is_guessed() -> None:
    assert Pace().times_longer(2) == 1.0
    assert Pace().times_longer(40) == 10.0
    assert Pace().step_s(8_000_000) == pytest.approx(1.25e-3)


# -- pipelines -----------------------------------------------------------------------------------------------------------------------


def test_a_ring_has_as_many_hops_as_stages_and_one_stage_none() -> None:
    one = law_of(MANIFEST, [("a", PACE, 0, 3)], {}, LINK, 0.002)
    assert one.token_s() == pytest.approx(0.03), "the engine goes on by itself: no hop, nothing handed over"
    two = law_of(MANIFEST, [("a", PACE, 0, 1), ("b", PACE, 1, 3)], {}, LINK, 0.002)
    hidden_s, token_s = (100 + 4 * 64) / 1e6, 100 / 1e6
    assert two.token_s() == pytest.approx(0.03 + 2 * 0.001 + 2 * (0.01 + 0.002) + hidden_s + token_s)


def test_many_streams_fill_the_stages_until_the_slowest_is_full() -> None:
    near = law_of(MANIFEST, [("a", PACE, 0, 1), ("b", PACE, 1, 3)], {}, LinkTime(0.0, 1e12), 0.0)
    assert near.tokens_per_s(1) == pytest.approx(1 / near.token_s())
    assert near.tokens_per_s(8) == pytest.approx(8 / (2 * max(near.stages_s(4))), rel=1e-6), "two blocks of four"
    far = law_of(MANIFEST, [("a", PACE, 0, 1), ("b", PACE, 1, 3)], {}, LinkTime(1.0, 1e12), 0.0)
    assert far.tokens_per_s(8) == pytest.approx(8 / far.token_s(4)), "the links set the pace"


SLOW_TWOS = Pace(bytes_per_s=1e8, row_costs=((2, 2.6), (4, 4.4), (8, 7.4)), handover_s=0.0)
"""A small model's: two or four rows take longer together than one by one."""
NO_LINK = LinkTime(0.0, 1e15)


def test_rows_go_one_by_one_where_that_takes_less_time() -> None:
    law = law_of(MANIFEST, [("a", SLOW_TWOS, 0, 1), ("b", SLOW_TWOS, 1, 3)], {}, NO_LINK, 0.0)
    one_s = max(law.stages_s())
    assert law.tokens_per_s(4) == pytest.approx(1 / one_s)
    assert law.tokens_per_s(8) == pytest.approx(1 / one_s)
    assert law.tokens_per_s(16) == pytest.approx(8 / (7.4 * one_s)), "blocks of eight are worth it"


def test_each_stage_has_its_own_way() -> None:
    """The first stage's blocks go whole, the second one takes them apart: a block comes round when its last row does."""
    law = law_of(MANIFEST, [("a", PACE, 0, 1), ("b", SLOW_TWOS, 1, 3)], {}, LinkTime(0.1, 1e15), 0.0)
    whole_s, singly_s = PACE.step_s(1_000_000, 4), 4 * SLOW_TWOS.step_s(2_000_000)
    assert law.tokens_per_s(8) == pytest.approx(8 / (whole_s + singly_s + 0.2))


def test_far_links_are_waited_for_by_single_rows_too() -> None:
    law = law_of(MANIFEST, [("a", SLOW_TWOS, 0, 1), ("b", SLOW_TWOS, 1, 3)], {}, LinkTime(1.0, 1e15), 0.0)
    assert law.tokens_per_s(4) == pytest.approx(4 / law.token_s())


@given(
    st.integers(1, 40),
    st.integers(1, 5),
    st.lists(st.tuples(st.integers(2, 16), st.floats(0.5, 20)), max_size=4, unique_by=lambda one: one[0]),
)
def test_the_law_never_promises_more_than_its_slowest_stage_can_give(
    streams: int, stages: int, costs: list[tuple[int, float]]
) -> None:
    pace = Pace(bytes_per_s=1e8, row_costs=tuple(sorted(costs)), handover_s=0.0)
    manifest = make_manifest(range(stages + 1))
    law = law_of(manifest, [(str(n), pace, n, n + 1) for n in range(stages)], {}, LinkTime(1e-3, 1e9), 1e-4)
    quickest_s = min(pace.step_s(1_000_000, rows) / rows for rows in range(1, streams + 1))
    assert 0 < law.tokens_per_s(streams) <= (1 + 1e-9) / quickest_s
    assert law.tokens_per_s(1) == pytest.approx(1 / law.token_s())


def test_prompt_chunks_overlap() -> None:
    flat = Pace(bytes_per_s=1e8, row_costs=((100, 10.0),), handover_s=0.0)
    law = law_of(MANIFEST, [("a", flat, 0, 1), ("b", flat, 1, 2), ("c", flat, 2, 3)], {}, LinkTime(0.0, 1e15), 0.0)
    assert law.first_token_s(100, 100) == pytest.approx(0.3)
    assert law.first_token_s(400, 100) == pytest.approx(0.6), "three stages for the first chunk, then one each"
    slow = law_of(MANIFEST, [("a", flat, 0, 1), ("b", flat, 1, 3)], {}, LinkTime(0.0, 25_600.0), 0.0)
    per_chunk_s = 100 * 4 * 64 / 25_600.0
    assert slow.first_token_s(400, 100) == pytest.approx(0.1 + 4 * per_chunk_s + 0.2, rel=0.02), (
        "the link is the bottleneck"
    )


def test_a_chunk_takes_longer_the_more_tokens_are_before_it() -> None:
    content = MANIFEST.content.model_copy(update={"n_params": 1_000_000, "n_vocab": 1000, "n_embd": 64})
    manifest = MANIFEST.model_copy(update={"content": content})
    growth = attention_growth(manifest)
    assert growth == pytest.approx(ATTENTION_COST * 4 * 64 * 6 / (2 * (1_000_000 - 64_000)))
    flat = Pace(bytes_per_s=1e8, row_costs=((100, 10.0),), handover_s=0.0)
    law = law_of(manifest, [("a", flat, 0, 3)], {}, NO_LINK, 0.0)
    chunk_s = law.first_token_s(100, 100)
    assert law.first_token_s(400, 100) == pytest.approx(4 * chunk_s + chunk_s * growth * (100 + 200 + 300), rel=1e-3)
    assert law.stages_s(100) == law.stages_s(100, 0) < law.stages_s(100, 1)


def test_a_model_that_uses_half_of_its_weights_has_twice_the_attention_beside_them() -> None:
    content = MANIFEST.content.model_copy(update={"n_params": 10_000_000, "n_vocab": 10})
    manifest = MANIFEST.model_copy(update={"content": content})
    half = with_step_bytes(manifest, [500_000] * 3)
    assert attention_growth(half) == pytest.approx(2 * attention_growth(manifest), rel=0.01)
    assert attention_growth(MANIFEST) == 0.0, "a manifest whose number of weights cannot be"


# -- what nodes tell -----------------------------------------------------------------------------------------------------------------


def told(step_us: float, rows_us: tuple[tuple[int, float], ...] = (), *, loaded: bool = True) -> HeldShard:
    return held(MANIFEST, 0, loaded=loaded, step_us=step_us).model_copy(update={"rows_us": rows_us})


def test_a_nodes_pace_is_what_its_shards_took() -> None:
    pace = pace_of(
        [(1000, told(10.0, ((8, 30.0),))), (3000, told(30.0, ((9, 60.0),))), (5, told(9.0, loaded=False))], 70
    )
    assert pace.bytes_per_s == pytest.approx(1e8)
    assert pace.row_costs == ((8, 3.0), (9, 2.0))
    assert pace.handover_s == pytest.approx(70e-6)
    assert pace_of([], None) == Pace()


def test_the_pace_of_a_model_is_its_own_where_it_was_run() -> None:
    other = make_manifest(name="other", shard_bytes=[5_000_000] * 3)
    cluster = Cluster()
    for manifest in (MANIFEST, other):
        cluster.handle(ManifestKnown(manifest))
    cluster.handle(NodeJoined(0.0, hello(1, [held(MANIFEST, 0), held(other, 0)])))
    beat = Heartbeat(
        memory_free_bytes=0,
        load=0,
        handover_us=50.0,
        held=(held(MANIFEST, 0, step_us=1000.0), held(other, 0, step_us=50_000.0)),
    )
    cluster.handle(HeartbeatCame(1.0, node_id(1), beat))
    node = cluster.nodes[node_id(1)]
    assert measured_pace(cluster, node, MANIFEST.model_id).bytes_per_s == pytest.approx(1e9)
    assert measured_pace(cluster, node, other.model_id).bytes_per_s == pytest.approx(1e8)
    assert measured_pace(cluster, node, "").handover_s == pytest.approx(50e-6)


def test_placement_tells_the_laws_own_time_for_what_it_chose() -> None:
    offers = [NodeOffer(node_id(n), str(n), 10**12, 1e8, on_disk=frozenset(range(3)), handover_s=0.0) for n in (1, 2)]
    policy = Policy(stages=2, hop_fixed_s=0.002, default_link=LINK)
    found = place(MANIFEST, offers, ShardOptions(n_ctx=256, n_seq=1, n_batch=64), policy)
    runs = [(stage.node_id, offers[0].pace, stage.first_shard, stage.end_shard) for stage in found.stages]
    assert found.seconds_per_token == pytest.approx(law_of(MANIFEST, runs, {}, LINK, 0.002).token_s())
