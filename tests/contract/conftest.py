"""A tiny model in three shards, and for each module an engine process that has loaded them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from shardnet.inference.engine.host import EngineProcess
from shardnet.inference.engine.settings import InferenceSettings
from tests.support.engine_world import NewRoute, Route, SplitModel, Stage, split
from tests.support.random_models import tiny_llama


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SplitModel:
    folder = tmp_path_factory.mktemp("tiny")
    return split(tiny_llama(folder / "tiny.gguf", tied=False), 3, folder / "cache")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tiny: SplitModel) -> AsyncIterator[EngineProcess]:
    engine = EngineProcess(InferenceSettings(threads=1))
    await engine.start()
    try:
        await Stage(engine, tiny, (0, 3)).load()
        yield engine
    finally:
        await engine.close()


@pytest_asyncio.fixture(loop_scope="module")
async def new_route(engine: EngineProcess, tiny: SplitModel) -> AsyncIterator[NewRoute]:
    """Makes sequences of the three shards in one engine, and forgets them afterwards."""
    made: list[Route] = []

    def make() -> Route:
        made.append(Route([Stage(engine, tiny, (0, 3))]))
        return made[-1]

    yield make
    for route in made:
        route.forget()
