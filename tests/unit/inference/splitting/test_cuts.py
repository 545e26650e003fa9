"""Cuts balance bytes among the legal ones, and say what is possible when the wish is not."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardnet.errors import UsageError
from shardnet.inference.splitting.cuts import (
    Weights,
    balanced_cuts,
    checked_cuts,
    cuts_by_size,
    describe_points,
    parse_size,
    ranges,
)

SIZES = st.integers(1, 9)


def shard_sizes(weights: Weights, cuts: tuple[int, ...]) -> list[int]:
    return [weights.of(part.first, part.end) for part in ranges(cuts, len(weights.layers))]


def badness(weights: Weights, cuts: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
    sizes = shard_sizes(weights, cuts)
    return max(sizes), sum(size * size for size in sizes), cuts


@given(st.lists(SIZES, min_size=2, max_size=8), st.integers(0, 20), st.integers(0, 20), st.data())
def test_no_other_legal_cuts_are_better(layers: list[int], first: int, last: int, data: st.DataObject) -> None:
    weights = Weights(tuple(layers), first, last)
    legal = sorted(data.draw(st.sets(st.integers(1, len(layers) - 1), min_size=1)))
    n_shards = data.draw(st.integers(1, len(legal) + 1))
    found = balanced_cuts(weights, legal, n_shards)
    assert badness(weights, found) == min(badness(weights, cuts) for cuts in combinations(legal, n_shards - 1))


def test_embedding_and_head_count_so_the_middle_gets_more_layers() -> None:
    cuts = balanced_cuts(Weights((10,) * 12, first=30, last=30), range(1, 12), 3)
    assert [len(part) for part in ranges(cuts, 12)] == [3, 6, 3]


def test_more_shards_than_legal_cuts_allow_are_refused_with_what_is_possible() -> None:
    with pytest.raises(UsageError, match=r"4 shards are not possible: .* 2 legal cut points, so 1 to 3"):
        balanced_cuts(Weights((1,) * 6), (2, 4), 4)


def test_lengths_that_llama_cpp_would_mistake_are_avoided_or_refused() -> None:
    weights = Weights((1,) * 6)
    assert balanced_cuts(weights, range(1, 6), 2, frozenset({3})) == (2,)
    with pytest.raises(UsageError, match="shards of 1 layers"):
        balanced_cuts(weights, range(1, 6), 6, frozenset({1}))
    assert balanced_cuts(weights, range(1, 6), 1, frozenset({6})) == ()


def test_the_fewest_shards_below_a_size_are_taken() -> None:
    weights = Weights((10,) * 8, first=5)
    assert cuts_by_size(weights, range(1, 8), 100) == ()
    assert cuts_by_size(weights, range(1, 8), 45) == (4,)
    assert len(cuts_by_size(weights, range(1, 8), 44)) == 2
    with pytest.raises(UsageError, match="takes 15 B at least"):
        cuts_by_size(weights, range(1, 8), 12)


def test_a_model_of_126_layers_is_cut_in_less_than_a_second() -> None:
    weights = Weights(tuple(100 + layer % 7 for layer in range(126)), 300, 300)
    assert len(balanced_cuts(weights, range(1, 126), 126)) == 125
    assert cuts_by_size(weights, range(1, 126), 520)


@pytest.mark.parametrize(
    ("cuts", "sentence"),
    [
        ((4, 2), "rising order"),
        ((2, 2), "rising order"),
        ((0,), "outside"),
        ((6,), "outside"),
        ((3,), "legal cut points: 2,4"),
    ],
)
def test_a_cut_of_the_users_own_that_cannot_be_is_named(cuts: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        checked_cuts(cuts, (2, 4), 6)


def test_legal_cuts_of_the_users_own_are_taken_as_they_are() -> None:
    assert checked_cuts((2, 4), (2, 4), 6) == (2, 4)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1.5GB", 1_500_000_000),
        ("800MiB", 800 << 20),
        ("1000", 1000),
        ("2 kB", 2000),
        ("1KiB", 1024),
        ("3t", 3 * 10**12),
    ],
)
def test_sizes_are_decimal_or_binary_as_written(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0", "1XB", "1.5.2GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no size"):
        parse_size(text)


def test_cut_points_are_shown_in_short() -> None:
    assert describe_points((1, 2, 3, 6, 9, 10)) == "1-3,6,9-10"
    assert describe_points(()) == "none"
