"""A whole node daemon in this process, with an engine and an exchange that the test plays: what passes between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shardnet.errors import ManifestError, ShardNotFound
from shardnet.ids import new_id
from shardnet.inference.engine.interface import Engine, LoadedShard, OnProgress
from shardnet.inference.engine.protocol import Load, Loaded, Ready, Report
from shardnet.inference.splitting.cutting import CutRequest, plan_split, split_model
from shardnet.manifest import Manifest
from shardnet.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    CommandFailed,
    FileIs,
    GetFile,
    Heartbeat,
    Hello,
    LoadProgress,
    LoadShard,
    ShardReady,
    ShardSource,
    Welcome,
)
from shardnet.node.daemon import NodeDaemon
from shardnet.node.settings import NodeSettings
from shardnet.node.weights.exchange import FetchProgress, OnFetchProgress
from shardnet.swarm.home import Home
from shardnet.swarm.identity import claim_identity, ensure_swarm
from shardnet.swarm.signing import sign
from shardnet.transport import Connection, listen
from shardnet.wire import Frame
from tests.support.random_models import tiny_llama

pytestmark = pytest.mark.integration

WAIT_S = 15.0


class FakeEngine:
    """Loads at once."""

    def __init__(self) -> None:
        self.loads: list[Load] = []

    async def start(self) -> Ready:
        return Ready(pid=1, devices=())

    async def load(self, request: Load, on_progress: OnProgress | None = None) -> LoadedShard:
        self.loads.append(request)
        return LoadedShard(request, Loaded(command_id=request.command_id, memory_bytes=77))

    pid: int | None = None

    async def report(self) -> Report:
        return Report(command_id=new_id(), devices=(), sequences=0, busy_s=0.0)

    async def close(self) -> None:
        pass


@dataclass
class FakeExchange:
    """Has one model's files, and gives them."""

    source: Path
    torrent_port: int = 1234
    fetched: list[tuple[int, tuple[ShardSource, ...]]] = field(default_factory=list)
    offered: list[int] = field(default_factory=list)
    withdrawn: list[int] = field(default_factory=list)
    is_hanging: bool = False
    was_cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def fetch(
        self,
        manifest: Manifest,
        shard_id: int,
        target: Path,
        sources: tuple[ShardSource, ...],
        on_progress: OnFetchProgress,
    ) -> None:
        self.fetched.append((shard_id, sources))
        on_progress(FetchProgress(1, manifest.content.shards[shard_id].bytes, 1e6, 2))
        if self.is_hanging:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.was_cancelled.set()
                raise
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((self.source / target.name).read_bytes())  # noqa: ASYNC240 - small

    async def offer(self, manifest: Manifest, shard_id: int, path: Path) -> None:
        self.offered.append(shard_id)

    async def withdraw(self, model_id: str, shard_id: int) -> None:
        self.withdrawn.append(shard_id)

    async def manifest(self, model_id: str, sources: tuple[ShardSource, ...]) -> Manifest:
        raise ManifestError(f"nobody has model {model_id}")

    async def piece(self, manifest: Manifest, shard_id: int, offset: int, most_bytes: int) -> bytes:
        return b"piece"

    def meet(self, manifest: Manifest, shard_id: int, asker: ShardSource) -> None:
        raise AssertionError("nobody is met here")

    async def torrent(self, manifest: Manifest, shard_id: int) -> bytes:
        if shard_id:
            raise ShardNotFound("no torrent of it")
        return b"torrent"


@dataclass
class World:
    manifest: Manifest
    engine: FakeEngine
    exchange: FakeExchange
    connection: Connection
    hello: Hello
    frames: asyncio.Queue[Frame[AnyMessage]]

    async def until(self, wanted: Callable[[AnyMessage], bool]) -> Frame[AnyMessage]:
        async with asyncio.timeout(WAIT_S):
            while True:
                frame = await self.frames.get()
                if wanted(frame.message):
                    return frame

    def load(self, shard_id: int, **more: object) -> LoadShard:
        facts: dict[str, object] = {
            "command_id": new_id(),
            "deadline_s": WAIT_S,
            "model_id": self.manifest.model_id,
            "shard_id": shard_id,
            "manifest": self.manifest,
        }
        command = LoadShard.model_validate(facts | more)
        self.connection.send(command)
        return command


def answers(command_id: str, *kinds: type) -> Callable[[AnyMessage], bool]:
    return lambda message: isinstance(message, kinds) and getattr(message, "command_id", "") == command_id


