"""Which steps run together, in which order, and how long short prompts that come together may put others off."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import pairwise

import pytest

from shardnet.inference.worker.batching import BURST_S, Turns, Waiting, next_batch


def decode(ticket: int, sequence: str, chain: str = "a", max_rows: int = 8) -> Waiting:
    return Waiting(ticket, chain, sequence, is_prompt=False, max_rows=max_rows)


def prompt(ticket: int, sequence: str) -> Waiting:
    return Waiting(ticket, "a", sequence, is_prompt=True, max_rows=64)


def last_chunk(ticket: int, sequence: str, rows: int = 40, chain: str = "a", max_rows: int = 512) -> Waiting:
    return Waiting(ticket, chain, sequence, is_prompt=True, max_rows=max_rows, last_rows=rows)


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


class Engine:
    """Runs what is waiting for it, batch by batch, as the pure choice has it. Chunks take `chunk_s`, decode steps `step_s`."""

    def __init__(self, chunk_s: float, step_s: float) -> None:
        self.chunk_s, self.step_s = chunk_s, step_s
        self.now_s = 0.0
        self.waiting: list[Waiting] = []
        self.ran: list[tuple[float, list[Waiting]]] = []
        self._turns = Turns()

    def run(self) -> list[Waiting]:
        batch = self._turns.choose(self.waiting, self.now_s)
        self.ran.append((self.now_s, batch))
        self.now_s += self.chunk_s if batch[0].is_prompt else self.step_s
        self._turns.ran(batch, self.now_s)
        self.waiting = [step for step in self.waiting if step not in batch]
        return batch

    def drain(self, waiting: Sequence[Waiting]) -> list[list[int]]:
        self.waiting = list(waiting)
        first = len(self.ran)
        while self.waiting:
            self.run()
        return [tickets(batch) for _, batch in self.ran[first:]]


def test_short_prompts_that_come_together_run_before_the_rows_of_the_first_of_them() -> None:
    engine = Engine(chunk_s=0.08, step_s=0.05)
    rows = [decode(0, "a"), decode(1, "b")]
    chunks = [last_chunk(2 + i, f"s{i}") for i in range(5)]
    assert engine.drain([*rows, *chunks]) == [[2], [3], [4], [5], [6], [0, 1]]


def test_a_burst_puts_rows_off_no_longer_than_it_may() -> None:
    engine = Engine(chunk_s=0.2, step_s=0.05)
    chunks = [last_chunk(1 + i, f"s{i}") for i in range(6)]
    order = engine.drain([decode(0, "w"), *chunks])
    assert order.index([0]) == 3, "0.6 s: what is left of half a second is a chunk's worth at most"


def test_chunks_of_long_prompts_take_turns_with_rows_as_ever() -> None:
    waiting = [prompt(0, "p"), prompt(1, "p"), last_chunk(2, "p"), *(decode(3 + i, "w") for i in range(4))]
    order = Engine(chunk_s=0.05, step_s=0.05).drain(waiting)
    assert order == [[3], [0], [4], [1], [2], [5], [6]], "but the last one, which ends it"


def test_a_short_prompt_passes_the_chunks_of_a_long_one() -> None:
    waiting = [*(prompt(i, "p") for i in range(20)), last_chunk(20, "s")]
    assert Engine(chunk_s=0.05, step_s=0.05).drain(waiting)[0] == [20]


def test_short_prompts_one_after_the_other_do_not_stop_a_long_one() -> None:
    engine = Engine(chunk_s=0.1, step_s=0.05)
    engine.waiting = [prompt(i, "long") for i in range(20)]
    for number in range(200):
        engine.waiting.append(last_chunk(100 + number, f"s{number}"))
        engine.run()
        if not any(step.sequence == "long" for step in engine.waiting):
            break
    assert number < 2 * 20 + BURST_S / engine.chunk_s


@pytest.mark.parametrize("chunk_s", [0.01, 0.08, 0.3])
def test_a_steady_flow_of_short_prompts_never_puts_an_answer_off_for_longer_than_a_burst(chunk_s: float) -> None:
    """Ten prompts a second for a minute, beside one answer whose next row is there as soon as one is done."""
    engine = Engine(chunk_s, step_s=0.02)
    came, ticket = 0, 1
    engine.waiting = [decode(0, "answer")]
    while engine.now_s < 60.0:
        while came / 10 <= engine.now_s:
            engine.waiting.append(last_chunk(ticket, f"s{came}"))
            came, ticket = came + 1, ticket + 1
        if not engine.run()[0].is_prompt:
            engine.waiting.append(decode(ticket, "answer"))
            ticket += 1
    steps = [at_s for at_s, batch in engine.ran if not batch[0].is_prompt]
    chunks = len(engine.ran) - len(steps)
    assert max(after - before for before, after in pairwise(steps)) <= 0.02 + BURST_S + 2 * chunk_s
    assert chunks >= min(came, 60.0 / (chunk_s + 0.02)) - 1, "nor do the prompts wait for longer than in turns"
    in_turns = min(came, len(steps))
    assert (chunks - in_turns) * chunk_s <= BURST_S + chunk_s + 30.0, "beyond turns they have half of the time at most"


def test_short_last_chunks_of_equally_many_rows_go_together_a_block_of_sequences() -> None:
    def together(*chunks: Waiting) -> list[list[int]]:
        return Engine(chunk_s=0.01, step_s=0.01).drain(chunks)

    tens = [last_chunk(i, f"s{i}", rows=10) for i in range(6)]
    assert together(*tens) == [[0, 1, 2, 3], [4, 5]]
    assert together(tens[0], last_chunk(1, "b", rows=11), *tens[2:4]) == [[0, 2, 3], [1]]
    assert together(tens[0], last_chunk(1, "b", rows=10, chain="b")) == [[0], [1]]
    assert together(*(last_chunk(i, f"s{i}", rows=24) for i in range(3))) == [[0, 1], [2]]
    assert together(*(last_chunk(i, f"s{i}", rows=10, max_rows=20) for i in range(3))) == [[0, 1], [2]]
    assert together(*(last_chunk(i, f"s{i}", rows=100) for i in range(2))) == [[0], [1]]
    assert together(*(last_chunk(i, f"s{i}", rows=9) for i in range(2))) == [[0], [1]], "a row would change its numbers"
    assert together(prompt(0, "long"), prompt(1, "other")) == [[0], [1]], "nor do chunks that others follow"
