"""A swarm of which only the messages are looked at: what `Requests` sends, and answers as its nodes would give them."""

from __future__ import annotations

from collections.abc import Sequence

from shardnet.coordinator.placement.chunks import Chunks
from shardnet.coordinator.placement.planning import Route
from shardnet.errors import PlacementError, ShardnetError
from shardnet.messages import CancelTask, ExecuteTask, FreeSequence
from shardnet.steps import StageTiming, TaskResult
from shardnet.wire import Buffer


class World:
    """A swarm of which only the messages are looked at.

    Args:
        copies: its nodes know how to copy sequences.
        chunk: tokens of a prompt at a time; None: as many as a stage takes. `together`: of a short one beside other prompts.
    """

    def __init__(
        self, *ready: Route, copies: bool = False, chunk: int | None = None, together: int | None = None
    ) -> None:
        self.ready = list(ready)
        self.copies = copies
        self.chunk = chunk
        self.together = together
        self.at_s = 0.0
        self.sent: list[tuple[str, ExecuteTask | FreeSequence | CancelTask]] = []

    def now_s(self) -> float:
        return self.at_s

    def send(
        self, node_id: str, message: ExecuteTask | FreeSequence | CancelTask, payloads: Sequence[Buffer] = ()
    ) -> None:
        self.sent.append((node_id, message))

    def routes(self, model_id: str) -> list[Route]:
        return self.ready

    def chunks(self, route: Route, prompt_tokens: int) -> Chunks:
        size = self.chunk or route.options.n_batch
        return Chunks(size, size, self.together or size)

    def can_copy(self, route: Route) -> bool:
        return self.copies

    def not_ready(self, model_id: str) -> ShardnetError:
        return PlacementError("not ready")

    def stage_failed(self, node_id: str, route: Route, error: ShardnetError) -> None:
        raise AssertionError(error)

    def take(self) -> tuple[list[ExecuteTask], list[str]]:
        """Returns: the steps, and the sequences freed, since the last call."""
        sent, self.sent = self.sent, []
        freed = dict.fromkeys(one.sequence_id for _, one in sent if isinstance(one, FreeSequence))
        return [one for _, one in sent if isinstance(one, ExecuteTask)], list(freed)


def result(task: ExecuteTask, *tokens: int, ahead: int = 0, at: int | None = None) -> TaskResult:
    """Returns: the last stage's answer to a step, with times of all stages.

    Args:
        tokens: sampled.
        at: its position, if it is not the one behind the step.
    """
    end = task.position + task.n_tokens if tokens else task.position
    timing = StageTiming(1.0, 1.0, 1.0, task.n_tokens)
    return TaskResult(
        command_id=task.command_id,
        sequence_id=task.sequence_id,
        position=end if at is None else at,
        tokens=tokens,
        ahead=ahead,
        timings=(timing,) * len(task.route),
    )
