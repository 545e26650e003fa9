"""Real `shardnet node` processes under a coordinator that the test plays itself, over the real transport."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest

from shardnet.bench.plain import PlainLlama
from shardnet.errors import PeerLost
from shardnet.ids import new_id
from shardnet.inference.splitting.cutting import CutRequest, plan_split, split_model
from shardnet.inference.splitting.manifest_file import save_manifest
from shardnet.lifecycle import EXIT_WITH_PARENT
from shardnet.manifest import Manifest
from shardnet.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    CommandFailed,
    Done,
    ErrorInfo,
    ExecuteTask,
    FileIs,
    FreeSequence,
    GetFile,
    GetManifest,
    Heartbeat,
    Hello,
    Leaving,
    LinkMeasured,
    LoadShard,
    ManifestIs,
    ManifestOffer,
    MeasureLink,
    Ping,
    Pong,
    Sampling,
    ShardOptions,
    ShardReady,
    ShardSource,
    StageRef,
    UnloadShard,
    Welcome,
)
from shardnet.shards import Dtype, TensorSpec
from shardnet.steps import TaskResult
from shardnet.swarm.addresses import write_coordinator_addresses
from shardnet.swarm.home import Home
from shardnet.swarm.identity import Identity, claim_identity, ensure_swarm
from shardnet.swarm.signing import sign
from shardnet.transport import Connection, Listener, listen
from shardnet.wire import Frame
from tests.support.random_models import tiny_llama

pytestmark = pytest.mark.integration

OPTIONS = ShardOptions(n_ctx=256, n_seq=4, n_batch=64)
PROMPT = list(range(40, 56))
WAIT_S = 20.0


@dataclass(frozen=True)
class Model:
    whole: Path
    cache: Path
    folder: Path
    manifest: Manifest

    def give(self, cache: Path, *shards: int) -> Path:
        """Returns: a models cache with the manifest and some of the shards."""
        target = cache / "shards" / self.folder.name
        target.mkdir(parents=True)
        for name in ("manifest.json", "tokenizer.gguf", *(f"shard-{shard}.gguf" for shard in shards)):
            (target / name).write_bytes((self.folder / name).read_bytes())
        return cache


@pytest.fixture
def model(tmp_path: Path, home: Path) -> Model:
    whole = tiny_llama(tmp_path / "tiny.gguf", n_layers=6)
    folder, manifest = split_model(plan_split(whole, CutRequest(n_shards=2)), tmp_path / "cache")
    manifest = sign(manifest, ensure_swarm(Home(home)))
    save_manifest(folder, manifest)
    return Model(whole, tmp_path / "cache", folder, manifest)


@dataclass
class Node:
    """One node process, its log, and its connection to the coordinator."""

    process: asyncio.subprocess.Process
    log: list[dict[str, object]] = field(default_factory=list)

    def facts(self) -> list[str]:
        return [str(line.get("event")) for line in self.log]

    async def read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            try:
                self.log.append(json.loads(line))
            except ValueError:
                self.log.append({"event": line.decode(errors="replace")})


@dataclass
class Joined:
    """A node's side of the coordinator's link, as the coordinator sees it."""

    connection: Connection
    hello: Hello
    frames: list[Frame[AnyMessage]] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def node_id(self) -> str:
        return self.hello.node_id

    def stage(self, first: int, end: int) -> StageRef:
        return StageRef(node_id=self.node_id, address=self.hello.listen, first_shard=first, end_shard=end)

    def on_frame(self, frame: Frame[AnyMessage]) -> None:
        self.frames.append(frame)
        self.news.set()

    async def frame(self, kind: type[AnyMessage] | tuple[type, ...], **facts: object) -> Frame[AnyMessage]:
        """Returns: the first frame of a kind with these field values; waits for it."""
        async with asyncio.timeout(WAIT_S):
            while True:
                for frame in self.frames:
                    if isinstance(frame.message, kind) and all(
                        getattr(frame.message, k) == v for k, v in facts.items()
                    ):
                        self.frames.remove(frame)
                        return frame
                self.news.clear()
                await self.news.wait()

    async def answer(self, command_id: str) -> Frame[AnyMessage]:
        """Returns: the final answer of a command."""
        finals = (ShardReady, Done, CommandFailed, TaskResult, Pong, LinkMeasured, ManifestIs, FileIs)
        return await self.frame(finals, command_id=command_id)

    async def ask(self, message: AnyMessage, payloads: tuple[bytes, ...] = ()) -> AnyMessage:
        self.connection.send(message, payloads)
        return (await self.answer(message.command_id)).message  # type: ignore[union-attr]

    async def load(self, model: Model, shard_id: int, **more: object) -> ShardReady:
        command = load_command(model, shard_id, **more)
        answer = await self.ask(command)
        assert isinstance(answer, ShardReady), answer
        return answer


def load_command(model: Model, shard_id: int, **more: object) -> LoadShard:
    facts: dict[str, object] = {
        "command_id": new_id(),
        "deadline_s": WAIT_S,
        "model_id": model.manifest.model_id,
        "shard_id": shard_id,
        "options": OPTIONS,
        **more,
    }
    return LoadShard.model_validate(facts)


class ScriptedCoordinator:
    """Listens as a coordinator does; the test says what it sends."""

    def __init__(self, identity: Identity, epoch: int) -> None:
        self.identity = identity
        self.epoch = epoch
        self.joined: dict[str, Joined] = {}
        self.news = asyncio.Event()
        self.relayed: list[ExecuteTask] = []
        self.dead: set[str] = set()
        self.listener: Listener

    def on_hello(self, connection: Connection, hello: Hello) -> Welcome:
        joined = Joined(connection, hello)
        connection.set_handler(self.relaying(joined), lambda _error: None)
        self.joined[hello.name] = joined
        self.news.set()
        return Welcome(protocol=PROTOCOL_VERSION, node_id=self.identity.node_id, epoch=self.epoch)

    def relaying(self, joined: Joined) -> Callable[[Frame[AnyMessage]], None]:
        """What a coordinator does with a task that one node wants passed on to another."""

        def on_frame(frame: Frame[AnyMessage]) -> None:
            task = frame.message
            if not isinstance(task, ExecuteTask):
                return joined.on_frame(frame)
            self.relayed.append(task)
            following = next(j for j in self.joined.values() if j.node_id == task.route[task.stage].node_id)
            try:
                if following.node_id in self.dead:
                    raise PeerLost("its heartbeats stopped")
                following.connection.send(task, frame.payloads)
            except PeerLost as error:
                joined.on_frame(Frame(CommandFailed(command_id=task.command_id, error=ErrorInfo.of(error))))

        return on_frame

    async def node(self, name: str) -> Joined:
        async with asyncio.timeout(WAIT_S):
            while name not in self.joined:
                self.news.clear()
                await self.news.wait()
        return self.joined[name]


@asynccontextmanager
async def coordinator(home: Path, *, epoch: int = 1) -> AsyncIterator[ScriptedCoordinator]:
    """A coordinator whose address stands in the home folder, as the real one's does."""
    with claim_identity(Home(home), "coordinator", "coordinator") as identity:
        scripted = ScriptedCoordinator(identity, epoch)
        async with await listen(identity, ("127.0.0.1", 0), scripted.on_hello) as scripted.listener:
            write_coordinator_addresses(Home(home), nodes=scripted.listener.address)
            yield scripted


