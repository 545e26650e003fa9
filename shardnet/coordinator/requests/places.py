"""Sequences are few: who has one on which nodes, and the queue of those who wait until one is free."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from shardnet.coordinator.placement.planning import Route
from shardnet.errors import Busy, ShardnetError
from shardnet.log import counted

RETRY_AFTER_S = 2.0


class Places:
    """Sequences in use. A holder, any object, has a place on every node of one route at most. Pure."""

    def __init__(self) -> None:
        self._used: Counter[tuple[str, str]] = Counter()
        self._held: dict[Hashable, Route] = {}

    @property
    def used(self) -> Mapping[tuple[str, str], int]:
        """Returns: (model id, node id) -> sequences in use there."""
        return self._used

    def has_room(self, route: Route) -> bool:
        """True if every node of the route has a sequence that nobody uses."""
        return self._most_used(route) < route.options.n_seq

    def pick(self, routes: Sequence[Route]) -> Route | None:
        """Returns: the route with the most room, the quickest of equal ones; None if all sequences are in use."""
        return min(filter(self.has_room, routes), key=self._most_used, default=None)

    def take(self, holder: Hashable, route: Route) -> None:
        """Give a holder that has no place one on the route."""
        assert holder not in self._held
        self._held[holder] = route
        for node_id in set(route.node_ids):
            self._used[route.model_id, node_id] += 1

    def release(self, holder: Hashable) -> bool:
        """Take a holder's place back. Returns: False if it had none."""
        route = self._held.pop(holder, None)
        if route is None:
            return False
        for node_id in set(route.node_ids):
            self._used[route.model_id, node_id] -= 1
            if self._used[route.model_id, node_id] <= 0:
                del self._used[route.model_id, node_id]
        return True

    def _most_used(self, route: Route) -> int:
        return max(self._used[route.model_id, node_id] for node_id in route.node_ids)


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """A request in the queue. Once `route` is set it holds a place there, until the request takes its own."""

    model_id: str
    route: asyncio.Future[Route]


class PlaceQueue:
    """Requests that wait for a place, in the order in which they came; those of one model do not hold up those of another.

    Args:
        routes: pipelines of a model that are ready now.
        not_ready: why there is none.
        freed: called when a place came too late for who waited for it, and is free again.
    """

    def __init__(
        self,
        places: Places,
        routes: Callable[[str], list[Route]],
        not_ready: Callable[[str], ShardnetError],
        freed: Callable[[], None],
        *,
        max_queued: int,
        timeout_s: float,
    ) -> None:
        self._places = places
        self._routes = routes
        self._not_ready = not_ready
        self._freed = freed
        self._max_queued = max_queued
        self._timeout_s = timeout_s
        self._queue: deque[_Waiting] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def has(self, model_id: str) -> bool:
        """True if somebody waits for a place of the model."""
        return any(waiting.model_id == model_id for waiting in self._queue)

    def count(self, model_id: str) -> int:
        """Returns: how many wait for a place of the model."""
        return sum(waiting.model_id == model_id for waiting in self._queue)

    async def wait(self, model_id: str, *, is_more: bool = False) -> Route:
        """Returns: a route with a free place, which is to be taken before anything else happens.

        Args:
            is_more: for more of a request that has begun, and may well be what it waits for: neither line nor wait is too long.

        Raises: Busy if the queue is full or the wait too long; what `not_ready` gives if the last pipeline goes meanwhile.
        """
        if len(self._queue) >= self._max_queued and not is_more:
            raise Busy(
                f"all sequences are in use and {counted(len(self._queue), 'request')} in line already: try again later",
                retry_after_s=RETRY_AFTER_S,
            )
        waiting = _Waiting(model_id, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        try:
            async with asyncio.timeout(None if is_more else self._timeout_s):
                route = await waiting.route
        except BaseException as error:
            if waiting in self._queue:
                self._queue.remove(waiting)
            elif self._places.release(waiting):  # it came in the last moment: the next one's turn
                self._freed()
            if isinstance(error, TimeoutError):
                raise Busy(
                    f"no sequence became free within {self._timeout_s:.0f} s: try again later",
                    retry_after_s=RETRY_AFTER_S,
                ) from None
            raise
        self._places.release(waiting)
        return route

    def serve(self) -> None:
        """Places or routes may have become free: whoever can go on does."""
        for waiting in tuple(self._queue):
            if waiting.route.done():
                continue
            routes = self._routes(waiting.model_id)
            route = self._places.pick(routes)
            if route is not None:
                self._queue.remove(waiting)
                self._places.take(waiting, route)
                waiting.route.set_result(route)
            elif not routes:
                self._queue.remove(waiting)
                waiting.route.set_exception(self._not_ready(waiting.model_id))

    def refuse_all(self, why: str) -> None:
        """Nobody's turn will come."""
        for waiting in tuple(self._queue):
            if not waiting.route.done():
                waiting.route.set_exception(Busy(why, retry_after_s=RETRY_AFTER_S))
        self._queue.clear()
