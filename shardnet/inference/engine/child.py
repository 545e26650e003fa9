"""One engine process as the daemon holds it: the frames to and from it, and its end."""

from __future__ import annotations

import asyncio
import socket
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Self, cast

from shardnet.errors import Busy, EngineCrashed, EngineError, RemoteProtocolError, ShardnetError
from shardnet.inference.engine.interface import OnLink, OnProgress, OnRow, OnStep
from shardnet.inference.engine.protocol import (
    FROM_ENGINE,
    TO_ENGINE,
    EngineSettings,
    Failed,
    FromEngine,
    Halt,
    Load,
    Loading,
    Query,
    Ready,
    RowsLost,
    RowsMet,
    ToEngine,
    Unload,
)
from shardnet.inference.engine.row_packets import split
from shardnet.inference.engine.spawning import how_it_ended, last_line, spawn, was_out_of_memory
from shardnet.inference.engine.steps import ROW_BYTES, ROW_LINK, RowDone, Step, StepDone
from shardnet.limits.killing import memory_kills
from shardnet.log import get
from shardnet.steps import NextStep
from shardnet.wire import Buffer, Frame, FrameDecoder, encode

log = get("engine")

REAP_TIMEOUT_S = 3.0


class Child(asyncio.BufferedProtocol):
    """A running engine process. Make one with `start`; `wait` is its life."""

    def __init__(self, process: Process, last_words: IO[bytes], packets: socket.socket, on_link: OnLink) -> None:
        self._process = process
        self._packets = packets
        self._packet = memoryview(bytearray(ROW_BYTES))
        self._on_link = on_link
        self._last_words = last_words
        self._decoder: FrameDecoder[FromEngine] = FrameDecoder(FROM_ENGINE)
        self._transport: asyncio.Transport | None = None
        self._answers: dict[str, asyncio.Future[Frame[FromEngine]]] = {}
        self._listeners: dict[str, OnProgress] = {}
        self._steps: dict[str, _Asked] = {}
        self._runs: dict[tuple[str, int], _Run] = {}  # by command and stage
        self._disconnected = asyncio.Event()
        self._ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._death: EngineCrashed | None = None
        self._kills_before = memory_kills()

    @classmethod
    async def start(cls, settings: EngineSettings, on_link: OnLink, environment: Mapping[str, str]) -> Self:
        """Start a process and connect to it.

        Args:
            on_link: gets what it tells of its own links.
            environment: variables beside those of this process.

        Raises: EngineError if the operating system refuses.
        """
        process, frames, packets, last_words = await spawn(environment)
        child = cls(process, last_words, packets, on_link)
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: child, sock=frames)
            asyncio.get_running_loop().add_reader(packets.fileno(), child.packet_received)
        except BaseException:
            frames.close()
            packets.close()
            child.kill()
            raise
        child.send(settings)
        return child

    @property
    def pid(self) -> int:
        """Returns: the process id."""
        return self._process.pid

    @property
    def is_dead(self) -> bool:
        """True from the moment that everything that waited for it has failed."""
        return self._death is not None

    async def ready(self, timeout_s: float) -> Ready:
        """Wait for its first word. Raises: EngineError if it does not come; EngineCrashed if the process ends instead."""
        try:
            return await asyncio.wait_for(asyncio.shield(self._ready), timeout_s)
        except TimeoutError:
            raise EngineError(
                f"the engine process did not start within {timeout_s:.0f} s: the machine is very busy; start the node again, "
                "or give it longer by inference.start_timeout_s"
            ) from None

    # -- frames ------------------------------------------------------------------------------------------------------

    def send(self, message: ToEngine, payloads: Sequence[Buffer] = ()) -> None:
        """Send without waiting for an answer; nothing happens if the process is gone."""
        if self._transport is not None and not self._transport.is_closing():
            for data in encode(TO_ENGINE, message, payloads):
                self._transport.write(data)

    def request(
        self, message: Load | Unload | Query, on_progress: OnProgress | None = None
    ) -> asyncio.Future[Frame[FromEngine]]:
        """Send a command. Returns: its answer; the future raises what the engine answers, or EngineCrashed if the process dies first."""
        if self._death is not None:
            raise self._crash()
        answer: asyncio.Future[Frame[FromEngine]] = asyncio.get_running_loop().create_future()
        self.send(message)
        self._answers[message.command_id] = answer
        if on_progress is not None:
            self._listeners[message.command_id] = on_progress
        return answer

    def step(self, step: Step, payloads: Sequence[Buffer], on_answer: OnStep, on_row: OnRow | None = None) -> None:
        """Send a step; each answer goes to `on_answer` at once, also those of the same command that is still under way."""
        if self._death is not None:
            on_answer(self._crash())
            return
        asked = self._steps.get(step.command_id)
        if asked is not None:
            asked.listeners.append(on_answer)
            return
        if on_row is not None:
            self._runs[step.command_id, step.stage] = _Run(on_answer, on_row)
        self._steps[step.command_id] = _Asked([on_answer], begins_rows=on_row is not None)
        try:
            self.send(step, payloads)
        except ShardnetError as error:
            del self._steps[step.command_id]
            self._runs.pop((step.command_id, step.stage), None)
            on_answer(error)

    def row(self, row: NextStep, payloads: Sequence[Buffer]) -> None:
        """Send a row of a run."""
        try:
            self._packets.sendmsg((row.pack(), *payloads))
        except OSError as error:
            run = self._runs.pop((row.command_id, row.stage), None)
            if run is not None:
                run.on_answer(Busy(f"the engine does not take rows quickly enough ({error})", retry_after_s=1))

    def halt(self, command_id: str) -> None:
        """End a run."""
        self._end_runs(command_id)
        self.send(Halt(command_id=command_id))

    def _end_runs(self, command_id: str) -> list[OnStep]:
        """Returns: who is to hear of it, if something ended them."""
        ended = [key for key in self._runs if key[0] == command_id]
        return [self._runs.pop(key).on_answer for key in ended]

    def adopt(self, link_id: int, connection: socket.socket) -> None:
        """Hand over a connection that another engine dialled; if that cannot be, it is closed, and both sides know."""
        with connection:
            try:
                socket.send_fds(self._packets, [ROW_LINK.pack(link_id)], [connection.fileno()])
            except OSError as error:
                self._on_link(RowsLost(link_id=link_id, reason=f"the engine takes no connection now ({error})"))

    def packet_received(self) -> None:
        """Rows are done, maybe several of one batch: what they have us send goes out in one turn of the event loop."""
        try:
            count = self._packets.recv_into(self._packet)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:  # the process has ended, which the other connection tells too
            asyncio.get_running_loop().remove_reader(self._packets.fileno())
            return
        try:
            rows = [RowDone.unpack(record) for record in split(self._packet[:count])]
        except RemoteProtocolError as error:
            log.error("engine_spoke_nonsense", reason=error.message)
            self.kill()
            return
        for done in rows:
            self._row_done(done)

    def _row_done(self, done: RowDone) -> None:
        run = self._runs.get((done.command_id, done.stage))
        if run is None:
            return  # nobody wants it any more
        if done.command_id in self._steps:  # two sockets: the step that began the run was done before
            run.early.append(done)
        else:
            self._tell_row(run, done)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's."""
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """asyncio's: where the next bytes go, a large tensor's straight into its place."""
        return self._decoder.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """asyncio's."""
        try:
            for frame in self._decoder.advance(nbytes):
                self._take(frame)
        except ShardnetError as error:
            log.error("engine_spoke_nonsense", reason=error.message)
            self.kill()

    def _take(self, frame: Frame[FromEngine]) -> None:
        message = frame.message
        if isinstance(message, StepDone):
            asked = self._steps.get(message.command_id)
            if asked is not None:
                if asked.begins_rows or not message.ahead:
                    del self._steps[message.command_id]
                _tell(asked.listeners, cast("Frame[StepDone]", frame))
            self._tell_early(message.command_id)
            return
        if isinstance(message, RowsMet | RowsLost):
            self._on_link(message)
            return
        if isinstance(message, Loading):
            listener = self._listeners.get(message.command_id)
            if listener is not None:
                listener(message)
            return
        if isinstance(message, Ready):
            if not self._ready.done():
                self._ready.set_result(message)
            return
        self._listeners.pop(message.command_id, None)
        answer = self._answers.pop(message.command_id, None)
        if answer is None and isinstance(message, Failed):
            asked = self._steps.pop(message.command_id, None)
            listeners = [*(asked.listeners if asked is not None else ()), *self._end_runs(message.command_id)]
            _tell(list(dict.fromkeys(listeners)), message.error.to_error())
        if answer is None or answer.done():
            return  # whoever asked has gone
        if isinstance(message, Failed):
            answer.set_exception(message.error.to_error())
        else:
            answer.set_result(frame)

    def _tell_early(self, command_id: str) -> None:
        for run in [run for key, run in self._runs.items() if key[0] == command_id]:
            early, run.early = run.early, []
            for done in early:
                self._tell_row(run, done)

    def _tell_row(self, run: _Run, done: RowDone) -> None:
        if not done.ahead:
            self._runs.pop((done.command_id, done.stage), None)
        try:
            run.on_row(done)
        except Exception:
            log.exception("engine_answer_not_taken")

    def connection_lost(self, _error: Exception | None) -> None:
        """asyncio's."""
        self._disconnected.set()

    # -- the end -----------------------------------------------------------------------------------------------------

    async def wait(self) -> EngineCrashed:
        """Live until the process has ended and is reaped; then everything that waits for it fails. Returns: what they were told."""
        await self._disconnected.wait()
        asyncio.get_running_loop().remove_reader(self._packets.fileno())
        self._packets.close()
        try:
            await asyncio.wait_for(self._process.wait(), REAP_TIMEOUT_S)
        except TimeoutError:
            self.kill()
            await self._process.wait()
        self._death = self._death_of(
            self._process.returncode
        )  # on no thread: at the end of a program there is none to be had
        if not self._ready.done():
            self._ready.set_exception(self._death)
            self._ready.exception()  # nobody may be waiting for it
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(self._crash())
        self._answers.clear()
        self._listeners.clear()
        listeners = [on_answer for asked in self._steps.values() for on_answer in asked.listeners]
        listeners += [run.on_answer for run in self._runs.values()]
        self._steps, self._runs = {}, {}
        _tell(list(dict.fromkeys(listeners)), self._crash())
        return self._death

    def _crash(self) -> EngineCrashed:
        """Returns: the death as an error of its own, for one more who waits."""
        assert self._death is not None
        return EngineCrashed(self._death.message, **self._death.facts)

    def _death_of(self, code: int | None) -> EngineCrashed:
        words, out_of_memory = last_line(self._last_words), was_out_of_memory(code, self._kills_before)
        how = how_it_ended(code, out_of_memory=out_of_memory)
        return EngineCrashed(f"the engine died ({how}{': ' if words else ''}{words})", out_of_memory=out_of_memory)

    def close(self) -> None:
        """Ask it to end: it does when its connection closes and the batch under way is done."""
        if self._transport is not None:
            self._transport.close()

    def kill(self) -> None:
        """End it now."""
        if self._process.returncode is None:
            self._process.kill()


@dataclass(slots=True)
class _Asked:
    """Who hears of a step. `begins_rows`: it has one answer, whatever follows; else one until `ahead` is 0."""

    listeners: list[OnStep]
    begins_rows: bool


@dataclass(slots=True)
class _Run:
    """Who hears of a run's rows. `early`: those that were done before the step that began the run was told to be."""

    on_answer: OnStep
    on_row: OnRow
    early: list[RowDone] = field(default_factory=list)


def _tell(listeners: Sequence[OnStep], answer: Frame[StepDone] | ShardnetError) -> None:
    """A listener that fails must not take the engine's connection with it."""
    for on_answer in listeners:
        try:
            on_answer(answer)
        except Exception:
            log.exception("engine_answer_not_taken")
