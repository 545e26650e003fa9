"""Links between daemons under attack: who is refused, how fast, at what cost, and what both sides read."""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography import x509
from structlog.testing import capture_logs

from shardnet.errors import PeerLost, PeerRefused, ShardnetError, UnreachableError
from shardnet.messages import MESSAGES, PROTOCOL_VERSION, Address, AnyMessage, CancelTask, Ping, Refusal
from shardnet.swarm import acceptor, authority
from shardnet.swarm.home import write_in_home
from shardnet.swarm.identity import Identity
from shardnet.swarm.tls import HANDSHAKE_TIMEOUT_S, client_context
from shardnet.transport import Listener, dial, limits, link, listen, pace
from shardnet.wire import MAX_PAYLOAD_BYTES, PREFIX, FrameDecoder, encode
from tests.support.golden_messages import COMMAND, SAMPLES, payloads
from tests.support.swarm_world import LOOPS, World, hello_of, plain_client, run, tensor, until
from tests.unit.test_wire import mutated, prefix

REFUSED_WITHIN_S = 4.0
"""Sooner than by a timeout, of which the shortest for a peer that says nothing has five seconds; on a quiet machine it is some milliseconds."""
Logs = list[Any]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


@pytest.fixture(params=sorted(LOOPS))
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def parsed_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts of application bytes that any decoder was given."""
    counts: list[int] = []
    original = FrameDecoder.advance

    def counting(self: FrameDecoder[AnyMessage], count: int) -> Any:
        counts.append(count)
        return original(self, count)

    monkeypatch.setattr(FrameDecoder, "advance", counting)
    return counts


@asynccontextmanager
async def serving(world: World) -> AsyncIterator[Listener]:
    async with await listen(world.server, ("127.0.0.1", 0), world.on_hello) as listener:
        yield listener


async def knock(address: Address, context: ssl.SSLContext, data: bytes) -> bytes:
    """Connect as somebody of ill will, send `data`, and read to the end. Returns: what came back. Raises: what TLS raises."""
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context, server_hostname="")
    try:
        writer.write(data)
        return await reader.read()
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def own_certificate(context: ssl.SSLContext, identity: Identity) -> ssl.SSLContext:
    context.load_cert_chain(identity.certificate_path, identity.key_path)
    return context


def expired(identity: Identity) -> Identity:
    """Returns: the identity, with a certificate that ended yesterday."""
    swarm = identity.swarm
    public = authority.p256(x509.load_pem_x509_certificate(identity.certificate_pem).public_key())
    then = datetime.now(UTC) - timedelta(days=3)
    write_in_home(
        identity.certificate_path, authority.to_pem(authority.issue(swarm.ca_key(), swarm.ca, public, days=2, now=then))
    )
    return identity


def lines_of(logs: Logs) -> list[str]:
    return [str(entry["reason"]) for entry in logs if entry["event"] in ("link_refused", "link_evicted")]


# -- who is not let in -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "context", "log_line"),
    [
        ("no certificate", lambda w: plain_client(), "it has no certificate of this swarm"),
        (
            "another swarm's certificate",
            lambda w: own_certificate(plain_client(), w.stranger),
            "its certificate is not of this swarm",
        ),
        (
            "an expired certificate",
            lambda w: own_certificate(plain_client(), expired(w.client)),
            "its certificate has expired",
        ),
        (
            "TLS 1.2",
            lambda w: own_certificate(plain_client(version=ssl.TLSVersion.TLSv1_2), w.client),
            "TLS 1.2 or older",
        ),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_who_is_no_member_is_refused_at_once_unread_and_with_one_log_line(
    world: World,
    loop: str,
    parsed_bytes: list[int],
    who: str,
    context: Callable[[World], ssl.SSLContext],
    log_line: str,
) -> None:
    async def main() -> None:
        prepared = context(world)
        greeting = b"".join(encode(MESSAGES, hello_of(world.client)))
        async with serving(world) as listener:
            with capture_logs() as logs:
                began_s = time.monotonic()
                try:
                    came_back = await knock(listener.address, prepared, greeting)
                except OSError:  # a TLS alert, or a reset that overtook it
                    came_back = b""
                assert time.monotonic() - began_s < REFUSED_WITHIN_S
                await until(lambda: bool(lines_of(logs)))
            assert came_back == b"", who
            assert len(lines_of(logs)) == 1
            assert log_line in lines_of(logs)[0]
            assert parsed_bytes == []
            assert world.hellos == []

    run(loop, main())


@pytest.mark.parametrize(
    ("data", "log_line"),
    [
        (b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n", "plain HTTP"),
        (bytes(200), "does not speak TLS"),
        (b"SN" * 40, "not speak TLS"),
    ],
)
def test_what_is_no_tls_is_refused_with_one_log_line(world: World, loop: str, data: bytes, log_line: str) -> None:
    async def main() -> None:
        async with serving(world) as listener:
            with capture_logs() as logs:
                reader, writer = await asyncio.open_connection(listener.address.host, listener.address.port)
                writer.write(data)
                with suppress(ConnectionResetError):
                    await asyncio.wait_for(reader.read(), REFUSED_WITHIN_S)
                writer.close()
                await until(lambda: bool(lines_of(logs)))
            assert [log_line in line for line in lines_of(logs)] == [True]

    run(loop, main())


def test_a_node_of_another_swarm_reads_what_to_do(world: World, loop: str, parsed_bytes: list[int]) -> None:
    async def main() -> None:
        async with serving(world) as listener:
            began_s = time.monotonic()
            with pytest.raises(PeerRefused) as caught:
                await dial(world.stranger, listener.address, hello_of(world.stranger))
            assert time.monotonic() - began_s < REFUSED_WITHIN_S
            assert f"the daemon at {listener.address} belongs to another swarm than this machine" in str(caught.value)
            assert "run `shardnet join TOKEN --replace` here" in str(caught.value)
            assert parsed_bytes == []

    run(loop, main())


def test_a_node_refused_only_by_the_other_side_reads_why(world: World, loop: str) -> None:
    """TLS 1.3: the client's handshake is complete before the server has looked at its certificate."""

    async def main() -> None:
        expired(world.client)
        async with serving(world) as listener:
            began_s = time.monotonic()
            with pytest.raises(PeerRefused, match=rf"{listener.address} ended the connection without a welcome"):
                await dial(world.client, listener.address, hello_of(world.client))
            assert time.monotonic() - began_s < REFUSED_WITHIN_S

    run(loop, main())