@asynccontextmanager
async def node(name: str, cache: Path, *arguments: str) -> AsyncIterator[Node]:
    """A node process; ended by force if the test has not ended it."""
    # Nobody else ever has what a node lacks here.
    environment = os.environ | {EXIT_WITH_PARENT: str(os.getpid()), "SHARDNET_TORRENT__FIND_HOLDERS_S": "0.3"}
    command = [sys.executable, "-m", "shardnet", "node", "--name", name, "--models-cache", str(cache)]
    process = await asyncio.create_subprocess_exec(
        *command, "--threads", "1", "--log-format", "json", *arguments, stderr=subprocess.PIPE, env=environment
    )
    running = Node(process)
    reader = asyncio.create_task(running.read())
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reader
        for line in running.log:  # shown by pytest where a test fails
            print(name, line)  # noqa: T201


async def stop(running: Node, number: signal.Signals = signal.SIGTERM) -> int:
    running.process.send_signal(number)
    async with asyncio.timeout(WAIT_S):
        return await running.process.wait()


def step(
    model: Model, route: tuple[StageRef, ...], sequence_id: str, position: int, tokens: list[int], **more: object
) -> tuple[ExecuteTask, tuple[bytes, ...]]:
    task = ExecuteTask(
        tensors=(TensorSpec(name="tokens", dtype=Dtype.INT32, shape=(len(tokens),)),),
        command_id=new_id(),
        deadline_s=WAIT_S,
        epoch=1,
        model_id=model.manifest.model_id,
        sequence_id=sequence_id,
        position=position,
        n_tokens=len(tokens),
        route=route,
        stage=0,
        options=OPTIONS,
        samples=True,
        sampling=Sampling(),
        return_logits=True,
    )
    return task.model_copy(update=more), (np.array(tokens, dtype=np.int32).tobytes(),)


