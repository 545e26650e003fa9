"""Stall watchdog, eviction, figures: decided from plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from shardnet.errors import NoRoomError
from shardnet.torrent.eviction import StoredShard, plan_eviction
from shardnet.torrent.progress import human_seconds
from shardnet.torrent.slots import FIRST_SLOTS, SeedReading, UploadSlots
from shardnet.torrent.watchdog import Remedy, StallWatchdog
from tests.support.torrent_stats import STATS


def shard(shard_id: int, **facts: object) -> StoredShard:
    base = StoredShard("a" * 64, shard_id, 100, False, False, 1, 0.0)
    return dataclasses.replace(base, **facts)  # type: ignore[arg-type]


def test_remedies_come_one_timeout_apart_and_begin_anew_after_progress() -> None:
    watchdog = StallWatchdog(10.0)
    readings = [(0, 5), (9, 5), (10, 5), (11, 5), (20, 5), (30, 5), (40, 5), (45, 6), (54, 6), (55, 6)]
    found = [watchdog.observe(at_s=at, bytes_done=done, is_checking=False) for at, done in readings]
    assert found == [
        None,
        None,
        Remedy.RECONNECT,
        None,
        Remedy.RESTART,
        Remedy.READD,
        Remedy.RECONNECT,
        None,
        None,
        Remedy.RECONNECT,
    ]
    assert watchdog.stalled_s(60) == 15


def test_hashing_what_is_there_is_no_stall_and_losing_pieces_is_no_progress() -> None:
    watchdog = StallWatchdog(10.0)
    assert watchdog.observe(at_s=0, bytes_done=100, is_checking=True) is None
    assert watchdog.observe(at_s=50, bytes_done=0, is_checking=True) is None
    assert watchdog.observe(at_s=55, bytes_done=90, is_checking=False) is None
    assert watchdog.observe(at_s=60, bytes_done=95, is_checking=False) is Remedy.RECONNECT


def test_nothing_is_evicted_while_the_budget_holds() -> None:
    assert plan_eviction([shard(0), shard(1)], needed_bytes=100, budget_bytes=300) == []
    assert plan_eviction([shard(0)], needed_bytes=10**12, budget_bytes=0) == []


def test_the_least_needed_goes_first() -> None:
    files = [
        shard(0, is_assigned=True, other_holders=9),
        shard(1, last_used_s=5.0),
        shard(2, last_used_s=1.0),
        shard(3, other_holders=4, last_used_s=9.0),
    ]
    assert [f.shard_id for f in plan_eviction(files, needed_bytes=400, budget_bytes=400)] == [3, 2, 1, 0]
    assert [f.shard_id for f in plan_eviction(files, needed_bytes=150, budget_bytes=400)] == [3, 2]


def test_loaded_shards_and_last_known_copies_stay_even_if_nothing_fits_then() -> None:
    files = [shard(0, is_loaded=True), shard(1, other_holders=0), shard(2)]
    assert [f.shard_id for f in plan_eviction(files, needed_bytes=100, budget_bytes=300)] == [2]
    with pytest.raises(NoRoomError, match="too small") as caught:
        plan_eviction(files, needed_bytes=101, budget_bytes=300)
    assert caught.value.facts == {"needed_bytes": 101, "free_bytes": 100}


def test_a_small_file_stays_when_a_larger_one_has_to_go_anyway() -> None:
    files = [shard(0, file_bytes=10, other_holders=5), shard(1, file_bytes=500)]
    assert [f.shard_id for f in plan_eviction(files, needed_bytes=400, budget_bytes=510)] == [1]


def test_figures_become_the_line_that_people_see() -> None:
    from shardnet.log import sentence

    slower = dataclasses.replace(STATS, bytes_total=10**9, bytes_done=42 * 10**7, download_bytes_per_s=48_000_000)
    line = sentence({"event": "torrent_progress"} | slower.log_fields())
    assert line == "[TORRENT] shard 3 42 % 48.0 MB/s, 3 peers, 12 s left"
    begun = dataclasses.replace(slower, peers=1, download_bytes_per_s=0)
    assert sentence({"event": "torrent_progress"} | begun.log_fields()).endswith("0 B/s, 1 peer")  # and no time left
    assert dataclasses.replace(STATS, download_bytes_per_s=0).eta_s is None
    assert dataclasses.replace(STATS, bytes_done=1000, download_bytes_per_s=0).eta_s == 0


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")])
def test_durations_read_well(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


def run_slots(slots: UploadSlots, seconds: range, rate: Callable[[int], float], downloaders: int = 5) -> list[int]:
    """Let time pass in steps of one second; `rate(count)` is what this many slots send per second."""
    seen, sent = [], 0.0
    for second in seconds:
        slots.observe(float(second), {"seed": SeedReading(int(sent), downloaders)})
        seen.append(slots.slots.get("seed", FIRST_SLOTS))
        sent += rate(seen[-1])
    return seen


def test_one_slot_is_enough_where_it_fills_the_line() -> None:
    assert set(run_slots(UploadSlots(most=8), range(200), lambda count: 10_000)) == {1}


def test_a_peer_that_slows_down_gets_company() -> None:
    slots = UploadSlots(most=8)
    assert set(run_slots(slots, range(20), lambda count: 10_000)) == {1}
    slower = run_slots(slots, range(20, 60), lambda count: min(10_000, count * 4_000))
    assert slower[-1] == 2


def test_a_dead_peer_in_the_only_slot_is_passed_quickly_and_bounds_hold() -> None:
    seen = run_slots(UploadSlots(most=6), range(60), lambda count: 0)
    assert seen[:12] == [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 4, 4]
    assert seen[-1] == 6
    assert set(run_slots(UploadSlots(most=6), range(60), lambda count: 0, downloaders=1)) == {1}


def test_only_the_slowest_of_several_seeds_is_widened_and_a_removed_one_is_forgotten() -> None:
    slots = UploadSlots(most=8, best_rate=1e9)
    for second in range(6):
        both = {"fast": SeedReading(second * 1000, 3), "slow": SeedReading(second, 3)}
        widened = slots.observe(float(second), both)
    assert widened == "slow"
    assert slots.slots == {"slow": 2}
    assert slots.observe(6.0, {"fast": SeedReading(6000, 3)}) is None
    assert slots.slots == {}