def test_a_wrong_pin_is_refused_before_a_word_is_said(world: World, loop: str, parsed_bytes: list[int]) -> None:
    async def main() -> None:
        async with serving(world) as listener:
            with pytest.raises(PeerRefused, match=r"answers at .*, where node 000000000000 was expected"):
                await dial(world.client, listener.address, hello_of(world.client), expect="0" * 40)
            assert parsed_bytes == []

    run(loop, main())


def test_a_server_with_an_expired_certificate_is_not_believed(world: World, loop: str) -> None:
    async def main() -> None:
        expired(world.server)
        async with serving(world) as listener:
            with pytest.raises(PeerRefused, match=r"certificate of the daemon at .* has expired"):
                await dial(world.client, listener.address, hello_of(world.client))

    run(loop, main())


def test_a_revoked_node_is_refused_unread_with_one_log_line(world: World, loop: str) -> None:
    async def main() -> None:
        world.server.set_revoked([world.client.node_id])
        async with serving(world) as listener:
            with capture_logs() as logs:
                began_s = time.monotonic()
                with pytest.raises(PeerRefused, match=r"refused this node: node .* was revoked by the swarm's owner"):
                    await dial(world.client, listener.address, hello_of(world.client))
                assert time.monotonic() - began_s < REFUSED_WITHIN_S
            assert ["was revoked" in line for line in lines_of(logs)] == [True]
            assert world.hellos == []

    run(loop, main())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"node_id": "0" * 40}, r"names node 000000000000, but its certificate is that of"),
        ({"protocol": PROTOCOL_VERSION + 1}, "protocol versions 2 and 1: update this end"),
    ],
)
def test_a_greeting_that_does_not_fit_is_refused_with_the_reason(
    world: World, loop: str, change: dict[str, object], sentence: str
) -> None:
    async def main() -> None:
        async with serving(world) as listener:
            with pytest.raises(PeerRefused, match=sentence):
                await dial(world.client, listener.address, hello_of(world.client, **change))
            assert world.hellos == []

    run(loop, main())


# -- malformed frames of a member --------------------------------------------------------------------------------------------


