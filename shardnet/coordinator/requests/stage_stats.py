"""What the clocks said of one stage of one request."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shardnet.steps import StageTiming


@dataclass(slots=True)
class StageStats:
    """Clock readings of one stage, decode steps only, microseconds."""

    queue_us: list[float] = field(default_factory=list)
    compute_us: list[float] = field(default_factory=list)
    engine_us: list[float] = field(default_factory=list)
    batch_tokens: list[int] = field(default_factory=list)

    def add(self, timing: StageTiming) -> None:
        """Note one step."""
        self.queue_us.append(timing.queue_us)
        self.compute_us.append(timing.compute_us)
        self.engine_us.append(timing.engine_us)
        self.batch_tokens.append(timing.batch_tokens)

    def as_json(self) -> dict[str, Any]:
        """Returns: median microseconds per step, and how many tokens a batch had on average; 0 without a step."""
        return {
            "queue_us": _middle(self.queue_us),
            "compute_us": _middle(self.compute_us),
            "engine_us": _middle(self.engine_us),
            "batch_tokens": round(statistics.fmean(self.batch_tokens), 2) if self.batch_tokens else 0,
        }


def _middle(values: Sequence[float]) -> float:
    return round(statistics.median(values), 1) if values else 0.0
