"""The engine process: `python -m shardnet.inference.worker FD PACKETS`, its ends of two socket pairs: for frames, and for rows of runs.

One loop: take in every frame that has arrived, then run one batch, answer, repeat. Loading goes on on a thread beside it. The process has no file
descriptor of the daemon's but this socket, ends when it closes, and is killed by the kernel should the daemon die.
"""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
import socket
import struct
import sys
import time
from collections import deque
from math import ceil
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardnet.errors import EngineError, RemoteProtocolError, ShardnetError
from shardnet.inference.batching import Waiting, is_prompt_chunk, next_batch
from shardnet.inference.census import EngineCensus, share_of_cores
from shardnet.inference.chains import Chains, Outcome, Task
from shardnet.inference.devices import all_devices, usable_threads
from shardnet.inference.llama import LLAMA_CPP_VERSION, start_backend
from shardnet.inference.loading import Finished, Loader, Progress
from shardnet.inference.pacing import Pacing, WaitingRow
from shardnet.inference.protocol import (
    FROM_ENGINE,
    TO_ENGINE,
    BatchTime,
    CutRows,
    DialRows,
    EngineSettings,
    Failed,
    Forget,
    FromEngine,
    Halt,
    Load,
    Loaded,
    Loading,
    Query,
    Ready,
    Report,
    TakeRows,
    ToEngine,
    Unload,
    Unloaded,
)
from shardnet.inference.row_links import RowLinks
from shardnet.inference.runs import Row, Run, Runs
from shardnet.inference.steps import BEGINS_RUN, ROW_BYTES, ROW_LINK, Step, StepDone
from shardnet.messages import ErrorInfo
from shardnet.wire import Buffer, Frame, FrameDecoder, encode

PR_SET_PDEATHSIG = 1
DESCRIPTOR = struct.Struct("i")
ANCILLARY_BYTES = socket.CMSG_SPACE(DESCRIPTOR.size)
STACK_BYTES = 64 << 20
"""llama.cpp parses grammars by recursion."""


