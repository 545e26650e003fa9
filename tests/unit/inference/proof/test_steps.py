"""The batches of a proof."""

from __future__ import annotations

import numpy as np
import pytest

from shardnet.inference.proof.steps import (
    LONG_PROMPT,
    N_BATCH,
    QUICK_LONG_PROMPT,
    Method,
    Step,
    all_at_once,
    built_in_lengths,
    equalized,
    long_prompt,
    one_by_one,
    rows_of_steps,
)

PROMPTS = [[1, 2, 3], [4], [5, 6]]


def steps_of(method: Method, prompts: list[list[int]], decode_tokens: int) -> list[Step]:
    make = all_at_once if method == "quick" else one_by_one
    return list(make(prompts, decode_tokens, lambda output: 100 + output))


def test_one_by_one_runs_each_prompt_from_its_start_and_asks_for_one_row_of_logits() -> None:
    steps = steps_of("full", PROMPTS, 2)
    assert [step.tokens.tolist() for step in steps] == [
        [1, 2, 3],
        [100],
        [101],
        [4],
        [103],
        [104],
        [5, 6],
        [106],
        [107],
    ]
    assert [step.positions.tolist() for step in steps[:4]] == [[0, 1, 2], [3], [4], [0]]
    assert [step.starts for step in steps] == [True, False, False] * 3
    assert [step.output for step in steps] == list(range(9))
    assert all(np.flatnonzero(step.outputs).tolist() == [step.n_rows - 1] for step in steps)


def test_a_long_prompt_is_run_in_chunks() -> None:
    steps = steps_of("full", [list(range(N_BATCH + 5))], 1)
    assert [step.n_rows for step in steps] == [N_BATCH, 5, 1]
    assert steps[1].positions.tolist() == list(range(N_BATCH, N_BATCH + 5))
    assert [step.starts for step in steps] == [True, False, False]


def test_all_at_once_runs_every_prompt_in_one_batch_and_then_a_token_of_each() -> None:
    first, second, third = steps_of("quick", PROMPTS, 2)
    assert first.tokens.tolist() == [1, 2, 3, 4, 5, 6]
    assert first.slots.tolist() == [0, 0, 0, 1, 2, 2]
    assert first.positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert np.flatnonzero(first.outputs).tolist() == [2, 3, 5]
    assert second.tokens.tolist() == [100, 101, 102]
    assert second.positions.tolist() == [3, 1, 2]
    assert third.tokens.tolist() == [103, 104, 105]
    assert third.positions.tolist() == [4, 2, 3]
    assert [step.starts for step in (first, second, third)] == [True, False, False]


@pytest.mark.parametrize("method", ["full", "quick"])
def test_the_rows_of_steps_are_known_before_the_steps_are_made(method: Method) -> None:
    prompts = [list(range(7)), list(range(N_BATCH + 1)), [1]]
    steps = steps_of(method, prompts, 3)
    counted = rows_of_steps(method, [len(prompt) for prompt in prompts], 3)
    assert [step.n_rows for step in steps] == counted
    assert [step.row for step in steps] == [sum(counted[:number]) for number in range(len(counted))]


def test_equalized_prompts_are_as_long_as_their_mean() -> None:
    assert equalized([[1, 2, 3, 4, 5, 6], [7, 8], [9]]) == [[1, 2, 3], [7, 8, 7], [9, 9, 9]]


def test_only_a_quick_proof_of_a_model_without_windows_has_a_shorter_longest_prompt() -> None:
    assert long_prompt("full", is_windowed=False) == LONG_PROMPT
    assert long_prompt("quick", is_windowed=True) == LONG_PROMPT
    assert long_prompt("quick", is_windowed=False) == QUICK_LONG_PROMPT
    assert max(built_in_lengths(QUICK_LONG_PROMPT)) == QUICK_LONG_PROMPT