@pytest.fixture
async def world(home: Path, tmp_path: Path) -> AsyncIterator[World]:
    """An empty node that has joined."""
    whole = tiny_llama(tmp_path / "tiny.gguf", n_layers=2)
    folder, manifest = split_model(plan_split(whole, CutRequest(n_shards=2)), tmp_path / "cache")
    manifest = sign(manifest, ensure_swarm(Home(home)))
    engine, exchange = FakeEngine(), FakeExchange(folder)
    frames: asyncio.Queue[Frame[AnyMessage]] = asyncio.Queue()
    joined: asyncio.Future[tuple[Connection, Hello]] = asyncio.get_running_loop().create_future()
    with (
        claim_identity(Home(home), "coordinator", "coordinator") as us,
        claim_identity(Home(home), "node", "node") as identity,
    ):

        def on_hello(connection: Connection, hello: Hello) -> Welcome:
            connection.set_handler(frames.put_nowait, lambda _error: None)
            joined.set_result((connection, hello))
            return Welcome(protocol=PROTOCOL_VERSION, node_id=us.node_id, epoch=1)

        def make_engine(_on_restart: object) -> Engine:
            return engine  # type: ignore[return-value]

        async with await listen(us, ("127.0.0.1", 0), on_hello) as listener:
            node = {
                "coordinator": str(listener.address),
                "models_cache": tmp_path / "node",
                "heartbeat_interval_s": 0.1,
            }
            settings = NodeSettings.model_validate({"node": node})
            daemon = NodeDaemon(settings, identity, exchange=exchange, make_engine=make_engine)
            life = asyncio.create_task(daemon.run())
            connection, hello = await joined
            yield World(manifest, engine, exchange, connection, hello, frames)
            daemon.stop()
            await asyncio.wait_for(life, WAIT_S)


async def test_a_shard_that_is_not_here_is_fetched_proved_loaded_and_offered(world: World, tmp_path: Path) -> None:
    assert world.hello.capabilities.torrent_port == 1234
    assert world.hello.held == ()
    source = ShardSource(node_id="a" * 40, address=world.hello.listen or pytest.fail("no address"))
    command = world.load(1, sources=(source,))
    progress = (await world.until(answers(command.command_id, LoadProgress))).message
    assert isinstance(progress, LoadProgress)
    assert (progress.stage, progress.peers) == ("fetch", 2)
    ready = (await world.until(answers(command.command_id, ShardReady, CommandFailed))).message
    assert isinstance(ready, ShardReady), ready
    assert (ready.source, ready.held.memory_bytes) == ("torrent", 77)
    assert world.exchange.fetched == [(1, (source,))]
    assert world.exchange.offered == [1]
    (file,) = (tmp_path / "node").rglob("shard-1.gguf")
    assert (file.parent / "manifest.json").exists(), "the signed manifest is kept beside it"
    assert world.engine.loads[0].path == str(file)
    beat = (await world.until(lambda m: isinstance(m, Heartbeat) and any(h.loaded for h in m.held))).message
    assert isinstance(beat, Heartbeat)


async def test_a_fetched_file_with_other_bytes_is_put_aside(world: World, tmp_path: Path) -> None:
    shard = world.exchange.source / "shard-0.gguf"
    data = bytearray(shard.read_bytes())
    data[-60] ^= 1
    shard.write_bytes(data)
    command = world.load(0)
    failed = (await world.until(answers(command.command_id, ShardReady, CommandFailed))).message
    assert isinstance(failed, CommandFailed)
    assert failed.error.code == "SHARD_CORRUPT"
    assert len(world.exchange.fetched) == 1, "who sent this would send it again"
    data[-60] ^= 1
    shard.write_bytes(data)
    again = world.load(0)
    assert isinstance((await world.until(answers(again.command_id, ShardReady, CommandFailed))).message, ShardReady)
    assert list((tmp_path / "node").rglob("shard-0.gguf.corrupt"))
    assert not world.engine.loads[1:]


async def test_a_download_ends_when_the_last_command_for_it_is_overdue(world: World) -> None:
    world.exchange.is_hanging = True
    command = world.load(0, deadline_s=0.3)
    failed = (await world.until(answers(command.command_id, CommandFailed))).message
    assert isinstance(failed, CommandFailed)
    assert failed.error.code == "DEADLINE"
    await asyncio.wait_for(world.exchange.was_cancelled.wait(), WAIT_S)
    world.exchange.is_hanging = False
    again = world.load(0)
    assert isinstance((await world.until(answers(again.command_id, ShardReady, CommandFailed))).message, ShardReady)


async def test_a_torrent_is_handed_over_like_any_small_file(world: World) -> None:
    first = world.load(0)
    await world.until(answers(first.command_id, ShardReady))
    for shard_id, kind in ((0, FileIs), (1, CommandFailed)):
        model_id = world.manifest.model_id
        question = GetFile(command_id=new_id(), deadline_s=5, model_id=model_id, kind="torrent", shard_id=shard_id)
        world.connection.send(question)
        frame = await world.until(answers(question.command_id, FileIs, CommandFailed))
        assert isinstance(frame.message, kind)
        if isinstance(frame.message, FileIs):
            assert bytes(frame.payloads[0])[: frame.message.piece_bytes] == b"torrent"
