"""Runs in the engine: rows that follow the step that began them, from this engine, another one or the daemon, and what becomes of each.

A row comes as a `NextStep`'s header and tensors, runs the short way (`rows.Lane`) if it is the only one that waits, else in a batch with the
others, and goes on to the next stage's engine, or through the daemons where there is no link. All other facts of its step are as in the step that
began the run.
"""

from __future__ import annotations

import ctypes
import socket
import time
from collections.abc import Callable

import numpy as np

from shardnet.errors import PeerLost, RemoteProtocolError, SequenceGap, ShardnetError
from shardnet.inference.engine.row_packets import join
from shardnet.inference.engine.steps import NO_SEQUENCE, ROW_BYTES, TOKEN, Step, pack_row_done
from shardnet.inference.worker.chains import Chains
from shardnet.inference.worker.pacing import Chain
from shardnet.inference.worker.row_link import MAX_HEADER_BYTES, RowLink
from shardnet.inference.worker.row_links import RowLinks
from shardnet.inference.worker.run_rows import Row, Run
from shardnet.inference.worker.tasks import Outcome, Task
from shardnet.steps import MAX_DEADLINE_S, MAX_POSITION, NEXT_STEP, TIMING
from shardnet.wire import Buffer

NOTE_INTERVAL_S = 0.5
"""How often the daemon hears at least of rows that pass through without it."""


