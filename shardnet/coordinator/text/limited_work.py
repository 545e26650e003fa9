"""Work that may take only so much: in a thread, by the processor time that it takes, so that a busy machine is no reason to stop it."""

from __future__ import annotations

import asyncio
import ctypes
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar, cast

Result = TypeVar("Result")


class _TimeIsUp(BaseException):
    """Raised inside the working thread."""


class LimitedWork(Generic[Result]):
    """Python code in a thread, limited by the processor time that it takes there.

    Args:
        work: stopped between two steps of Python, so a single long operation in C is not.
    """

    def __init__(self, work: Callable[[], Result]) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._clock: int | None = None
        self._begun_s = 0.0
        self._stopped = False

    async def result(self, limit_s: float) -> Result:
        """Returns: what the work returns. Raises: what it raises; TimeoutError if it was stopped."""
        task = asyncio.create_task(asyncio.to_thread(self._run))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # also when nobody waits any more
        try:
            left_s = limit_s
            while not task.done():
                if left_s <= 0:
                    raise TimeoutError
                await asyncio.wait({task}, timeout=max(0.01, left_s))
                left_s = limit_s - self._used_s()
            return cast(Result, task.result())  # only work that was stopped has none
        finally:
            self._interrupt()  # the task may be done, cancelled, before its thread

    def _run(self) -> Result | None:
        with self._lock:
            if self._stopped:
                return None
            self._thread = threading.get_ident()
            if hasattr(time, "pthread_getcpuclockid"):
                self._clock = time.pthread_getcpuclockid(self._thread)
            self._begun_s = self._now_s()
        try:
            return self._work()
        except _TimeIsUp:
            return None
        finally:
            try:
                with self._lock:
                    self._thread = None
            except _TimeIsUp:  # it came in the last moment
                self._thread = None

    def _now_s(self) -> float:
        # macOS does not tell another thread's processor time: there it is the time that passes.
        return time.monotonic() if self._clock is None else time.clock_gettime(self._clock)

    def _used_s(self) -> float:
        with self._lock:
            return self._now_s() - self._begun_s if self._thread is not None else 0.0

    def _interrupt(self) -> None:
        with self._lock:
            self._stopped = True
            if self._thread is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), ctypes.py_object(_TimeIsUp))
