"""How the rows of a step that is read are cut: few at a time, and never one alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardnet.inference.engine.steps import READINGS
from shardnet.inference.worker.reading import pieces


@given(st.sampled_from(READINGS[1:]), st.integers(1, 2000), st.integers(2, 16))
def test_every_row_is_run_once_in_order_in_its_block_and_none_alone_where_there_are_more(
    kind: str, count: int, blocks: int
) -> None:
    most = 4 * blocks
    found = pieces(kind, count, most)
    assert all(first % 4 == 0 for first, _, _ in found)
    assert (found[0][0], found[-1][1]) == (0, count)
    assert all(one[1] == following[0] for one, following in pairwise(found))
    assert all(end - first >= min(2, count) for first, end, _ in found)
    assert all(end - first <= most for first, end, is_read in found if is_read)


@pytest.mark.parametrize("count", [1, 2, 32, 33, 34, 500])
def test_only_what_is_wanted_is_read(count: int) -> None:
    assert all(is_read for kind in ("sum", "logprobs") for *_, is_read in pieces(kind, count))
    assert [is_read for *_, is_read in pieces("first", count)] == ([True] if count <= 32 else [True, False])
    assert [is_read for *_, is_read in pieces("last", count)] == ([True] if count <= 32 else [False, True])
