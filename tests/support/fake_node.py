"""A scripted node: real TLS, real messages, no engine. Its "model" says the next character of a text, so that answers are known beforehand."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shardnet.errors import ShardnetError
from shardnet.journal import Journal
from shardnet.messages import (
    PROTOCOL_VERSION,
    Address,
    AnyMessage,
    Capabilities,
    CommandFailed,
    ErrorInfo,
    ExecuteTask,
    FileIs,
    FreeSequence,
    GetFile,
    Heartbeat,
    HeldShard,
    Hello,
    LoadShard,
    Ping,
    Pong,
    Reading,
    RowsRead,
    Sampling,
    ShardReady,
    Software,
    TellLog,
)
from shardnet.shards import Dtype, TensorSpec
from shardnet.steps import StageTiming, TaskResult, TokenLogprob
from shardnet.swarm.home import Home
from shardnet.swarm.identity import Identity, claim_identity
from shardnet.transport import Connection, dial
from shardnet.wire import Frame

NextToken = Callable[[ExecuteTask, Sequence[int]], int]
"""`(task, all tokens so far)` -> the sampled token."""


class FakeNode:
    """One node. An asynchronous context manager.

    Attributes:
        next_token: the model.
        on_task: called with each task before it is handled; may raise a ShardnetError (the answer), or return False (no answer at all).
        pooled: what a step that reads hidden states tells, given all tokens so far: float32 (1, n_embd). Of log-probabilities, a token has minus its
            id by 256, and the most likely ones are 50 and those that follow it.
        tells: False: nothing is told of what was to be read.
        freed: sequences that were freed here.
        software: what it says that it runs; None: it is an older node. `journal`: its log, told when asked for.
        clock_ahead_s: by how much its clock is ahead of this machine's.
        holds_loads: LOAD_SHARD is noted in `loads`, and not answered.
    """

    def __init__(
        self, name: str, address: Address, held: Sequence[HeldShard], next_token: NextToken, *, bound: bool = True
    ) -> None:
        self.name = name
        self.next_token = next_token
        self.on_task: Callable[[ExecuteTask], bool] = lambda _task: True
        self.pooled: Callable[[list[int]], NDArray[np.float32]] = lambda _tokens: np.ones((1, 64), dtype=np.float32)
        self.tells = True
        self.run_id: str | None = None
        self.freed: list[str] = []
        self.loads: list[LoadShard] = []
        self.holds_loads = False
        self.clock_ahead_s = 0.0
        self.software: Software | None = None
        self.journal = Journal(kept=50, now_s=lambda: time.time() + self.clock_ahead_s)
        self.silent = False
        self.tasks: list[ExecuteTask] = []
        self.tokenizer: Path | None = None
        self.connection: Connection
        self._address = address
        self._held = {(one.model_id, one.shard_id): one for one in held}
        self._bound = bound
        self._identity: Identity
        self._beating: asyncio.Task[None] | None = None
        self._sequences: dict[str, array[int]] = {}

    @property
    def identity(self) -> Identity:
        return self._identity

    @property
    def node_id(self) -> str:
        return self._identity.node_id

    @property
    def live_sequences(self) -> set[str]:
        """Sequences that were begun here and not freed."""
        return set(self._sequences)

    async def __aenter__(self) -> Self:
        self._identity = await asyncio.to_thread(claim_identity, Home(), self.name, "node")
        await self.join()
        return self

    async def join(self) -> None:
        assigned = tuple(sorted(self._held))
        hello = Hello(
            protocol=PROTOCOL_VERSION,
            node_id=self._identity.node_id,
            name=self.name,
            role="node",
            run_id=self.run_id,
            capabilities=Capabilities(
                memory_limit_bytes=10**10,
                assigned=assigned if self._bound else (),
                accepts_any=not self._bound,
                software=self.software,
            ),
            held=tuple(self._held.values()),
        )
        self.connection = await dial(self._identity, self._address, hello)
        self.connection.set_handler(self._take, lambda _error: None)
        self._beating = asyncio.create_task(self._beat())

    async def leave(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
        await self.connection.close()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.leave()
        self._identity.release()

    async def _beat(self) -> None:
        while True:
            self.connection.send(Heartbeat(memory_free_bytes=10**10, load=0.0, held=tuple(self._held.values())))
            await asyncio.sleep(0.3)

    def _take(self, frame: Frame[AnyMessage]) -> None:
        message = frame.message
        match message:
            case LoadShard():
                self.loads.append(message)
                if self.holds_loads:
                    return
                key = (message.model_id, message.shard_id)
                self._held[key] = self._held[key].model_copy(update={"loaded": True})
                self.connection.send(ShardReady(command_id=message.command_id, held=self._held[key], source="memory"))
            case ExecuteTask():
                self.tasks.append(message)
                try:
                    if self.on_task(message):
                        self._run(message, frame)
                except ShardnetError as error:
                    self.connection.send(CommandFailed(command_id=message.command_id, error=ErrorInfo.of(error)))
            case FreeSequence():
                self.freed.append(message.sequence_id)
                self._sequences.pop(message.sequence_id, None)
            case Ping():
                self.connection.send(Pong(command_id=message.command_id))
            case GetFile():
                self._send_file(message)
            case TellLog():
                assert self.software is not None, "an older node ends the connection over this"
                if not self.silent:
                    self.connection.send(self.journal.tell(message))
            case _:
                pass

    def _run(self, task: ExecuteTask, frame: Frame[AnyMessage]) -> None:
        tokens = self._sequences.setdefault(task.sequence_id, array("i"))
        payload = frame.payload("tokens")
        assert payload is not None
        del tokens[task.position :]
        assert len(tokens) == task.position, "a gap"
        tokens.extend(array("i", bytes(payload)))
        timing = StageTiming(queue_us=1, compute_us=100, engine_us=10)
        if task.stage + 1 < len(task.route):
            assert task.route[task.stage + 1].address is None  # fake nodes are reached through the coordinator
            on = task.model_copy(update={"stage": task.stage + 1, "timings": (*task.timings, timing)})
            self.connection.send(on, frame.payloads)
            return
        if task.reading is not None and self.tells:
            self._tell_read(task, task.reading, array("i", bytes(payload)).tolist(), tokens.tolist())
        sampled = (self.next_token(task, tokens),) if task.samples else ()
        self.connection.send(
            TaskResult(
                command_id=task.command_id,
                sequence_id=task.sequence_id,
                position=len(tokens) if task.samples else task.position,
                tokens=sampled,
                logprobs=tuple(self._logprobs(token, task.sampling) for token in sampled),
                timings=(*task.timings, timing),
            )
        )

    @staticmethod
    def _logprobs(token: int, sampling: Sampling | None) -> tuple[TokenLogprob, ...]:
        count = None if sampling is None else sampling.top_logprobs
        return () if count is None else tuple(TokenLogprob(one, -one / 256) for one in (token, *range(50, 50 + count)))

    def _tell_read(self, task: ExecuteTask, reading: Reading, rows: list[int], tokens: list[int]) -> None:
        tensors: dict[str, NDArray[np.float32] | NDArray[np.int32]] = {"pooled": self.pooled(tokens)}
        if reading.kind == "logprobs":
            following = [*rows[1:], *([] if reading.next_token is None else [reading.next_token])]
            told = np.array([[token, *range(50, 50 + reading.top)] for token in following], dtype=np.int32)
            tensors = {"tokens": told, "logprobs": -(told / np.float32(256)).astype(np.float32)}
        specs = tuple(
            TensorSpec(name=name, dtype=Dtype.INT32 if name == "tokens" else Dtype.FLOAT32, shape=data.shape)
            for name, data in tensors.items()
        )
        read = RowsRead(tensors=specs, command_id=task.command_id, sequence_id=task.sequence_id, position=task.position)
        self.connection.send(read, [data.tobytes() for data in tensors.values()])

    def _send_file(self, question: GetFile) -> None:
        assert self.tokenizer is not None
        data = self.tokenizer.read_bytes()
        piece = data[question.offset : question.offset + 4096]
        padded = piece + bytes(-len(piece) % 4)
        spec = TensorSpec(name="data", dtype=Dtype.INT32, shape=(len(padded) // 4,))
        answer = FileIs(tensors=(spec,), command_id=question.command_id, total_bytes=len(data), piece_bytes=len(piece))
        self.connection.send(answer, [padded])
