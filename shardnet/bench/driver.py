"""A coordinator reduced to its wire: it loads shards on real nodes and steps sequences through them, and keeps every clock reading and every logit.

For parity checks over node processes and for taking the price of a hop apart. Serving people is `shardnet.coordinator`'s business.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shardnet.coordinator.placement.chunks import next_chunk
from shardnet.coordinator.placement.law import LinkTime
from shardnet.errors import DeadlineExceeded, ShardnetError, UnreachableError
from shardnet.ids import new_id
from shardnet.manifest import Manifest
from shardnet.messages import (
    PROTOCOL_VERSION,
    Address,
    AnyMessage,
    CommandFailed,
    ExecuteTask,
    FreeSequence,
    Heartbeat,
    Hello,
    LinkMeasured,
    LoadProgress,
    LoadShard,
    MeasureLink,
    Ping,
    Sampling,
    ShardOptions,
    ShardReady,
    ShardSource,
    StageRef,
    Welcome,
)
from shardnet.steps import StageTiming, TaskResult, row_tensors
from shardnet.swarm.home import Home
from shardnet.swarm.identity import claim_identity
from shardnet.transport import Connection, Listener, listen
from shardnet.wire import Buffer, Frame

EPOCH = 1
DEADLINE_S = 1800.0
"""All chunks of a prompt are sent at once: the last one of a long prompt waits for all the others."""
PINGS = 5


@dataclass(slots=True)
class DrivenRun:
    """What one sequence gave."""

    tokens: list[int] = field(default_factory=list)
    logits: list[NDArray[np.float32]] = field(default_factory=list)
    first_token_s: float = 0.0
    step_s: list[float] = field(default_factory=list)
    """Wall time of each decode step, seconds."""
    timings: list[tuple[StageTiming, ...]] = field(default_factory=list)
    started_at_s: float = 0.0
    at_s: float = 0.0
    """When the last token came."""


class Driver:
    """Listens for nodes like a coordinator. An asynchronous context manager.

    Args:
        home: the home folder that the nodes share.
    """

    def __init__(self, home: Home) -> None:
        self._identity = claim_identity(home, "driver", "coordinator")
        self._listener: Listener | None = None
        self.nodes: dict[str, tuple[Hello, Connection]] = {}
        """node name -> its greeting and its link"""
        self.via: dict[str, Address] = {}
        """node name -> where others dial it, if not where it listens"""
        self.beats: dict[str, Heartbeat] = {}
        """node name -> the latest"""
        self._joined = asyncio.Condition()
        self._answers: dict[str, asyncio.Future[tuple[Frame[AnyMessage], float]]] = {}
        self._runs: dict[str, tuple[DrivenRun, asyncio.Future[None]]] = {}
        self._background: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._listener = await listen(self._identity, ("127.0.0.1", 0), self._on_hello)
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._listener is not None:
            await self._listener.close()
        for answer in self._answers.values():
            answer.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self._identity.release()

    @property
    def address(self) -> Address:
        """Where nodes join."""
        assert self._listener is not None
        return self._listener.address

    def _on_hello(self, connection: Connection, hello: Hello) -> Welcome:
        connection.set_handler(partial(self._on_frame, hello.name), lambda _error: None)
        self.nodes[hello.name] = (hello, connection)
        self._news()
        return Welcome(protocol=PROTOCOL_VERSION, node_id=self._identity.node_id, epoch=EPOCH)

    def _news(self) -> None:
        task = asyncio.ensure_future(self._tell_joined())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _tell_joined(self) -> None:
        async with self._joined:
            self._joined.notify_all()

    async def wait_nodes(self, count: int, timeout_s: float = 60) -> None:
        """Wait until `count` nodes have joined. Raises: DeadlineExceeded."""
        try:
            async with asyncio.timeout(timeout_s), self._joined:
                await self._joined.wait_for(lambda: len(self.nodes) >= count)
        except TimeoutError:
            raise DeadlineExceeded(f"{len(self.nodes)} of {count} nodes joined within {timeout_s:.0f} s") from None

    async def wait_beats(self, timeout_s: float = 60) -> None:
        """Wait until each node has told its state anew. Raises: DeadlineExceeded."""
        self.beats.clear()
        try:
            async with asyncio.timeout(timeout_s), self._joined:
                await self._joined.wait_for(lambda: self.beats.keys() >= self.nodes.keys())
        except TimeoutError:
            raise DeadlineExceeded(f"{len(self.beats)} of {len(self.nodes)} nodes told their state") from None

    def _on_frame(self, name: str, frame: Frame[AnyMessage]) -> None:
        message = frame.message
        if isinstance(message, Heartbeat):
            self.beats[name] = message
            self._news()
            return
        if isinstance(message, LoadProgress):
            return
        command_id = getattr(message, "command_id", "")
        running = self._runs.get(command_id)
        if running is not None:
            self._take(frame, *running)
            return
        answer = self._answers.pop(command_id, None)
        if answer is None or answer.done():
            return
        if isinstance(message, CommandFailed):
            answer.set_exception(message.error.to_error())
        else:
            answer.set_result((frame, time.perf_counter()))

    def _expect(self, command_id: str) -> asyncio.Future[tuple[Frame[AnyMessage], float]]:
        answer: asyncio.Future[tuple[Frame[AnyMessage], float]] = asyncio.get_running_loop().create_future()
        self._answers[command_id] = answer
        return answer

    async def load(self, node: str, manifest: Manifest, shard_id: int, options: ShardOptions) -> ShardReady:
        """Have a node load a shard. Raises: the node's error."""
        command = LoadShard(
            command_id=new_id(), deadline_s=DEADLINE_S, model_id=manifest.model_id, shard_id=shard_id, options=options
        )
        answer = self._expect(command.command_id)
        self.nodes[node][1].send(command)
        frame, _ = await answer
        assert isinstance(frame.message, ShardReady)
        return frame.message

    async def measure_link(self, source: str, target: str) -> LinkTime:
        """Returns: the link between two nodes, measured by the first, as a coordinator has it measured. Raises: the node's error."""
        address = self._address(target)
        if address is None:
            raise UnreachableError(f"{target} told no address")
        peer = ShardSource(node_id=self.nodes[target][0].node_id, address=address)
        command = MeasureLink(command_id=new_id(), deadline_s=DEADLINE_S, peer=peer)
        answer = self._expect(command.command_id)
        self.nodes[source][1].send(command)
        frame, _ = await answer
        assert isinstance(frame.message, LinkMeasured)
        return LinkTime(frame.message.round_trip_s / 2, max(1.0, frame.message.bytes_per_s))

    async def ping(self, node: str) -> float:
        """Returns: seconds of a round trip to a node, the quickest of a few."""
        times = []
        for _ in range(PINGS):
            command, began_s = Ping(command_id=new_id()), time.perf_counter()
            answer = self._expect(command.command_id)
            self.nodes[node][1].send(command)
            _, at_s = await answer
            times.append(at_s - began_s)
        return min(times)

    def _address(self, node: str) -> Address | None:
        return self.via.get(node) or self.nodes[node][0].listen

    def route(self, stages: Sequence[tuple[str, int, int]]) -> tuple[StageRef, ...]:
        """Returns: a route of `(node, first shard, end shard)`."""
        return tuple(
            StageRef(
                node_id=self.nodes[node][0].node_id,
                address=self._address(node),
                first_shard=first,
                end_shard=end,
            )
            for node, first, end in stages
        )

    async def generate(
        self,
        manifest: Manifest,
        stages: Sequence[tuple[str, int, int]],
        prompt: Sequence[int],
        n_tokens: int,
        *,
        options: ShardOptions,
        sampling: Sampling | None = None,
        keep_logits: bool = False,
        chunk: int | None = None,
    ) -> DrivenRun:
        """Run one sequence; the end-of-text token is treated like any other.

        Args:
            chunk: tokens of the prompt that go at a time; None: as many as a stage takes.

        Raises: the failing stage's error.
        """
        sampling = (sampling or Sampling()).model_copy(update={"prompt_tokens": len(prompt)})
        route, sequence = self.route(stages), new_id()
        first = self.nodes[stages[0][0]][1]
        run = DrivenRun()

        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def send(position: int, tokens: Sequence[int], *, ahead: int | None) -> str:
            task = ExecuteTask(
                command_id=new_id(),
                deadline_s=DEADLINE_S,
                epoch=EPOCH,
                model_id=manifest.model_id,
                sequence_id=sequence,
                position=position,
                n_tokens=len(tokens),
                route=route,
                stage=0,
                options=options,
                samples=ahead is not None,
                sampling=sampling,
                return_logits=keep_logits and ahead is not None,
                ahead=ahead or 0,
                ahead_deadline_s=DEADLINE_S,
                tensors=row_tensors(len(tokens), 0),
            )
            payload: list[Buffer] = [np.asarray(tokens, dtype=np.int32).tobytes()]
            self._runs[task.command_id] = run, done
            first.send(task, payload)
            return task.command_id

        run.started_at_s = time.perf_counter()
        command_ids, position = [], 0
        while position < len(prompt):
            end = next_chunk(position, len(prompt), chunk or options.n_batch, options.n_batch)
            ahead = n_tokens - 1 if end == len(prompt) else None
            command_ids.append(send(position, prompt[position:end], ahead=ahead))
            position = end
        try:
            await done
        finally:
            for command_id in command_ids:
                del self._runs[command_id]
            for node, _first, _end in stages:
                self.nodes[node][1].send(FreeSequence(sequence_id=sequence))
        if len(run.tokens) != n_tokens:
            raise ShardnetError(f"a run of {n_tokens} tokens ended after {len(run.tokens)}")
        return run

    @staticmethod
    def _take(frame: Frame[AnyMessage], run: DrivenRun, done: asyncio.Future[None]) -> None:
        at_s, result = time.perf_counter(), frame.message
        if done.done():
            return
        if isinstance(result, CommandFailed):
            done.set_exception(result.error.to_error())
        elif not isinstance(result, TaskResult):
            done.set_exception(ShardnetError(f"a node answered {type(result).__name__} where a result was expected"))
        elif result.tokens:
            (token,) = result.tokens
            if run.tokens:
                run.step_s.append(at_s - run.at_s)
            else:
                run.first_token_s = at_s - run.started_at_s
            run.at_s = at_s
            run.tokens.append(token)
            run.timings.append(result.timings)
            logits = frame.payload("logits")
            if logits is not None:
                run.logits.append(np.frombuffer(logits, dtype=np.float32).copy())
            if not result.ahead:
                done.set_result(None)
