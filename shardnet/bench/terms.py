"""What every benchmark is measured under, and the swarm that it is measured in: one on each network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from shardnet.bench.netem import NETS
from shardnet.bench.rows import Row, machine
from shardnet.bench.world import Pipeline, World, cut
from shardnet.inference.splitting.plan import Balance
from shardnet.messages import ShardOptions


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of one run of `shardnet bench`.

    Attributes:
        model: the unsplit GGUF.
        work: a scratch folder.
        nets: networks by name, one after the other.
        stages: numbers of nodes, a pipeline each.
        rounds: figures are medians over so many.
        threads: CPU threads of each stage.
        seed: of the prompts.
        pin: each stage has a core of its own.
        on_row: is handed every result.
    """

    model: Path
    work: Path
    nets: Sequence[str]
    stages: Sequence[int]
    rounds: int
    threads: int
    seed: int
    pin: bool
    on_row: Callable[[Row], None]

    @property
    def cache(self) -> Path:
        """Returns: the models cache that all nodes read."""
        return self.work / "models_cache"

    def cut(self, balance: Balance = "speed") -> list[Pipeline]:
        """Returns: a pipeline for each number of stages, its shards cut into the cache."""
        return cut(self.model, self.cache, self.stages, balance)

    @asynccontextmanager
    async def world(
        self, net: str, pipelines: Sequence[Pipeline], options: ShardOptions, *, name: str = ""
    ) -> AsyncIterator[World]:
        """A swarm on this network, in a folder of that name (the network's if none is given), with the pipelines in memory."""
        folder = self.work / (name or net)
        folder.mkdir()
        shape = NETS[net]
        async with World(
            folder, self.cache, max(self.stages), threads=self.threads, shape=shape, pin=self.pin
        ) as world:
            await world.load(pipelines, options)
            yield world

    def tell(self, bench: str, net: str, figures: Row) -> None:
        """Hand on one result, with what it was measured under."""
        self.on_row(
            {"bench": bench, "net": net, "model": self.model.stem, "threads": self.threads, "pinned": self.pin}
            | figures
            | machine()
        )
