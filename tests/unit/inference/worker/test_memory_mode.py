"""Which memory mode a shard gets, with what budget, and why."""

from __future__ import annotations

from collections import Counter
from unittest.mock import Mock

import pytest

from shardnet.errors import NoRoomError
from shardnet.inference.engine.memory import Need
from shardnet.inference.llama.model import LlamaContext
from shardnet.inference.llama.read_ahead import ReadAhead
from shardnet.inference.worker.memory_mode import SPARE_DIVISOR, Asked, Free, choose
from shardnet.inference.worker.shard import Shard
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


def test_a_streamed_shard_keeps_kv_and_buffers_and_spare_room_out_of_its_budget() -> None:
    have = 700 * MB
    chosen = choose("auto", SHARD, free(have))
    assert chosen.budget == have - have // SPARE_DIVISOR - BESIDE
    assert chosen.needed == chosen.budget + BESIDE <= have
    assert chosen.why.endswith("314.6 MB of weights stay, 734.0 MB are read for each token")


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


@pytest.mark.parametrize(("threads", "computing"), [(4, 3), (2, 1), (1, 1)])
def test_a_streamed_shard_leaves_a_thread_to_reading(threads: int, computing: int) -> None:
    context = Mock(spec=LlamaContext)
    shard = Shard(Mock(), Mock(), context, has_head=True, memory_bytes=0, gpus=Counter(), mapped_bytes=0)
    shard.set_threads(threads)
    context.set_threads.assert_called_with(threads)
    shard.ahead = Mock(spec=ReadAhead)
    shard.set_threads(threads)
    context.set_threads.assert_called_with(computing)
