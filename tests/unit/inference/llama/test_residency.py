"""Which weights stay in memory, and what passes over a model then read."""

from __future__ import annotations

from itertools import pairwise

import pytest

from shardnet.inference.llama.residency import bytes_read, least_budget, stages_to_keep


def test_everything_stays_where_everything_fits() -> None:
    assert stages_to_keep([10, 10, 10], 30) == {0, 1, 2}
    assert bytes_read([10, 10, 10], stages_to_keep([10, 10, 10], 30), 7) == 30


def test_what_stays_leaves_room_for_two_others_and_is_spread_through_the_model() -> None:
    kept = stages_to_keep([10] * 12, 60)
    assert kept == {2, 5, 8, 11}
    assert bytes_read([10] * 12, kept, 3) == 40 + 3 * 80


def test_nothing_stays_where_only_what_passes_through_has_room() -> None:
    assert stages_to_keep([10] * 6, 20) == frozenset()
    assert stages_to_keep([10] * 6, 0) == frozenset()
    assert bytes_read([10] * 6, frozenset(), 4) == 240


def test_a_large_head_stays_since_passing_through_it_would_take_as_much() -> None:
    sizes = [10] * 10 + [60]
    kept = stages_to_keep(sizes, 100)
    assert 10 in kept
    assert bytes_read(sizes, kept, 5) == 80 + 5 * 80


def test_a_large_head_passes_through_where_it_has_no_room_to_stay() -> None:
    sizes = [10] * 10 + [60]
    assert stages_to_keep(sizes, 75) == frozenset()


@pytest.mark.parametrize("budget", range(0, 400, 7))
def test_no_budget_is_exceeded_and_more_memory_never_reads_more(budget: int) -> None:
    sizes = [11, 30, 12, 12, 47, 12, 9, 12, 12, 90]
    kept = stages_to_keep(sizes, budget)
    passing = [size for stage, size in enumerate(sizes) if stage not in kept]
    most = max(map(sum, pairwise(passing)), default=0)
    assert not kept or sum(sizes[stage] for stage in kept) + most <= budget


def test_the_least_budget_is_the_smallest_that_two_neighbours_pass_through() -> None:
    sizes = [10, 30, 12, 40]
    assert least_budget(sizes) == 52
    assert least_budget([10, 30]) == 40
    assert least_budget([10]) == 10
    assert least_budget([]) == 0
