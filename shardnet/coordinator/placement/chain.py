"""The cheapest chain of contiguous shard runs over nodes. Pure: costs are functions of plain numbers, so placement, routing and planning share it.

Each node holds one run of a chain, and the last one sends on to the first: a ring. Small swarms are searched exactly, by dynamic programming over
(set of nodes used, last node, shards covered); larger ones along orders of the nodes that are improved step by step. Where no such chain exists (a
node bound to shards 0 and 2 of three), nodes may come again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Run = tuple[int, int, int]
"""`(node, first shard, end shard)`; nodes are numbers here."""

RunCost = Callable[[int, int, int], float | None]
"""`(node, first, end)` -> seconds a token spends there; None if that node cannot hold these shards together."""

HopCost = Callable[[int, int], float]
"""`(from, to)` -> seconds from one node to the next."""

EXACT_TRANSITIONS = 100_000
"""Less than a tenth of a second of Python: it runs between the steps of other requests."""
IMPROVE_TRANSITIONS = 300_000


@dataclass(frozen=True, slots=True)
class Chain:
    """A way to cover all shards, and what one token costs around it, seconds."""

    runs: tuple[Run, ...]
    cost: float


def find_chain(
    n_shards: int, n_nodes: int, run_cost: RunCost, hop_cost: HopCost, *, stages: int = 0, repeats: bool = False
) -> Chain | None:
    """Find the cheapest chain; one of a single node has no hop. Of equal ones the one whose nodes have the smallest numbers.

    Args:
        run_cost: must not allow a longer run where it refuses a shorter one with the same first shard.
        stages: exactly so many runs; 0 for any number.
        repeats: a node may come again later in the chain if there is no other way (never with forced stages).

    Returns: None if no chain covers all shards.
    """
    table = _run_table(n_shards, n_nodes, run_cost)
    hops = [[hop_cost(a, b) if a != b else math.inf for b in range(n_nodes)] for a in range(n_nodes)]
    nodes = [node for node in range(n_nodes) if any(table[node][first] for first in range(n_shards))]
    if not nodes or n_shards == 0:
        return None
    runs = sum(len(ends) for node in nodes for ends in table[node])
    work = runs * (1 << (len(nodes) - 1)) * len(nodes) * len(nodes) / 8
    if work > EXACT_TRANSITIONS:
        found = _improved_order(n_shards, sorted(nodes, key=lambda node: _pace(node, table)), table, hops, stages)
        if found is None and stages:
            way = _with_repeats(n_shards, nodes, table, hops)
            order = list(dict.fromkeys(node for node, _first, _end in way.runs)) if way is not None else []
            order += [node for node in nodes if node not in order]
            found = _improved_order(n_shards, order, table, hops, stages)
    else:
        rings = (_exact(first, n_shards, nodes, table, hops, stages) for first in nodes)
        found = min((one for one in rings if one is not None), key=lambda one: one.cost, default=None)
    if found is None and repeats and not stages:
        found = _with_repeats(n_shards, nodes, table, hops)
    return found


Table = list[list[list[float]]]
"""table[node][first][k]: cost of the run [first, first + 1 + k)."""

Hops = list[list[float]]
"""hops[a][b]: cost from a to b; infinite from a node to itself."""


def _run_table(n_shards: int, n_nodes: int, run_cost: RunCost) -> Table:
    table: Table = []
    for node in range(n_nodes):
        rows: list[list[float]] = []
        for first in range(n_shards):
            costs: list[float] = []
            for end in range(first + 1, n_shards + 1):
                cost = run_cost(node, first, end)
                if cost is None:
                    break
                costs.append(cost)
            rows.append(costs)
        table.append(rows)
    return table


def _closing(hops: Hops) -> list[float]:
    """Returns: what the last hop costs from each node where the first one is not known: to the nearest."""
    return [min((cost for cost in row if cost < math.inf), default=0.0) for row in hops]


_State = tuple[int, int, int]
"""(nodes used as bits or count, last node, shards covered)."""


def _exact(first: int, n_shards: int, nodes: Sequence[int], table: Table, hops: Hops, stages: int) -> Chain | None:
    """Held-Karp over the nodes, for the rings that begin at `first`, with the number of shards covered as one more dimension."""
    best: dict[_State, float] = {}
    back: dict[_State, _State | None] = {}
    layer: list[_State] = []

    def offer(state: _State, cost: float, previous: _State | None) -> None:
        known = best.get(state)
        if known is None:
            new.append(state)
        elif cost >= known:
            return
        best[state], back[state] = cost, previous

    new = layer
    for length, cost in enumerate(table[first][0], start=1):
        offer((1 << first, first, length), cost, None)
    final: tuple[float, _State] | None = None
    count = 1
    while layer:
        new = []
        for state in layer:
            used, last, covered = state
            cost = best[state]
            if covered == n_shards:
                total = cost if last == first else cost + hops[last][first]
                if (not stages or count == stages) and (final is None or total < final[0]):
                    final = (total, state)
                continue
            if (stages and count == stages) or (final is not None and cost >= final[0]):
                continue
            for node in nodes:
                if used >> node & 1:
                    continue
                base = cost + hops[last][node]
                for length, run in enumerate(table[node][covered], start=1):
                    offer((used | 1 << node, node, covered + length), base + run, state)
        layer = new
        count += 1
    return _unwind(final, back)


def _unwind(final: tuple[float, _State] | None, back: dict[_State, _State | None]) -> Chain | None:
    if final is None:
        return None
    runs: list[Run] = []
    state: _State | None = final[1]
    while state is not None:
        previous = back[state]
        runs.append((state[1], previous[2] if previous else 0, state[2]))
        state = previous
    return Chain(tuple(reversed(runs)), final[0])


def _pace(node: int, table: Table) -> tuple[float, int]:
    """Sorts the quickest per shard first: what the node's longest runs cost."""
    return min(row[-1] / len(row) for row in table[node] if row), node


