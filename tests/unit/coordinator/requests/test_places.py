"""Places on routes, and the queue for them."""

from __future__ import annotations

import asyncio

import pytest

from shardnet.coordinator.placement.planning import Route
from shardnet.coordinator.requests.places import RETRY_AFTER_S, PlaceQueue, Places
from shardnet.errors import Busy, PlacementError
from shardnet.messages import ShardOptions, StageRef
from tests.support.coordinator_world import node_id

MODEL_ID = "ab" * 32


def route(*numbers: int, n_seq: int = 2, model_id: str = MODEL_ID) -> Route:
    stages = tuple(
        StageRef(node_id=node_id(number), address=None, first_shard=index, end_shard=index + 1)
        for index, number in enumerate(numbers)
    )
    return Route(model_id, stages, ShardOptions(n_ctx=256, n_seq=n_seq, n_batch=8))


# -- places ------------------------------------------------------------------------------------------------------------------------


def test_the_emptiest_route_is_picked_and_of_equal_ones_the_first() -> None:
    places, routes = Places(), [route(1, 2), route(3)]
    assert places.pick(routes) == routes[0]
    places.take("a", routes[0])
    assert places.pick(routes) == routes[1]
    places.take("b", routes[1])
    assert places.pick(routes) == routes[0]


def test_a_route_is_full_when_one_of_its_nodes_is() -> None:
    places = Places()
    for holder in "ab":
        places.take(holder, route(2))
    assert places.pick([route(1, 2)]) is None
    assert places.has_room(route(1))
    assert places.has_room(route(2, model_id="cd" * 32)), "each model has sequences of its own"


def test_a_node_that_runs_two_stages_counts_once() -> None:
    places = Places()
    places.take("a", route(1, 2, 1))
    assert dict(places.used) == {(MODEL_ID, node_id(1)): 1, (MODEL_ID, node_id(2)): 1}


def test_a_place_is_given_back_once() -> None:
    places = Places()
    places.take("a", route(1))
    assert places.release("a")
    assert not places.release("a")
    assert not places.used


# -- the queue ---------------------------------------------------------------------------------------------------------------------


class World:
    """One route with one sequence, in use, and a queue for it."""

    def __init__(self, *, max_queued: int = 4, timeout_s: float = 60.0) -> None:
        self.ready = [route(1, n_seq=1)]
        self.places = Places()
        self.places.take("somebody", self.ready[0])
        self.freed = 0
        self.queue = PlaceQueue(
            self.places,
            lambda _model_id: self.ready,
            lambda _model_id: PlacementError("not ready"),
            self._on_freed,
            max_queued=max_queued,
            timeout_s=timeout_s,
        )

    def _on_freed(self) -> None:
        self.freed += 1

    async def waiter(self) -> asyncio.Task[Route]:
        task = asyncio.create_task(self.queue.wait(MODEL_ID))
        await asyncio.sleep(0)
        return task

    def leave(self) -> None:
        self.places.release("somebody")
        self.queue.serve()


async def test_who_came_first_goes_first_and_finds_the_place_free() -> None:
    world = World()
    first, second = await world.waiter(), await world.waiter()
    assert world.queue.has(MODEL_ID)
    world.leave()
    assert await first == world.ready[0]
    assert not world.places.used, "the place is the request's to take now"
    assert not second.done()
    world.queue.serve()
    assert await second == world.ready[0]
    assert len(world.queue) == 0


async def test_a_place_that_comes_to_somebody_who_leaves_at_that_moment_is_free_again() -> None:
    world = World()
    waiter = await world.waiter()
    world.leave()
    assert world.places.used
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert not world.places.used
    assert world.freed == 1


async def test_who_gives_up_leaves_the_queue_and_takes_nothing() -> None:
    world = World()
    waiter = await world.waiter()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    world.leave()
    assert (len(world.queue), world.freed, dict(world.places.used)) == (0, 0, {})


async def test_a_full_queue_and_a_long_wait_are_refused_with_a_hint_when_to_come_back() -> None:
    world = World(max_queued=1, timeout_s=0.01)
    waiter = await world.waiter()
    with pytest.raises(Busy, match="1 request in line already") as full:
        await world.queue.wait(MODEL_ID)
    assert full.value.facts["retry_after_s"] == RETRY_AFTER_S
    with pytest.raises(Busy, match="no sequence became free"):
        await waiter


async def test_who_waits_is_told_when_the_last_pipeline_goes_and_when_all_is_over() -> None:
    world = World()
    waiter = await world.waiter()
    world.ready = []
    world.queue.serve()
    with pytest.raises(PlacementError, match="not ready"):
        await waiter
    waiter = await world.waiter()
    world.queue.refuse_all("the end")
    with pytest.raises(Busy, match="the end"):
        await waiter
