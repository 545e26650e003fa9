"""Links that are slow on purpose: a TCP relay that delays what passes and lets only so many bytes per second through, each direction for itself.

What enters at time `t` leaves at `max(t, when the link is free) + bytes / bandwidth` and arrives one delay later. Times are absolute, counted
from when the bytes came in, so that errors of single timers do not add up; order is kept. What TCP itself would do on such a link (slow
start, loss) is not imitated: the relay's two halves are connections over loopback.

Timers must be good to some tens of microseconds, which event loops over epoll are not (they count in milliseconds): `Relays` runs a loop
over select(2) in a process of its own (`python -m shardnet.bench.netem`) that does nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import selectors
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

from shardnet.children import python_module
from shardnet.errors import ShardnetError, UsageError
from shardnet.lifecycle import die_with_parent
from shardnet.messages import Address

MAX_QUEUED_BYTES = 16 << 20
"""Of one direction of one connection: a sender that is so far ahead waits."""
START_TIMEOUT_S = 30.0
PR_SET_TIMERSLACK = 29
"""Source: prctl(2)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One direction of a link.

    Attributes:
        one_way_s: delay.
        bytes_per_s: bandwidth; 0: not limited.
    """

    one_way_s: float = 0.0
    bytes_per_s: float = 0.0

    @property
    def is_free(self) -> bool:
        """Returns: True if nothing is held back."""
        return not self.one_way_s and not self.bytes_per_s


NETS: dict[str, Shape] = {
    "loopback": Shape(),
    "1gbit": Shape(bytes_per_s=125e6),
    "100mbit": Shape(bytes_per_s=12.5e6),
    "20ms": Shape(one_way_s=0.010),
    "100ms": Shape(one_way_s=0.050),
}
"""The grid. A time names a round trip."""


def parse_nets(text: str) -> list[str]:
    """Returns: the networks of a list such as `loopback,20ms`. Raises: UsageError."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [name for name in names if name not in NETS]
    if unknown or not names:
        raise UsageError(f"--net {text!r}: the networks are {', '.join(NETS)}", param="net")
    return list(dict.fromkeys(names))


class Wire:
    """When bytes arrive that enter one direction of a link. Pure; shared by all connections over that link."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._free_at_s = 0.0

    def arrival_s(self, now_s: float, nbytes: int) -> float:
        """Returns: when the last of `nbytes` that enter at `now_s` is at the other end."""
        if self._shape.bytes_per_s:
            self._free_at_s = max(now_s, self._free_at_s) + nbytes / self._shape.bytes_per_s
            now_s = self._free_at_s
        return now_s + self._shape.one_way_s


class _Half(asyncio.Protocol):
    """What one side sends, on its way to the other."""

    def __init__(self, wire: Wire, other: _Half | None = None) -> None:
        self._wire = wire
        self.other = other
        self.transport: asyncio.Transport | None = None
        self._queue: deque[tuple[float, bytes]] = deque()
        self._queued_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """asyncio's: bytes enter the link."""
        due_s = self._wire.arrival_s(time.monotonic(), len(data))
        self._queue.append((due_s, data))
        self._queued_bytes += len(data)
        if self._queued_bytes > MAX_QUEUED_BYTES and self.transport is not None:
            self.transport.pause_reading()
        if self._timer is None:
            self._deliver()

    def eof_received(self) -> bool:
        """asyncio's: this side sends no more, but may still read."""
        self._ended = True
        if self._timer is None:
            self._deliver()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's: what is under way still arrives."""
        self._ended = True
        self.transport = None
        if self._timer is None:
            self._deliver()

    def begin(self) -> None:
        """The other side is there."""
        if self._timer is None:
            self._deliver()

    def _deliver(self) -> None:
        """Hand over all that has arrived by now, and wait for the next."""
        self._timer = None
        target = self.other.transport if self.other is not None else None
        if self.other is None:
            return
        now_s = time.monotonic()
        while self._queue and self._queue[0][0] <= now_s:
            _, data = self._queue.popleft()
            self._queued_bytes -= len(data)
            if target is not None:
                target.write(data)
        if self.transport is not None and self._queued_bytes <= MAX_QUEUED_BYTES // 2:
            with contextlib.suppress(RuntimeError):
                self.transport.resume_reading()
        if self._queue:
            self._timer = asyncio.get_running_loop().call_at(self._queue[0][0], self._deliver)
        elif self._ended and target is not None:
            if self.transport is None:
                target.close()
            elif target.can_write_eof():
                with contextlib.suppress(OSError):
                    target.write_eof()


