"""Engines that hand rows of runs straight to one another, with the daemons' part of it and real sockets: same tokens, and who may take part."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

import pytest
import pytest_asyncio

from shardnet.errors import EngineCrashed, PeerLost, ShardnetError
from shardnet.ids import new_id
from shardnet.inference.engine.host import EngineProcess
from shardnet.inference.engine.protocol import ROWS, DialRows, Membership, RowsLost, RowsMet
from shardnet.inference.engine.settings import InferenceSettings
from shardnet.inference.engine.steps import TOKEN, RowDone
from shardnet.inference.worker.row_link import KIND, WELCOME
from shardnet.inference.worker.row_links import MAX_HANDSHAKES, PATIENCE, SILENCE_TIMEOUT_S
from shardnet.messages import MESSAGES, PROTOCOL_VERSION, Hello, StageRef, Welcome
from shardnet.node.tasks.row_links import RowLinks
from shardnet.steps import NEXT_STEP, NextStep
from shardnet.swarm.acceptor import Diversion
from shardnet.swarm.home import Home
from shardnet.swarm.identity import Identity, claim_identity
from shardnet.swarm.tls import client_context
from shardnet.tcp import tune
from shardnet.transport import Listener, listen
from shardnet.wire import MAGIC, PREFIX, VERSION, Buffer, encode
from tests.support.engine_world import PROMPT, Route, SplitModel, Stage, begin_run

pytestmark = pytest.mark.asyncio(loop_scope="module")

CUTS = [(0, 1), (1, 2), (2, 3)]
TIMEOUT_S = 30.0


class Node:
    """One node without its task runner: an identity, an engine with one stage, its row links and its port."""

    def __init__(self, home: Home, name: str, settings: InferenceSettings | None = None) -> None:
        self.identity: Identity = claim_identity(home, name, "node")
        self.engine = EngineProcess(
            settings or InferenceSettings(threads=1),
            membership=Membership(
                certificate=str(self.identity.certificate_path),
                key=str(self.identity.key_path),
                authority=self.identity.swarm.ca_pem.decode(),
            ),
            on_restart=lambda _: self._came_back(),
        )
        self.restarted = asyncio.Event()
        self.links = RowLinks(self.identity, self.engine, redial_after_s=0.05)
        self.listener: Listener | None = None

    async def __aenter__(self) -> Self:
        await self.engine.start()
        self.listener = await listen(
            self.identity,
            ("127.0.0.1", 0),
            lambda _connection, _hello: Welcome(protocol=PROTOCOL_VERSION, node_id=self.identity.node_id, epoch=1),
            diversion=Diversion(ROWS, self.links.adopt),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.listener is not None
        await self.listener.close()
        await self.engine.close()
        self.identity.release()

    def _came_back(self) -> None:
        self.links.engine_came_back()
        self.restarted.set()

    @property
    def stage(self) -> StageRef:
        assert self.listener is not None
        return StageRef(node_id=self.identity.node_id, address=self.listener.address, first_shard=0, end_shard=1)


class Ring:
    """A run over the nodes; what the engines do not hand on themselves this does, as the daemons would."""

    def __init__(self, nodes: list[Node], model: SplitModel) -> None:
        self.nodes, self.model = nodes, model
        self.sequence_id, self.command_id = new_id(), new_id()
        self.tokens: list[int] = []
        self.by_hand = 0
        self.news: asyncio.Queue[RowDone | ShardnetError] = asyncio.Queue()

    async def begin(self, ahead: int | None) -> None:
        """Run the prompt, and hand the first token to the first stage, unless there is to be no row."""
        for node, following in zip(self.nodes, [*self.nodes[1:], self.nodes[0]], strict=True):
            node.links.want(following.stage)
        stages = [(node.engine, cut) for node, cut in zip(self.nodes, CUTS, strict=True)]
        names = [node.identity.node_id for node in self.nodes]
        first = await begin_run(
            stages, self.model, self.sequence_id, self.command_id, PROMPT, self.news.put_nowait, nodes=names
        )
        self.tokens.append(first)
        if ahead is not None:
            self.give(0, len(PROMPT), ahead, (TOKEN.pack(self.tokens[0]),))

    def give(self, number: int, position: int, ahead: int, payloads: tuple[Buffer, ...], n_embd: int = 0) -> None:
        row = NextStep(self.command_id, self.sequence_id, number, position, ahead, 30.0, n_embd)
        self.nodes[number].engine.row(row, payloads)

    async def next(self) -> None:
        """Wait for one piece of news, and do with it what a daemon does. Raises: the run's error."""
        done = await asyncio.wait_for(self.news.get(), TIMEOUT_S)
        if isinstance(done, ShardnetError):
            raise done
        is_last = done.stage == len(self.nodes) - 1
        if is_last:
            self.tokens.append(done.token)
        if done.went_on or (is_last and not done.ahead):
            return
        self.by_hand += 1
        if is_last:
            self.give(0, done.position, done.ahead - 1, (TOKEN.pack(done.token),))
        else:
            self.give(done.stage + 1, done.position, done.ahead, (TOKEN.pack(done.token), done.hidden), done.n_embd)

    async def finish(self, count: int) -> list[int]:
        while len(self.tokens) < count:
            await self.next()
        return self.tokens

    def forget(self) -> None:
        for node in self.nodes:
            node.engine.forget(self.sequence_id)


