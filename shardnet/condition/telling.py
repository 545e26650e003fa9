"""A daemon looks at itself once a second, on its own event loop, and says how it is to all who watch over it.

Ready, to a service manager, is a daemon as soon as it is up and listens: a node that waits for its coordinator is ready to be found by it, and a
service manager that ended it for waiting would help nobody. Who wants to know whether it is of use already asks `shardnet health --ready`.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from shardnet.condition.notify import Notifier
from shardnet.condition.record import BEAT_S, State, Told, beat, write_record
from shardnet.errors import ShardnetError
from shardnet.log import get

LOOK_S = 1.0

Describe = Callable[[], tuple[State, str]]
"""How the daemon is now: its state, and that in words. Called often: it only looks."""

log = get("condition")


class Condition:
    """An asynchronous context manager for a daemon's life; `stopping` is for its end.

    Args:
        folder: of the daemon's identity, which it holds.
        interval_s: between two looks; for tests.
    """

    def __init__(
        self,
        folder: Path,
        role: Literal["node", "coordinator"],
        describe: Describe,
        *,
        notifier: Notifier | None = None,
        interval_s: float = LOOK_S,
    ) -> None:
        self._folder = folder
        self._role: Literal["node", "coordinator"] = role
        self._describe = describe
        self._notifier = Notifier.from_environ() if notifier is None else notifier
        self._interval_s = interval_s
        self._told: Told | None = None
        self._changed = asyncio.Event()
        self._is_up = False
        self._tasks: tuple[asyncio.Task[None], ...] = ()

    async def __aenter__(self) -> Self:
        """Begin to tell."""
        if self._notifier.watchdog_s is not None:
            with contextlib.suppress(OSError, ValueError, AttributeError):  # no standard error to write to
                faulthandler.enable(sys.stderr)  # the watchdog ends us by SIGABRT: what hung is then told
        self.look()
        self._tasks = (
            asyncio.create_task(self._keep_looking(), name="condition"),
            asyncio.create_task(self._keep_written(), name="condition file"),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def look(self) -> None:
        """See how the daemon is, and tell what is new of it: at once, where a second would be late."""
        state, sentence = self._describe()
        told = Told(role=self._role, state=state, sentence=sentence, pid=os.getpid())
        if told == self._told:
            return
        words = {"STATUS": sentence}
        if state == "stopping":
            words["STOPPING"] = "1"
        elif state != "starting" and not self._is_up:
            self._is_up = True
            words["READY"] = "1"
        self._told = told
        self._changed.set()
        self._notifier.send(**words)

    async def _keep_looking(self) -> None:
        loop = asyncio.get_running_loop()
        period_s = self._notifier.watchdog_s
        next_ping_s = 0.0
        while True:
            self.look()
            if period_s is not None and loop.time() >= next_ping_s:
                self._notifier.send(WATCHDOG="1")
                next_ping_s = loop.time() + period_s / 4
            await asyncio.sleep(self._interval_s if period_s is None else min(self._interval_s, period_s / 4))

    async def _keep_written(self) -> None:
        """In a thread: a disk that is slow holds no token up."""
        has_failed = False
        while True:
            try:
                async with asyncio.timeout(BEAT_S):
                    await self._changed.wait()
            except TimeoutError:
                pass
            told, is_new = self._told, self._changed.is_set()
            self._changed.clear()
            try:
                if is_new and told is not None:
                    await asyncio.to_thread(write_record, self._folder, told)
                else:
                    await asyncio.to_thread(beat, self._folder)
                has_failed = False
            except (OSError, ShardnetError) as error:
                self._changed.set()  # tried again, so that the file is right once there is room
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(beat, self._folder)
                if not has_failed:
                    log.warning("condition_not_written", reason=str(error))
                has_failed = True
                await asyncio.sleep(BEAT_S)
