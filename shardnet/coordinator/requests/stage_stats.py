"""What the clocks said of one stage of one request."""

from __future__ import annotations

import statistics
from typing import Any

from shardnet.steps import StageTiming


def stage_stats(timings: list[StageTiming]) -> dict[str, Any]:
    """Returns: median microseconds per decode step of one stage, and how many tokens a batch had on average; 0 without a step."""
    if not timings:
        return {"queue_us": 0.0, "compute_us": 0.0, "engine_us": 0.0, "batch_tokens": 0}
    return {
        "queue_us": round(statistics.median(one.queue_us for one in timings), 1),
        "compute_us": round(statistics.median(one.compute_us for one in timings), 1),
        "engine_us": round(statistics.median(one.engine_us for one in timings), 1),
        "batch_tokens": round(statistics.fmean(one.batch_tokens for one in timings), 2),
    }