async def misbehave(world: World, listener: Listener, data: bytes, *, greet: bool = True) -> list[AnyMessage]:
    """As a member, greet and then send `data`. Returns: what the listener sent back until it closed the link."""
    hello = b"".join(encode(MESSAGES, hello_of(world.client)))
    reader, writer = await asyncio.open_connection(
        listener.address.host, listener.address.port, ssl=client_context(world.client), server_hostname=""
    )
    decoder: FrameDecoder[AnyMessage] = FrameDecoder(MESSAGES)
    received: list[AnyMessage] = []
    try:
        if greet:
            writer.write(hello)
            while not received:
                received += [frame.message for frame in decoder.feed(await reader.read(4096))]
        writer.write(data)
        while chunk := await reader.read(4096):
            received += [frame.message for frame in decoder.feed(chunk)]
    except (ConnectionResetError, BrokenPipeError):
        pass
    finally:
        writer.transport.abort()
    return received


@pytest.mark.parametrize("greet", [True, False], ids=["greeted", "before-hello"])
@pytest.mark.parametrize(
    "bad",
    [
        prefix(2**32 - 1, 0),
        prefix(100, 2**63),
        prefix(100, 2**64 - 1),
        prefix((4 << 20) + 1, 0),
        prefix(100, MAX_PAYLOAD_BYTES + 1),
        prefix(2, 0) + b"{}",
        b"\0" * 16,
        prefix(15, 0) + b'{"type":"NOPE"}',
    ],
    ids=lambda bad: bad[:24].hex(),
)
def test_a_lying_frame_ends_the_link_with_a_refusal_and_one_log_line(
    world: World, loop: str, bad: bytes, greet: bool
) -> None:
    async def main() -> None:
        async with serving(world) as listener:
            before = psutil.Process().memory_info().rss
            with capture_logs() as logs:
                received = await asyncio.wait_for(misbehave(world, listener, bad, greet=greet), REFUSED_WITHIN_S)
            assert isinstance(received[-1], Refusal)
            assert received[-1].error.code == "PROTOCOL_REMOTE"
            assert len(lines_of(logs)) == 1
            assert psutil.Process().memory_info().rss - before < 16 << 20

    run(loop, main())


def test_before_its_hello_a_member_cannot_send_tensors_or_other_messages(world: World, loop: str) -> None:
    async def main() -> None:
        async with serving(world) as listener:
            task = next(sample for sample in SAMPLES if sample.type == "EXECUTE_TASK")
            for data in (
                b"".join(encode(MESSAGES, task, payloads(task))),
                b"".join(encode(MESSAGES, CancelTask(command_id=COMMAND))),
            ):
                received = await misbehave(world, listener, data, greet=False)
                assert [type(message) for message in received] == [Refusal]
            assert world.hellos == []

    run(loop, main())


@pytest.mark.usefixtures("quick_limits")
def test_hundreds_of_members_gone_mad_leave_the_service_as_it_was(world: World) -> None:
    async def main() -> None:
        rng = random.Random(7)
        async with serving(world) as listener:
            good = await dial(world.client, listener.address, hello_of(world.client))
            resident = []
            for _ in range(2):  # the first half warms up the allocator
                for _ in range(15):
                    crowd = [mutated(rng) + b"\xff" * 64 for _ in range(8)]
                    await asyncio.gather(*[misbehave(world, listener, bad, greet=rng.random() < 0.7) for bad in crowd])
                while not world.frames.empty():
                    world.frames.get_nowait()
                while not world.accepted.empty():
                    world.accepted.get_nowait()
                gc.collect()
                resident.append(psutil.Process().memory_info().rss)
            good.send(CancelTask(command_id=COMMAND))
            assert isinstance((await world.frames.get()).message, CancelTask)
            assert resident[1] - resident[0] < 10 << 20
            assert sum(isinstance(thing, link.Link) for thing in gc.get_objects()) <= 4
            await good.close()

    with capture_logs() as logs:
        run("uvloop", main(), within_s=60)
    assert not [entry for entry in logs if entry["log_level"] == "error"]
    assert sum(entry["event"] == "link_refused" for entry in logs) <= 3 * acceptor.LINES_PER_WINDOW


# -- slow peers --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rules with shorter times; the real times are `test_pace`'s."""
    monkeypatch.setattr(acceptor, "HANDSHAKE_TIMEOUT_S", 1.0)
    monkeypatch.setattr("shardnet.transport.listener.GREETING_TIMEOUT_S", 1.0)
    monkeypatch.setattr(pace, "HEADER_TIMEOUT_S", 0.4)
    monkeypatch.setattr(pace, "PAYLOAD_GRACE_S", 0.4)
    monkeypatch.setattr(pace, "STALLED_TIMEOUT_S", 0.5)
    monkeypatch.setattr(link, "CHECK_INTERVAL_S", 0.1)
    monkeypatch.setattr(link, "CLOSE_TIMEOUT_S", 0.5)


