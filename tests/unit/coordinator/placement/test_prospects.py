"""The planner's table: the placement's own numbers for every layout, and a sentence where a split does not pay."""

from __future__ import annotations

import pytest

from shardnet.cli.plan import offer_of, offers_in
from shardnet.coordinator.placement.assign import NodeOffer, Policy, memory_needed, place
from shardnet.coordinator.placement.law import LinkTime, Pace, step_bytes
from shardnet.coordinator.placement.prospects import prospects
from shardnet.errors import NoRoomError, UsageError
from shardnet.messages import ShardOptions
from tests.support.coordinator_world import make_manifest, node_id

OPTIONS = ShardOptions(n_ctx=256, n_seq=1, n_batch=64)
MANIFEST = make_manifest(shard_bytes=[10_000_000] * 3)


def offer(name: str, free: int = 10**9, speed: float | None = 1e9) -> NodeOffer:
    return NodeOffer(name, name, free, speed, on_disk=frozenset(range(3)), row_costs=((4, 1.0), (8, 2.0)))


def test_every_layout_has_the_placements_own_time() -> None:
    nodes = [offer("a"), offer("b", speed=2e9)]
    found = prospects(MANIFEST, nodes, OPTIONS)
    by_kind = {(one.kind, one.pipelines[0][0].node): one for one in found.layouts}
    assert by_kind["one node", "a"].seconds_per_token == place(MANIFEST, [nodes[0]], OPTIONS).seconds_per_token
    split = next(one for one in found.layouts if one.kind == "split")
    assert split.seconds_per_token == place(MANIFEST, nodes, OPTIONS, Policy(stages=2)).seconds_per_token
    assert [stage.layers for stage in split.pipelines[0]]
    needs = [memory_needed(MANIFEST, shard, OPTIONS) for shard in range(3)]
    assert sum(stage.memory_bytes for stage in split.pipelines[0]) == sum(needs)
    assert next(one for one in found.layouts if one.kind == "replicas").tokens_per_s > 90


def test_a_split_that_is_slower_than_one_node_is_said_to_be() -> None:
    found = prospects(MANIFEST, [offer("a"), offer("b")], OPTIONS)
    assert found.layouts[0].kind in ("one node", "replicas")
    assert any("splitting is slower than tiny whole on a" in note for note in found.notes)


def test_what_fits_on_no_node_alone_is_said_to_need_a_split() -> None:
    small = int(2.4 * memory_needed(MANIFEST, 1, OPTIONS))
    found = prospects(MANIFEST, [offer("a", small), offer("b", small)], OPTIONS)
    assert [one.kind for one in found.layouts] == ["split"]
    assert found.notes == ("no single node can hold tiny: it has to be split",)


def test_no_layout_at_all_is_an_error_with_the_missing_bytes() -> None:
    with pytest.raises(NoRoomError):
        prospects(MANIFEST, [offer("a", 1000), offer("b", 1000)], OPTIONS)


def test_slow_links_and_long_prompts_cost_what_they_cost() -> None:
    nodes = [offer("a"), offer("b")]
    near = prospects(MANIFEST, nodes, OPTIONS)
    far = prospects(MANIFEST, nodes, OPTIONS, Policy(default_link=LinkTime(0.01, 1e6)))
    long = prospects(MANIFEST, nodes, OPTIONS, prompt_tokens=1000)
    times = [next(one for one in each.layouts if one.kind == "split") for each in (near, far, long)]
    assert times[1].seconds_per_token > times[0].seconds_per_token + 0.019, "a ring of two hops"
    assert times[2].first_token_s > 4 * times[0].first_token_s


def test_machines_are_told_on_the_command_line() -> None:
    found = offer_of("big:2GiB:2.5", MANIFEST)
    assert (found.name, found.free_bytes) == ("big", 2 << 30)
    assert prospects(MANIFEST, [found], OPTIONS).layouts[0].pipelines[0][0].compute_s == pytest.approx(6 * 2.5e-3)
    prompts = offer_of("big:2GiB:2.5:600", MANIFEST)
    assert prompts.pace.step_s(step_bytes(MANIFEST, 0, 3), 256) == pytest.approx(256 / 600, rel=0.01)
    measured = offer_of("here:2GiB:measured", MANIFEST, Pace(3e9, ((4, 2.0),), 1e-4))
    assert (measured.pace, measured.free_bytes) == (Pace(3e9, ((4, 2.0),), 1e-4), 2 << 30)
    for wrong in (
        "big",
        "big:x:1",
        "big:1GiB:0",
        ":1GiB:1",
        "big:1GiB:nan",
        "big:1GiB:1:0",
        "big:1GiB:1:2:3",
        "a:1GiB:m",
    ):
        with pytest.raises(UsageError):
            offer_of(wrong, MANIFEST)


def test_a_coordinators_nodes_count_this_models_memory_as_free() -> None:
    held = [{"model_id": MANIFEST.model_id, "shard_id": 0, "memory_bytes": 500, "loaded": True}]
    run = [held[0] | {"step_us": 5000.0, "rows_us": [[8, 15_000.0]]}]
    status = {
        "nodes": [
            {"node_id": node_id(1), "name": "a", "memory_free_bytes": 1000, "bytes_per_s": 2e9, "held": held},
            {"node_id": node_id(2), "name": "b", "memory_free_bytes": 1000, "bytes_per_s": None, "held": []},
            {
                "node_id": node_id(3),
                "name": "c",
                "memory_free_bytes": 1000,
                "bytes_per_s": 7e9,
                "held": run,
                "handover_us": 80.0,
            },
        ],
        "links": [{"source": node_id(1), "target": node_id(2), "one_way_s": 0.001, "bytes_per_s": 1e8}],
    }
    offers, links = offers_in(status, MANIFEST)
    assert [(one.free_bytes, one.bytes_per_s) for one in offers] == [(1500, 2e9), (1000, None), (1500, 2e9)]
    assert offers[2].row_costs == ((8, 3.0),), "this model's own steps count, not the node's mean over all models"
    assert offers[2].handover_s == pytest.approx(80e-6)
    assert links[node_id(1), node_id(2)] == LinkTime(0.001, 1e8)