class Runs:
    """All runs of this engine.

    Args:
        packets: where answers to rows go, as `row_packets` says.
        fail: tells the daemon that a command failed, and calls `end` with it.
        queue: has a step wait for its batch.
    """

    def __init__(
        self,
        chains: Chains,
        packets: socket.socket,
        fail: Callable[[str, ShardnetError], None],
        queue: Callable[[Task], None],
    ) -> None:
        self._chains = chains
        self._packets = packets
        self._fail = fail
        self._queue = queue
        self.links: RowLinks
        self._runs: dict[tuple[int, int], Run] = {}  # by command and stage
        self._rows: list[Row] = []
        self._done: list[tuple[Buffer, ...]] = []  # for the daemon, of each row the parts of its record
        self._hidden = memoryview(bytearray(ROW_BYTES))
        self._hidden_address = ctypes.addressof(ctypes.c_char.from_buffer(self._hidden))

    @property
    def has_rows(self) -> bool:
        """True if rows wait."""
        return bool(self._rows)

    # -- life ----------------------------------------------------------------------------------------------------------------

    def begin(self, step: Step) -> None:
        """Rows of this step's command will come."""
        command = int(step.command_id, 16)
        self.end_others(step)
        template = step._replace(n_tokens=1, samples=True, ahead=0, begins_run=False, reads=0, copy_from=NO_SEQUENCE)
        chain = (step.model_id, step.first_shard, step.end_shard)
        self._runs[command, step.stage] = Run(command, template, self._chains.n_ctx(step), step.ahead > 0, chain)

    def begun(self, step: Step, token: int | None) -> int:
        """The step that began a run is done. Returns: how many rows will follow that nobody sends."""
        run = self._runs.get((int(step.command_id, 16), step.stage))
        if run is None:
            return 0
        run.slot = self._chains.slot(step)
        run.lane = self._chains.lane(run.step)
        position = step.position + step.n_tokens
        ahead = min(step.ahead, run.n_ctx - position)
        if not run.is_alone or token is None or ahead <= 0:
            return 0
        self._rows.append(Row(run, position, token, ahead - 1, 0.0, b"", b"", time.perf_counter()))
        return ahead

    def end_others(self, step: Step) -> None:
        """A step came: late rows of an earlier command of its sequence and stage must not run after it."""
        command, sequence_id, stage = int(step.command_id, 16), step.sequence_id, step.stage
        for run in [
            run for run in self._runs.values() if run.step.sequence_id == sequence_id and run.step.stage == stage
        ]:
            if run.command != command:
                self._end(run)

    def end_sequence(self, sequence_id: str) -> None:
        """No row of this sequence is wanted any more."""
        for run in [run for run in self._runs.values() if run.step.sequence_id == sequence_id]:
            self._end(run)

    def end(self, command_id: str) -> None:
        """No row of this command is wanted any more."""
        command = int(command_id, 16)
        for run in [run for run in self._runs.values() if run.command == command]:
            self._end(run)

    def _end(self, run: Run) -> None:
        run.is_over = True
        self._runs.pop((run.command, run.step.stage), None)

    def forget_lanes(self) -> None:
        """Chains change: each run finds its short way anew."""
        for run in self._runs.values():
            run.lane = None

    def link_lost(self, link: RowLink) -> None:
        """What was handed over this link last may not have arrived."""
        for run in [run for run in self._runs.values() if run.handed_over is link]:
            self._fail(run.step.command_id, PeerLost("the link to the next stage's engine broke"))

    # -- rows ----------------------------------------------------------------------------------------------------------------

    def take(self, data: memoryview, link: RowLink | None) -> None:
        """Take in a row: a `NextStep`'s header, token and hidden state.

        Args:
            link: that it came over; None: from the daemon. Over a link, a row of a run that is over, or that nobody began here, is dropped: whoever
                ended the run, or restarted the engine, has said so already.

        Raises: RemoteProtocolError for what no engine sends; a row from the daemon, which has it from another node, fails its command instead.
        """
        try:
            self._take(data, link)
        except RemoteProtocolError as error:
            if link is not None:
                raise
            self._fail(f"{NEXT_STEP.unpack_from(data)[0]:016x}", error)

    def _take(self, data: memoryview, link: RowLink | None) -> None:
        command, _sequence, stage, position, ahead, deadline_s, n_embd = NEXT_STEP.unpack_from(data)
        timings_end = len(data) - 4 * n_embd - TOKEN.size
        if (
            not NEXT_STEP.size <= timings_end < MAX_HEADER_BYTES  # there is room for ours
            or (timings_end - NEXT_STEP.size) % TIMING.size
            or position > MAX_POSITION
            or ahead > MAX_POSITION
            or not 0 < deadline_s <= MAX_DEADLINE_S
        ):
            raise RemoteProtocolError("a row with numbers out of range")
        run = self._runs.get((command, stage))
        if run is None:
            if link is None:
                gap = SequenceGap("the engine does not know the run that the row belongs to: begin it again", have=0)
                self._fail(f"{command:016x}", gap)
            return
        if link is not None and link.node_id != run.step.source:
            raise RemoteProtocolError("a row of a run that the other node has no part in")
        if run.has_row:
            raise RemoteProtocolError("a row before the last one of its run was done")
        (token,) = TOKEN.unpack_from(data, timings_end)
        timings, hidden = bytes(data[NEXT_STEP.size : timings_end]), bytes(data[timings_end + TOKEN.size :])
        run.has_row = True
        self._rows.append(Row(run, position, token, ahead, deadline_s, timings, hidden, time.perf_counter()))

    def expected(self, chain: Chain) -> tuple[list[int], int]:
        """Returns: the slots of all runs through this chain, and of how many stages their routes are."""
        runs = [run for run in self._runs.values() if run.chain == chain]
        return [run.slot for run in runs], max((run.step.stages for run in runs), default=1)

    def go(self, *, is_free: bool) -> Run | None:
        """Have the rows that came run: that of the only run now, if the engine `is_free`; else as steps that wait for their batch.

        Returns: the run whose row was run now, if one was.
        """
        rows, self._rows = self._rows, []
        if len(rows) == 1 and is_free and len(self._runs) == 1 and self.run_short(rows[0]):
            self.flush()
            return rows[0].run
        for row in rows:
            if not row.run.is_over:
                self._queue(self._task(row))
        return None

    def run_short(self, row: Row) -> bool:
        """Run a row the short way; `flush` is for the caller. Returns: False if it has to go the general way."""
        run, lane = row.run, row.run.lane
        if run.is_over:
            return True
        if lane is None or len(row.hidden) != lane.row_bytes:
            return False
        self._hidden[: len(row.hidden)] = row.hidden
        began_s = time.perf_counter()
        try:
            picked = lane.run(row.position, row.token, self._hidden_address)
        except ShardnetError as error:
            self._fail(run.step.command_id, error)
            return True
        if picked is None:
            return False
        compute_s = time.perf_counter() - began_s
        self._chains.busy_s += compute_s
        self._pass_on(row, picked, lane.hidden, 0.0, compute_s * 1e6, (began_s - row.arrived_s) * 1e6, 1)
        return True

    def _task(self, row: Row) -> Task:
        """The general way of a row."""
        hidden = np.frombuffer(row.hidden, dtype=np.float32).reshape(1, -1) if row.hidden else None
        step = row.run.step._replace(position=row.position, n_embd=0 if hidden is None else hidden.shape[1])
        return Task(0, step, np.array([row.token], dtype=np.int32), hidden, row.arrived_s, row=row)

    def answer(self, row: Row, outcome: Outcome, began_s: float) -> None:
        """A row was run the general way."""
        run = row.run
        if run.is_over:
            return
        if run.lane is None:
            run.lane = self._chains.lane(run.step)
        hidden = None if outcome.hidden is None else outcome.hidden.data.cast("B")
        picked = 0 if outcome.token is None else outcome.token
        queue_us = max(0.0, (began_s - row.arrived_s) * 1e6)
        self._pass_on(row, picked, hidden, queue_us, outcome.compute_s * 1e6, 0.0, outcome.batch_rows)

    def _pass_on(
        self,
        row: Row,
        picked: int,
        hidden: memoryview | None,
        queue_us: float,
        compute_us: float,
        engine_us: float,
        batch_rows: int,
    ) -> None:
        """Hand a row on, and tell the daemon what it has to know; both with the next `flush`."""
        run = row.run
        run.has_row = False
        step, is_last = run.step, hidden is None
        position, token, ahead, timings = row.position, row.token, row.ahead, row.timings
        if is_last:
            position, token = position + 1, picked
            ahead = max(0, min(ahead, run.n_ctx - position))
            went_on = ahead > 0 and self._begin_next(row, position, token, ahead - 1)
        else:
            onward = timings + TIMING.pack(queue_us, compute_us, engine_us, batch_rows)
            # The last one takes the daemons' way: they know what may be lost when nobody here remembers the run.
            went_on = ahead > 0 and self._hand_over(row, step.stage + 1, position, ahead, token, onward, hidden)
        now_s = row.arrived_s
        if is_last or not went_on or not ahead or now_s - run.noted_s > NOTE_INTERVAL_S:
            run.noted_s = now_s
            rest = b"" if went_on or hidden is None else hidden
            head = pack_row_done(
                run.command,
                step.stage,
                position,
                ahead,
                token,
                row.deadline_s,
                queue_us,
                compute_us,
                engine_us,
                batch_rows,
                went_on,
                len(rest) // 4,
            )
            self._done.append((head, timings, bytes(rest)))
        if not ahead:
            self._end(run)

    def _begin_next(self, row: Row, position: int, token: int, ahead: int) -> bool:
        """Start the next row on its way with the token that was sampled. Returns: False if the daemon has to."""
        if row.run.is_alone:
            self._rows.append(Row(row.run, position, token, ahead, 0.0, b"", b"", time.perf_counter()))
            return True
        return self._hand_over(row, 0, position, ahead, token, b"", None)

    def _hand_over(
        self, row: Row, stage: int, position: int, ahead: int, token: int, timings: bytes, hidden: memoryview | None
    ) -> bool:
        run = row.run
        link = self.links.to(run.step.onward)
        if link is None:
            run.handed_over = None
            return False
        n_embd = 0 if hidden is None else len(hidden) // 4
        header = NEXT_STEP.pack(
            run.command, int(run.step.sequence_id, 16), stage, position, ahead, row.deadline_s, n_embd
        )
        payload: tuple[Buffer, ...] = (TOKEN.pack(token),) if hidden is None else (TOKEN.pack(token), hidden)
        self.links.put(link, header + timings, payload)
        run.handed_over = link
        return True

    def flush(self) -> None:
        """Send what a batch gave: to the next stages first, since they wait for it."""
        self.links.flush()
        done, self._done = self._done, []
        for packet in join(done):
            self._packets.sendmsg(packet)
