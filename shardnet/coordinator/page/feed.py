"""One look at the swarm for everybody who watches: what changed is worded once and sent to all open pages.

A page gets the whole first (`all`), then `picture` where something happened, `pulse` each second, `log` with new lines. Looking takes at most one
part in `SHARE` of the event loop's time: where it takes long, it is done less often. A page that does not read gets the whole again when it does.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from shardnet.coordinator.page.guide import guide
from shardnet.coordinator.page.picture import Departures, picture
from shardnet.coordinator.page.pulse import Pulse, Reading, answers_json, loads_json, nodes_json
from shardnet.journal import Journal
from shardnet.messages import Address

Json = dict[str, Any]
EVERY_S = 1.0
SOONEST_S = 0.2
"""Where something happened it is told so soon, and no sooner, after what was told before."""
UNWATCHED_S = 10.0
"""While nobody watches, it is looked so seldom who is there, so that those who leave can be named."""
SHARE = 100
MOST_BEHIND = 32


class _Watcher:
    """One open page: what it is still to be sent."""

    def __init__(self) -> None:
        self.waiting: deque[bytes] = deque()
        self.news = asyncio.Event()

    def give(self, events: bytes) -> bool:
        """Returns: False if it has not read for long."""
        if len(self.waiting) >= MOST_BEHIND:
            return False
        self.waiting.append(events)
        self.news.set()
        return True

    def take_all(self) -> bytes:
        events = b"".join(self.waiting)
        self.waiting.clear()
        self.news.clear()
        return events


class Feed:
    """Belongs to the event loop's thread; only `poke` may be called from others.

    Args:
        status: what `/status` says.
        reading: what the counters say now.
        enrol: where other machines are taken in, as they reach it.
    """

    def __init__(
        self,
        status: Callable[[], Json],
        reading: Callable[[], Reading],
        enrol: Callable[[], Address | None],
        *,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._status = status
        self._reading = reading
        self._enrol = enrol
        self._now_s = now_s
        self._pulse = Pulse()
        self._departures = Departures()
        self._watchers: set[_Watcher] = set()
        self._poked = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._journal = Journal(self.poke)
        self._picture: Json = {}
        self._figures: Json = {}
        self._sent_picture = ""
        self._sent_line = 0
        self._looked_s = float("-inf")
        self._took_s = 0.0
        self._is_closed = False

    @property
    def n_watchers(self) -> int:
        """Returns: pages that are open."""
        return len(self._watchers)

    def poke(self) -> None:
        """Something happened: tell it soon."""
        if self._loop is not None and not self._loop.is_closed() and self._watchers:
            self._loop.call_soon_threadsafe(self._poked.set)

    async def run(self) -> None:
        """Take the figures each second, and tell those who watch, until cancelled."""
        self._loop = asyncio.get_running_loop()
        with self._journal:
            self._pulse.take(self._reading())
            due_s = self._now_s() + EVERY_S
            while True:
                was_poked = await self._wait(due_s - self._now_s())
                now_s = self._now_s()
                sample = None
                if now_s >= due_s:
                    due_s = max(due_s + EVERY_S, now_s)
                    sample = self._pulse.take(self._reading())
                if self._watchers and (sample is not None or was_poked):
                    self._tell(sample)
                elif not self._watchers and now_s - self._looked_s > UNWATCHED_S:
                    self._look()
                pause_s = max(SOONEST_S, SHARE * self._took_s)
                await asyncio.sleep(pause_s if was_poked else 0)

    async def _wait(self, timeout_s: float) -> bool:
        """Returns: True if something happened meanwhile."""
        try:
            async with asyncio.timeout(max(0.0, timeout_s)):
                await self._poked.wait()
        except TimeoutError:
            return False
        self._poked.clear()
        return True

    # -- looking -------------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Look at the swarm, unless that was done just now."""
        now_s = self._now_s()
        if now_s - self._looked_s < SHARE * self._took_s:
            return
        began_s = time.perf_counter()
        status = self._status()
        seen = picture(status)
        seen["gone"] = self._departures.look(seen, now_s)
        seen["guide"] = guide(seen, self._enrol())
        self._picture = seen
        self._figures = {
            "at_s": round(now_s, 2),
            "uptime_s": status["coordinator"]["uptime_s"],
            "requests": status["requests"],
            "nodes": nodes_json(status["nodes"]),
            "loads": loads_json(status["nodes"]),
            "answers": answers_json(self._reading()),
        }
        self._looked_s = now_s
        self._took_s = time.perf_counter() - began_s

    def _tell(self, sample: Json | None) -> None:
        self._look()
        events = []
        shown = json.dumps(self._picture, separators=(",", ":"))
        if shown != self._sent_picture:
            self._sent_picture = shown
            events.append(_event("picture", shown))
        events.append(_event("pulse", _worded(self._figures | {"sample": sample})))
        lines = self._journal.after(self._sent_line)
        if lines:
            self._sent_line = lines[-1]["number"]
            events.append(_event("log", _worded(lines)))
        told = b"".join(events)  # one write for each page, whatever happened: a write is what a page costs
        behind = [watcher for watcher in self._watchers if not watcher.give(told)]
        if behind:
            whole = self._whole_event()
            for watcher in behind:
                watcher.waiting.clear()
                watcher.give(whole)

    def whole(self) -> Json:
        """Returns: everything that a page shows, as of now."""
        if self._now_s() - self._looked_s > SOONEST_S:
            self._look()
        return {
            "picture": self._picture,
            "pulse": self._figures,
            "samples": self._pulse.samples,
            "log": self._journal.after(0),
        }

    def _whole_event(self) -> bytes:
        return _event("all", _worded(self.whole()))

    # -- watching ------------------------------------------------------------------------------------------------------------

    async def follow(self) -> AsyncIterator[bytes]:
        """Yield server-sent events for one page, several at once where several came: first the whole, then what changes, until `close`.

        Something comes each second (`run`), so no comment need keep the connection alive.
        """
        watcher = _Watcher()
        watcher.give(self._whole_event())
        self._watchers.add(watcher)
        try:
            while not self._is_closed:
                await watcher.news.wait()
                if watcher.waiting:
                    yield watcher.take_all()
        finally:
            self._watchers.discard(watcher)

    def close(self) -> None:
        """Every page's stream ends; none begins any more."""
        self._is_closed = True
        for watcher in self._watchers:
            watcher.news.set()


def _event(name: str, data: str) -> bytes:
    return f"event: {name}\ndata: {data}\n\n".encode()


def _worded(data: Any) -> str:
    return json.dumps(data, separators=(",", ":"))
