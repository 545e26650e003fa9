"""Requests that share beginnings, over nodes of which only the messages are looked at, step by step."""

from __future__ import annotations

from collections.abc import Sequence

from shardnet.coordinator.requests.driver import Requests
from shardnet.coordinator.requests.generation_spec import GenerationSpec
from shardnet.coordinator.requests.prefixes import Prefixes
from shardnet.coordinator.requests.reading import PromptReading
from shardnet.coordinator.requests.running import Running
from shardnet.coordinator.text.answering import PlainStream
from shardnet.errors import ShardnetError
from shardnet.messages import CommandFailed, ErrorInfo, ExecuteTask, Sampling
from tests.support.coordinator_world import MODEL_ID, route
from tests.support.requests_world import World, result

SYSTEM = [1000 + index for index in range(64)]
CHUNK = 16


def own(number: int, count: int = 12) -> list[int]:
    """Returns: what only this request's prompt ends with."""
    return [2000 + 100 * number + index for index in range(count)]


class Swarm:
    """Requests over two nodes that copy sequences, step by step."""

    def __init__(self, n_seq: int = 8, **settings: float) -> None:
        self.world = World(route(1, 2, n_seq=n_seq, n_batch=64, n_ctx=1024), copies=True, chunk=CHUNK)
        self.prefixes = Prefixes(min_tokens=16, **settings)  # type: ignore[arg-type]
        self.requests = Requests(self.world, prefixes=self.prefixes)
        self.steps: list[ExecuteTask] = []
        self.freed: list[str] = []

    async def ask(self, prompt: Sequence[int], reading: PromptReading | None = None, *, max_tokens: int = 2) -> Running:
        """Begin a request for two tokens."""
        spec = GenerationSpec(MODEL_ID, prompt, Sampling(), max_tokens, lambda _token: False, reading=reading)
        return await self.requests.open(spec, PlainStream(lambda _token: b"x", ()))

    def take(self) -> list[ExecuteTask]:
        """Returns: the steps sent since the last call."""
        steps, freed = self.world.take()
        self.steps += steps
        self.freed += freed
        return steps

    def answer(self, step: ExecuteTask) -> None:
        """The stages have run a step; one that samples is followed by another token."""
        last = step.route[-1].node_id
        if not step.samples:
            self.requests.on_result(last, result(step))
            return
        end = step.position + step.n_tokens
        self.requests.on_result(last, result(step, 50, ahead=1))
        self.requests.on_result(last, result(step, 51, at=end + 1))

    def fail(self, step: ExecuteTask, error: ShardnetError) -> None:
        failed = CommandFailed(command_id=step.command_id, error=ErrorInfo.of(error))
        self.requests.on_failed(step.route[-1].node_id, failed)

    def finish(self) -> None:
        """Answer all that is sent until nothing more is."""
        while steps := self.take():
            for step in steps:
                self.answer(step)


def reach(step: ExecuteTask) -> tuple[str | None, int, int]:
    return step.copy_from, step.position, step.n_tokens
