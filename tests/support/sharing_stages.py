"""Stages that do nothing with a step but remember its tokens by the rules of KV, and messages that arrive in any order that links allow.

What a stage samples depends on all tokens that it has of a sequence, and on nothing else. So an answer is right if, and only if, every beginning
that was copied, taken over, waited for or computed again had the tokens of its request's own prompt.
"""

from __future__ import annotations

import random
import zlib
from array import array
from collections import deque
from collections.abc import Sequence

from shardnet.coordinator.placement.chunks import Chunks
from shardnet.coordinator.placement.planning import Route
from shardnet.coordinator.requests.driver import Requests
from shardnet.errors import EngineCrashed, PlacementError, ShardnetError, ShardNotFound, UnreachableError
from shardnet.inference.worker.sequences import SequenceTable
from shardnet.messages import CancelTask, CommandFailed, ErrorInfo, ExecuteTask, FreeSequence
from shardnet.steps import StageTiming, TaskResult
from shardnet.wire import Buffer

COORDINATOR = "coordinator"
CHUNK = 16

Message = ExecuteTask | FreeSequence | CancelTask | TaskResult | CommandFailed


def sampled(tokens: Sequence[int], seed: int) -> int:
    """Returns: what follows these tokens: few different ones, so that it can be foretold now and then."""
    return 3000 + zlib.crc32(array("i", tokens).tobytes(), seed) % 5


def answer_alone(prompt: Sequence[int], count: int, seed: int) -> list[int]:
    """Returns: what a request gets whom nobody else disturbs."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(sampled(tokens, seed))
    return tokens[len(prompt) :]


class _Stage:
    """One node's memory of sequences."""

    def __init__(self, n_seq: int) -> None:
        self._n_seq = n_seq
        self.restart()
        self.freed: set[str] = set()
        self.cancelled: set[str] = set()

    def restart(self) -> None:
        """The engine died, and KV with it."""
        self.table = SequenceTable()
        self.tokens: dict[str, list[int]] = {}

    def free(self, sequence_id: str) -> None:
        self.table.forget(sequence_id)
        self.tokens.pop(sequence_id, None)
        self.freed.add(sequence_id)

    def run(self, task: ExecuteTask, rows: Sequence[int]) -> None:
        """Raises: SequenceGap, Busy."""
        for begins in (True, False):
            if begins and task.copy_from is not None:
                made = self.table.copy(
                    task.sequence_id, task.copy_from, (0,), task.position, n_seq=self._n_seq, keeps_history=False
                )
                if made is not None:
                    made.state.lengths[0] = task.position
                    self.tokens[task.sequence_id] = self.tokens[task.copy_from][: task.position]
            if not begins:
                rewind = self.table.prepare(
                    task.sequence_id, (0,), task.position, n_seq=self._n_seq, keeps_history=False
                )
                self.tokens[task.sequence_id] = [*self.tokens.get(task.sequence_id, ())[: task.position], *rows]
                rewind.state.lengths[0] = task.position + len(rows)


