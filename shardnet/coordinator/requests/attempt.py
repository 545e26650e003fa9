"""One try of a request along one route, with one sequence on its stages: which step goes out next, and what is under way. Sans-I/O.

Prompt chunks go ahead of their answers. The last chunk, and each decode step, offers the stages to go on by themselves until the answer is long
enough (`ExecuteTask.ahead`); where they do not, each token is a step of its own. With speculation, proposed tokens may follow a decode step as
steps of their own, before it is known whether they are right; a run that is under way ends where such a step begins.

Knows nothing of why a try begins or ends, nor of what follows it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass

from shardnet.coordinator.placement.chunks import ROWS_AHEAD, n_as_cold, next_chunk
from shardnet.coordinator.placement.planning import Route
from shardnet.coordinator.requests.prefixes import Kept
from shardnet.coordinator.requests.reading import PromptRead
from shardnet.coordinator.requests.speculation import ModelSpeculation, Speculator
from shardnet.messages import CancelTask, ExecuteTask, FreeSequence
from shardnet.steps import MAX_DEADLINE_S, TaskResult, row_tensors

MOST_UNDER_WAY = 128
"""Steps of one request that are under way at most: nodes take so many of all requests, and refuse more (`node.max_tasks`)."""


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
        n_reused: tokens of the prompt whose KV the sequence has already, or that the first step copies (`template.copy_from`).
        n_cold: of these, how many have the numbers of a cold start.
        limit: tokens of the answer at most.
        chunk: tokens of the prompt that go at a time, now; None: as many as a stage takes.
        is_end: tells tokens that end the answer, which nothing is proposed behind.
        read: what is to be told of the prompt's rows.
        most_under_way: steps, at least one.
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
        chunk: Callable[[], int] | None,
        make_id: Callable[[], str],
        read: PromptRead | None = None,
        most_under_way: int = MOST_UNDER_WAY,
        n_cold: int = 0,
    ) -> None:
        self.route = route
        self.sequence_id = template.sequence_id
        self.n_reused = n_reused
        self.limit = limit
        self.n_settled = 0
        """Tokens whose KV is on every stage for certain; 0: not known."""
        self.n_ready = n_reused if template.copy_from is None else 0
        """The same, of the prompt's, while it is being computed."""
        self.n_cold = n_cold if n_cold < n_reused else n_as_cold(n_prompt, n_reused, route.options.n_batch)
        """Tokens of the prompt that have, or will have, the numbers of a cold start."""
        self.has_answers = False
        """A step of it was answered: what it began with is there."""
        self._prompt_steps: dict[str, tuple[int, int]] = {}  # those under way: where each begins and ends
        self._template = template
        self._tokens = tokens
        self._n_prompt = n_prompt
        self._is_end = is_end
        self._speculator = speculator
        self._chunk = chunk
        self._make_id = make_id
        self._read = read
        self._most_under_way = most_under_way
        self._in_flight: dict[str, float] = {}
        # Commands that the step in flight takes the place of, behind a wrong proposal or of a run: they may still run, and it is to drop their KV.
        self._in_vain: list[str] = []
        self._sent_to = n_reused  # tokens handed to the route so far: positions [0, sent_to)
        self._drafts: list[int] = []  # proposed tokens under way, behind all that are known
        self._first = ""  # the command that the first of them stands behind
        self._has_window = False  # the rows under way began with proposals
        self._answered_s = 0.0  # when the last answer came
        self._run = ""  # the command whose run has brought its first token
        self._is_clean = False  # the last step asked for alone, or before proposals, found the stages idle
        self._alone = ""  # the command that was not offered to go on, though nothing is proposed behind it

    # -- steps ---------------------------------------------------------------------------------------------------------------

    def next_steps(self, at_s: float) -> list[Send]:
        """Hand over what is not handed over yet, as far as the window goes, and propose what pays.

        The prompt goes in chunks. A replayed answer goes token by token, as it came into being (llama.cpp's numbers depend on how many rows a batch
        has), but without waiting in between: the rebuilt sequence is the same to the bit.
        """
        sends: list[Send] = []
        window = 2 * len(self.route.stages) + 2
        total, n_prompt, most = len(self._tokens), self._n_prompt, self.route.options.n_batch
        chunk = most
        if self._chunk is not None and self._sent_to < n_prompt:
            chunk = self._chunk()
            window = max(window, ROWS_AHEAD // chunk)
        window = min(window, self._most_under_way)
        while self._sent_to < total and len(self._in_flight) < window:
            is_answer = self._sent_to >= n_prompt
            end = self._sent_to + 1 if is_answer else next_chunk(self._sent_to, n_prompt, chunk, most)
            if is_answer and end == total and not self._in_flight:
                return self._decode(self._propose(), at_s)
            is_last = end == total and self.limit > 0  # else nothing is to be sampled
            sends.append(self._step(self._tokens[self._sent_to : end], at_s, is_last=is_last))
        if self._has_window and self._in_flight:
            sends += self._propose_more(at_s)
        return sends

    def leave_run(self, at_s: float) -> list[Send]:
        """A run brought a token. Returns: the steps that go on in its place, if it pays to propose tokens now.

        The stages end a run when another step of its sequence comes; what they computed for it in the meantime is dropped by the position rule.
        """
        drafts = self._propose() if self._run and len(self._in_flight) == 1 else []
        if not drafts:
            return []
        self._give_up_rows()
        self._run = ""
        self._sent_to = len(self._tokens) - 1
        return self._decode(drafts, at_s)

    def _decode(self, drafts: list[int], at_s: float) -> list[Send]:
        """The last token's step, which alone is missing, and proposals behind it."""
        self._has_window = bool(drafts)
        self._is_clean = not self._in_flight and not self._in_vain
        goes_on = not drafts and (self._speculator is None or self._speculator.lets_run)
        sends = [self._step(self._tokens[self._sent_to :], at_s, is_last=True, goes_on=goes_on)]
        command_id = sends[0].message.command_id  # type: ignore[union-attr]
        if drafts:
            self._first = command_id
        elif not goes_on:
            self._alone = command_id
        return sends + self._add_drafts(drafts, at_s)

    def _add_drafts(self, drafts: list[int], at_s: float) -> list[Send]:
        self._drafts += drafts
        return [self._step(array("i", (token,)), at_s, is_last=True, goes_on=False) for token in drafts]

    def _step(self, rows: array[int], at_s: float, *, is_last: bool, goes_on: bool = True) -> Send:
        """Hand over the next tokens. `is_last`: one is sampled behind them; `goes_on`: the stages may make a run of it."""
        command_id, count = self._make_id(), len(rows)
        update: dict[str, object] = {"command_id": command_id, "position": self._sent_to}
        if self._in_flight:  # it waits for those before it, at every stage
            deadline_s = self._template.deadline_s * (1 + len(self._in_flight))
            update["deadline_s"] = min(deadline_s, MAX_DEADLINE_S)
        if not is_last:
            update |= {"samples": False, "sampling": None}
        else:
            update["ahead"] = self._n_missing - 1 if goes_on else 0
        if count > 1:
            update |= {"n_tokens": count, "tensors": row_tensors(count, 0)}
        if self._sent_to < self._n_prompt:
            self._prompt_steps[command_id] = self._sent_to, self._sent_to + count
        if self._sent_to != self.n_reused:
            update["copy_from"] = None
        if self._read is not None and self._sent_to < self._n_prompt:
            update["reading"] = self._read.of_step(self._sent_to, count)
        self._in_flight[command_id] = at_s
        self._sent_to += count
        return Send(self.route.stages[0].node_id, self._template.model_copy(update=update), rows.tobytes())

    @property
    def _n_missing(self) -> int:
        return self.limit - (len(self._tokens) - self._n_prompt)

    @property
    def _room(self) -> int:
        """Returns: how many more tokens may be proposed."""
        return min(self._n_missing, self._most_under_way) - 1 - len(self._drafts)

    def _propose(self) -> list[int]:
        """Returns: tokens to propose behind the last one."""
        if self._speculator is None:
            return []
        return self._without_ends(self._speculator.propose(self._tokens, self._room))

    def _propose_more(self, at_s: float) -> list[Send]:
        if self._speculator is None:
            return []
        drafts = self._speculator.propose_more(self._tokens, self._drafts, self._room)
        return self._add_drafts(self._without_ends(drafts), at_s)

    def _without_ends(self, drafts: list[int]) -> list[int]:
        """Nothing follows a token that ends the answer."""
        ends = (index for index, token in enumerate(drafts) if self._is_end(token))
        return drafts[: next(ends, len(drafts))]

    @property
    def n_unsent(self) -> int:
        """Returns: tokens of the prompt that are still to be handed to the route."""
        return max(0, self._n_prompt - self._sent_to)

    # -- answers -------------------------------------------------------------------------------------------------------------

    def owns(self, command_id: str) -> bool:
        """True if an answer with this id is still wanted."""
        return command_id in self._in_flight

    def answered(self, command_id: str) -> float | None:
        """A step is no longer under way. Returns: since when it was; None if it is not one of ours."""
        return self._in_flight.pop(command_id, None)

    def prompt_rows(self, command_id: str) -> int:
        """Returns: rows of a step of the prompt whose answer is still to come; 0 for any other."""
        begin, end = self._prompt_steps.get(command_id, (0, 0))
        return end - begin

    def goes_on(self, command_id: str, at_s: float) -> None:
        """The stages go on with the run of this step by themselves: another answer will come."""
        self._in_flight[command_id] = at_s
        self._run = command_id

    @property
    def n_under_way(self) -> int:
        """Returns: steps whose answer is still to come."""
        return len(self._in_flight)

    def oldest_s(self) -> float | None:
        """Returns: since when the oldest step is under way and no other was before it; None if there is none."""
        sent_s = next(iter(self._in_flight.values()), None)
        return None if sent_s is None else max(sent_s, self._answered_s)

    def take_answer(self, result: TaskResult, sent_at_s: float, at_s: float) -> None:
        """A step of ours was answered, with a token or none: see what it says of the proposals behind it."""
        before_s, self._answered_s = self._answered_s, at_s
        self.has_answers = True
        self.n_ready = max(self.n_ready, self._prompt_steps.pop(result.command_id, (0, 0))[1])
        self._in_vain = []
        if self._speculator is None or not result.tokens:
            return
        self._measure(self._speculator.model, result, at_s - sent_at_s, at_s - before_s, before_s - sent_at_s)
        if not self._drafts:
            return
        is_right = self._drafts.pop(0) == result.tokens[0]
        self._speculator.judged(is_right=is_right)
        if not is_right:  # what is under way is in vain: the next step goes back to here
            self._drafts.clear()
            self._give_up_rows()
            self._sent_to = len(self._tokens)

    def _measure(
        self, model: ModelSpeculation, result: TaskResult, took_s: float, since_last_s: float, queued_s: float
    ) -> None:
        """See what an answer tells of the time that steps take."""
        if self._run == result.command_id:
            self._run = ""
            model.ran(took_s)
            return
        if result.position <= self._n_prompt:
            return
        model.computed(result.timings)
        if result.command_id in (self._first, self._alone):
            model.started(took_s)
            if self._is_clean:
                model.flew(took_s)
        elif self._has_window:
            if model.start_s is None or queued_s > model.start_s / 4:  # else it says how long it takes to get here
                model.followed(since_last_s)
        elif not result.ahead:  # stages that make no runs
            model.ran(took_s)

    def _give_up_rows(self) -> None:
        self._in_vain = list(self._in_flight)
        self._in_flight.clear()

    def settle(self) -> None:
        """What is in `tokens` now has its KV on every stage: one more is about to come."""
        self.n_settled = len(self._tokens)

    def catch_up(self) -> None:
        """The stages have all tokens already: they go on by themselves."""
        self._sent_to = len(self._tokens)

    # -- its end -------------------------------------------------------------------------------------------------------------

    def interrupt(self) -> bool:
        """A step failed: no answer to the others is wanted either. Returns: True if a refuted proposal was about to be dropped."""
        rejected = bool(self._in_vain)
        self._in_flight.clear()
        self._in_vain.clear()
        self._drafts.clear()
        self._has_window, self._run = False, ""
        self.n_settled = self.n_ready = 0
        self._prompt_steps.clear()
        return rejected

    def rewind(self, position: int) -> None:
        """Every stage has the tokens before `position`, and perhaps no others: go on there. Nothing is copied any more."""
        self._template = self._template.model_copy(update={"copy_from": None})
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
        """Leave the sequence as it is. Returns: it, with what is certainly there, and what stops all that is still under way."""
        count = max(self.n_settled, self.n_ready)
        kept = Kept(self.sequence_id, self.route, self._tokens[:count], min(self.n_cold, count))
        under_way = (*self._in_vain, *self._in_flight)
        sends = [send for command_id in under_way for send in self._to_all(CancelTask(command_id=command_id))]
        self.interrupt()
        self.sequence_id = ""
        return kept, sends

    def _to_all(self, message: FreeSequence | CancelTask) -> list[Send]:
        return [Send(node_id, message) for node_id in dict.fromkeys(self.route.node_ids)]
