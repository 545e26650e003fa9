"""A node and damaged bytes: a hostile member of the swarm hands out the right torrent and the wrong bytes, or the node's own file rots.

A whole node in this process, with its real transfers; the test is its coordinator, its hostile seed, and who takes from it afterwards.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shardnet.errors import ShardNotFound
from shardnet.ids import new_id
from shardnet.inference.gguf import writer
from shardnet.inference.splitting import manifest_file
from shardnet.inference.splitting.cutting import CutRequest, plan_split, split_model
from shardnet.manifest import Manifest
from shardnet.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    CommandFailed,
    GetFile,
    Hello,
    LoadShard,
    ShardReady,
    ShardSource,
    Welcome,
)
from shardnet.node.daemon import NodeDaemon
from shardnet.node.settings import NodeSettings
from shardnet.node.shards.events import LocalModel
from shardnet.node.sharing import SharingDaemon
from shardnet.node.weights import torrent_files
from shardnet.node.weights.file_answers import FileAnswers
from shardnet.node.weights.store import ModelStore
from shardnet.swarm.home import Home
from shardnet.swarm.identity import Identity, claim_identity, ensure_swarm
from shardnet.swarm.signing import sign
from shardnet.torrent import download
from shardnet.torrent.session import TorrentSession
from shardnet.torrent.settings import TorrentSettings
from shardnet.torrent.tls import TlsMaterial
from shardnet.transport import Connection, listen
from shardnet.wire import Frame
from tests.support.random_models import tiny_llama
from tests.support.torrent_world import raw_session, with_flipped_bytes

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

WAIT_S = 60.0


@dataclass
class World:
    """A node that has joined and holds nothing."""

    manifest: Manifest
    folder: Path
    tmp: Path
    us: Identity
    node: NodeDaemon
    torrent: bytes
    tls: TlsMaterial
    connection: Connection
    hello: Hello
    frames: asyncio.Queue[Frame[AnyMessage]]
    stack: AsyncExitStack
    third: TorrentSession
    seed: ShardSource | None = None

    @property
    def shard(self) -> Path:
        return self.folder / "shard-0.gguf"

    async def load(self, *sources: ShardSource) -> AnyMessage:
        """Returns: the node's answer to LOAD_SHARD, file only."""
        command = LoadShard(
            command_id=new_id(),
            deadline_s=WAIT_S,
            model_id=self.manifest.model_id,
            shard_id=0,
            keep_only=True,
            manifest=self.manifest,
            sources=sources,
        )
        self.connection.send(command)
        return await self.answer(command.command_id)

    async def answer(self, command_id: str) -> AnyMessage:
        async with asyncio.timeout(WAIT_S):
            while True:
                message = (await self.frames.get()).message
                is_final = not message.type.endswith("PROGRESS")
                if is_final and getattr(message, "command_id", "") == command_id:
                    return message

    async def liar(self, every: int) -> ShardSource:
        """Returns: a member that answers for the shard's torrent, and whose BitTorrent client gives out damaged bytes without looking at them."""
        rotten = await asyncio.to_thread(with_flipped_bytes, self.shard, self.tmp / "rotten", every=every)
        port, _ = self.stack.enter_context(raw_session(self.torrent, rotten, tls=self.tls, seeding=True))
        return await self._member("liar", port)

    async def honest(self, **limits: int) -> ShardSource:
        """Returns: a member that seeds the shard as it is. Ask once more for the same one."""
        if self.seed is not None:
            return self.seed
        settings = TorrentSettings(keep_free_bytes=0, **limits)
        session = TorrentSession(settings, self.tls, self.tmp / "honest")
        await self.stack.enter_async_context(session)
        await session.seed(self.torrent, self.shard, label="0")
        self.seed = await self._member("honest", session.port)
        return self.seed

    async def _member(self, name: str, torrent_port: int) -> ShardSource:
        identity = self.stack.enter_context(claim_identity(self.us.home, name, "client"))
        world = self

        class Exchange:
            async def torrent(self, _manifest: Manifest, _shard_id: int) -> bytes:
                return world.torrent

        jobs: set[asyncio.Task[None]] = set()

        def spawn(work: Coroutine[Any, Any, None], _name: str) -> asyncio.Task[None]:
            task = asyncio.create_task(work)
            jobs.add(task)
            task.add_done_callback(jobs.discard)
            return task

        model = LocalModel(self.manifest, self.folder)
        answers = FileAnswers(lambda _id: model, ModelStore(self.folder), Exchange(), spawn)  # type: ignore[arg-type]

        def on_hello(connection: Connection, _hello: Hello) -> Welcome:
            def take(frame: Frame[AnyMessage]) -> None:
                answers.take(connection, frame.message)

            connection.set_handler(take, lambda _error: None)
            return Welcome(protocol=PROTOCOL_VERSION, node_id=identity.node_id, epoch=1)

        listener = await self.stack.enter_async_context(await listen(identity, ("127.0.0.1", 0), on_hello))
        return ShardSource(node_id=identity.node_id, address=listener.address, torrent_port=torrent_port)

    async def take_from_the_node(self, deadline_s: float = WAIT_S) -> bytes:
        """Returns: the shard as the node gives it to another member, by BitTorrent."""
        await self.third.fetch(
            self.torrent,
            self.tmp / "third" / "shard-0.gguf",
            expect_sha256=self.manifest.sha256_of(0),
            expect_bytes=self.manifest.content.shards[0].bytes,
            label="0",
            peers=[("127.0.0.1", self.hello.capabilities.torrent_port)],
            deadline_s=deadline_s,
        )
        return (self.tmp / "third" / "shard-0.gguf").read_bytes()

    async def is_offered(self) -> bool:
        """Returns: whether the node hands out the shard's torrent."""
        question = GetFile(
            command_id=new_id(), deadline_s=5, model_id=self.manifest.model_id, kind="torrent", shard_id=0
        )
        self.connection.send(question)
        return not isinstance(await self.answer(question.command_id), CommandFailed)


