"""Which steps run together, and in which order."""

from __future__ import annotations

from collections.abc import Hashable

from shardnet.inference.worker.batching import Waiting, next_batch


def decode(ticket: int, sequence: str, chain: str = "a", max_rows: int = 8) -> Waiting:
    return Waiting(ticket, chain, sequence, is_prompt=False, max_rows=max_rows)


def prompt(ticket: int, sequence: str) -> Waiting:
    return Waiting(ticket, "a", sequence, is_prompt=True, max_rows=64)


def tickets(batch: list[Waiting]) -> list[int]:
    return [step.ticket for step in batch]


def writers(waiting: list[Waiting]) -> set[Hashable]:
    return {step.sequence for step in waiting if not step.is_prompt}


def drain(waiting: list[Waiting]) -> list[list[int]]:
    """Run until nothing waits."""
    batches, owed = [], writers(waiting)
    while waiting:
        batch = next_batch(waiting, owed=owed)
        owed = writers(waiting) if batch[0].is_prompt else owed - {step.sequence for step in batch}
        batches.append(tickets(batch))
        waiting = [step for step in waiting if step.ticket not in batches[-1]]
    return batches


def test_nothing_waits_nothing_runs() -> None:
    assert next_batch([], owed=()) == []


def test_one_step_alone_runs_at_once() -> None:
    assert tickets(next_batch([decode(1, "x")], owed=())) == [1]


def test_decode_steps_of_all_sequences_run_together() -> None:
    assert drain([decode(i, f"s{i}") for i in range(5)]) == [[0, 1, 2, 3, 4]]


def test_a_batch_has_no_more_rows_than_fit() -> None:
    assert drain([decode(i, f"s{i}", max_rows=2) for i in range(5)]) == [[0, 1], [2, 3], [4]]


def test_chains_do_not_mix() -> None:
    waiting = [decode(0, "a", chain="x"), decode(1, "b", chain="y"), decode(2, "c", chain="x")]
    assert drain(waiting) == [[0, 2], [1]]


def test_steps_of_one_sequence_keep_their_order() -> None:
    waiting = [prompt(0, "a"), prompt(1, "a"), decode(2, "a"), decode(3, "b")]
    batches = drain(waiting)
    flat = [ticket for batch in batches for ticket in batch]
    assert [ticket for ticket in flat if ticket != 3] == [0, 1, 2]


def test_one_sequence_never_stands_twice_in_a_batch() -> None:
    assert drain([decode(0, "a"), decode(1, "a")]) == [[0], [1]]


def test_prompts_and_writers_take_turns() -> None:
    waiting = [prompt(0, "p"), prompt(1, "p"), *(decode(i, "w") for i in range(2, 5))]
    assert drain(waiting) == [[2], [0], [3], [1], [4]]


def test_prompt_chunks_run_one_at_a_time() -> None:
    assert drain([prompt(0, "a"), prompt(1, "b")]) == [[0], [1]]


def test_writers_that_go_one_by_one_wait_for_one_chunk_between_them_not_for_one_each() -> None:
    waiting = [prompt(0, "p"), *(decode(1 + i, f"s{i}", max_rows=1) for i in range(4)), prompt(9, "p")]
    assert drain(waiting) == [[1], [2], [3], [4], [0], [9]]
    assert tickets(next_batch(waiting[3:], owed={"s2", "s3"})) == [3]
    assert tickets(next_batch(waiting[3:], owed={"s0", "s1"})) == [9], "these two have run"


def test_many_writers_do_not_stop_a_prompt() -> None:
    waiting = [decode(i, f"s{i}") for i in range(4)] + [prompt(9, "p")]
    assert tickets(next_batch(waiting, owed=())) == [9]


def test_the_group_that_waited_longest_goes_first() -> None:
    waiting = [decode(3, "a", "x"), decode(4, "b", "y"), decode(5, "c", "x")]
    assert tickets(next_batch(waiting, owed=())) == [3, 5]
    assert tickets(next_batch(waiting[1:], owed=())) == [4]
