"""Back-off grows and is bounded; one peer's failure stays at its own connection."""

from __future__ import annotations

import asyncio
import gc
import warnings

import pytest

from shardnet.errors import Busy, PeerLost
from shardnet.lifecycle import Backoff, Jobs, peer_guard, run_loop


def test_delays_double_up_to_the_most_and_start_again_after_success() -> None:
    backoff = Backoff(first_s=0.1, most_s=5.0)
    delays = [backoff.next_delay_s() for _ in range(10)]
    assert 0.05 <= delays[0] <= 0.1
    assert all(2.5 <= delay <= 5.0 for delay in delays[6:])
    backoff.reset()
    assert backoff.next_delay_s() <= 0.1


@pytest.mark.parametrize("error", [PeerLost("gone"), ConnectionResetError(), TimeoutError(), RuntimeError("a bug")])
async def test_a_peers_failure_does_not_pass_its_guard(error: Exception) -> None:
    async with peer_guard("peer"):
        raise error


async def test_cancellation_passes_the_guard() -> None:
    with pytest.raises(asyncio.CancelledError):
        async with peer_guard("peer"):
            raise asyncio.CancelledError


async def test_a_job_that_ends_before_it_began_leaves_no_warning_behind() -> None:
    jobs = Jobs()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        async with asyncio.TaskGroup() as jobs.group:
            jobs.spawn(asyncio.sleep(1), "never begun").cancel()
        gc.collect()
    assert not told
    assert not list(jobs)


def test_the_loop_is_uvloop_where_there_is_one() -> None:
    async def name() -> str:
        return type(asyncio.get_running_loop()).__module__

    assert run_loop(name()).startswith("uvloop")


async def test_a_job_that_comes_before_there_is_room_for_any_is_refused_and_closed() -> None:
    jobs, closed = Jobs(), []

    async def work() -> None:
        closed.append("began")

    never = work()
    with pytest.raises(Busy, match="starting"):
        jobs.spawn(never, "early")
    with pytest.raises(RuntimeError, match="cannot reuse"):
        await never
    assert closed == []
    async with asyncio.TaskGroup() as group:
        jobs.group = group
        await jobs.spawn(work(), "later")
    assert closed == ["began"]