@asynccontextmanager
async def running(daemon: NodeDaemon | SharingDaemon) -> AsyncIterator[None]:
    life = asyncio.create_task(daemon.run())
    try:
        yield
    finally:
        daemon.stop()
        await asyncio.wait_for(life, WAIT_S)


@pytest.fixture
async def world(home: Path, tmp_path: Path) -> AsyncIterator[World]:
    swarm = ensure_swarm(Home(home))
    whole = tiny_llama(tmp_path / "tiny.gguf", n_layers=2, n_embd=512)
    folder, manifest = split_model(plan_split(whole, CutRequest(n_shards=1)), tmp_path / "origin")
    manifest = sign(manifest, swarm)
    frames: asyncio.Queue[Frame[AnyMessage]] = asyncio.Queue()
    joined: asyncio.Future[tuple[Connection, Hello]] = asyncio.get_running_loop().create_future()
    async with AsyncExitStack() as stack:
        us = stack.enter_context(claim_identity(Home(home), "coordinator", "coordinator"))
        identity = stack.enter_context(claim_identity(Home(home), "node", "node"))
        torrent = torrent_files.read_or_make(folder / "shard-0.gguf", manifest, 0, us.swarm.ca_pem)

        def on_hello(connection: Connection, hello: Hello) -> Welcome:
            connection.set_handler(frames.put_nowait, lambda _error: None)
            joined.set_result((connection, hello))
            return Welcome(protocol=PROTOCOL_VERSION, node_id=us.node_id, epoch=1)

        listener = await stack.enter_async_context(await listen(us, ("127.0.0.1", 0), on_hello))
        tls = TlsMaterial(ca_pem=us.swarm.ca_pem, cert_pem=us.certificate_pem, key_pem=us.key_pem())
        # It outlives the node: libtorrent may hold up who leaves first, if it was the one that dialled, for three seconds.
        third = await stack.enter_async_context(
            TorrentSession(TorrentSettings(keep_free_bytes=0), tls, tmp_path / "third")
        )
        settings = {
            "node": {"coordinator": str(listener.address), "models_cache": tmp_path / "node"},
            "torrent": {"keep_free_bytes": 0, "progress_interval_s": 0.2, "stall_timeout_s": 2.0},
            "dht": {"enabled": False},
            "inference": {"threads": 1},
        }
        node = NodeDaemon(NodeSettings.model_validate(settings), identity)
        await stack.enter_async_context(running(node))
        async with asyncio.timeout(WAIT_S):
            connection, hello = await joined
        yield World(manifest, folder, tmp_path, us, node, torrent, tls, connection, hello, frames, stack, third)


