"""Which rows form the next batch: what each size took decides, and slots that are neighbours go together."""

from __future__ import annotations

import pytest

from shardnet.inference.worker.pacing import (
    SAMPLES,
    TRUSTED,
    TRY_EVERY,
    Choice,
    Pacing,
    WaitingRow,
    batches,
    block_sizes,
    goes_whole,
    may_hold,
)

CHAIN = ("model", 0, 1)


def row(slot: int, ticket: int | None = None, arrived_s: float = 0.0) -> WaitingRow:
    return WaitingRow(slot if ticket is None else ticket, slot, arrived_s)


def rows(*slots: int) -> list[WaitingRow]:
    return [row(slot) for slot in slots]


def paced(**seconds: float) -> Pacing:
    """Returns: one that knows batches of these sizes: `r4=0.06` is four rows in 60 ms."""
    pacing = Pacing()
    for name, time_s in seconds.items():
        for _ in range(TRUSTED):
            pacing.note(CHAIN, int(name[1:]), time_s)
    return pacing


FOURS = {"r1": 0.034, "r4": 0.062}
"""A model whose kernels take rows in fours."""
SINGLES = {"r1": 0.0076, "r4": 0.0334, "r8": 0.0563}
"""A small model that gains nothing from four rows, and a little from eight."""


def choose(pacing: Pacing, waiting: list[WaitingRow], active: int, stages: int, now_s: float = 0.0) -> Choice:
    return pacing.choose(CHAIN, waiting, range(active), active // stages, now_s)


def test_one_sequence_never_waits() -> None:
    for pacing in (Pacing(), paced(**FOURS), paced(**SINGLES)):
        assert choose(pacing, rows(0), active=1, stages=2) == Choice((0,))


def test_a_whole_block_goes_together_where_that_takes_less_time_per_row() -> None:
    assert choose(paced(**FOURS), rows(4, 5, 6, 7), active=8, stages=2) == Choice((4, 5, 6, 7))
    assert choose(paced(**SINGLES), rows(4, 5, 6, 7), active=8, stages=2) == Choice((4,))


def test_a_block_that_gains_next_to_nothing_does_not_go_whole() -> None:
    pacing = paced(r1=0.0060, r4=0.0235)
    assert choose(pacing, rows(4, 5, 6, 7), active=8, stages=2) == Choice((4,))


def test_rows_that_leave_other_stages_idle_go_together_only_if_that_is_worth_it() -> None:
    pacing = paced(r1=0.017, r3=0.0485, r4=0.031)
    assert choose(pacing, rows(0, 1, 2), active=4, stages=2) == Choice((0,)), "three take as long as each alone"
    assert choose(pacing, rows(0, 1, 2, 3), active=4, stages=2) == Choice((0, 1, 2, 3)), "less than two alone"
    assert choose(pacing, rows(0, 1, 2, 3), active=4, stages=3) == Choice((0,))


@pytest.mark.parametrize(
    ("here", "elsewhere", "stages", "holds"),
    [(4, 4, 2, True), (2, 2, 2, True), (1, 7, 2, False), (7, 1, 2, False), (4, 4, 3, True), (5, 3, 3, False)],
)
def test_a_row_is_held_only_while_no_stage_waits_for_it(here: int, elsewhere: int, stages: int, holds: bool) -> None:
    assert may_hold(here, elsewhere, stages) is holds


def test_more_sequences_make_larger_blocks() -> None:
    assert choose(paced(**SINGLES), rows(*range(8)), active=16, stages=2) == Choice(tuple(range(8)))


def test_blocks_have_the_size_that_takes_least_time_per_row() -> None:
    """Qwen2.5-Coder-1.5B in Q4_K_M, as measured: eight rows take more than twice as long as four."""
    waiting = rows(*range(8))
    assert choose(paced(r1=0.059, r4=0.203, r8=0.481), waiting, active=16, stages=2) == Choice((0, 1, 2, 3))
    assert choose(paced(r1=0.059, r4=0.203, r8=0.390), waiting, active=16, stages=2) == Choice((0, 1, 2, 3))
    assert choose(paced(r1=0.059, r4=0.203, r8=0.380), waiting, active=16, stages=2) == Choice(tuple(range(8)))


@pytest.mark.parametrize(("eight_s", "again"), [(0.481, 1), (0.650, 0)])
def test_each_size_of_blocks_is_tried_before_one_is_chosen_and_again_if_there_is_hope(
    eight_s: float, again: int
) -> None:
    pacing = Pacing()
    times = {1: 0.1, 4: 0.203, 8: eight_s}
    tried = []
    for _ in range(2 * TRY_EVERY):
        choice = choose(pacing, rows(*range(8)), active=16, stages=2)
        tried.append(len(choice.tickets))
        pacing.note(CHAIN, len(choice.tickets), times[len(choice.tickets)])
    assert tried[: 3 * TRUSTED] == [8] * TRUSTED + [4] * TRUSTED + [1] * TRUSTED
    assert tried[3 * TRUSTED :].count(8) == again
    assert tried[3 * TRUSTED :].count(4) > 2 * TRY_EVERY - 3 * TRUSTED - 4


def test_the_rest_of_a_block_is_waited_for_as_long_as_it_would_take() -> None:
    pacing = paced(**FOURS)
    assert choose(pacing, rows(0, 1, 2), active=8, stages=2, now_s=0.01) == Choice((), 0.052)
    assert choose(pacing, rows(0, 1, 2), active=8, stages=2, now_s=0.07).tickets
    assert choose(paced(**SINGLES), rows(0, 1, 2), active=8, stages=2).tickets, "it would gain nothing"
    assert choose(pacing, rows(0, 1), active=4, stages=2).tickets, "the other stage would stand idle"


def test_while_one_block_is_not_whole_another_runs() -> None:
    waiting = [row(0, ticket=1), *(row(slot, ticket=slot) for slot in (4, 5, 6, 7))]
    assert choose(paced(**FOURS), waiting, active=8, stages=2) == Choice((4, 5, 6, 7))


def test_slots_that_are_no_neighbours_do_not_share_a_batch() -> None:
    waiting = [row(3, ticket=1), row(0, ticket=2), row(2, ticket=3)]
    assert choose(Pacing(), waiting, active=4, stages=2) == Choice((3, 1))


def test_a_block_of_fewer_sequences_is_whole_with_what_it_has() -> None:
    assert choose(Pacing(), rows(0, 1, 2), active=3, stages=1) == Choice((0, 1, 2))


@pytest.mark.parametrize(("four_s", "again"), [(0.12, 1), (0.062, 0)])
def test_each_size_is_tried_before_it_is_judged_and_again_if_there_is_hope(four_s: float, again: int) -> None:
    pacing = Pacing()
    tried = []
    for _ in range(2 * TRY_EVERY):
        choice = choose(pacing, rows(0, 1, 2, 3), active=8, stages=2)
        tried.append(len(choice.tickets))
        pacing.note(CHAIN, len(choice.tickets), {1: 0.034, 4: four_s}[len(choice.tickets)])
    assert tried[: 2 * TRUSTED] == [4] * TRUSTED + [1] * TRUSTED
    assert tried[2 * TRUSTED :].count(1) == again


def test_old_times_are_forgotten() -> None:
    pacing = paced(**FOURS)
    for _ in range(SAMPLES):
        pacing.note(CHAIN, 4, 0.2)
    assert len(choose(pacing, rows(0, 1, 2, 3), active=8, stages=2).tickets) == 1


# -- what the planner knows of it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("streams", "stages", "full", "rows"),
    [
        (1, 3, 4, (1,)),
        (2, 3, 4, (1, 1)),
        (4, 2, 4, (2, 2)),
        (5, 2, 4, (3, 2)),
        (8, 2, 4, (4, 4)),
        (10, 2, 4, (4, 4, 2)),
        (16, 2, 8, (8, 8)),
        (16, 2, 4, (4, 4, 4, 4)),
        (16, 3, 4, (4, 4, 4, 4)),
        (8, 1, 8, (8,)),
    ],
)
def test_streams_go_round_in_the_blocks_that_are_formed(
    streams: int, stages: int, full: int, rows: tuple[int, ...]
) -> None:
    assert batches(streams, stages, full) == rows


