"""Which weights stay in memory, and what passes over a model then read."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardnet.inference.llama.residency import Extent, bytes_read, bytes_to_keep, joined, least_budget, passing_part

PAGE = 4096


def test_everything_stays_where_everything_fits() -> None:
    assert bytes_to_keep([10, 10, 10], 30) == (10, 10, 10)
    assert bytes_read([10, 10, 10], bytes_to_keep([10, 10, 10], 30), 7) == 30


def test_what_stays_leaves_room_for_the_rest_of_two_stages_and_is_spread_evenly() -> None:
    kept = bytes_to_keep([10] * 12, 60)
    assert kept == (4,) * 12  # and 2 times 6 pass through
    assert bytes_read([10] * 12, kept, 3) == 48 + 3 * 72


def test_nothing_stays_where_only_what_passes_through_has_room() -> None:
    assert bytes_to_keep([10] * 6, 20) == (0,) * 6
    assert bytes_to_keep([10] * 6, 0) == (0,) * 6
    assert bytes_read([10] * 6, (0,) * 6, 4) == 240


def test_a_large_head_stays_but_for_as_much_as_every_layer_passes() -> None:
    sizes = [10] * 10 + [60]
    kept = bytes_to_keep(sizes, 100)
    assert kept == (3,) * 10 + (53,)
    assert bytes_read(sizes, kept, 5) == 83 + 5 * 77


@pytest.mark.parametrize("budget", range(0, 400, 7))
def test_no_budget_is_exceeded_and_more_memory_never_reads_more(budget: int) -> None:
    sizes = [11, 30, 12, 12, 47, 12, 9, 12, 12, 90]
    kept = bytes_to_keep(sizes, budget)
    passing = [size - stays for size, stays in zip(sizes, kept, strict=True)]
    most = max(map(sum, zip(passing, passing[1:] + passing[:1], strict=True)))
    assert not sum(kept) or sum(kept) + most <= budget
    assert bytes_read(sizes, bytes_to_keep(sizes, budget + 7), 2) <= bytes_read(sizes, kept, 2)


def test_the_least_budget_is_the_smallest_that_two_neighbours_pass_through() -> None:
    sizes = [10, 30, 12, 40]
    assert least_budget(sizes) == 52
    assert least_budget([10, 30]) == 40
    assert least_budget([10]) == 10
    assert least_budget([]) == 0


def test_what_passes_is_the_end_of_a_stage_from_a_page_on() -> None:
    path = Path("weights")
    stage = (Extent(path, 100, 10 * PAGE), Extent(path, 50 * PAGE, PAGE))
    assert passing_part(stage, 0) == stage
    assert passing_part(stage, 11 * PAGE) == ()
    assert passing_part(stage, 3 * PAGE) == (Extent(path, 3 * PAGE, 7 * PAGE + 100), stage[1])
    assert passing_part(stage, 10 * PAGE + 7) == (stage[1],)


def test_extents_that_follow_each_other_are_one(tmp_path: Path) -> None:
    one, other = tmp_path / "1", tmp_path / "2"
    found = joined([Extent(one, 100, 50), Extent(other, 0, 10), Extent(one, 0, 90), Extent(one, 1 << 20, 5)])
    assert found == (Extent(one, 0, 150), Extent(one, 1 << 20, 5), Extent(other, 0, 10))