async def drip(world: World, listener: Listener, begun: bytes, data: bytes) -> float:
    """As a greeted member, send `begun`, then `data` a byte at a time. Returns: seconds until the listener had enough."""
    hello = b"".join(encode(MESSAGES, hello_of(world.client)))
    reader, writer = await asyncio.open_connection(
        listener.address.host, listener.address.port, ssl=client_context(world.client), server_hostname=""
    )
    writer.write(hello)
    await reader.read(4096)
    writer.write(begun)
    began_s = time.monotonic()
    ended = asyncio.ensure_future(reader.read())
    for at in range(len(data)):
        writer.write(data[at : at + 1])
        await asyncio.wait([ended], timeout=0.02)
        if ended.done():
            break
    await asyncio.gather(ended, return_exceptions=True)
    writer.transport.abort()
    return time.monotonic() - began_s


@pytest.mark.usefixtures("quick_limits")
@pytest.mark.parametrize("part", ["header", "payload"])
def test_a_frame_fed_drop_by_drop_ends_the_link(world: World, loop: str, part: str) -> None:
    message = Ping(command_id=COMMAND, tensors=(tensor(100_000),))
    header = MESSAGES.adapter.dump_json(message)
    begun = prefix(len(header), 100_000) + (header if part == "payload" else b"")

    async def main() -> None:
        async with serving(world) as listener:
            with capture_logs() as logs:
                assert await drip(world, listener, begun, bytes(5000)) < 20  # all of it would take 100 s
            assert len(lines_of(logs)) == 1
            assert part.replace("payload", "tensor") in lines_of(logs)[0]

    run(loop, main())


@pytest.mark.usefixtures("quick_limits")
def test_silence_before_tls_or_before_hello_is_ended_and_costs_members_nothing(world: World, loop: str) -> None:
    async def main() -> None:
        async with serving(world) as listener:
            where = (listener.address.host, listener.address.port)
            idle = [await asyncio.open_connection(*where) for _ in range(100)]
            mute = [
                await asyncio.open_connection(*where, ssl=client_context(world.client), server_hostname="")
                for _ in range(10)
            ]
            connection = await dial(world.client, listener.address, hello_of(world.client))
            connection.send(CancelTask(command_id=COMMAND))
            await world.frames.get()
            for reader, writer in idle + mute:
                await asyncio.gather(reader.read(), return_exceptions=True)
                writer.transport.abort()
            await connection.close()

    run(loop, main())


def test_a_flood_of_idle_connections_does_not_keep_a_member_out(world: World, loop: str) -> None:
    async def main() -> None:
        async with serving(world) as listener:
            where = (listener.address.host, listener.address.port)
            flood = []
            for _ in range(acceptor.MAX_HANDSHAKES + 100):
                sock = socket.socket()
                sock.setblocking(False)
                await asyncio.get_running_loop().sock_connect(sock, where)
                flood.append(sock)
            began_s = time.monotonic()
            connection = await dial(world.client, listener.address, hello_of(world.client))
            assert time.monotonic() - began_s < REFUSED_WITHIN_S
            await connection.close()
            for sock in flood:
                sock.close()

    with capture_logs() as logs:
        run(loop, main())
    assert sum(entry["event"] == "link_refused" for entry in logs) <= 2 * acceptor.LINES_PER_WINDOW


async def deaf_member(world: World, listener: Listener) -> socket.socket:
    """A member that greets over a blocking socket and then reads nothing. Returns: its socket."""

    def greet() -> socket.socket:
        raw = socket.create_connection((listener.address.host, listener.address.port))
        secure = client_context(world.client).wrap_socket(raw)
        secure.sendall(b"".join(encode(MESSAGES, hello_of(world.client))))
        return secure

    return await asyncio.to_thread(greet)


def test_a_reader_that_lets_64_mib_pile_up_is_cut_off(world: World, loop: str) -> None:
    async def main() -> None:
        async with serving(world) as listener:
            deaf = await deaf_member(world, listener)
            there = await world.accepted.get()
            frame = Ping(command_id=COMMAND, tensors=(tensor(1 << 20),))
            while there.queued_bytes <= limits.MAX_QUEUED_BYTES:
                there.send(frame, [bytes(1 << 20)])
            with pytest.raises(PeerLost, match=r"it does not read: \d+ bytes wait for it"):
                there.send(frame, [bytes(1 << 20)])
            assert there.queued_bytes == 0
            await until(lambda: bool(world.ends))
            deaf.close()

    run(loop, main())


