"""Prompt chunks: sizes by what stages took, small ones beside decoding requests, and borders that change no number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardnet.coordinator.placement.chunks import BLOCK, LEAST, SHORT, Chunks, choose, n_as_cold, next_chunk, size_now
from shardnet.coordinator.placement.law import Law, LinkTime, Pace, RowCosts, law_of
from tests.support.coordinator_world import make_manifest

CPU: RowCosts = ((4, 3.0), (8, 5.0), (16, 4.0 * 2), (128, 60.0), (512, 300.0))
GPU: RowCosts = ((16, 1.1), (128, 1.3), (512, 3.0))


def law(costs: RowCosts, stages: int = 2, one_way_s: float = 1e-4, bytes_per_s: float = 1e9) -> Law:
    manifest = make_manifest(tuple(range(0, 2 * stages + 1, 2)), shard_bytes=[50_000_000] * stages)
    pace = Pace(bytes_per_s=10e9, row_costs=costs, handover_s=2e-4)
    runs = [(f"n{index}", pace, index, index + 1) for index in range(stages)]
    links = {(f"n{a}", f"n{b}"): LinkTime(one_way_s, bytes_per_s) for a in range(stages) for b in range(stages)}
    return law_of(manifest, runs, links, LinkTime(), 6e-5)


def test_a_pipeline_of_cpus_takes_small_chunks_and_one_node_no_huge_ones() -> None:
    assert 16 <= choose(law(CPU), 2000, 512).alone <= 64
    assert choose(law(CPU, stages=1), 2000, 512).alone <= 128


def test_where_large_batches_are_seen_to_be_quicker_they_are_taken() -> None:
    assert choose(law(GPU, stages=1), 2000, 512).alone == 512
    assert choose(law(GPU, stages=1), 2000, 100).alone == 100


def test_it_is_the_quickest_by_the_law() -> None:
    for one in (law(CPU), law(CPU, stages=4), law(GPU), law(CPU, one_way_s=0.05)):
        found = choose(one, 2000, 512).alone
        best_s = min(one.first_token_s(2000, size) for size in (16, 32, 64, 128, 256, 512))
        assert one.first_token_s(2000, found) <= best_s / 0.97


def test_beside_decoding_requests_a_row_keeps_half_its_pace_where_that_can_be() -> None:
    slow = law(CPU)
    assert choose(slow, 2000, 512).beside == 16
    quick = law(GPU, one_way_s=0.002)
    beside = choose(quick, 2000, 512).beside
    assert 64 <= beside < 512
    assert sum(quick.stages_s(beside)) <= quick.token_s()


def test_what_was_not_measured_gives_sizes_too() -> None:
    found = choose(law(()), 2000, 512)
    assert 16 <= found.beside <= found.alone <= 128
    assert choose(law(()), 3, 2) == (2, 2, 2)
    assert choose(law(()), 3, 1) == (1, 1, 1)


@given(st.integers(1, 300), st.integers(0, 299), st.integers(0, 300), st.integers(1, 200))
def test_a_prompt_is_cut_in_whole_blocks_and_without_very_few_rows_where_that_can_be(
    n_prompt: int, start: int, size: int, most: int
) -> None:
    position, ends = min(start, n_prompt - 1), []
    first = position
    while position < n_prompt:
        end = next_chunk(position, n_prompt, size, most)
        assert position < end <= min(n_prompt, position + most)
        ends.append((position, end))
        position = end
    if most >= 2 * LEAST and n_prompt - first >= LEAST:
        assert all(end - begin >= LEAST for begin, end in ends)
        assert not any((end - begin) % BLOCK for begin, end in ends[:-1])
    elif most > 2 and n_prompt - first >= 2:
        assert all(end - begin >= 2 for begin, end in ends)


@pytest.mark.parametrize(("n_prompt", "ends"), [(64, [32, 64]), (65, [32, 65]), (71, [32, 71]), (72, [32, 64, 72])])
def test_chunks_have_the_wanted_size(n_prompt: int, ends: list[int]) -> None:
    position, found = 0, []
    while position < n_prompt:
        position = next_chunk(position, n_prompt, 32, 512)
        found.append(position)
    assert found == ends


@pytest.mark.parametrize(
    ("n_prompt", "begin", "most", "expected"),
    [(70, 0, 512, 68), (70, 32, 512, 68), (70, 30, 512, 30), (7, 0, 512, 0), (70, 0, 9, 0)],
)
def test_rows_of_whole_blocks_have_the_numbers_of_every_cold_start(
    n_prompt: int, begin: int, most: int, expected: int
) -> None:
    assert n_as_cold(n_prompt, begin, most) == expected


@pytest.mark.parametrize(
    ("left", "are_others", "do_others_decode", "size"),
    [
        (SHORT, False, False, 128),
        (1000, False, False, 128),
        (SHORT, True, False, 64),
        (SHORT + 1, True, False, 16),
        (SHORT, True, True, 16),
    ],
)
def test_a_short_prompt_goes_at_once_beside_other_prompts_and_in_small_chunks_beside_answers(
    left: int, are_others: bool, do_others_decode: bool, size: int
) -> None:
    chunks = Chunks(alone=128, beside=16, together=64)
    assert size_now(chunks, left, are_others=are_others, do_others_decode=do_others_decode) == size
