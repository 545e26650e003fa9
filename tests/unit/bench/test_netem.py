"""Slow links are as slow as they say: delay, bandwidth, order, and ends of connections, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from shardnet.bench.netem import NETS, Relay, Relays, Shape, Wire, parse_nets
from shardnet.errors import UsageError
from shardnet.messages import Address

# -- the law, without sockets --------------------------------------------------------------------------------------------------------


def test_bytes_wait_for_those_before_them_and_nothing_adds_up() -> None:
    wire = Wire(Shape(one_way_s=0.5, bytes_per_s=100))
    assert wire.arrival_s(10.0, 100) == 11.5
    assert wire.arrival_s(10.1, 100) == 12.5, "the link was busy until 11"
    assert wire.arrival_s(20.0, 50) == 21.0, "the link was idle"


def test_a_link_without_limits_holds_nothing_back() -> None:
    assert Shape().is_free
    assert Wire(Shape()).arrival_s(3.0, 1 << 30) == 3.0


def test_networks_are_named_and_others_refused() -> None:
    assert parse_nets("loopback, 20ms,20ms") == ["loopback", "20ms"]
    assert NETS["20ms"].one_way_s == 0.010
    with pytest.raises(UsageError, match="100mbit"):
        parse_nets("carrier-pigeon")


# -- over sockets --------------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def echo_server() -> AsyncIterator[Address]:
    """A server that gives back what it gets, and ends when its client does."""

    served: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: asyncio.Task[None] | None = asyncio.current_task()
        assert task is not None
        served.add(task)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Address(host="127.0.0.1", port=server.sockets[0].getsockname()[1])
    await asyncio.gather(*served)


@asynccontextmanager
async def connected(address: Address) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(address.host, address.port)
    yield reader, writer
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


@asynccontextmanager
async def relay_to(target: Address, there: Shape, back: Shape) -> AsyncIterator[Address]:
    relay = Relay(target, there, back)
    yield await relay.start()
    await relay.close()


async def round_trip_s(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> float:
    began_s = time.perf_counter()
    writer.write(data)
    assert await reader.readexactly(len(data)) == data
    return time.perf_counter() - began_s


async def test_a_round_trip_takes_both_delays() -> None:
    async with (
        echo_server() as address,
        relay_to(address, Shape(one_way_s=0.03), Shape(one_way_s=0.01)) as near,
        connected(near) as link,
    ):
        times = [await round_trip_s(*link, b"x" * 100) for _ in range(5)]
    assert min(times) >= 0.04
    assert min(times) < 2


async def test_a_large_message_takes_its_bytes_over_the_bandwidth_in_order() -> None:
    data = bytes(range(256)) * 1600  # 409,600 bytes: 0.2 s
    async with (
        echo_server() as address,
        relay_to(address, Shape(bytes_per_s=2e6), Shape()) as near,
        connected(near) as link,
    ):
        times = [await round_trip_s(*link, data) for _ in range(3)]
    assert min(times) >= 0.2
    assert min(times) < 2


async def test_two_connections_share_one_link() -> None:
    async with (
        echo_server() as address,
        relay_to(address, Shape(bytes_per_s=2e6), Shape()) as near,
        connected(near) as one,
        connected(near) as other,
    ):
        began_s = time.perf_counter()
        await asyncio.gather(*(round_trip_s(*link, b"z" * 200_000) for link in (one, other)))
        assert time.perf_counter() - began_s >= 0.2


async def test_the_end_of_a_connection_comes_after_its_last_byte() -> None:
    shape = Shape(one_way_s=0.02)
    async with echo_server() as address, relay_to(address, shape, shape) as near, connected(near) as (reader, writer):
        writer.write(b"last words")
        writer.write_eof()
        assert await reader.read() == b"last words"


async def test_a_target_that_is_not_there_ends_the_connection() -> None:
    async with echo_server() as gone:
        pass
    async with relay_to(gone, Shape(), Shape()) as near, connected(near) as (reader, _):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""


async def test_the_process_of_slow_links_serves_and_leaves() -> None:
    relays = Relays(Shape(one_way_s=0.01))
    async with echo_server() as address:
        with relays:
            process = relays._process
            near = await asyncio.to_thread(relays.add, address)
            async with connected(near) as link:
                times = [await round_trip_s(*link, b"y" * 2304) for _ in range(9)]
    assert min(times) >= 0.02
    assert process is not None
    assert process.poll() == 0
