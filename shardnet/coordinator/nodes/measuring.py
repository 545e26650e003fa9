"""Which links to measure: each once, and those that did not work again now and then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shardnet.coordinator.nodes.loads import Loader
from shardnet.coordinator.placement.cluster import Cluster
from shardnet.messages import Address

LOOK_EVERY_S = 1.0
REMEASURE_S = 20.0

Pair = tuple[str, str]
"""Node ids; "" is the coordinator."""


class LinkSchedule:
    """Remembers when each link was measured, and where its ends were then. Pure."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._measured: dict[Pair, float] = {}
        self._ends: dict[Pair, list[Address | None]] = {}

    def pairs(self) -> list[Pair]:
        """Returns: every link of the present nodes, in the order they are measured in; those that are gone are forgotten."""
        here = sorted(node_id for node_id, node in self._cluster.nodes.items() if not node.draining)
        pairs = [("", one) for one in here] + [(a, b) for a in here for b in here if a < b]
        pairs += sorted(pair for pair in self._cluster.unreachable if pair not in pairs)
        self._measured = {pair: at_s for pair, at_s in self._measured.items() if set(pair) <= {"", *here}}
        self._ends = {pair: self._ends[pair] for pair in self._measured}
        return pairs

    def begin(self, pair: Pair, at_s: float) -> bool:
        """Returns: True if the link is to be measured now, which then counts as done."""
        ends = [node.address for one in pair if (node := self._cluster.nodes.get(one))]
        again = pair in self._cluster.unreachable and at_s - self._measured.get(pair, at_s) > REMEASURE_S
        if pair in self._measured and not again and self._ends[pair] == ends:
            return False
        self._measured[pair], self._ends[pair] = at_s, ends
        return True


async def keep_measured(cluster: Cluster, loader: Loader, now_s: Callable[[], float]) -> None:
    """Measure what is due, one link after the other, until cancelled."""
    schedule = LinkSchedule(cluster)
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        for pair in schedule.pairs():
            if schedule.begin(pair, now_s()):
                await loader.measure(*pair)