@pytest.mark.usefixtures("quick_limits")
def test_a_reader_that_takes_nothing_at_all_is_cut_off_in_time_and_others_go_on(world: World, loop: str) -> None:
    async def main() -> None:
        async with serving(world) as listener:
            deaf = await deaf_member(world, listener)
            there = await world.accepted.get()
            there.send(Ping(command_id=COMMAND, tensors=(tensor(20 << 20),)), [bytes(20 << 20)])
            other = await dial(world.client, listener.address, hello_of(world.client))
            other.send(CancelTask(command_id=COMMAND))
            await world.frames.get()
            await until(lambda: bool(world.ends))
            assert "took nothing for" in str(world.ends[0])
            await other.close()
            deaf.close()

    run(loop, main())


@pytest.mark.usefixtures("quick_limits")
def test_closing_does_not_wait_for_a_reader_that_does_not_read(world: World, loop: str) -> None:
    async def main() -> None:
        async with serving(world) as listener:
            deaf = await deaf_member(world, listener)
            there = await world.accepted.get()
            there.send(Ping(command_id=COMMAND, tensors=(tensor(20 << 20),)), [bytes(20 << 20)])
            await there.close()
            deaf.close()

    run(loop, main())


# -- somebody in the middle --------------------------------------------------------------------------------------------------


class Proxy:
    """Passes bytes on, and keeps or changes what goes from the client to the server."""

    def __init__(self, target: Address) -> None:
        self.target = target
        self.recorded = bytearray()
        self.flip_at = -1
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Address:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return Address(host="127.0.0.1", port=self._server.sockets[0].getsockname()[1])

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(self.target.host, self.target.port)
        for source, sink, is_upward in ((reader, there_writer, True), (there_reader, writer, False)):
            self._tasks.add(asyncio.ensure_future(self._pass_on(source, sink, is_upward)))

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, is_upward: bool) -> None:
        try:
            while chunk := bytearray(await source.read(65_536)):
                if is_upward:
                    at = self.flip_at - len(self.recorded)
                    if 0 <= at < len(chunk):
                        chunk[at] ^= 0x10
                    self.recorded += chunk
                sink.write(chunk)
        except ConnectionError:
            pass
        finally:
            sink.transport.abort()


def test_a_recorded_session_played_again_is_not_let_in(world: World, loop: str) -> None:
    async def main() -> None:
        async with serving(world) as listener:
            proxy = Proxy(listener.address)
            async with proxy as address:
                connection = await dial(world.client, address, hello_of(world.client))
                connection.send(CancelTask(command_id=COMMAND))
                await world.frames.get()
                await connection.close()
            reader, writer = await asyncio.open_connection(listener.address.host, listener.address.port)
            writer.write(proxy.recorded)
            await asyncio.gather(reader.read(), return_exceptions=True)
            writer.transport.abort()
            assert len(world.hellos) == 1
            assert world.frames.empty()

    run(loop, main())


def test_a_bit_flipped_on_the_way_ends_the_link_and_never_arrives(world: World, loop: str) -> None:
    async def main() -> None:
        async with serving(world) as listener:
            proxy = Proxy(listener.address)
            async with proxy as address:
                connection = await dial(world.client, address, hello_of(world.client))
                ended: asyncio.Queue[ShardnetError] = asyncio.Queue()
                connection.set_handler(lambda _: None, ended.put_nowait)
                proxy.flip_at = len(proxy.recorded) + 20_000
                connection.send(Ping(command_id=COMMAND, tensors=(tensor(100_000),)), [bytes(100_000)])
                assert isinstance(await asyncio.wait_for(ended.get(), 5), UnreachableError)
                await until(lambda: bool(world.ends))
                assert world.frames.empty()

    run(loop, main())


def test_limits_are_those_that_the_threat_model_promises() -> None:
    assert limits.MAX_PER_PEER == 64
    assert limits.MAX_LINKS == 1024
    assert HANDSHAKE_TIMEOUT_S == limits.HEADER_TIMEOUT_S == limits.GREETING_TIMEOUT_S == 5.0
    assert limits.MIN_PAYLOAD_BYTES_PER_S == 64 << 10
    assert PREFIX.size == 16