@pytest.mark.parametrize(("expected", "sizes"), [(0, [4]), (3, [4]), (7, [4]), (8, [4, 8]), (17, [4, 8, 16])])
def test_no_block_is_larger_than_leaves_every_stage_one(expected: int, sizes: list[int]) -> None:
    assert block_sizes(expected) == sizes


@pytest.mark.parametrize(("streams", "stages"), [(8, 2), (16, 2), (12, 2), (16, 3), (8, 1)])
def test_the_blocks_that_are_predicted_are_those_that_are_chosen(streams: int, stages: int) -> None:
    chosen, left = [], rows(*range(streams))
    while left:
        tickets = choose(Pacing(), left, streams, stages).tickets
        chosen.append(len(tickets))
        left = [one for one in left if one.ticket not in tickets]
    assert tuple(chosen) == batches(streams, stages, block_sizes(streams // stages)[-1])


@pytest.mark.parametrize("times", [FOURS, SINGLES])
def test_whether_a_block_goes_whole_is_one_rule(times: dict[str, float]) -> None:
    whole = goes_whole(4, times["r1"], times["r4"])
    assert len(choose(paced(**times), rows(0, 1, 2, 3), active=8, stages=2).tickets) == (4 if whole else 1)


def test_means_of_what_was_run_more_than_once_are_told_without_stalls() -> None:
    pacing = Pacing()
    for seconds, beside_s in ((0.010, 0.001), (0.014, 0.002), (0.5, 0.4)):
        pacing.note(CHAIN, 1, seconds, beside_s)
    pacing.note(CHAIN, 4, 0.05)
    for rows_of_no_block in (18, 32):
        for _ in range(TRUSTED):
            pacing.note(CHAIN, rows_of_no_block, 0.2)
    pacing.note(("other", 0, 1), 1, 0.1)
    pacing.note(("other", 0, 1), 1, 0.1)
    pacing.forget("other")
    assert list(pacing.told()) == [(CHAIN, 1, pytest.approx(0.012), 0.002), (CHAIN, 32, 0.2, 0.0)]
