"""A node whose disk is full: what it cannot fetch is told to the coordinator in plain words, and what it runs goes on running.

A whole node in this process, with its real engine and its real transfers; the test is its coordinator. The models cache lies on a small tmpfs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from shardnet.ids import new_id
from shardnet.inference.splitting.cutting import CutRequest, plan_split, split_model
from shardnet.manifest import Manifest
from shardnet.messages import (
    PROTOCOL_VERSION,
    Address,
    AnyMessage,
    CommandFailed,
    ExecuteTask,
    FreeSequence,
    Hello,
    LoadProgress,
    LoadShard,
    Sampling,
    ShardOptions,
    ShardReady,
    ShardSource,
    StageRef,
    Welcome,
)
from shardnet.node.daemon import NodeDaemon
from shardnet.node.settings import NodeSettings
from shardnet.node.sharing import SharingDaemon
from shardnet.shards import Dtype, TensorSpec
from shardnet.steps import TaskResult
from shardnet.swarm.home import Home
from shardnet.swarm.identity import claim_identity, ensure_swarm
from shardnet.swarm.signing import sign
from shardnet.transport import Connection, listen
from shardnet.wire import Frame
from tests.support.free_ports import free_ports
from tests.support.random_models import tiny_llama
from tests.support.small_disks import fill, small_disk

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

WAIT_S = 40.0
OPTIONS = ShardOptions(n_ctx=64, n_seq=1, n_batch=32)
SLOW = 4_000_000


@pytest.fixture
def resize(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """`tmp_path/node` is a small disk of its own. Returns: what changes its size."""
    with small_disk(tmp_path / "node", "6m") as resize:
        yield resize


@dataclass
class World:
    """A node that runs `small` already, and somebody else who seeds `big`."""

    small: Manifest
    big: Manifest
    source: ShardSource
    connection: Connection
    hello: Hello
    frames: asyncio.Queue[Frame[AnyMessage]]

    async def until(self, command_id: str, *kinds: type[AnyMessage]) -> AnyMessage:
        async with asyncio.timeout(WAIT_S):
            while True:
                message = (await self.frames.get()).message
                if isinstance(message, kinds) and getattr(message, "command_id", "") == command_id:
                    return message

    def load(self, manifest: Manifest) -> str:
        command = LoadShard(
            command_id=new_id(),
            deadline_s=WAIT_S,
            model_id=manifest.model_id,
            shard_id=0,
            options=OPTIONS,
            manifest=manifest,
            sources=(self.source,),
        )
        self.connection.send(command)
        return command.command_id

    async def refusal(self, manifest: Manifest) -> str:
        failed = await self.until(self.load(manifest), CommandFailed, ShardReady)
        assert isinstance(failed, CommandFailed), failed
        assert failed.error.code == "NO_ROOM", failed
        return failed.error.message

    async def answer(self, manifest: Manifest) -> tuple[int, ...]:
        """Returns: the token that the node's engine gives for a prompt."""
        stage = StageRef(node_id=self.hello.node_id, address=self.hello.listen, first_shard=0, end_shard=1)
        task = ExecuteTask(
            tensors=(TensorSpec(name="tokens", dtype=Dtype.INT32, shape=(5,)),),
            command_id=new_id(),
            deadline_s=WAIT_S,
            epoch=1,
            model_id=manifest.model_id,
            sequence_id=new_id(),
            position=0,
            n_tokens=5,
            route=(stage,),
            stage=0,
            options=OPTIONS,
            samples=True,
            sampling=Sampling(),
        )
        self.connection.send(task, (np.arange(40, 45, dtype=np.int32).tobytes(),))
        result = await self.until(task.command_id, TaskResult, CommandFailed)
        assert isinstance(result, TaskResult), result
        self.connection.send(FreeSequence(sequence_id=task.sequence_id))
        return result.tokens


