"""Which memory mode a shard gets, with what budget, and why."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import Mock

import pytest

from shardnet.errors import NoRoomError
from shardnet.inference.engine.memory import SPARE_DIVISOR, Need
from shardnet.inference.llama.read_ahead import ReadAhead
from shardnet.inference.worker.budgets import Budgets, Shared, share_out
from shardnet.inference.worker.memory_mode import Asked, Free, choose, fits_twice
from shardnet.limits.memory import Bound, Room

MB = 1 << 20
STAGES = (100 * MB,) * 10
SHARD = Asked("shard 3", Need(1000 * MB, 50 * MB, 30 * MB), 0, STAGES, 20 * MB)
BESIDE = 100 * MB


def free(nbytes: int, limit_bytes: int = 0) -> Free:
    return Free(Room(4000 * MB, nbytes, Bound(nbytes, nbytes, "memory.max of cgroup /one")), 0, limit_bytes)


def test_a_shard_that_fits_is_resident_and_auto_says_so() -> None:
    assert choose("resident", SHARD, free(1100 * MB)).why == ""
    chosen = choose("auto", SHARD, free(1100 * MB))
    assert chosen.mode == "resident"
    assert chosen.why == "it fits: 1.2 GB are needed, 1.2 GB are free"


def test_one_byte_less_is_refused_or_streamed_as_the_user_said() -> None:
    with pytest.raises(NoRoomError, match="shard 3 needs"):
        choose("resident", SHARD, free(1100 * MB - 1))
    chosen = choose("auto", SHARD, free(1100 * MB - 1))
    assert chosen.mode == "streamed"
    assert chosen.why.startswith("it does not fit: 1.2 GB are needed, 1.2 GB are free; ")


def test_weights_are_copied_out_of_their_file_only_where_both_fit() -> None:
    for nbytes, limit_bytes, fits in ((2100, 0, True), (2099, 0, False), (4000, 2100, True), (4000, 2099, False)):
        have = free(nbytes * MB, limit_bytes * MB)
        assert fits_twice(SHARD, choose("resident", SHARD, have), have) is fits
    assert not fits_twice(SHARD, choose("streamed", SHARD, free(4000 * MB)), free(4000 * MB))


def test_a_streamed_shard_keeps_kv_and_buffers_and_spare_room_out_of_its_budget() -> None:
    have = 700 * MB
    chosen = choose("auto", SHARD, free(have))
    assert chosen.budget == have - have // SPARE_DIVISOR - BESIDE
    assert chosen.needed == chosen.budget + BESIDE <= have
    assert chosen.why.endswith("466.9 MB of weights stay, 581.6 MB are read for each token")


def test_the_users_limit_counts_like_memory_that_is_not_there() -> None:
    assert choose("auto", SHARD, free(4000 * MB, 700 * MB)).budget == choose("auto", SHARD, free(700 * MB)).budget


def test_two_layers_at_a_time_are_the_least() -> None:
    assert choose("streamed", SHARD, free(BESIDE + 200 * MB)).budget == 200 * MB
    with pytest.raises(
        NoRoomError, match=r"shard 3, streamed, needs 314.6 MB .* by memory.max of cgroup /one"
    ) as refused:
        choose("auto", SHARD, free(BESIDE + 200 * MB - 1))
    assert refused.value.facts["needed_bytes"] == BESIDE + 200 * MB


def test_streamed_where_everything_fits_keeps_everything() -> None:
    chosen = choose("streamed", SHARD, free(3000 * MB))
    assert (chosen.mode, chosen.budget) == ("streamed", 1000 * MB)
    assert chosen.why.startswith("it is asked for: ")


def test_what_goes_to_gpus_needs_no_main_memory_in_resident_mode() -> None:
    on_gpu = Asked(SHARD.what, SHARD.need, 900 * MB, STAGES, SHARD.process_bytes)
    assert choose("auto", on_gpu, free(200 * MB)).mode == "resident"


def test_streamed_shards_share_what_there_is_by_what_they_lack() -> None:
    small, large = (10, 10, 10), (10,) * 10
    assert share_out(130, [small, large]) == (30, 100)
    assert share_out(1000, [small, large]) == (30, 100)
    assert share_out(40, [small, large]) == (20, 20)
    assert share_out(67, [small, large]) == (23, 44)
    assert share_out(0, []) == ()


def test_a_second_streamed_shard_takes_its_part_of_what_the_first_one_had() -> None:
    shared = Shared(600 * MB, (STAGES,))
    chosen = choose("auto", SHARD, Free(Room(4000 * MB, 100 * MB), 0, 0, shared))
    together = 700 * MB - 700 * MB // SPARE_DIVISOR - BESIDE
    assert chosen.others == (together // 2,)
    assert chosen.budget + sum(chosen.others) == together
    assert "beside 1 more that are streamed" in chosen.why


def test_what_others_need_at_least_is_not_taken_from_them() -> None:
    shared = Shared(300 * MB, (STAGES,))
    assert choose("auto", SHARD, Free(Room(4000 * MB, BESIDE + 100 * MB), 0, 0, shared)).others == (200 * MB,)
    with pytest.raises(NoRoomError, match="shard 3, streamed, needs"):
        choose("auto", SHARD, Free(Room(4000 * MB, BESIDE + 100 * MB - 1), 0, 0, shared))


def test_a_pipeline_of_repacked_shards_gets_no_streamed_one_and_the_other_way_round() -> None:
    repacked, stored = replace(SHARD, repack=True), replace(SHARD, repack=False)
    with pytest.raises(NoRoomError, match="shard 3 needs"):
        choose("auto", repacked, free(700 * MB))
    with pytest.raises(NoRoomError, match="this node streams all shards"):
        choose("streamed", repacked, free(4000 * MB))
    assert choose("resident", stored, free(4000 * MB)).repack is False
    assert choose("auto", stored, free(4000 * MB)).repack is False
    assert choose("auto", repacked, free(4000 * MB)).repack is True


def test_the_budgets_of_streamed_shards_change_as_others_come_and_go() -> None:
    shards = [Mock(spec=ReadAhead, stage_bytes=(10,) * 10, budget=100) for _ in range(2)]
    for shard in shards:
        shard.set_budget.side_effect = lambda budget, shard=shard: setattr(shard, "budget", budget)
    budgets = Budgets()
    budgets.make_room([], 100)
    budgets.join(shards[0])
    assert budgets.shared() == Shared(100, ((10,) * 10,))
    budgets.make_room([50], 100)
    shards[1].budget = 50
    budgets.join(shards[1])
    assert (shards[0].budget, budgets.used_bytes) == (50, 100)
    budgets.leave(shards[1])
    assert (shards[0].budget, budgets.used_bytes) == (100, 100)
    budgets.make_room([60], 100)
    budgets.leave(None)  # the new one could not be opened
    assert shards[0].budget == 100
