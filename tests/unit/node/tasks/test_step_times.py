"""What a node tells of how long its batches take."""

from __future__ import annotations

from shardnet.ids import ShardKey
from shardnet.inference.engine.protocol import BatchTime
from shardnet.messages import HeldShard
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


def test_of_many_chains_that_a_shard_was_in_the_one_that_ran_last_counts_and_what_is_told_has_an_end() -> None:
    """Nodes came and went for weeks: each plan had another chain."""
    times, chains = StepTimes(), [(MODEL, 0, end) for end in range(1, 9)]
    for chain in chains:
        for rows in (1, *range(2, EXACT_ROWS + 1), *(17 + 13 * step for step in range(80))):
            times.add(chain, rows, 100.0 * chain[2])
    times.add(CHAIN, 1, 100.0)
    layers = {ShardKey((MODEL, shard)): 1 for shard in range(8)}
    found = times.per_shard(layers)[KEY]
    assert found.step_us == 100.0
    assert len(found.rows_us) <= 32
    held = HeldShard(model_id=MODEL, shard_id=0, loaded=True, step_us=found.step_us, rows_us=found.rows_us)
    assert [rows for rows, _ in held.rows_us] == sorted({rows for rows, _ in held.rows_us})


def test_of_what_the_engine_tells_the_last_counts() -> None:
    times = StepTimes()
    told = [
        BatchTime(chain=(MODEL, 0, end), rows=rows, us=us, beside_us=0.0)
        for end, rows, us in ((2, 1, 80.0), (2, 4, 99.0), (1, 1, 30.0))
    ]
    times.take(told)
    found = times.per_shard({KEY: 1, ShardKey((MODEL, 1)): 1})
    assert (found[KEY].step_us, found[KEY].rows_us) == (30.0, ((4, 49.5),))
    assert found[ShardKey((MODEL, 1))].step_us == 40.0
