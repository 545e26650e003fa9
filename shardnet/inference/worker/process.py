"""The engine process: `python -m shardnet.inference.worker.process FD PACKETS`, its ends of two socket pairs: for frames, and for rows of runs.

One loop: take in every frame that has arrived, then run one batch, answer, repeat. Loading goes on on a thread beside it. The process has no file
descriptor of the daemon's but this socket, ends when it closes, and is killed by the kernel should the daemon die.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import struct
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardnet.errors import RemoteProtocolError, ShardnetError
from shardnet.inference.engine.protocol import (
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
    Query,
    Ready,
    Report,
    StreamedShard,
    TakeRows,
    ToEngine,
    Unload,
)
from shardnet.inference.engine.steps import ROW_BYTES, ROW_LINK, Step
from shardnet.inference.llama.census import EngineCensus, share_of_cores
from shardnet.inference.llama.devices import all_devices, free_threads, instruction_sets, usable_threads
from shardnet.inference.llama.model import start_backend
from shardnet.inference.llama.thread_choice import ThreadChoice
from shardnet.inference.worker.busy_time import BusyTime
from shardnet.inference.worker.chains import Chains
from shardnet.inference.worker.pacing import Pacing
from shardnet.inference.worker.row_links import RowLinks
from shardnet.inference.worker.runs import Runs
from shardnet.inference.worker.shard_orders import ShardOrders
from shardnet.inference.worker.step_queue import StepQueue
from shardnet.inference.worker.tasks import Task
from shardnet.lifecycle import NATIVE_STACK_BYTES, become_a_child
from shardnet.messages import ErrorInfo
from shardnet.wire import Buffer, Frame, FrameDecoder, encode

DESCRIPTOR = struct.Struct("i")
ANCILLARY_BYTES = socket.CMSG_SPACE(DESCRIPTOR.size)


class Worker:
    """The engine process's state and loop."""

    def __init__(
        self, connection: socket.socket, packets: socket.socket, settings: EngineSettings, census: EngineCensus
    ) -> None:
        self._connection = connection
        self._packets = packets
        self._packet = memoryview(bytearray(ROW_BYTES))
        self._census = census
        wanted = settings.inference.threads
        self._threads = ThreadChoice(wanted or self._fair_threads(), first=free_threads(), learns=not wanted)
        self._shares_cores = not wanted
        self._decoder: FrameDecoder[ToEngine] = FrameDecoder(TO_ENGINE)
        self._chains = Chains()
        self._pacing = Pacing()
        self._busy = BusyTime(self._chains, self._pacing)
        self._bell, self._bell_rope = socket.socketpair()
        self._bell.setblocking(False)
        self._poll = select.poll()
        self._queue = StepQueue(self._chains, self._pacing, self._busy, self._send, self._fail)
        self._runs = self._queue.runs = Runs(self._chains, packets, self._fail, self._queue.put)
        self._links = self._runs.links = RowLinks(
            settings.membership, self._poll, self._runs.take, self._send, self._runs.link_lost, self._ring
        )
        self._orders = ShardOrders(
            settings.inference,
            self._chains,
            chains_change=self._forget_pace,
            tell=self._send,
            fail=self._fail,
            wake=self._ring,
            threads=self._threads,
        )

    def _forget_pace(self, model_id: str) -> None:
        """Shards of a model come or go: its chains will be others."""
        self._runs.forget_lanes()
        self._pacing.forget(model_id)

    # -- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until the daemon closes the connection."""
        connection, packets, bell = self._connection.fileno(), self._packets.fileno(), self._bell.fileno()
        for descriptor in (connection, packets, bell):
            self._poll.register(descriptor, select.POLLIN)
        wait_s: float | None = None
        while True:
            for descriptor, events in self._busy.sleep(self._poll, wait_s):
                if descriptor == connection:
                    if not self._receive():
                        return
                elif descriptor == packets:
                    if not self._take_packets():
                        self._poll.unregister(packets)
                elif descriptor == bell:
                    self._bell.recv(4096)
                    self._orders.take_loaded()
                    self._links.take_met()
                else:
                    self._links.serve(descriptor, events)
            if self._runs.has_rows:
                run = self._runs.go(is_free=not self._queue.waiting)
                if run is not None:
                    self._busy.note(run, 1)
            wait_s = self._queue.run_batch() if self._queue.waiting else None
            if self._runs.has_rows or (self._queue.waiting and wait_s is None):
                wait_s = 0.0
            else:
                self._queue.rest()

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
                self._orders.load(load)
            case Unload() as unload:
                self._orders.unload(unload)
            case Forget(sequence_id=sequence_id):
                self._queue.forget(sequence_id)
                self._runs.end_sequence(sequence_id)
                self._chains.forget(sequence_id)
            case Halt(command_id=command_id):
                self._runs.end(command_id)
                self._queue.halt(command_id)
            case Query(command_id=command_id):
                self._share_cores()
                self._links.look()
                self._send(
                    Report(
                        command_id=command_id,
                        devices=all_devices(self._chains.mapped_bytes + self._orders.budgets.used_bytes),
                        sequences=self._chains.n_sequences,
                        busy_s=self._chains.busy_s,
                        batches=tuple(
                            BatchTime(chain=chain, rows=rows, us=seconds * 1e6, beside_us=beside_s * 1e6)
                            for chain, rows, seconds, beside_s in self._pacing.told()
                        ),
                        streamed=tuple(
                            StreamedShard(
                                model_id=shard.request.model_id,
                                shard_id=shard.request.shard_id,
                                memory_bytes=shard.whole_bytes,
                                weights=weights,
                            )
                            for shard in self._chains.shards()
                            if (weights := shard.streamed) is not None
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
        return share_of_cores(usable_threads(), self._census.count())

    def _share_cores(self) -> None:
        """Engines come and go: each takes its share of the cores, unless its user named a number."""
        if self._shares_cores:
            self._threads.most = self._fair_threads()

    # -- steps -------------------------------------------------------------------------------------------------------

    def _take_step(self, step: Step, frame: Frame[ToEngine]) -> None:
        tokens: NDArray[np.int32] = _array(frame.payloads[0], np.int32)
        hidden: NDArray[np.float32] | None = None
        if step.n_embd:
            hidden = _array(frame.payloads[1], np.float32).reshape(step.n_tokens, step.n_embd)
        if step.begins_run:
            self._runs.begin(step)
        else:
            self._runs.end_others(step)
        self._queue.drop_superseded(step)
        self._queue.put(Task(0, step, tokens, hidden, arrived_s=time.perf_counter()))

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


def main(descriptor: int, packets_descriptor: int) -> None:
    """Run an engine on the sockets `descriptor` (frames) and `packets_descriptor` (rows of runs) until the first closes."""
    become_a_child(NATIVE_STACK_BYTES)
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
            ready = Ready(pid=os.getpid(), devices=all_devices(), arithmetic=instruction_sets()[:400])
            send_all(connection, encode(FROM_ENGINE, ready))
            gc.freeze()  # what was imported lives for ever: the collector need not look at it again
            worker.run()
        except (BrokenPipeError, ConnectionResetError):
            pass  # the daemon is gone
        census.close()
    os._exit(0)  # the kernel frees gigabytes faster than destructors, and a load under way cannot be stopped


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
