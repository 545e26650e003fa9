"""The number of threads that is learnt, on made-up machines: what a batch takes, by threads and rows."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from shardnet.inference.llama.devices import free_threads, usable_threads
from shardnet.inference.llama.thread_choice import ThreadChoice, others

Machine = Callable[[int], float]
"""Seconds of a batch, by threads."""


def idle(cores: int) -> Machine:
    return lambda threads: 0.01 / min(threads, cores) + 0.0002 * threads


def crowded(free: int) -> Machine:
    """As many threads as are free serve best; one more, and all of them wait."""
    return lambda threads: 0.01 / min(threads, free) + (0.05 if threads > free else 0.0)


def work(choice: ThreadChoice, machine: Machine, seconds: float, *, rows: int = 1, noise: float = 0.0) -> float:
    """Run batches for so long. Returns: seconds that they took a batch."""
    dice = random.Random(7)
    spent, count = 0.0, 0
    while spent < seconds:
        took = machine(choice.threads("chain", rows)) * (1 + noise * dice.random())
        choice.note(took)
        spent += took
        count += 1
    return spent / count


@pytest.mark.parametrize("cores", [2, 3, 4, 8, 16])
def test_an_idle_machine_gets_all_its_threads_and_trials_cost_little(cores: int) -> None:
    choice, machine = ThreadChoice(cores), idle(cores)
    best = min(machine(threads) for threads in range(1, cores + 1))
    assert work(choice, machine, 60.0) < 1.05 * best


@pytest.mark.parametrize(("cores", "free"), [(2, 1), (4, 1), (4, 3), (16, 5)])
@pytest.mark.parametrize("noise", [0.0, 0.6])
def test_a_crowded_machine_gets_as_many_as_serve_it(cores: int, free: int, noise: float) -> None:
    choice, machine = ThreadChoice(cores), crowded(free)
    work(choice, machine, 20.0, noise=noise)
    mean_noise = 1 + noise / 2
    assert work(choice, machine, 60.0, noise=noise) < 1.1 * mean_noise * machine(free)


def test_when_others_come_fewer_threads_are_tried_within_a_few_batches() -> None:
    choice, busy = ThreadChoice(2), crowded(1)
    work(choice, idle(2), 5.0)
    assert choice.now == {"row": 2}
    for _ in range(20):
        choice.note(busy(choice.threads("chain", 1)))
    assert choice.now == {"row": 1}
    assert choice.threads("chain", 1) == 1


def test_when_others_go_all_threads_come_back_within_seconds() -> None:
    choice = ThreadChoice(2)
    work(choice, crowded(1), 20.0)
    assert choice.now == {"row": 1}
    work(choice, idle(2), 15.0)
    assert choice.now == {"row": 2}


def test_rows_and_prompts_are_learnt_apart() -> None:
    choice = ThreadChoice(4)
    work(choice, crowded(1), 10.0, rows=1)
    work(choice, crowded(3), 10.0, rows=4)
    work(choice, idle(4), 10.0, rows=128)
    assert choice.now == {"row": 1, "rows": 3, "prompt": 4}


def test_a_trial_compares_batches_of_one_size_with_their_like() -> None:
    choice, machine = ThreadChoice(2), idle(2)
    for _ in range(2000):  # long and short chunks in turns
        for rows in (500, 20):
            choice.note(rows * machine(choice.threads("chain", rows)))
    assert choice.now == {"prompt": 2}


def deep(position: int) -> float:
    """How much longer a row takes behind so many tokens: 26, 45 and 109 ms behind none, 4,096 and 16,000."""
    return 1 + position / 5000


def test_a_longer_context_is_no_busier_machine() -> None:
    choice, machine = ThreadChoice(8), idle(8)
    work(choice, machine, 5.0)
    found = []
    for position in range(8200, 8230):
        found.append(choice.threads("chain", 1, position))
        choice.note(machine(found[-1]) * deep(position))
    assert found == [8] * 30, "nothing is tried before it is known what rows so deep take"


def test_answers_of_different_lengths_in_turns_leave_the_number_as_it_is() -> None:
    choice, machine = ThreadChoice(4), idle(4)
    numbers = set()
    for step in range(20_000):
        position = 16_000 if step % 2 else 100
        choice.note(machine(choice.threads("chain", 1, position)) * deep(position))
        numbers.add(choice.now["row"])
    assert numbers == {4}


def test_what_comes_by_chance_is_usual_and_what_stays_is_news() -> None:
    choice, dice = ThreadChoice(2), random.Random(3)
    slow_s, quick_s = 0.05, 0.01
    for _ in range(4000):  # a twentieth is slow, whatever the threads
        choice.threads("chain", 1)
        choice.note(slow_s if dice.random() < 1 / 20 else quick_s)
    assert choice.now == {"row": 2}
    busy = crowded(1)
    for _ in range(20):
        choice.note(busy(choice.threads("chain", 1)))
    assert choice.now == {"row": 1}


def test_a_number_that_the_user_named_is_kept() -> None:
    choice = ThreadChoice(4, learns=False)
    for rows in (1, 8, 512) * 100:
        assert choice.threads("chain", rows) == 4
        choice.note(9.9)


def test_who_shares_the_cores_changes_what_was_learnt() -> None:
    choice = ThreadChoice(4)
    work(choice, crowded(1), 10.0)
    choice.most = 2
    assert choice.threads("chain", 1) == 2


@pytest.mark.parametrize(
    ("threads", "most", "expected"),
    [(1, 1, []), (1, 2, [2]), (2, 2, [1]), (4, 8, [3, 5, 2, 8, 1]), (16, 16, [12, 8, 1]), (8, 9, [6, 4, 1])],
)
def test_numbers_near_and_far_are_tried(threads: int, most: int, expected: list[int]) -> None:
    assert others(threads, most) == expected


def test_it_begins_with_what_is_free_and_learns_from_there() -> None:
    choice = ThreadChoice(4, first=1)
    assert choice.threads("chain", 1) == 1
    work(choice, idle(4), 20.0)
    assert choice.now == {"row": 4}
    assert ThreadChoice(2, first=8).threads("chain", 64) == 2


def test_what_is_free_lies_between_one_and_what_may_be_used() -> None:
    assert 1 <= free_threads() <= usable_threads()