async def generate(
    model: Model, first: Joined, last: Joined, route: tuple[StageRef, ...], n_tokens: int, **more: object
) -> tuple[list[int], list[np.ndarray], list[TaskResult]]:
    """Greedy decoding: the prompt in two chunks, the first one sent ahead."""
    sequence_id, tokens, logits, results = new_id(), list(PROMPT), [], []
    ahead, payloads = step(model, route, sequence_id, 0, PROMPT[:8], samples=False, sampling=None, **more)
    first.connection.send(ahead, payloads)
    position = 8
    for _ in range(n_tokens):
        task, payloads = step(model, route, sequence_id, position, tokens[position:], **more)
        first.connection.send(task, payloads)
        frame = await last.answer(task.command_id)
        assert isinstance(frame.message, TaskResult), frame.message
        position = len(tokens)
        assert frame.message.position == position
        tokens += frame.message.tokens
        logits.append(np.frombuffer(frame.payloads[0], dtype=np.float32))
        results.append(frame.message)
    first.connection.send(FreeSequence(sequence_id=sequence_id))
    last.connection.send(FreeSequence(sequence_id=sequence_id))
    return tokens[len(PROMPT) :], logits, results


def plain(model: Model, n_tokens: int) -> tuple[list[int], list[np.ndarray]]:
    with PlainLlama(model.whole, threads=1, n_ctx=256, n_seq=4, n_batch=8) as llama:
        run = llama.generate(PROMPT, n_tokens, keep_logits=True)
    return run.tokens, run.logits


def children_of(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


async def gone(processes: list[psutil.Process]) -> bool:
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, timeout=WAIT_S)
    return not alive


