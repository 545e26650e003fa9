"""What every benchmark of a pipeline needs: node processes, maybe behind slow links and each on its own core, and what the planner says of them."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

from shardnet.bench.driver import Driver
from shardnet.bench.netem import Relays, Shape
from shardnet.coordinator.placement.assign import Policy
from shardnet.coordinator.placement.law import Law, LinkTime, Pace, law_of, step_bytes
from shardnet.coordinator.placement.planning import pace_of
from shardnet.errors import UsageError
from shardnet.inference.gguf.layout import read_model
from shardnet.inference.splitting import families
from shardnet.inference.splitting.cuts import Weights, balanced_cuts
from shardnet.inference.splitting.cutting import CutRequest, plan_split, split_model
from shardnet.inference.splitting.plan import Balance
from shardnet.local.processes import LocalSwarm
from shardnet.manifest import Manifest
from shardnet.messages import ShardOptions
from shardnet.swarm.home import Home

FIRST_TOKEN_ID, MOST_TOKEN_ID = 10, 1000
"""Prompts are of such tokens: no vocabulary is so small, and none of these ends a text."""


def prompt_of(seed: int, n_tokens: int) -> list[int]:
    """Returns: the same tokens for the same seed."""
    generator = random.Random(seed)
    return [generator.randrange(FIRST_TOKEN_ID, MOST_TOKEN_ID) for _ in range(n_tokens)]


@dataclass(frozen=True)
class Pipeline:
    """One model cut into as many shards as there are nodes."""

    stages: int
    manifest: Manifest

    @property
    def route(self) -> list[tuple[str, int, int]]:
        """Returns: `(node, first shard, end shard)` per stage."""
        return [(f"node-{index}", index, index + 1) for index in range(self.stages)]


def cut(model: Path, cache: Path, counts: Iterable[int], balance: Balance = "speed") -> list[Pipeline]:
    """Split a model for pipelines of so many stages.

    Raises: UsageError, FamilyRefused where it cannot be cut so.
    """
    pipelines = []
    for count in counts:
        request = CutRequest(n_shards=count, balance=balance)
        _, manifest = split_model(plan_split(model, request, f"bench-{count}-{balance}"), cache)
        pipelines.append(Pipeline(count, manifest))
    return pipelines


def recut(model: Path, cache: Path, pipeline: Pipeline, row_us: Sequence[float]) -> Pipeline:
    """Cut again so that every stage takes as long as the others, as placement does with shards of a few layers.

    Args:
        row_us: microseconds that each stage of `pipeline` took for a row; the last one's hold the head.
    """
    if pipeline.stages == 1:
        return pipeline
    header = read_model(model)
    rules = families.rules_for(header)
    counts = [shard.layers.end - shard.layers.first for shard in pipeline.manifest.content.shards]
    layer_us = sum(row_us[:-1]) / sum(counts[:-1])
    head_us = max(0.0, row_us[-1] - counts[-1] * layer_us)
    weights = Weights((round(1e3 * layer_us),) * sum(counts), first=0, last=round(1e3 * head_us))
    cuts = balanced_cuts(weights, rules.legal_cuts, pipeline.stages, rules.forbidden_lengths)
    _, manifest = split_model(
        plan_split(model, CutRequest(cuts=cuts), f"bench-{pipeline.stages}-{'-'.join(map(str, cuts))}"), cache
    )
    return Pipeline(pipeline.stages, manifest)


class World:
    """Running nodes `node-0`, `node-1`, ... An asynchronous context manager.

    Args:
        nodes: how many.
        shape: the link of each node, in both directions; one that holds nothing back is left out altogether.
        pin: node `i` runs on core `i` alone, round and round.
    """

    def __init__(self, work: Path, cache: Path, nodes: int, *, threads: int, shape: Shape, pin: bool) -> None:
        self._swarm = LocalSwarm(work)
        self._cache, self._nodes, self._threads, self._shape, self._pin = cache, nodes, threads, shape, pin
        self._relays: Relays | None = None
        self._resources = AsyncExitStack()
        self._links: dict[tuple[str, str], LinkTime] = {}
        self.driver = Driver(Home(self._swarm.home))

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as resources:
            resources.enter_context(self._swarm)
            if not self._shape.is_free:
                self._relays = resources.enter_context(Relays(self._shape))
            await resources.enter_async_context(self.driver)
            join = self.driver.address
            if self._relays is not None:
                join = await asyncio.to_thread(self._relays.add, join)
            for index in range(self._nodes):
                threads = ("--threads", str(self._threads))
                process = self._swarm.start_node(f"node-{index}", self._cache, "--coordinator", str(join), *threads)
                if self._pin:
                    pin_process(process.pid, index)
            await self.driver.wait_nodes(self._nodes)
            if self._relays is not None:
                for name, (hello, _) in self.driver.nodes.items():
                    if hello.listen is not None:
                        self.driver.via[name] = await asyncio.to_thread(self._relays.add, hello.listen)
            self._resources = resources.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._resources.__aexit__(kind, error, trace)

    @property
    def pids(self) -> dict[str, int]:
        """Returns: node name -> its daemon's process id."""
        return {name: process.pid for name, process in self._swarm.processes.items()}

    async def load(self, pipelines: Sequence[Pipeline], options: ShardOptions) -> None:
        """Have every stage in memory, and the links between neighbours measured. Raises: the node's error."""
        for pipeline in pipelines:
            for node, shard_id, _end in pipeline.route:
                await self.driver.load(node, pipeline.manifest, shard_id, options)
        for node in self.driver.nodes:
            link = LinkTime(await self.driver.ping(node) / 2)
            self._links["", node] = self._links[node, ""] = link
        pairs = {pair for one in pipelines for pair in pairwise([*(node for node, _, _ in one.route), one.route[0][0]])}
        for source, target in sorted(pairs):
            if source != target and (source, target) not in self._links:
                link = await self.driver.measure_link(source, target)
                self._links[source, target] = self._links[target, source] = link
        if self._shape.bytes_per_s:  # of links to the coordinator only the round trip is measured
            for pair in [pair for pair in self._links if "" in pair]:
                self._links[pair] = LinkTime(self._links[pair].one_way_s, self._shape.bytes_per_s)

    def pace(self, node: str, manifest: Manifest) -> Pace:
        """Returns: how quick a node is, by what it last told of its shards of this model: the very thing a coordinator goes by."""
        beat = self.driver.beats[node]
        told = (held for held in beat.held if held.model_id == manifest.model_id)
        return pace_of(
            ((step_bytes(manifest, held.shard_id, held.shard_id + 1), held) for held in told), beat.handover_us
        )

    def law(self, pipeline: Pipeline, pace: Pace | None = None) -> Law:
        """Returns: the planner's law of one pipeline, after `Driver.wait_beats`.

        Args:
            pace: of every node, in place of what each has told.
        """
        policy, manifest = Policy(), pipeline.manifest
        runs = [(node, pace or self.pace(node, manifest), first, end) for node, first, end in pipeline.route]
        return law_of(manifest, runs, self._links, policy.default_link, policy.hop_fixed_s)

    def links_json(self) -> dict[str, dict[str, float]]:
        """Returns: the slowest link between nodes, and to the coordinator."""
        found = {}
        for name, own in (("nodes", False), ("coordinator", True)):
            links = [link for pair, link in self._links.items() if ("" in pair) == own]
            if links:
                worst = max(links, key=lambda link: link.one_way_s)
                found[name] = {
                    "one_way_us": round(worst.one_way_s * 1e6, 1),
                    "mbit_s": round(min(link.bytes_per_s for link in links) * 8e-6, 1),
                }
        return found


def use_cores(count: int) -> None:
    """Keep this process, and those that it will start, on the first `count` of the cores that it may use.

    Raises: UsageError where there are not so many, or the system cannot do that.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise UsageError("--cores needs Linux: this system cannot keep a process on some of its cores")
    cores = sorted(os.sched_getaffinity(0))
    if count > len(cores):
        raise UsageError(f"--cores {count}: this process may use {len(cores)} cores")
    os.sched_setaffinity(0, cores[:count])


def pin_process(pid: int, number: int) -> None:
    """Keep a process, and those that it will start, on one core: the `number`-th that we may use, round and round.

    Raises: UsageError where the system cannot do that.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise UsageError("--pin needs Linux: this system cannot keep a process on one core")
    cores = sorted(os.sched_getaffinity(0))
    with suppress(ProcessLookupError):  # it ended at once, which is noticed elsewhere
        os.sched_setaffinity(pid, {cores[number % len(cores)]})