class Relay:
    """One slow link: everything that connects to `address` reaches `target`, and back, at the link's pace.

    All connections share the link: so many bytes per second in each direction together.
    """

    def __init__(self, target: Address, there: Shape, back: Shape) -> None:
        self._target = target
        self._wires = Wire(there), Wire(back)
        self._server: asyncio.Server | None = None
        self._halves: set[_Half] = set()
        self._dials: set[asyncio.Task[None]] = set()

    async def start(self) -> Address:
        """Returns: where the link begins: a free port of 127.0.0.1."""
        self._server = await asyncio.get_running_loop().create_server(self._accept, "127.0.0.1", 0)
        return Address(host="127.0.0.1", port=self._server.sockets[0].getsockname()[1])

    def _accept(self) -> _Half:
        half = _Half(self._wires[0])
        self._halves = {one for one in self._halves if one.transport is not None} | {half}
        task = asyncio.get_running_loop().create_task(self._dial(half))
        self._dials.add(task)
        task.add_done_callback(self._dials.discard)
        return half

    async def _dial(self, near: _Half) -> None:
        far = _Half(self._wires[1], near)
        try:
            await asyncio.get_running_loop().create_connection(lambda: far, self._target.host, self._target.port)
        except OSError:
            if near.transport is not None:
                near.transport.abort()
            return
        self._halves.add(far)
        near.other = far
        near.begin()

    async def close(self) -> None:
        """Cut every connection."""
        if self._server is not None:
            self._server.close()
        for task in self._dials:
            task.cancel()
        await asyncio.gather(*self._dials, return_exceptions=True)
        for half in self._halves:
            if half.transport is not None:
                half.transport.abort()
        await asyncio.sleep(0)  # a turn of the loop, in which the sockets are closed


class Relays:
    """Slow links in a process of their own. Use as a context manager."""

    def __init__(self, there: Shape, back: Shape | None = None) -> None:
        self._shapes = {"there": asdict(there), "back": asdict(back or there)}
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [*python_module("shardnet.bench.netem"), json.dumps(self._shapes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        process, self._process = self._process, None
        if process is None or process.stdin is None or process.stdout is None:
            return
        process.stdin.close()  # which ends it
        try:
            process.wait(START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def add(self, target: Address) -> Address:
        """Returns: the near end of a new link to `target`. Blocks for some milliseconds. Raises: ShardnetError if the process is gone."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.write(json.dumps({"host": target.host, "port": target.port}) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise ShardnetError("the process that slows links down has ended; its last words are above")
        return Address.model_validate_json(line)


async def _serve(shapes: dict[str, dict[str, float]]) -> None:
    """Open one relay for each line of standard input, until it ends."""
    loop = asyncio.get_running_loop()
    there, back = Shape(**shapes["there"]), Shape(**shapes["back"])
    relays: list[Relay] = []
    lines: asyncio.Queue[str] = asyncio.Queue()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(lines.put_nowait, line)
        loop.call_soon_threadsafe(lines.put_nowait, "")

    reading = loop.run_in_executor(None, read)
    while line := await lines.get():
        relay = Relay(Address.model_validate_json(line), there, back)
        address = await relay.start()
        relays.append(relay)
        sys.stdout.write(address.model_dump_json() + "\n")
        sys.stdout.flush()
    await reading
    for relay in relays:
        await relay.close()


def new_precise_loop() -> asyncio.AbstractEventLoop:
    """Returns: an event loop whose timers are good to some tens of microseconds."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


def main(text: str) -> None:
    """The process: see `Relays`."""
    import os

    die_with_parent(os.getppid())
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0)  # nanoseconds, instead of 50,000
    shapes: dict[str, dict[str, Any]] = json.loads(text)
    with asyncio.Runner(loop_factory=new_precise_loop) as runner:
        runner.run(_serve(shapes))


if __name__ == "__main__":
    main(sys.argv[1])
