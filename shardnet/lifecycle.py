"""How a daemon lives: event loop, signals, exit codes, back-off, and the guard around each peer.

The first SIGINT or SIGTERM asks the daemon to stop; a second leaves at once.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from shardnet.errors import Busy, ShardnetError
from shardnet.log import get

TERMINATED = 128 + signal.SIGTERM
"""The exit code that a shell gives to what SIGTERM ended."""
EXIT_WITH_PARENT = "SHARDNET_EXIT_WITH_PARENT"
"""Environment variable: pid of the parent whose death ends this process too."""

PR_SET_PDEATHSIG = 1
"""Source: prctl(2)."""

SWITCH_S = 0.001
"""So long a thread's Python code runs on when the event loop wants to. Python's own 5 ms at every wake of the loop add up to gaps between tokens."""
NATIVE_STACK_BYTES = 64 << 20
"""For a process that shows a client's grammar to llama.cpp, which parses it by recursion."""

T = TypeVar("T")

log = get("lifecycle")


class Component(Protocol):
    """`run()` is the component's life; `stop()` is synchronous, repeatable, and only asks. `by`: what asked, for who is told of it."""

    async def run(self) -> None: ...

    def stop(self, by: str = "") -> None: ...


def leave_tidily_on_sigterm() -> None:
    """For a command that is no daemon: SIGTERM ends it as Ctrl-C does, through every `finally`, so that nothing half-written stays."""
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(TERMINATED))


def new_loop() -> asyncio.AbstractEventLoop:
    """Returns: an event loop of the quickest kind there is, whatever the program's own policy."""
    if sys.platform == "win32":
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


def run_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end on uvloop (asyncio's own loop where uvloop does not exist)."""
    sys.setswitchinterval(SWITCH_S)
    gc.freeze()  # what was imported lives for ever: no collection need look at it again, in the middle of a token
    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            return runner.run(main)
    finally:
        main.close()  # Ctrl-C may come before it began, which Python would warn of


def die_with_parent(parent_pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel to send us a signal when our parent dies, however it dies. Linux only; elsewhere nothing happens."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before we asked
        os.kill(os.getpid(), number)


async def serve(component: Component) -> None:
    """Run a daemon until it ends or a signal stops it; when this returns, nothing of it is left.

    Raises: KeyboardInterrupt once everything is down, if it was Ctrl-C that stopped it.
    """
    if parent := os.environ.get(EXIT_WITH_PARENT):
        die_with_parent(int(parent), signal.SIGTERM)
    loop = asyncio.get_running_loop()
    asked: list[int] = []

    def on_signal(number: int) -> None:
        asked.append(number)
        if len(asked) > 1:
            os._exit(128 + number)
        component.stop("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    try:
        await component.run()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    if asked == [signal.SIGINT]:
        raise KeyboardInterrupt


@dataclass(slots=True)
class Backoff:
    """Jittered exponential delays: 0.1 s doubling to 5 s, each drawn from the upper half of its interval.

    Source: the AWS architecture blog's "equal jitter".
    """

    first_s: float = 0.1
    most_s: float = 5.0
    _next_s: float = 0.0

    def next_delay_s(self) -> float:
        """Returns: seconds to wait before the next attempt."""
        self._next_s = min(self.most_s, self._next_s * 2 or self.first_s)
        return self._next_s * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """The attempt worked: the next failure waits little again."""
        self._next_s = 0.0


class Pace:
    """So many bytes a second, for everybody who takes some: a second's worth may go at once after a rest."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at_s = 0.0

    async def take(self, n_bytes: int) -> None:
        """Wait until it is these bytes' turn."""
        loop = asyncio.get_running_loop()
        start_s = max(self._free_at_s, loop.time() - 1.0)
        self._free_at_s = start_s + n_bytes / self._bytes_per_s
        await asyncio.sleep(self._free_at_s - loop.time())


def first_of(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Returns: the first error of a group, which may hold groups."""
    error = errors.exceptions[0]
    return first_of(error) if isinstance(error, BaseExceptionGroup) else error


Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]
"""Starts a job that lives no longer than the daemon: `Jobs.spawn`."""


class Jobs:
    """Jobs of a daemon, started from wherever: each ends with the daemon at the latest, and its failure ends there.

    Before `group` is set none can start. Iterate over it for those that run.
    """

    def __init__(self) -> None:
        self.group: asyncio.TaskGroup | None = None
        self._running: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator[asyncio.Task[None]]:
        return iter(tuple(self._running))

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start a job. Raises: Busy while the daemon is starting; `work` is closed then."""
        if self.group is None:
            work.close()
            raise Busy("this daemon is starting: ask again in a moment", retry_after_s=1)

        async def guarded() -> None:
            async with peer_guard(name):
                await work

        task = self.group.create_task(guarded(), name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(
            lambda _task: work.close()
        )  # of a job that was cancelled before it began; else there is nothing to close
        return task


@asynccontextmanager
async def peer_guard(peer: str) -> AsyncIterator[None]:
    """One peer's failure ends at its own connection: expected errors become one log line, bugs a traceback, and neither goes further."""
    try:
        yield
    except (ShardnetError, OSError) as error:
        log.info("peer_ended", peer=peer, reason=str(error) or type(error).__name__)
    except Exception:
        log.exception("peer_handler_failed", peer=peer)


def become_a_child(stack_bytes: int) -> None:
    """Make this process, at its start, one that a daemon of ours keeps for native code.

    The terminal's Ctrl-C is the daemon's to answer: it drains and then closes us. Should it die itself, so do we.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with_parent(os.getppid())
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash must not spend seconds on writing weights to disk
        _, most = resource.getrlimit(resource.RLIMIT_STACK)
        if most == resource.RLIM_INFINITY or most > stack_bytes:
            resource.setrlimit(resource.RLIMIT_STACK, (stack_bytes, most))