async def test_two_nodes_answer_as_llama_cpp_does_on_the_unsplit_model(
    model: Model, home: Path, tmp_path: Path
) -> None:
    async with (
        coordinator(home) as swarm,
        node("a", model.give(tmp_path / "a", 0)) as one,
        node("b", model.give(tmp_path / "b", 1)) as two,
    ):
        a, b = await swarm.node("a"), await swarm.node("b")
        assert not a.hello.capabilities.shard_loaded
        assert [(held.shard_id, held.loaded) for held in a.hello.held] == [(0, False)]
        offer = (await a.frame(ManifestOffer)).message
        assert isinstance(offer, ManifestOffer)
        assert offer.manifest == model.manifest
        ready = await a.load(model, 0)
        assert ready.source == "local"
        assert ready.held.loaded
        assert ready.held.memory_bytes > 0
        await b.load(model, 1)

        # a node that tells no address, and is not linked yet, is reached through the coordinator
        hidden_b = b.stage(1, 2).model_copy(update={"address": None})
        relayed, _, _ = await generate(model, a, b, (a.stage(0, 1), hidden_b), 3)
        assert len(swarm.relayed) == 4
        swarm.relayed.clear()

        tokens, logits, results = await generate(model, a, b, (a.stage(0, 1), b.stage(1, 2)), 12)

        wanted_tokens, wanted_logits = await asyncio.to_thread(plain, model, 12)
        assert tokens == wanted_tokens
        assert relayed == wanted_tokens[:3]
        assert max(float(np.abs(x - y).max()) for x, y in zip(logits, wanted_logits, strict=True)) == 0
        assert all(len(result.timings) == 2 for result in results)
        assert not swarm.relayed, "the hidden states went straight from node to node"
        beat = (await a.frame(Heartbeat)).message
        assert isinstance(beat, Heartbeat)

        # unloading frees the memory, the file stays, and a task brings the shard back by itself
        done = await a.ask(UnloadShard(command_id=new_id(), deadline_s=5, model_id=model.manifest.model_id, shard_id=0))
        assert isinstance(done, Done)
        again, _, _ = await generate(model, a, b, (a.stage(0, 1), b.stage(1, 2)), 3)
        assert again == wanted_tokens[:3]
        assert one.facts().count("inference_loaded_shard") == 2

        # questions
        pong = await a.ask(Ping(command_id=new_id()))
        assert isinstance(pong, Pong)
        assert b.hello.listen is not None
        peer = ShardSource(node_id=b.node_id, address=b.hello.listen)
        measured = await a.ask(MeasureLink(command_id=new_id(), deadline_s=10, peer=peer))
        assert isinstance(measured, LinkMeasured)
        assert 0 < measured.round_trip_s < 1
        assert measured.bytes_per_s > 1e6
        manifest = await b.ask(GetManifest(command_id=new_id(), deadline_s=5, model=model.manifest.name))
        assert isinstance(manifest, ManifestIs)
        assert manifest.manifest == model.manifest
        question = GetFile(command_id=new_id(), deadline_s=5, model_id=model.manifest.model_id, kind="tokenizer")
        b.connection.send(question)
        piece = await b.answer(question.command_id)
        assert isinstance(piece.message, FileIs)
        tokenizer = (model.folder / "tokenizer.gguf").read_bytes()
        assert bytes(piece.payloads[0])[: piece.message.piece_bytes] == tokenizer
        assert piece.message.total_bytes == len(tokenizer)

        for running in (one, two):
            engine = children_of(running.process.pid)
            assert await stop(running) == 0
            assert await gone(engine)
            assert running.facts()[-1] == "node_stopped"
        assert isinstance((await a.frame(Leaving)).message, Leaving)


async def test_an_assigned_shard_is_in_memory_before_the_node_joins(model: Model, home: Path, tmp_path: Path) -> None:
    cache = model.give(tmp_path / "a", 0)
    async with (
        coordinator(home) as swarm,
        node("a", cache, "--shard", "0", "--shard", f"{model.manifest.name}:1") as one,
    ):
        a = await swarm.node("a")
        assert a.hello.capabilities.shard_loaded
        assert not a.hello.capabilities.accepts_any
        assert a.hello.capabilities.assigned == ((model.manifest.model_id, 0), (model.manifest.model_id, 1))
        assert [(held.shard_id, held.loaded) for held in a.hello.held] == [(0, True)]
        # what covers the demand is answered at once
        ready = await a.load(model, 0)
        assert ready.source == "memory"
        missing = await a.ask(load_command(model, 1))
        assert isinstance(missing, CommandFailed)
        assert missing.error.code == "SHARD_NOT_FOUND"
        assert await stop(one) == 0
    facts = one.facts()
    assert facts.index("shard_loaded_before_join") < facts.index("node_joined")
    assert facts.index("shard_not_found_locally") < facts.index("node_joined")
    assert {"shard_path", "shard_available", "shard_will_download"} <= set(facts)


async def test_a_node_keeps_its_shards_through_its_coordinators_restart(
    model: Model, home: Path, tmp_path: Path
) -> None:
    async with node("a", model.give(tmp_path / "a", 0, 1)) as one:
        async with coordinator(home, epoch=1) as swarm:
            a = await swarm.node("a")
            await a.load(model, 0)
            await a.load(model, 1)
            before, _, _ = await generate(model, a, a, (a.stage(0, 1), a.stage(1, 2)), 4)
        async with coordinator(home, epoch=2) as swarm:  # at another port
            a = await swarm.node("a")
            assert [held.loaded for held in a.hello.held] == [True, True]
            stale, payloads = step(model, (a.stage(0, 2),), new_id(), 0, PROMPT)
            a.connection.send(stale, payloads)
            refused = (await a.answer(stale.command_id)).message
            assert isinstance(refused, CommandFailed)
            assert "epoch" in refused.error.message
            after, _, _ = await generate(model, a, a, (a.stage(0, 2),), 4, epoch=2)
            assert after == before
            assert await stop(one, signal.SIGINT) == 130
        assert "node_disconnected" in one.facts()


