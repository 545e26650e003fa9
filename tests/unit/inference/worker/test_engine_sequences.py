"""Slots and the position rule."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardnet.errors import Busy, SequenceGap
from shardnet.inference.worker.sequences import SequenceTable


def run(table: SequenceTable, name: str, position: int, count: int, shards: Sequence[int] = (0, 1)) -> list[int]:
    """Do to the table what a successful step does. Returns: the shards that dropped something."""
    rewind = table.prepare(name, shards, position, n_seq=3, keeps_history=True)
    state = rewind.state
    for shard in shards:
        state.lengths[shard] = position + count
    state.history.extend(range(position, position + count))
    return list(rewind.shards)


def test_slots_are_given_from_the_lowest() -> None:
    table = SequenceTable()
    slots = {name: table.prepare(name, [0], 0, n_seq=3, keeps_history=False).state.slot for name in "abc"}
    assert slots == {"a": 0, "b": 1, "c": 2}
    table.forget("b")
    assert table.prepare("d", [0], 0, n_seq=3, keeps_history=False).state.slot == 1


def test_a_sequence_keeps_its_slot() -> None:
    table = SequenceTable()
    run(table, "a", 0, 4)
    run(table, "b", 0, 4)
    assert table.prepare("b", [0, 1], 4, n_seq=3, keeps_history=True).state.slot == 1


def test_no_free_slot_is_busy_and_names_their_number() -> None:
    table = SequenceTable()
    for name in "abc":
        run(table, name, 0, 1)
    with pytest.raises(Busy, match="all 3 sequences") as busy:
        run(table, "d", 0, 1)
    assert busy.value.facts["n_seq"] == 3
    assert "d" not in table


def test_a_step_at_the_end_drops_nothing() -> None:
    table = SequenceTable()
    run(table, "a", 0, 5)
    assert run(table, "a", 5, 1) == []


def test_a_step_further_back_drops_what_is_behind_it() -> None:
    table = SequenceTable()
    run(table, "a", 0, 5)
    assert run(table, "a", 2, 1) == [0, 1]
    assert list(table.prepare("a", [0, 1], 3, n_seq=3, keeps_history=True).state.history) == [0, 1, 2]


def test_shards_that_differ_are_taken_at_the_shorter() -> None:
    table = SequenceTable()
    run(table, "a", 0, 5, shards=[0])
    run(table, "a", 0, 3, shards=[1])
    with pytest.raises(SequenceGap) as gap:
        run(table, "a", 4, 1)
    assert gap.value.facts["have"] == 3
    assert run(table, "a", 3, 1) == [0]


def test_a_gap_takes_no_slot() -> None:
    table = SequenceTable()
    with pytest.raises(SequenceGap) as gap:
        run(table, "a", 1, 1)
    assert gap.value.facts["have"] == 0
    assert len(table) == 0


def test_a_missing_history_is_a_gap_where_it_is_needed() -> None:
    table = SequenceTable()
    state = table.prepare("a", [0], 0, n_seq=3, keeps_history=False).state
    state.lengths[0] = 4
    assert table.prepare("a", [0], 4, n_seq=3, keeps_history=False).shards == ()
    with pytest.raises(SequenceGap):
        table.prepare("a", [0], 4, n_seq=3, keeps_history=True)


def test_an_unloaded_shard_takes_its_kv_with_it() -> None:
    table = SequenceTable()
    run(table, "a", 0, 4)
    table.shard_gone(1)
    with pytest.raises(SequenceGap) as gap:
        run(table, "a", 4, 1)
    assert gap.value.facts["have"] == 0
    table.shard_gone(0)
    assert len(table) == 0


def test_a_slot_that_no_longer_exists_is_lost_with_its_sequence() -> None:
    table = SequenceTable()
    for name in "abc":
        run(table, name, 0, 4)
    with pytest.raises(SequenceGap):
        table.prepare("c", [0, 1], 4, n_seq=2, keeps_history=True)
    assert "c" not in table


def test_forgetting_twice_is_harmless() -> None:
    table = SequenceTable()
    run(table, "a", 0, 4)
    assert table.forget("a") is not None
    assert table.forget("a") is None


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 12), st.integers(1, 6)), max_size=60))
def test_the_history_is_always_as_long_as_the_kv(steps: list[tuple[str, int, int]]) -> None:
    table = SequenceTable()
    for name, position, count in steps:
        try:
            run(table, name, position, count)
        except (SequenceGap, Busy):
            continue
        state = table.prepare(name, [0, 1], position + count, n_seq=3, keeps_history=True).state
        assert list(state.history) == list(range(position + count))
        assert set(state.lengths.values()) == {position + count}