class Worker:
    """The engine process's state and loop."""

    def __init__(
        self, connection: socket.socket, packets: socket.socket, settings: EngineSettings, census: EngineCensus
    ) -> None:
        self._connection = connection
        self._packets = packets
        self._packet = memoryview(bytearray(ROW_BYTES))
        self._census = census
        self._wanted_threads = settings.threads
        self._threads = self._fair_threads()
        self._decoder: FrameDecoder[ToEngine] = FrameDecoder(TO_ENGINE)
        self._chains = Chains()
        self._waiting: dict[int, tuple[Waiting, Task]] = {}
        self._tickets = 0
        self._last_was_decode = False
        self._pacing = Pacing()
        self._busy_from_s, self._own_s, self._computed_s = time.perf_counter(), time.thread_time(), 0.0
        self._loads: deque[Load] = deque()
        self._unloads: list[Unload] = []
        self._loaded: SimpleQueue[Progress | Finished] = SimpleQueue()
        self._bell, self._bell_rope = socket.socketpair()
        self._bell.setblocking(False)
        self._poll = select.poll()
        self._runs = Runs(self._chains, packets, self._fail, self._queue)
        self._links = self._runs.links = RowLinks(
            settings.membership, self._poll, self._runs.take, self._send, self._runs.link_lost, self._ring
        )
        used = lambda: (self._chains.memory_bytes, self._chains.gpu_bytes)  # noqa: E731
        self._loader = Loader(settings, self._on_loader, used, lambda: self._threads)

    # -- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until the daemon closes the connection."""
        connection, packets, bell = self._connection.fileno(), self._packets.fileno(), self._bell.fileno()
        for descriptor in (connection, packets, bell):
            self._poll.register(descriptor, select.POLLIN)
        wait_s: float | None = None
        while True:
            for descriptor, events in self._sleep(wait_s):
                if descriptor == connection:
                    if not self._receive():
                        return
                elif descriptor == packets:
                    if not self._take_packets():
                        self._poll.unregister(packets)
                elif descriptor == bell:
                    self._bell.recv(4096)
                    self._take_loaded()
                    self._links.take_met()
                else:
                    self._links.serve(descriptor, events)
            if self._runs.has_rows:
                run = self._runs.go(is_free=not self._waiting)
                if run is not None:
                    self._note(run, 1)
            wait_s = self._run_batch() if self._waiting else None
            if self._runs.has_rows or (self._waiting and wait_s is None):
                wait_s = 0.0

    def _sleep(self, wait_s: float | None) -> list[tuple[int, int]]:
        """Wait for something to take. Returns: what there is (descriptor, events).

        Args:
            wait_s: at most; None: nothing waits here for its batch.
        """
        if wait_s == 0.0:
            return self._poll.poll(0)
        began_s = time.perf_counter()
        ready = self._poll.poll(None if wait_s is None else ceil(1e3 * wait_s))
        now_s = time.perf_counter()
        self._busy_from_s = now_s if wait_s is None else self._busy_from_s + now_s - began_s
        return ready

    def _note(self, run: Run | None, rows: int = 0) -> None:
        """A batch is done. It took all the time since the one before that the engine did not sleep: what comes with each row (links, telling the
        daemon) keeps a stage busy as llama.cpp and sampling do.

        But a row that is handed on wakes the next stage's engine, and on a machine that runs both, that may take our core before we come to
        look at the clock. Beside computing only our own time counts, unless computing was not done by this thread at all (on a GPU).

        Args:
            run: one of those whose rows it was, in neighbouring slots, and that goes on (else its row may not have been run at all); None: it was
                another batch.
        """
        now_s, own_s, computed_s = time.perf_counter(), time.thread_time(), self._chains.busy_s
        if run is not None and not run.is_over:
            seconds, computing_s = now_s - self._busy_from_s, computed_s - self._computed_s
            running_s = own_s - self._own_s
            if computing_s < running_s < seconds:
                seconds = running_s
            self._pacing.note(run.chain, rows, seconds, 0.0 if run.is_alone else max(0.0, seconds - computing_s))
        self._busy_from_s, self._own_s, self._computed_s = now_s, own_s, computed_s

    def _ring(self) -> None:
        """On another thread: there is something to take."""
        self._bell_rope.send(b"!")

    def _receive(self) -> bool:
        """Take in all that has arrived. Returns: False when the daemon has closed."""
        while True:
            space = self._decoder.get_buffer()
            try:
                count = self._connection.recv_into(space, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return True
            except ConnectionError:
                return False
            if count == 0:
                return False
            for frame in self._decoder.advance(count):
                self._take(frame)
            if count < len(space):
                return True  # whatever came since wakes the next select

    def _take(self, frame: Frame[ToEngine]) -> None:
        match frame.message:
            case Step() as step:
                self._take_step(step, frame)
            case Load() as load:
                self._take_load(load)
            case Unload() as unload:
                self._take_unload(unload)
            case Forget(sequence_id=sequence_id):
                self._forget(sequence_id)
            case Halt(command_id=command_id):
                self._runs.end(command_id)
                for _, task in self._waiting.values():
                    if task.step.command_id == command_id:
                        task.step = task.step._replace(ahead=0)
            case Query(command_id=command_id):
                self._share_cores()
                self._send(
                    Report(
                        command_id=command_id,
                        devices=all_devices(),
                        sequences=self._chains.n_sequences,
                        busy_s=self._chains.busy_s,
                        batches=tuple(
                            BatchTime(
                                chain=chain,
                                rows=rows,
                                us=seconds * 1e6,
                                beside_us=beside_s * 1e6,
                            )
                            for chain, rows, seconds, beside_s in self._pacing.told()
                        ),
                    )
                )
            case DialRows():
                self._links.dial(frame.message)
            case TakeRows(link_id=link_id, node_id=node_id):
                self._links.allow(link_id, node_id)
            case CutRows(link_id=link_id):
                self._links.cut(link_id)
            case EngineSettings():
                raise RemoteProtocolError("settings came twice")

    def _fair_threads(self) -> int:
        return self._wanted_threads or share_of_cores(usable_threads(), self._census.count())

    def _share_cores(self) -> None:
        """Engines come and go: each takes its share of the cores, unless its user named a number."""
        threads = self._fair_threads()
        if threads != self._threads:
            self._threads = threads
            self._chains.set_threads(threads)

    # -- steps -------------------------------------------------------------------------------------------------------

    def _take_step(self, step: Step, frame: Frame[ToEngine]) -> None:
        tokens: NDArray[np.int32] = _array(frame.payloads[0], np.int32)
        hidden: NDArray[np.float32] | None = None
        if step.n_embd:
            hidden = _array(frame.payloads[1], np.float32).reshape(step.n_tokens, step.n_embd)
        if step.run == BEGINS_RUN:
            self._runs.begin(step)
        else:
            self._runs.end_others(step)
        self._queue(Task(0, step, tokens, hidden, arrived_s=time.perf_counter()))

    def _take_packets(self) -> bool:
        """Take the packets that are here: rows of runs, and connections for the engine's own links. Returns: False when there will be no more."""
        while True:
            try:
                count, brought, *_ = self._packets.recvmsg_into([self._packet], ANCILLARY_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return True
            except ConnectionError:
                return False
            if not count:
                return False
            if count == ROW_LINK.size:
                for _, _, descriptors in brought:
                    (descriptor,) = DESCRIPTOR.unpack(descriptors)
                    self._links.adopt(ROW_LINK.unpack_from(self._packet)[0], socket.socket(fileno=descriptor))
            else:
                self._runs.take(self._packet[:count], None)

    def _queue(self, task: Task) -> None:
        """Have a step wait for its batch; one that cannot be is answered now."""
        step = task.step
        try:
            max_rows = self._chains.check(task)
        except ShardnetError as error:
            self._fail(step.command_id, error)
            return
        task.ticket = self._tickets
        waiting = Waiting(
            ticket=task.ticket,
            chain=(step.model_id, step.first_shard, step.end_shard),
            sequence=(step.model_id, step.sequence_id),
            n_tokens=step.n_tokens,
            is_prompt=is_prompt_chunk(step.n_tokens, step.sample_from),
            max_rows=max_rows,
        )
        self._waiting[task.ticket] = (waiting, task)
        self._tickets += 1

    def _run_batch(self) -> float | None:
        """Run one batch of what waits. Returns: None; seconds to wait for more rows, if that pays: then nothing was run."""
        chosen = next_batch((w for w, _ in self._waiting.values()), last_was_decode=self._last_was_decode)
        began_s = time.perf_counter()
        tickets: tuple[int, ...] = tuple(w.ticket for w in chosen)
        rows = {ticket: row for ticket in tickets if isinstance(row := self._waiting[ticket][1].row, Row)}
        are_rows = are_neighbours = len(rows) == len(tickets)
        if are_rows:
            chain = rows[tickets[0]].run.chain
            waiting = [WaitingRow(ticket, row.run.slot, row.arrived_s) for ticket, row in rows.items()]
            choice = self._pacing.choose(chain, waiting, *self._runs.expected(chain), began_s)
            if not choice.tickets and len(self._waiting) == len(rows):
                return choice.wait_s
            are_neighbours = bool(choice.tickets)
            tickets = choice.tickets or tickets
        self._last_was_decode = not chosen[0].is_prompt
        tasks = [self._waiting.pop(ticket)[1] for ticket in tickets]
        if not (are_rows and len(tasks) == 1 and self._runs.run_short(rows[tickets[0]])):
            self._chains.run(tasks, lambda outcome: self._answer(outcome, began_s))
            self._runs.flush()
        self._note(rows[tickets[0]].run if are_neighbours else None, len(tasks))
        return None

    def _answer(self, outcome: Outcome, began_s: float) -> None:
        step = outcome.task.step
        if outcome.error is not None:
            self._fail(step.command_id, outcome.error)
            return
        if isinstance(outcome.task.row, Row):
            self._runs.answer(outcome.task.row, outcome, began_s)
            return
        begins_run = step.run == BEGINS_RUN
        payloads: list[Buffer] = [rows.data for rows in (outcome.hidden, outcome.logits) if rows is not None]
        self._send(
            StepDone(
                command_id=step.command_id,
                position=step.position + (0 if step.sample_from is None else step.sample_from + 1),
                tokens=tuple(outcome.tokens),
                logprobs=tuple(outcome.logprobs),
                ahead=(self._runs.begun if begins_run else self._go_ahead)(step, outcome.tokens),
                queue_us=max(0.0, (began_s - outcome.task.arrived_s) * 1e6),
                compute_us=outcome.compute_s * 1e6,
                batch_tokens=outcome.batch_rows,
                rows=0 if outcome.hidden is None else len(outcome.hidden),
                n_embd=0 if outcome.hidden is None else outcome.hidden.shape[1],
                n_vocab=0 if outcome.logits is None else outcome.logits.shape[1],
            ),
            payloads,
        )

    def _go_ahead(self, step: Step, tokens: list[int]) -> int:
        """Let a run's next step wait, with the token that this one sampled. Returns: how many more answers the run will have."""
        if not step.ahead or len(tokens) != 1 or step.sample_from != step.n_tokens - 1:
            return 0
        position = step.position + step.n_tokens
        room = self._chains.room(step, position)
        if not room:
            return 0
        following = step._replace(
            position=position, n_tokens=1, sample_from=0, ahead=min(step.ahead, room) - 1, n_embd=0
        )
        token = np.array(tokens, dtype=np.int32)
        self._queue(Task(0, following, token, None, arrived_s=time.perf_counter()))
        return following.ahead + 1

    def _forget(self, sequence_id: str) -> None:
        stale = [t for t, (_, task) in self._waiting.items() if task.step.sequence_id == sequence_id]
        for ticket in stale:
            _, task = self._waiting.pop(ticket)
            self._fail(task.step.command_id, EngineError("the sequence was dropped before this step ran"))
        self._runs.end_sequence(sequence_id)
        self._chains.forget(sequence_id)

    # -- loading -----------------------------------------------------------------------------------------------------

    def _take_load(self, request: Load) -> None:
        shard = self._chains.get(request.model_id, request.shard_id)
        if shard is not None:
            if (shard.request.path, shard.request.options) == (request.path, request.options):
                self._tell_loaded(request, shard.memory_bytes, shard.gpu_layers, shard.load_s)
                return
            self._remove(request.model_id, request.shard_id)  # its memory may be needed for the new one
        self._loads.append(request)
        self._loader.submit(request)

    def _take_unload(self, request: Unload) -> None:
        if any((r.model_id, r.shard_id) == (request.model_id, request.shard_id) for r in self._loads):
            self._unloads.append(request)  # when it has come
            return
        self._remove(request.model_id, request.shard_id)
        self._send(Unloaded(command_id=request.command_id))

    def _remove(self, model_id: str, shard_id: int) -> None:
        self._runs.forget_lanes()
        self._pacing.forget(model_id)
        self._chains.remove(model_id, shard_id)

    def _on_loader(self, event: Progress | Finished) -> None:
        """On the loader's thread."""
        self._loaded.put(event)
        self._ring()

    def _take_loaded(self) -> None:
        while True:
            try:
                event = self._loaded.get_nowait()
            except Empty:
                return
            request = event.request
            if isinstance(event, Progress):
                self._send(Loading(command_id=request.command_id, progress=event.share))
                continue
            self._loads.remove(request)
            if isinstance(event.result, ShardnetError):
                self._fail(request.command_id, event.result)
            else:
                shard = event.result
                shard.context.set_threads(self._threads)  # the share may have changed while it was loaded
                self._runs.forget_lanes()
                self._chains.add(shard)
                self._tell_loaded(request, shard.memory_bytes, shard.gpu_layers, shard.load_s)
            due, self._unloads = self._unloads, []
            for unload in due:
                self._take_unload(unload)

    def _tell_loaded(self, request: Load, memory_bytes: int, gpu_layers: int, load_s: float) -> None:
        self._send(
            Loaded(command_id=request.command_id, memory_bytes=memory_bytes, gpu_layers=gpu_layers, load_s=load_s)
        )

    # -- answering ---------------------------------------------------------------------------------------------------

    def _fail(self, command_id: str, error: ShardnetError) -> None:
        self._runs.end(command_id)
        self._send(Failed(command_id=command_id, error=ErrorInfo.of(error)))

    def _send(self, message: FromEngine, payloads: list[Buffer] | None = None) -> None:
        send_all(self._connection, encode(FROM_ENGINE, message, payloads or ()))


def _array(data: memoryview, dtype: Any) -> NDArray[Any]:
    """Returns: a tensor's numbers. A header may have any length, so that what follows it may stand at any address."""
    array = np.frombuffer(data, dtype=dtype)
    return array if array.flags.aligned else array.copy()


def send_all(connection: socket.socket, buffers: list[Buffer]) -> None:
    """Write all buffers in order; waits while the other side does not read."""
    left = [memoryview(buffer).cast("B") for buffer in buffers]
    while left:
        sent = connection.sendmsg(left)
        while left and sent >= len(left[0]):
            sent -= len(left.pop(0))
        if left:
            left[0] = left[0][sent:]


def _receive_settings(connection: socket.socket) -> EngineSettings | None:
    decoder: FrameDecoder[ToEngine] = FrameDecoder(TO_ENGINE)
    while data := connection.recv(4096):
        for frame in decoder.feed(data):
            if isinstance(frame.message, EngineSettings):
                return frame.message
            raise RemoteProtocolError("settings must come first")
    return None


def _become_a_child() -> None:
    """The terminal's Ctrl-C is the daemon's to answer: it drains and then closes us. Should it die itself, so do we."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash must not spend seconds on writing weights to disk
        _, most = resource.getrlimit(resource.RLIMIT_STACK)
        if most == resource.RLIM_INFINITY or most > STACK_BYTES:
            resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, most))


def main(descriptor: int, packets_descriptor: int) -> None:
    """Run an engine on the sockets `descriptor` (frames) and `packets_descriptor` (rows of runs) until the first closes."""
    _become_a_child()
    with socket.socket(fileno=descriptor) as connection, socket.socket(fileno=packets_descriptor) as packets:
        packets.setblocking(True)
        connection.setblocking(True)
        settings = _receive_settings(connection)
        if settings is None:
            return
        start_backend()
        census = EngineCensus()
        worker = Worker(connection, packets, settings, census)
        try:
            ready = Ready(pid=os.getpid(), llama_cpp=LLAMA_CPP_VERSION, devices=all_devices())
            send_all(connection, encode(FROM_ENGINE, ready))
            gc.freeze()  # what was imported lives for ever: the collector need not look at it again
            worker.run()
        except (BrokenPipeError, ConnectionResetError):
            pass  # the daemon is gone
        census.close()
    os._exit(0)  # the kernel frees gigabytes faster than destructors, and a load under way cannot be stopped


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
