"""What a node tells of how long its batches take."""

from __future__ import annotations

from shardnet.ids import ShardKey
from shardnet.node.tasks.timings import EXACT_ROWS, NEAR, StepTimes

MODEL = "ab" * 32
KEY = ShardKey((MODEL, 0))
CHAIN = (MODEL, 0, 1)


def test_chunks_far_behind_in_a_prompt_do_not_count() -> None:
    times = StepTimes()
    for position, us in ((0, 100.0), (128, 110.0), (NEAR, 300.0), (20_000, 900.0)):
        times.add(CHAIN, 128, us, position=position)
    assert times.per_shard({KEY: 4})[KEY].rows_us == ((128, 105.0),)


def test_decode_steps_count_wherever_they_are() -> None:
    times = StepTimes()
    for rows in (1, EXACT_ROWS):
        times.add(CHAIN, rows, 50.0 * rows, position=20_000)
    found = times.per_shard({KEY: 4})[KEY]
    assert (found.step_us, found.rows_us) == (50.0, ((EXACT_ROWS, 50.0 * EXACT_ROWS),))