class Stages:
    """A swarm as `Requests` sees it. Messages lie on their links until `deliver` takes one: those of one link in order, those of several in any.

    Attributes:
        n_rows: rows that were run, of all stages together.
        down: nodes that are gone; `loading`: those whose engine has no shards in memory yet.
    """

    def __init__(self, routes: Sequence[Route], choose: random.Random) -> None:
        self.all = list(routes)
        self.at_s = 0.0
        self.n_rows = 0
        self.down: set[str] = set()
        self.loading: set[str] = set()
        self.requests: Requests
        self._choose = choose
        self._stages = {node: _Stage(one.options.n_seq) for one in routes for node in one.node_ids}
        self._links: dict[tuple[str, str], deque[tuple[Message, bytes]]] = {}

    # -- what requests need --------------------------------------------------------------------------------------------------

    def now_s(self) -> float:
        return self.at_s

    def routes(self, model_id: str) -> list[Route]:
        away = self.down | self.loading
        return [one for one in self.all if one.model_id == model_id and not away.intersection(one.node_ids)]

    def not_ready(self, model_id: str) -> ShardnetError:
        return PlacementError("not ready")

    def chunks(self, route: Route, prompt_tokens: int) -> Chunks:
        return Chunks(2 * CHUNK, CHUNK, 2 * CHUNK)

    def can_copy(self, route: Route) -> bool:
        return True

    def stage_failed(self, node_id: str, route: Route, error: ShardnetError) -> None:
        """Nothing is to be done: nodes go and come by `lose` and `return_`."""

    def send(
        self, node_id: str, message: ExecuteTask | FreeSequence | CancelTask, payloads: Sequence[Buffer] = ()
    ) -> None:
        if node_id in self.down:
            raise UnreachableError("it is gone")
        self._put(COORDINATOR, node_id, message, b"".join(map(bytes, payloads)))

    # -- what happens --------------------------------------------------------------------------------------------------------

    @property
    def sequences(self) -> int:
        """Returns: how many have KV anywhere."""
        return sum(len(one.tokens) for one in self._stages.values())

    def deliver(self) -> bool:
        """Let one message arrive. Returns: False if none is under way."""
        links = [link for link, waiting in self._links.items() if waiting]
        if not links:
            return False
        link = self._choose.choice(links)
        message, rows = self._links[link].popleft()
        if link[1] == COORDINATOR:
            self._answer(link[0], message)
        else:
            self._arrive(link[1], message, rows)
        return True

    def settle(self) -> None:
        """Let everything arrive."""
        while self.deliver():
            pass

    def lose(self, node_id: str) -> None:
        """A node is killed: what it had is gone, and what was on its links."""
        self.down.add(node_id)
        self._stages[node_id].restart()
        for link, waiting in self._links.items():
            # What others would have passed on to it fails there: no link outlives a node.
            steps = (one for one, _ in waiting if isinstance(one, ExecuteTask))
            self._stages[node_id].cancelled.update(one.command_id for one in steps)
            if node_id in link:
                waiting.clear()
        self.requests.on_node_lost(node_id)
        self.requests.pump()

    def return_(self, node_id: str) -> None:
        """It is there again, with no sequence in memory."""
        self.down.discard(node_id)
        self.loading.discard(node_id)
        self.requests.pump()

    def crash(self, node_id: str) -> None:
        """Its engine dies: steps that wait for it fail, and its shards are not in memory until `return_`."""
        self._stages[node_id].restart()
        self.loading.add(node_id)
        self.requests.pump()
        for (_, to), waiting in list(self._links.items()):
            if to == node_id:
                steps = [message for message, _ in waiting if isinstance(message, ExecuteTask)]
                for step in steps:
                    self._fail(node_id, step, EngineCrashed("it died"))
                kept = [one for one in waiting if not isinstance(one[0], ExecuteTask)]
                waiting.clear()
                waiting.extend(kept)

    def _put(self, source: str, to: str, message: Message, rows: bytes = b"") -> None:
        self._links.setdefault((source, to), deque()).append((message, rows))

    def _arrive(self, node_id: str, message: Message, rows: bytes) -> None:
        stage = self._stages[node_id]
        match message:
            case FreeSequence():
                stage.free(message.sequence_id)
            case CancelTask():
                stage.cancelled.add(message.command_id)
            case ExecuteTask() if message.sequence_id not in stage.freed and message.command_id not in stage.cancelled:
                self._run(node_id, stage, message, rows)

    def _run(self, node_id: str, stage: _Stage, task: ExecuteTask, rows: bytes) -> None:
        tokens = array("i", rows)
        try:
            if node_id in self.loading:
                raise ShardNotFound("it is not loaded")
            stage.run(task, tokens)
        except ShardnetError as error:
            self._fail(node_id, task, error)
            return
        self.n_rows += len(tokens)
        if task.stage + 1 < len(task.route):
            following = task.route[task.stage + 1].node_id
            if following not in self.down:
                self._put(node_id, following, task.model_copy(update={"stage": task.stage + 1}), rows)
            return
        end = task.position + len(tokens)
        found: tuple[int, ...] = ()
        if task.samples:
            assert task.sampling is not None
            found = (sampled(stage.tokens[task.sequence_id][:end], task.sampling.seed or 0),)
        self._put(
            node_id,
            COORDINATOR,
            TaskResult(
                command_id=task.command_id,
                sequence_id=task.sequence_id,
                position=end if found else task.position,
                tokens=found,
                ahead=0,
                timings=(StageTiming(1.0, 1.0, 1.0, len(tokens)),) * len(task.route),
            ),
        )

    def _fail(self, node_id: str, task: ExecuteTask, error: ShardnetError) -> None:
        self._put(node_id, COORDINATOR, CommandFailed(command_id=task.command_id, error=ErrorInfo.of(error)))

    def _answer(self, node_id: str, message: Message) -> None:
        if isinstance(message, TaskResult):
            self.requests.on_result(node_id, message)
        elif isinstance(message, CommandFailed):
            self.requests.on_failed(node_id, message)