@asynccontextmanager
async def opened(folder: Path, model: SplitModel) -> AsyncIterator[list[Node]]:
    home = Home(folder / "home")
    async with AsyncExitStack() as resources:
        nodes = [await resources.enter_async_context(Node(home, f"n{number}")) for number in range(3)]
        for node, cut in zip(nodes, CUTS, strict=True):
            await Stage(node.engine, model, cut).load()
        yield nodes


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(tiny: SplitModel, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[Node]]:
    async with opened(tmp_path_factory.mktemp("swarm"), tiny) as nodes:
        yield nodes


async def linked(nodes: list[Node], model: SplitModel) -> None:
    """Return when a run goes round without help."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            ring = Ring(nodes, model)
            await ring.begin(20)
            await ring.finish(6)
            before = ring.by_hand
            await ring.finish(10)
            ring.forget()
            if ring.by_hand == before:
                return


async def expected(nodes: list[Node], model: SplitModel, count: int) -> list[int]:
    route = Route([Stage(node.engine, model, cut) for node, cut in zip(nodes, CUTS, strict=True)])
    tokens, _ = await route.generate(PROMPT, count)
    route.forget()
    return tokens


async def test_engines_that_hand_rows_on_write_what_steps_write(nodes: list[Node], tiny: SplitModel) -> None:
    await linked(nodes, tiny)
    ring = Ring(nodes, tiny)
    await ring.begin(38)
    assert await ring.finish(40) == await expected(nodes, tiny, 40)
    assert ring.by_hand == 2, "the last row alone, through the daemons of both stages before the last"
    ring.forget()


async def test_several_runs_at_once_write_what_each_writes_alone(nodes: list[Node], tiny: SplitModel) -> None:
    await linked(nodes, tiny)
    alone = await expected(nodes, tiny, 20)
    rings = [Ring(nodes, tiny) for _ in range(4)]
    for ring in rings:
        await ring.begin(18)
    assert await asyncio.gather(*(ring.finish(20) for ring in rings)) == [alone] * 4
    for ring in rings:
        ring.forget()


async def test_a_run_that_is_halted_on_one_stage_stops_there(nodes: list[Node], tiny: SplitModel) -> None:
    await linked(nodes, tiny)
    ring = Ring(nodes, tiny)
    await ring.begin(200)
    await ring.finish(5)
    nodes[2].engine.halt(ring.command_id)
    other = Ring(nodes, tiny)
    await other.begin(8)
    await other.finish(10)  # the engines have had the time for many rows of the first
    while not ring.news.empty():
        await ring.next()
    assert len(ring.tokens) < 100
    ring.forget()
    other.forget()


async def test_an_engine_that_dies_in_a_run_ends_it_with_an_error_and_links_come_back(
    tiny: SplitModel, tmp_path: Path
) -> None:
    async with opened(tmp_path, tiny) as nodes:
        await linked(nodes, tiny)
        ring = Ring(nodes, tiny)
        await ring.begin(230)
        await ring.finish(3)
        assert nodes[1].engine.pid is not None
        os.kill(nodes[1].engine.pid, signal.SIGKILL)
        with pytest.raises((EngineCrashed, PeerLost)):
            await ring.finish(230)
        for node in nodes:
            node.engine.halt(ring.command_id)
        ring.forget()
        await asyncio.wait_for(nodes[1].restarted.wait(), TIMEOUT_S)
        await linked(nodes, tiny)


async def test_a_revoked_nodes_links_are_cut(nodes: list[Node], tiny: SplitModel) -> None:
    await linked(nodes, tiny)
    ring = Ring(nodes, tiny)
    await ring.begin(230)
    await ring.finish(3)
    nodes[0].identity.set_revoked([nodes[1].identity.node_id])
    with pytest.raises(PeerLost):
        await ring.finish(230)
    nodes[0].identity.set_revoked([])
    for node in nodes:
        node.engine.halt(ring.command_id)
    ring.forget()
    await linked(nodes, tiny)


def dial(node: Node, identity: Identity) -> ssl.SSLSocket:
    """Returns: a row link of our own making, welcomed."""
    context = client_context(identity)
    context.set_alpn_protocols([ROWS])
    tls = context.wrap_socket(socket.create_connection((node.stage.address.host, node.stage.address.port), 10))  # type: ignore[union-attr]
    try:
        if tls.recv(1) != WELCOME:
            raise ConnectionRefusedError("no welcome")
    except OSError:
        tls.close()
        raise
    return tls


def row(ring: Ring, stage: int, **more: Any) -> bytes:
    return b"".join(encode(MESSAGES, next_row(ring, stage)._replace(**more), (TOKEN.pack(7),)))


def next_row(ring: Ring, stage: int) -> NextStep:
    return NextStep(ring.command_id, ring.sequence_id, stage, len(PROMPT) + 1, 3, 30.0)


async def test_a_member_that_has_no_part_in_a_run_cannot_send_its_rows(
    nodes: list[Node], tiny: SplitModel, tmp_path: Path
) -> None:
    await linked(nodes, tiny)
    ring = Ring(nodes, tiny)
    await ring.begin(None)
    with claim_identity(nodes[0].identity.home, "third", "node") as third:
        tls = await asyncio.to_thread(dial, nodes[0], third)
        with tls:
            await asyncio.to_thread(tls.sendall, row(ring, 0))
            assert await asyncio.to_thread(tls.recv, 1) == b""
    ring.forget()
    assert await tokens_of_a_run(nodes, tiny) == await expected(nodes, tiny, 6)


async def tokens_of_a_run(nodes: list[Node], tiny: SplitModel) -> list[int]:
    ring = Ring(nodes, tiny)
    await ring.begin(4)
    tokens = await ring.finish(6)
    ring.forget()
    return tokens


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n" * 4,
        b"".join(encode(MESSAGES, Hello(protocol=1, node_id="a" * 40, name="x", role="node"))),
    ],
    ids=["http", "another message"],
)
async def test_what_is_no_row_ends_the_link_and_nothing_else(nodes: list[Node], tiny: SplitModel, data: bytes) -> None:
    with claim_identity(nodes[0].identity.home, "third", "node") as third:
        tls = await asyncio.to_thread(dial, nodes[0], third)
        with tls:
            await asyncio.to_thread(tls.sendall, data)
            assert await asyncio.to_thread(tls.recv, 1) == b""
    assert await tokens_of_a_run(nodes, tiny) == await expected(nodes, tiny, 6)


@pytest.mark.parametrize("numbers", [{"deadline_s": float("nan")}, {"position": (1 << 24) + 1}, {"ahead": 1 << 31}])
async def test_a_row_with_impossible_numbers_ends_the_link(
    nodes: list[Node], tiny: SplitModel, numbers: dict[str, float]
) -> None:
    ring = Ring(nodes, tiny)
    await ring.begin(None)
    with claim_identity(nodes[0].identity.home, "third", "node") as third:
        tls = await asyncio.to_thread(dial, nodes[0], third)
        with tls:
            await asyncio.to_thread(tls.sendall, row(ring, 0, **numbers))
            assert await asyncio.to_thread(tls.recv, 1) == b""
    ring.forget()


async def test_who_is_of_another_swarm_is_not_welcome(nodes: list[Node], tmp_path: Path) -> None:
    with claim_identity(Home(tmp_path / "other"), "stranger", "node") as stranger:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(stranger.certificate_path, stranger.key_path)
        context.set_alpn_protocols([ROWS])
        address = nodes[0].stage.address
        assert address is not None

        def say() -> bytes:
            with context.wrap_socket(socket.create_connection((address.host, address.port), 10)) as tls:
                return tls.recv(1)

        with pytest.raises(ssl.SSLError):
            await asyncio.to_thread(say)


async def test_a_link_that_breaks_after_a_runs_last_row_was_handed_on_is_told(
    nodes: list[Node], tiny: SplitModel
) -> None:
    await linked(nodes, tiny)
    ring = Ring(nodes, tiny)
    await ring.begin(3)
    while True:
        done = await asyncio.wait_for(ring.news.get(), TIMEOUT_S)
        assert isinstance(done, RowDone)
        if done.stage == 0 and not done.ahead:
            break
    assert not done.went_on, "the daemons know what may be lost when the run is over"
    ring.forget()


async def test_a_source_that_sends_too_much_is_cut_and_its_run_hurt_alone(nodes: list[Node], tiny: SplitModel) -> None:
    ring = Ring(nodes, tiny)
    await ring.begin(None)
    for data in (
        PREFIX.pack(MAGIC, VERSION, KIND, NEXT_STEP.size, 16 * 40_000 + TOKEN.size)
        + b"".join((next_row(ring, 0).pack(), bytes(16 * 40_000), TOKEN.pack(7))),
        row(ring, 0) * 2,
    ):
        tls = await asyncio.to_thread(dial, nodes[0], nodes[-1].identity)
        with tls:
            await asyncio.to_thread(tls.sendall, data)
            assert await asyncio.to_thread(tls.recv, 1) == b""
    ring.forget()
    await linked(nodes, tiny)


async def test_a_link_whose_other_end_vanished_ends_by_itself() -> None:
    with socket.socket() as link:
        tune(link, PATIENCE)
        assert link.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1000 * SILENCE_TIMEOUT_S


async def test_a_member_has_one_link_here_the_newest(nodes: list[Node]) -> None:
    with claim_identity(nodes[0].identity.home, "third", "node") as third:
        first = await asyncio.to_thread(dial, nodes[0], third)
        second = await asyncio.to_thread(dial, nodes[0], third)
        with first, second:
            assert await asyncio.to_thread(first.recv, 1) == b""


async def test_an_address_that_is_none_is_a_link_that_is_lost(nodes: list[Node]) -> None:
    news = watched(nodes[0])
    nodes[0].engine.link(DialRows(link_id=10_000, host="a..b", port=1))
    while (lost := await asyncio.wait_for(news.get(), TIMEOUT_S)).link_id != 10_000:
        pass  # others, of earlier tests
    assert isinstance(lost, RowsLost)


async def test_a_connection_that_the_engine_cannot_be_handed_is_no_link(nodes: list[Node]) -> None:
    news = watched(nodes[0])
    assert nodes[0].engine.pid is not None
    os.kill(nodes[0].engine.pid, signal.SIGSTOP)
    try:
        for _ in range(64):  # until no more fits
            nodes[0].engine.row(NextStep(new_id(), new_id(), 0, 1, 1, 30.0, 200_000), (bytes(4), bytes(800_000)))
        ours, theirs = socket.socketpair()
        with ours:
            nodes[0].links.adopt(theirs)
            async with asyncio.timeout(TIMEOUT_S):
                while not (isinstance(lost := await news.get(), RowsLost) and "takes no connection" in lost.reason):
                    pass  # others, of earlier tests
    finally:
        os.kill(nodes[0].engine.pid, signal.SIGCONT)


async def test_strangers_who_stall_handshakes_do_not_stop_the_engine_from_dialling(
    nodes: list[Node], tiny: SplitModel
) -> None:
    news = watched(nodes[0])
    address = nodes[0].stage.address
    assert address is not None
    hello = b"\x16\x03\x01\x01\x00" + bytes((len(ROWS),)) + ROWS.encode()
    async with AsyncExitStack() as strangers:
        missing, reason = MAX_HANDSHAKES + 1, ""
        while "under way" not in reason:
            for _ in range(missing):
                stranger = socket.create_connection((address.host, address.port), 10)
                strangers.enter_context(stranger)
                stranger.sendall(hello)
            refused = await asyncio.wait_for(news.get(), TIMEOUT_S)
            assert isinstance(refused, RowsLost)
            # So many at once may find the way to the engine full: then others come in their place.
            missing, reason = 1, refused.reason
        ours = socket.create_server(("127.0.0.1", 0))
        with ours:
            nodes[0].engine.link(DialRows(link_id=10_001, host="127.0.0.1", port=ours.getsockname()[1]))
            ours.settimeout(TIMEOUT_S)
            (await asyncio.to_thread(ours.accept))[0].close()


def watched(node: Node) -> asyncio.Queue[RowsMet | RowsLost]:
    """Returns: the news of the engine's links from now on, until the node's engine is watched anew."""
    news: asyncio.Queue[RowsMet | RowsLost] = asyncio.Queue()
    take = node.links._take_news

    def note(what: RowsMet | RowsLost) -> None:
        news.put_nowait(what)
        take(what)

    node.engine.on_link = note
    return news
