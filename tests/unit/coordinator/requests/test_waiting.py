"""Whoever serves a client waits for what comes of its request, for as long as it likes."""

from __future__ import annotations

import asyncio

import pytest

from shardnet.coordinator.requests.pipeline import Generation
from shardnet.coordinator.requests.running import Running
from shardnet.coordinator.text.answering import PlainStream
from tests.unit.coordinator.requests.test_pipeline import generation


@pytest.fixture
def running() -> Running:
    machine: Generation = generation()
    return Running(machine, PlainStream(lambda _: b""), lambda _: None, lambda _: None, 0.0)


async def test_news_end_the_wait_and_nothing_does_in_time(running: Running) -> None:
    assert not await running.wait(0.01)
    waiting = asyncio.create_task(running.wait(20))
    await asyncio.sleep(0)
    running.wake()
    running.wake()
    assert await waiting
    assert await running.wait(0), "they are there until they are taken"
    running.take()
    assert not await running.wait(0.01)


async def test_news_before_the_wait_and_after_one_that_was_given_up_are_found(running: Running) -> None:
    running.wake()
    assert await running.wait()
    running.take()
    waiting = asyncio.create_task(running.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    running.wake()
    assert await running.wait()
