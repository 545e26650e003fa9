"""Reads the coordinator's counters for the charts: requests in progress, and what nodes last said of themselves."""

from __future__ import annotations

import statistics
import time

from shardnet.coordinator.page.pulse import Answer, Reading
from shardnet.coordinator.placement.cluster import Cluster
from shardnet.coordinator.requests.driver import Requests
from shardnet.coordinator.requests.running import Running


def read(requests: Requests, cluster: Cluster) -> Reading:
    """Returns: the counters at this moment."""
    totals = requests.totals
    return Reading(
        at_s=time.monotonic(),
        tokens_ended=totals.completion_tokens,
        first_tokens=totals.first_tokens,
        first_token_s=totals.first_token_s,
        queued=requests.queued,
        answers=tuple(_answer(one, cluster) for one in requests.running),
        busy={node_id: node.load for node_id, node in cluster.nodes.items()},
    )


def _answer(running: Running, cluster: Cluster) -> Answer:
    generation = running.generation
    route = generation.route
    manifest = cluster.manifests.get(generation.spec.model_id)
    last = [timings[-1].batch_tokens for timings in generation.timings if timings]
    return Answer(
        request_id=running.request_id,
        model=manifest.name if manifest is not None else generation.spec.model_id,
        tokens=generation.n_generated,
        attempts=generation.attempts,
        waits=generation.wants_route,
        nodes=route.node_ids if route is not None else (),
        batch_tokens=statistics.fmean(last) if last else None,
    )