def _improved_order(n_shards: int, nodes: Sequence[int], table: Table, hops: Hops, stages: int) -> Chain | None:
    """Too many nodes for all subsets: the best chain along this order of the nodes, which is then improved by moving single nodes forward."""
    order, closing = list(nodes), _closing(hops)
    found = _along(order, n_shards, table, hops, closing, stages)
    work = max(1, _along_work(order, table))
    for _ in range(max(1, IMPROVE_TRANSITIONS // (work * len(order)))):
        improved = False
        for index in range(len(order) - 1, 0, -1):
            candidate = [*order[: index - 1], order[index], order[index - 1], *order[index + 1 :]]
            other = _along(candidate, n_shards, table, hops, closing, stages)
            if other is not None and (found is None or other.cost < found.cost):
                order, found, improved = candidate, other, True
        if not improved:
            break
    return found


def _along_work(order: Sequence[int], table: Table) -> int:
    return sum(len(ends) * index for index, node in enumerate(order, start=1) for ends in table[node])


def _along(
    order: Sequence[int], n_shards: int, table: Table, hops: Hops, closing: list[float], stages: int
) -> Chain | None:
    """The cheapest chain that visits some of the nodes in this order. States: (stages so far or 0, position in the order, shards covered)."""
    best: dict[_State, float] = {}
    back: dict[_State, _State | None] = {}
    final: tuple[float, _State] | None = None
    for place, node in enumerate(order):
        rows = table[node]
        starts: list[tuple[int, int, float, _State | None]] = [(1 if stages else 0, 0, 0.0, None)]
        for state, cost in best.items():
            count, last, covered = state
            if covered < n_shards and not (stages and count == stages):
                starts.append((count + 1 if stages else 0, covered, cost + hops[order[last]][node], state))
        for count, covered, base, previous in starts:
            for length, run in enumerate(rows[covered], start=1):
                state = (count, place, covered + length)
                if base + run < best.get(state, math.inf):
                    best[state], back[state] = base + run, previous
        for count in range(1, stages + 1) if stages else (0,):
            cost_here = best.get((count, place, n_shards), math.inf) + closing[node]
            if (not stages or count == stages) and cost_here < (final[0] if final else math.inf):
                final = (cost_here, (count, place, n_shards))
    chain = _unwind(final, back)
    return None if chain is None else Chain(tuple((order[a], b, c) for a, b, c in chain.runs), chain.cost)


def _with_repeats(n_shards: int, nodes: Sequence[int], table: Table, hops: Hops) -> Chain | None:
    closing = _closing(hops)
    best: dict[_State, float] = {}
    back: dict[_State, _State | None] = {}
    for covered in range(n_shards):
        starts: list[tuple[int | None, float, _State | None]] = [(None, 0.0, None)] if covered == 0 else []
        starts += [(last, best[(0, last, covered)], (0, last, covered)) for last in nodes if (0, last, covered) in best]
        for last, cost, previous in starts:
            for node in nodes:
                base = cost + (0.0 if last is None else hops[last][node])
                for length, run in enumerate(table[node][covered], start=1):
                    state = (0, node, covered + length)
                    if base + run < best.get(state, math.inf):
                        best[state], back[state] = base + run, previous
    ends = [
        (best[(0, node, n_shards)] + closing[node], (0, node, n_shards))
        for node in nodes
        if (0, node, n_shards) in best
    ]
    return _unwind(min(ends), back) if ends else None
