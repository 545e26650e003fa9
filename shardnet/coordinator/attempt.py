"""One try of a request along one route, with one sequence on its stages: which step goes out next, and what is under way. Sans-I/O.

Prompt chunks go ahead of their answers. The last chunk, and each decode step, offers the stages to go on by themselves until the answer is long
enough (`ExecuteTask.ahead`); where they do not, each token is a step of its own. With speculation each is: it may propose more tokens than the one
it brings, and the last stage says how many of them it would have sampled itself.

Knows nothing of why a try begins or ends, nor of what follows it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass

from shardnet.coordinator.planning import Route
from shardnet.coordinator.prefixes import Kept
from shardnet.coordinator.speculation import Speculator
from shardnet.messages import CancelTask, ExecuteTask, FreeSequence
from shardnet.steps import TaskResult, row_tensors


@dataclass(frozen=True, slots=True)
class Send:
    """A message for a node. `payload` holds the tokens, int32."""

    node_id: str
    message: ExecuteTask | FreeSequence | CancelTask
    payload: bytes | None = None


class Attempt:
    """A try in progress.

    Args:
        template: what all its steps have in common, the sequence's id among it.
        tokens: prompt and answer so far, int32. The request's own: it grows with the answer.
        n_reused: tokens of the prompt whose KV the sequence has already.
        limit: tokens of the answer at most.
        is_end: tells tokens that end the answer, which nothing is proposed behind.
    """

    def __init__(
        self,
        template: ExecuteTask,
        route: Route,
        tokens: array[int],
        *,
        n_prompt: int,
        n_reused: int,
        limit: int,
        is_end: Callable[[int], bool],
        speculator: Speculator | None,
        make_id: Callable[[], str],
    ) -> None:
        self.route = route
        self.sequence_id = template.sequence_id
        self.n_reused = n_reused
        self.limit = limit
        self.n_settled = 0
        """Tokens whose KV is on every stage for certain; 0: not known."""
        self._template = template
        self._tokens = tokens
        self._n_prompt = n_prompt
        self._is_end = is_end
        self._speculator = speculator
        self._make_id = make_id
        self._in_flight: dict[str, float] = {}
        self._sent_to = n_reused  # tokens handed to the route so far: positions [0, sent_to)
        self._lone: tuple[str, int] | None = (
            None  # a decode step that alone is in flight, and how many tokens it proposes
        )
        self._rejected = False  # KV of a refuted proposal is to be dropped by the step in flight

    # -- steps ---------------------------------------------------------------------------------------------------------------

    def next_steps(self, at_s: float) -> list[Send]:
        """Hand over what is not handed over yet, as far as the window goes.

        The prompt goes in chunks. A replayed answer goes token by token, as it came into being (llama.cpp's numbers depend on how many rows a batch
        has), but without waiting in between: the rebuilt sequence is the same to the bit.
        """
        sends: list[Send] = []
        window = 2 * len(self.route.stages) + 2
        total, chunk, n_prompt = len(self._tokens), self.route.options.n_batch, self._n_prompt
        while self._sent_to < total and len(self._in_flight) < window:
            end = min(n_prompt, self._sent_to + chunk) if self._sent_to < n_prompt else self._sent_to + 1
            count = end - self._sent_to
            command_id = self._make_id()
            update: dict[str, object] = {"command_id": command_id, "position": self._sent_to}
            if end < total:
                update |= {"sample_from": None, "sampling": None}
            else:
                update["sample_from"] = count - 1
                if self._speculator is None:
                    update["ahead"] = self._n_missing - 1
            rows = self._tokens[self._sent_to : end]
            if self._speculator is not None and self._sent_to >= n_prompt and end == total and not self._in_flight:
                rows.extend(self._draft(self._speculator))
                count = len(rows)
                self._lone = command_id, count - 1
            if count > 1:
                update |= {"n_tokens": count, "tensors": row_tensors(count, 0)}
            message = self._template.model_copy(update=update)
            sends.append(Send(self.route.stages[0].node_id, message, rows.tobytes()))
            self._in_flight[command_id] = at_s
            self._sent_to = end
        return sends

    @property
    def _n_missing(self) -> int:
        return self.limit - (len(self._tokens) - self._n_prompt)

    def _draft(self, speculator: Speculator) -> list[int]:
        """Returns: tokens that the next step proposes. The step's own token stands before them; its answer must not pass the limit."""
        most = min(self._n_missing, self.route.options.n_batch) - 1
        draft = speculator.propose(self._tokens, most)
        ends = (index for index, token in enumerate(draft, 1) if self._is_end(token))
        del draft[next(ends, len(draft)) :]
        return draft

    # -- answers -------------------------------------------------------------------------------------------------------------

    def owns(self, command_id: str) -> bool:
        """True if an answer with this id is still wanted."""
        return command_id in self._in_flight

    def answered(self, command_id: str) -> float | None:
        """A step is no longer under way. Returns: since when it was; None if it is not one of ours."""
        return self._in_flight.pop(command_id, None)

    def goes_on(self, command_id: str, at_s: float) -> None:
        """The stages go on with the run of this step by themselves: another answer will come."""
        self._in_flight[command_id] = at_s

    def oldest_s(self) -> float | None:
        """Returns: since when the oldest step is under way; None if there is none."""
        return next(iter(self._in_flight.values()), None)

    def check_draft(self, result: TaskResult, seconds: float) -> None:
        """Rows of a proposal that agreed are in the KV already; what stands behind them the next step drops."""
        self._rejected = False
        if self._lone is None or self._lone[0] != result.command_id or self._speculator is None:
            return
        n_drafts, self._lone = self._lone[1], None
        self._speculator.answered(n_drafts, len(result.tokens), seconds)
        if n_drafts and result.tokens:
            agreed = min(n_drafts, len(result.tokens) - 1)
            self._sent_to += agreed
            self._rejected = agreed < n_drafts

    def settle(self) -> None:
        """What is in `tokens` now has its KV on every stage: one more is about to come."""
        self.n_settled = len(self._tokens)

    def catch_up(self) -> None:
        """The stages have all tokens already: they go on by themselves."""
        self._sent_to = len(self._tokens)

    # -- its end -------------------------------------------------------------------------------------------------------------

    def interrupt(self) -> bool:
        """A step failed: no answer to the others is wanted either. Returns: True if a refuted proposal was about to be dropped."""
        rejected, self._rejected = self._rejected, False
        self._in_flight.clear()
        self._lone = None
        self.n_settled = 0
        return rejected

    def rewind(self, position: int) -> None:
        """Every stage has the tokens before `position`, and perhaps no others: go on there."""
        self._sent_to = position

    def abandon(self) -> list[Send]:
        """Nothing that is under way is wanted. Returns: what frees the sequence on every stage; empty if that was done before."""
        self.interrupt()
        if not self.sequence_id:
            return []
        sends = self._to_all(FreeSequence(sequence_id=self.sequence_id))
        self.sequence_id = ""
        return sends

    def hand_over(self) -> tuple[Kept, list[Send]]:
        """Leave the sequence as it is. Returns: it, with what is certainly there, and what stops a run that goes on."""
        kept = Kept(self.sequence_id, self.route, self._tokens[: self.n_settled])
        sends = [send for command_id in self._in_flight for send in self._to_all(CancelTask(command_id=command_id))]
        self.interrupt()
        self.sequence_id = ""
        return kept, sends

    def _to_all(self, message: FreeSequence | CancelTask) -> list[Send]:
        return [Send(node_id, message) for node_id in dict.fromkeys(self.route.node_ids)]
