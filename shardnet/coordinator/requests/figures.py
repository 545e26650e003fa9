"""What requests were and took, by model, for whoever watches: tokens, times, and what each stage spent on steps. Counted as it happens.

Totals are of all requests that ended (`totals`); these here are counted at once, so that nothing jumps where a long answer ends. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from shardnet.coordinator.placement.planning import Route
from shardnet.coordinator.requests.pipeline import Generation
from shardnet.metrics.buckets import ANSWER_S, FIRST_TOKEN_S, GAP_S, ROWS, TOKEN_S, WAIT_S, Buckets
from shardnet.metrics.family import Sum
from shardnet.steps import StageTiming

ERROR, CANCELLED = "error", "cancelled"
OUTCOMES = ("stop", "length", CANCELLED, ERROR)


@dataclass(slots=True)
class StageFigures:
    """Steps of one stage on one node, microseconds all together, and the rows of their batches."""

    queue_us: float = 0.0
    compute_us: float = 0.0
    handover_us: float = 0.0
    rows: Buckets = field(default_factory=lambda: Buckets(ROWS))

    def seconds(self, total_us: float) -> Sum:
        """Returns: one of the three, of all steps."""
        return Sum(self.rows.count, total_us * 1e-6)


@dataclass(slots=True)
class ModelFigures:
    """All requests of one model.

    Attributes:
        prompt_tokens: of all that had their turn; `tokens`: of answers.
        first_token: seconds from a request's arrival; `between`: from one token to the next, and `longest` of these in each
            answer that is over; `waited`: for a place on a pipeline; `took`: all of it.
        outcomes: of answers that are over, by how they ended; `errors`: of those that failed, by code.
        stages: by stage and node.
    """

    prompt_tokens: int = 0
    tokens: int = 0
    first_token: Buckets = field(default_factory=lambda: Buckets(FIRST_TOKEN_S))
    between: Buckets = field(default_factory=lambda: Buckets(TOKEN_S))
    longest: Buckets = field(default_factory=lambda: Buckets(GAP_S))
    waited: Buckets = field(default_factory=lambda: Buckets(WAIT_S))
    took: Buckets = field(default_factory=lambda: Buckets(ANSWER_S))
    outcomes: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(OUTCOMES, 0)))
    errors: Counter[str] = field(default_factory=Counter)
    stages: dict[tuple[int, str], StageFigures] = field(default_factory=dict)


class Figures:
    """By model id. Nothing here is forgotten but stages of nodes that are gone (`forget`)."""

    def __init__(self) -> None:
        self.models: dict[str, ModelFigures] = {}

    def of(self, model_id: str) -> ModelFigures:
        """Returns: a model's."""
        found = self.models.get(model_id)
        if found is None:
            found = self.models[model_id] = ModelFigures()
        return found

    def began(self, generation: Generation, waited_s: float) -> None:
        """A request has its place."""
        model = self.of(generation.spec.model_id)
        model.prompt_tokens += len(generation.spec.prompt)
        model.waited.add(waited_s)

    def step(self, route: Route, timings: Sequence[StageTiming]) -> None:
        """A step along a route was answered. Every token passes here."""
        stages = self.of(route.model_id).stages
        for index, (node_id, timing) in enumerate(zip(route.node_ids, timings, strict=False)):
            found = stages.get((index, node_id))
            if found is None:
                found = stages[index, node_id] = StageFigures()
            queue_us, compute_us, handover_us, rows = timing
            found.queue_us += queue_us
            found.compute_us += compute_us
            found.handover_us += handover_us
            found.rows.add(rows)

    def token(self, model_id: str, seconds: float, *, is_first: bool) -> None:
        """A token came. Args: seconds: since the one before it, or the first one since the request arrived."""
        model = self.of(model_id)
        model.tokens += 1
        (model.first_token if is_first else model.between).add(seconds)

    def ended(self, generation: Generation, seconds: float, longest_s: float | None = None) -> None:
        """A request is over. Args: seconds: since it arrived. longest_s: between two of its tokens; None: it did not have two."""
        model = self.of(generation.spec.model_id)
        model.took.add(seconds)
        if longest_s is not None:
            model.longest.add(longest_s)
        if generation.error is not None:
            model.outcomes[ERROR] += 1
            model.errors[generation.error.code] += 1
        else:
            model.outcomes[generation.finish_reason or CANCELLED] += 1

    def forget(self, present: Iterable[str]) -> None:
        """Nodes that are not present have no stages: what they did is not told any more."""
        here = frozenset(present)
        for model in self.models.values():
            for key in [key for key in model.stages if key[1] not in here]:
                del model.stages[key]