def files_of(world: World, pattern: str) -> list[Path]:
    return list((world.tmp / "node").rglob(pattern))


async def test_only_a_hostile_seed_ends_in_a_clear_error_and_nothing_of_it_is_kept_as_a_shard_or_given_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "BANNED_GRACE_S", 0.5)
    failed = await world.load(await world.liar(every=10_000))
    assert isinstance(failed, CommandFailed), failed
    assert failed.error.code == "SHARD_CORRUPT"
    assert "sent bad pieces and was banned" in failed.error.message
    assert not files_of(world, "shard-0.gguf")
    assert not await world.is_offered()
    ready = await world.load(await world.honest())
    assert isinstance(ready, ShardReady), ready
    assert await world.take_from_the_node() == world.shard.read_bytes()


async def test_beside_a_hostile_seed_the_node_gets_the_shard_and_gives_on_what_is_right(world: World) -> None:
    sources = (await world.liar(every=40_000), await world.honest(upload_limit_bytes_per_s=4_000_000))
    ready = await world.load(*sources)
    assert isinstance(ready, ShardReady), ready
    assert ready.source == "torrent"
    (path,) = files_of(world, "shard-0.gguf")
    assert path.read_bytes() == world.shard.read_bytes()
    assert not files_of(world, "*.partial")
    assert await world.take_from_the_node() == world.shard.read_bytes()


async def test_a_fetched_shard_was_proved_on_its_way_and_is_not_hashed_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    really = writer.file_sha256

    def file_sha256(path: Path, *arguments: Any) -> str:
        hashed.append(path)
        return really(path, *arguments)

    monkeypatch.setattr(manifest_file, "file_sha256", file_sha256)
    assert isinstance(await world.load(await world.honest()), ShardReady)
    assert hashed == []
    (path,) = files_of(world, "shard-0.gguf")
    store = ModelStore(world.tmp / "node")  # as after a restart
    await store.scan()
    await store.verify(path, world.manifest, 0, lambda _done: None)
    assert hashed == []
    path.touch()
    await store.verify(path, world.manifest, 0, lambda _done: None)
    assert hashed == [path]


async def test_a_file_that_rots_while_it_is_given_to_others_is_put_aside_at_once(world: World) -> None:
    assert isinstance(await world.load(await world.honest()), ShardReady)
    (path,) = files_of(world, "shard-0.gguf")
    status = path.stat()
    exchange = world.node._exchange
    assert exchange is not None
    async with asyncio.timeout(WAIT_S):
        while not await world.is_offered():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await exchange.withdraw(world.manifest.model_id, 0)
    with path.open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"rot")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a bad disk does it: nothing else changes
    await exchange.offer(
        world.manifest, 0, path
    )  # as after a restart: pieces are looked at when they are first asked for
    with pytest.raises(ShardNotFound):
        await world.take_from_the_node(deadline_s=3)
    async with asyncio.timeout(WAIT_S):
        while not files_of(world, "shard-0.gguf.corrupt"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert not files_of(world, "shard-0.gguf")
    assert not await world.is_offered()
    assert isinstance(await world.load(await world.honest()), ShardReady)
    assert files_of(world, "shard-0.gguf")[0].read_bytes() == world.shard.read_bytes()