async def test_a_damaged_file_is_put_aside_and_never_loaded(model: Model, home: Path, tmp_path: Path) -> None:
    cache = model.give(tmp_path / "a", 0, 1)
    damaged = cache / "shards" / model.folder.name / "shard-0.gguf"
    data = bytearray(damaged.read_bytes())
    data[-100] ^= 1
    damaged.write_bytes(data)
    async with coordinator(home) as swarm, node("a", cache) as one:
        a = await swarm.node("a")
        refused = await a.ask(load_command(model, 0))
        assert isinstance(refused, CommandFailed)
        # Corrupt if it was asked for while it was being proved; else it was put aside before, and nobody has another.
        assert refused.error.code in {"SHARD_CORRUPT", "SHARD_NOT_FOUND"}
        await a.load(model, 1)
        assert damaged.with_name("shard-0.gguf.corrupt").exists()
        assert not damaged.exists()
        assert "shard_refused" in one.facts()
        task, payloads = step(model, (a.stage(0, 1), a.stage(1, 2)), new_id(), 0, PROMPT)
        a.connection.send(task, payloads)
        failed = (await a.answer(task.command_id)).message
        assert isinstance(failed, CommandFailed)
        assert failed.error.code == "SHARD_NOT_FOUND"


async def test_kill_9_of_a_node_leaves_no_engine_behind(model: Model, home: Path, tmp_path: Path) -> None:
    async with coordinator(home) as swarm, node("a", model.give(tmp_path / "a", 0), "--shard", "0") as one:
        await swarm.node("a")
        engine = children_of(one.process.pid)
        assert engine
        await stop(one, signal.SIGKILL)
        assert await gone(engine)


async def test_a_stage_that_is_lost_is_told_to_the_coordinator(model: Model, home: Path, tmp_path: Path) -> None:
    async with (
        coordinator(home) as swarm,
        node("a", model.give(tmp_path / "a", 0)) as one,
        node("b", model.give(tmp_path / "b", 1)) as two,
    ):
        a, b = await swarm.node("a"), await swarm.node("b")
        await a.load(model, 0)
        await b.load(model, 1)
        route = (a.stage(0, 1), b.stage(1, 2))
        sequence_id = new_id()
        task, payloads = step(model, route, sequence_id, 0, PROMPT)
        a.connection.send(task, payloads)
        await b.answer(task.command_id)
        two.process.send_signal(signal.SIGSTOP)
        task, payloads = step(model, route, sequence_id, len(PROMPT), [50])
        a.connection.send(task, payloads)
        await a.ask(Ping(command_id=new_id()))  # the step was accepted before this answer
        swarm.dead.add(b.node_id)
        two.process.kill()
        lost = (await a.answer(task.command_id)).message
        assert isinstance(lost, CommandFailed)
        assert lost.error.code in ("PEER_LOST", "UNREACHABLE")
        assert one.process.returncode is None


@pytest.fixture
def taken_port() -> Iterator[int]:
    import socket

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield int(holder.getsockname()[1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--listen", "127.0.0.1:PORT"], "cannot listen at"), (["--shard", "x:y"], "names no shard")],
)
async def test_wrong_settings_end_the_node_with_one_sentence(
    home: Path, tmp_path: Path, taken_port: int, arguments: list[str], words: str
) -> None:
    command = [text.replace("PORT", str(taken_port)) for text in arguments]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "shardnet", "node", "--models-cache", str(tmp_path), *command, stderr=subprocess.PIPE
    )
    _, said = await process.communicate()
    assert process.returncode == 2
    assert words in said.decode()
    assert "Traceback" not in said.decode()