@pytest.fixture
async def world(home: Path, tmp_path: Path, resize: Callable[[str], None]) -> AsyncIterator[World]:
    swarm = ensure_swarm(Home(home))
    made = []
    for name, n_embd in (("small", 64), ("big", 512)):
        whole = tiny_llama(tmp_path / f"{name}.gguf", n_layers=2, n_embd=n_embd, name=name)
        folder, manifest = split_model(plan_split(whole, CutRequest(n_shards=1), name), tmp_path / "seed")
        manifest = sign(manifest, swarm)
        (folder / "manifest.json").write_text(manifest.model_dump_json())
        made.append(manifest)
    listen_port, torrent_port = free_ports(2)
    frames: asyncio.Queue[Frame[AnyMessage]] = asyncio.Queue()
    joined: asyncio.Future[tuple[Connection, Hello]] = asyncio.get_running_loop().create_future()
    with (
        claim_identity(Home(home), "coordinator", "coordinator") as us,
        claim_identity(Home(home), "node", "node") as node_identity,
        claim_identity(Home(home), "seed", "client") as seed_identity,
    ):

        def on_hello(connection: Connection, hello: Hello) -> Welcome:
            if hello.name == "node":
                connection.set_handler(frames.put_nowait, lambda _error: None)
                joined.set_result((connection, hello))
            return Welcome(protocol=PROTOCOL_VERSION, node_id=us.node_id, epoch=1)

        async with await listen(us, ("127.0.0.1", 0), on_hello) as listener:
            common = {"coordinator": str(listener.address)}
            seed_settings = {
                "node": common | {"models_cache": tmp_path / "seed", "listen": f"127.0.0.1:{listen_port}"},
                "torrent": {"listen_port": torrent_port, "upload_limit_bytes_per_s": SLOW},
                "dht": {"enabled": False},
            }
            node_settings = {
                "node": common | {"models_cache": tmp_path / "node"},
                "torrent": {"keep_free_bytes": 0, "progress_interval_s": 0.2, "flush_interval_s": 0.2},
                "dht": {"enabled": False},
                "inference": {"threads": 1},
            }
            seed = SharingDaemon(NodeSettings.model_validate(seed_settings), seed_identity)
            node = NodeDaemon(NodeSettings.model_validate(node_settings), node_identity)
            lives = [asyncio.create_task(one.run()) for one in (seed, node)]
            async with asyncio.timeout(WAIT_S):
                connection, hello = await joined
            source = ShardSource(
                node_id=seed_identity.node_id,
                address=Address(host="127.0.0.1", port=listen_port),
                torrent_port=torrent_port,
            )
            yield World(made[0], made[1], source, connection, hello, frames)
            for one in (seed, node):
                one.stop()
            await asyncio.wait_for(asyncio.gather(*lives), WAIT_S)


async def test_a_full_disk_is_a_clear_refusal_harms_nothing_loaded_and_is_over_when_there_is_room(
    world: World, resize: Callable[[str], None], tmp_path: Path
) -> None:
    disk = tmp_path / "node"
    ready = await world.until(world.load(world.small), ShardReady, CommandFailed)
    assert isinstance(ready, ShardReady), ready
    expected = await world.answer(world.small)

    assert "are free" in await world.refusal(world.big), "too small from the start: refused before the first byte"
    assert await world.answer(world.small) == expected

    resize("24m")
    command_id = world.load(world.big)
    while True:
        message = await world.until(command_id, LoadProgress, ShardReady, CommandFailed)
        assert isinstance(message, LoadProgress), message
        if message.stage == "fetch" and message.done_bytes > 0.1 * message.total_bytes:
            break
    hog = disk / "hog"
    await asyncio.to_thread(fill, hog)
    failed = await world.until(command_id, ShardReady, CommandFailed)
    assert isinstance(failed, CommandFailed), failed
    assert failed.error.code == "NO_ROOM"
    assert "is full" in failed.error.message
    assert not list(disk.glob(f"shards/{world.big.name}-*/shard-*.gguf")), "nothing stands under the final name"
    assert await world.answer(world.small) == expected

    resize("64m")
    ready = await world.until(world.load(world.big), ShardReady, CommandFailed)
    assert isinstance(ready, ShardReady), ready
    assert ready.source == "torrent"
    assert await world.answer(world.big)
    assert await world.answer(world.small) == expected
