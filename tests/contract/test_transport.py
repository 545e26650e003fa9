"""What daemons may rely on, on uvloop and on asyncio's own loop."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shardnet.errors import Busy, LocalProtocolError, PeerLost, PeerRefused, ShardnetError, UnreachableError
from shardnet.messages import Address, AnyMessage, CancelTask, Done, Heartbeat, Hello, Ping, Pong, Refusal, Welcome
from shardnet.swarm.addresses import bound_address
from shardnet.transport import Connection, Listener, dial, limits, link, listen
from shardnet.wire import Frame
from tests.support.golden_messages import COMMAND, HELD, SAMPLES, payloads
from tests.support.swarm_world import LOOPS, World, hello_of, run, tensor, until

LOOPBACK = ("127.0.0.1", 0)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


@pytest.fixture(params=sorted(LOOPS))
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def connected(world: World) -> AsyncIterator[tuple[Listener, Connection, Connection]]:
    """A listener, the dialled end and the accepted end of one link."""
    async with await listen(world.server, LOOPBACK, world.on_hello) as listener:
        here = await dial(world.client, listener.address, hello_of(world.client), expect=world.server.node_id)
        there = await world.accepted.get()
        try:
            yield listener, here, there
        finally:
            await here.close()


def test_both_ends_know_who_the_other_is(world: World, loop: str) -> None:
    async def main() -> None:
        async with connected(world) as (_, here, there):
            assert (here.peer_id, there.peer_id) == (world.server.node_id, world.client.node_id)
            assert isinstance(here.peer, Welcome)
            assert isinstance(there.peer, Hello)
            assert there.peer.name == "node"
            assert here.peername.startswith("127.0.0.1:")

    run(loop, main())


def test_every_message_arrives_as_it_was_sent_in_order_both_ways(world: World, loop: str) -> None:
    async def main() -> None:
        back: asyncio.Queue[Frame[AnyMessage]] = asyncio.Queue()
        messages = [message for message in SAMPLES if not isinstance(message, Refusal)]
        async with connected(world) as (_, here, there):
            here.set_handler(back.put_nowait, lambda _: None)
            for sender, queue in ((here, world.frames), (there, back)):
                for message in messages:
                    sender.send(message, payloads(message))
                for message in messages:
                    frame = await queue.get()
                    assert frame.message == message
                    assert [bytes(part) for part in frame.payloads] == payloads(message)

    run(loop, main())


@pytest.mark.parametrize("size", [4, 16_384, 100_000, 1 << 20, 9 << 20])
def test_tensors_of_every_size_arrive_whole_and_the_buffer_is_free_at_once(world: World, loop: str, size: int) -> None:
    async def main() -> None:
        data = random.Random(size).randbytes(size)
        async with connected(world) as (_, here, _there):
            for number in range(3):
                scratch = bytearray(data)
                here.send(Ping(command_id=f"{number:016x}", tensors=(tensor(size),)), [scratch])
                scratch[:] = bytes(size)  # the sender may overwrite it now
            for number in range(3):
                frame = await world.frames.get()
                assert isinstance(frame.message, Ping)
                assert frame.message.command_id == f"{number:016x}"
                assert bytes(frame.payloads[0]) == data

    run(loop, main())


def test_a_hello_with_thousands_of_shards_is_taken(world: World, loop: str) -> None:
    async def main() -> None:
        held = tuple(HELD.model_copy(update={"shard_id": number}) for number in range(9000))
        async with await listen(world.server, LOOPBACK, world.on_hello) as listener:
            connection = await dial(world.client, listener.address, hello_of(world.client, held=held))
            assert world.hellos[0].held == held
            await connection.close()

    run(loop, main())


def test_what_the_listener_sends_from_its_handler_comes_after_the_welcome(world: World, loop: str) -> None:
    async def main() -> None:
        def on_hello(connection: Connection, hello: Hello) -> Welcome:
            connection.send(Done(command_id=COMMAND))
            return world.on_hello(connection, hello)

        async with await listen(world.server, LOOPBACK, on_hello) as listener:
            here = await dial(world.client, listener.address, hello_of(world.client))
            got: asyncio.Queue[Frame[AnyMessage]] = asyncio.Queue()
            await asyncio.sleep(0.05)  # the frame is here before anybody asks for it
            here.set_handler(got.put_nowait, lambda _: None)
            assert isinstance((await got.get()).message, Done)
            await here.close()

    run(loop, main())


def test_frames_before_the_handler_are_kept_in_order_and_bounded(world: World, loop: str) -> None:
    async def main() -> None:
        count = 10 * limits.MAX_KEPT_FRAMES
        async with connected(world) as (_, here, there):
            for number in range(count):
                there.send(Ping(command_id=f"{number:016x}", tensors=(tensor(65_536),)), [bytes(65_536)])
            await asyncio.sleep(0.2)
            assert there.queued_bytes > 0, "a peer that nobody listens to is not read without end"
            got: asyncio.Queue[Frame[AnyMessage]] = asyncio.Queue()
            here.set_handler(got.put_nowait, lambda _: None)
            for number in range(count):
                message = (await got.get()).message
                assert isinstance(message, Ping)
                assert message.command_id == f"{number:016x}"

    run(loop, main())


def test_closing_sends_what_is_queued_and_tells_both_ends_once(world: World, loop: str) -> None:
    async def main() -> None:
        here_ended: list[ShardnetError] = []
        async with connected(world) as (_, here, there):
            here.set_handler(lambda _: None, here_ended.append)
            here.send(Ping(command_id=COMMAND, tensors=(tensor(4 << 20),)), [bytes(4 << 20)])
            await here.close()
            assert len((await world.frames.get()).payloads[0]) == 4 << 20
            await until(lambda: bool(world.ends))
            await here.close()
            there.abort()
            await asyncio.sleep(0.05)
            assert [type(error) for error in world.ends + here_ended] == [PeerLost, PeerLost]
            assert not here.is_open
            with pytest.raises(PeerLost, match="is closed"):
                here.send(Pong(command_id=COMMAND))

    run(loop, main())


def test_a_handler_set_after_the_end_is_told_of_it(world: World, loop: str) -> None:
    async def main() -> None:
        ended: asyncio.Queue[ShardnetError] = asyncio.Queue()
        async with connected(world) as (_, here, there):
            there.abort()
            await until(lambda: not here.is_open)
            here.set_handler(lambda _: None, ended.put_nowait)
            assert isinstance(await ended.get(), PeerLost)

    run(loop, main())


def test_closing_the_listener_closes_its_connections_and_frees_the_port(world: World, loop: str) -> None:
    async def main() -> None:
        async with connected(world) as (listener, here, _there):
            await listener.close()
            await until(lambda: not here.is_open)
            async with await listen(world.server, listener.address, world.on_hello) as again:
                assert again.address == listener.address

    run(loop, main())


def test_sending_wrong_tensors_is_our_bug_and_harms_nothing(world: World, loop: str) -> None:
    async def main() -> None:
        async with connected(world) as (_, here, _there):
            with pytest.raises(LocalProtocolError):
                here.send(Ping(command_id=COMMAND, tensors=(tensor(8),)), [b"1234"])
            here.send(CancelTask(command_id=COMMAND))
            assert isinstance((await world.frames.get()).message, CancelTask)

    run(loop, main())


@pytest.mark.parametrize(
    ("error", "kind"),
    [(PeerRefused("no coordinator here"), PeerRefused), (Busy("too many nodes"), UnreachableError)],
)
def test_a_daemon_that_refuses_says_why_at_the_other_end(
    world: World, loop: str, error: ShardnetError, kind: type[ShardnetError]
) -> None:
    async def main() -> None:
        def on_hello(_connection: Connection, _hello: Hello) -> Welcome:
            raise error

        async with await listen(world.server, LOOPBACK, on_hello) as listener:
            with pytest.raises(UnreachableError, match=str(error)) as caught:
                await dial(world.client, listener.address, hello_of(world.client))
            assert type(caught.value) is kind
            assert str(listener.address) in str(caught.value)

    run(loop, main())


def test_a_refusal_later_on_reaches_the_other_end_with_its_reason(world: World, loop: str) -> None:
    async def main() -> None:
        ended: asyncio.Queue[ShardnetError] = asyncio.Queue()
        async with connected(world) as (_, here, there):
            here.set_handler(lambda _: None, ended.put_nowait)
            there.refuse(PeerRefused("your epoch is over"))
            assert "your epoch is over" in str(await ended.get())

    run(loop, main())


def test_a_bug_in_a_handler_ends_only_its_own_connection(world: World, loop: str) -> None:
    async def main() -> None:
        ended: asyncio.Queue[ShardnetError] = asyncio.Queue()
        async with connected(world) as (listener, here, there):
            there.set_handler(lambda frame: [][1], world.ends.append)
            here.set_handler(lambda _: None, ended.put_nowait)
            here.send(CancelTask(command_id=COMMAND))
            assert "its log says more" in str(await ended.get())
            other = await dial(world.client, listener.address, hello_of(world.client))
            other.send(CancelTask(command_id=COMMAND))
            await world.frames.get()
            await other.close()

    run(loop, main())


def test_revoking_closes_the_open_link_and_keeps_the_node_out(world: World, loop: str) -> None:
    async def main() -> None:
        ended: asyncio.Queue[ShardnetError] = asyncio.Queue()
        async with connected(world) as (listener, here, there):
            here.set_handler(lambda _: None, ended.put_nowait)
            world.server.set_revoked([world.client.node_id])
            assert "was revoked by the swarm's owner" in str(await ended.get())
            assert not there.is_open
            with pytest.raises(
                PeerRefused, match=rf"{listener.address} refused this node: .*was revoked.*new join token"
            ):
                await dial(world.client, listener.address, hello_of(world.client))
            assert len(world.hellos) == 1

    run(loop, main())


def test_a_node_does_not_stay_with_a_revoked_coordinator(world: World, loop: str) -> None:
    async def main() -> None:
        async with connected(world) as (listener, here, _there):
            world.client.set_revoked([world.server.node_id])
            assert not here.is_open
            with pytest.raises(PeerRefused, match="was revoked"):
                await dial(world.client, listener.address, hello_of(world.client))

    run(loop, main())


def test_sixty_four_links_a_peer_and_not_one_more_until_one_ends(world: World, loop: str) -> None:
    async def main() -> None:
        async with await listen(world.server, LOOPBACK, world.on_hello) as listener:
            hello = hello_of(world.client)
            links = [await dial(world.client, listener.address, hello) for _ in range(limits.MAX_PER_PEER)]
            with pytest.raises(UnreachableError, match=r"is busy: node .* already has 64 connections here"):
                await dial(world.client, listener.address, hello)
            await links.pop().close()
            links.append(await dial(world.client, listener.address, hello))
            await asyncio.gather(*(link.close() for link in links))

    run(loop, main(), within_s=60)


def test_nobody_there_is_told_with_the_address(world: World, loop: str) -> None:
    async def main() -> None:
        async with await listen(world.server, LOOPBACK, world.on_hello) as listener:
            address = listener.address
        with pytest.raises(UnreachableError, match=rf"nothing listens at {address}.* is the daemon running there"):
            await dial(world.client, address, hello_of(world.client))

    run(loop, main())


def test_a_peer_that_takes_connections_and_says_nothing_costs_only_the_timeout(world: World, loop: str) -> None:
    async def main() -> None:
        # The kernel completes the connection, and nobody accepts it.
        with socket.create_server(LOOPBACK) as silent, pytest.raises(UnreachableError, match=r"answered at .* in time"):
            await dial(world.client, bound_address(silent), hello_of(world.client), timeout_s=0.3)

    run(loop, main())


def test_many_connections_leave_no_descriptor_behind(world: World, loop: str) -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the count is all

    async def main() -> None:
        async with await listen(world.server, LOOPBACK, world.on_hello) as listener:
            for round_number in range(4):
                links = [await dial(world.client, listener.address, hello_of(world.client)) for _ in range(10)]
                for link in links:
                    link.send(Heartbeat(memory_free_bytes=1, load=0))
                await asyncio.gather(*(link.close() for link in links))
                await until(lambda: len(world.ends) == 10 * (round_number + 1))  # noqa: B023 - it is called here
                if round_number == 0:
                    before = open_files()
            await until(lambda: open_files() <= before)

    run(loop, main())


def test_a_peer_of_which_nothing_comes_back_is_given_up_and_one_that_only_has_nothing_to_say_is_not(
    world: World, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "CHECK_INTERVAL_S", 0.02)

    async def main() -> None:
        async with connected(world) as (_, here, there):
            ended: asyncio.Future[ShardnetError] = asyncio.get_running_loop().create_future()
            here.set_handler(lambda _: None, ended.set_result)
            await asyncio.sleep(0.02 * 5 * limits.LOST_AFTER_TICKS)
            assert here.is_open, "the other end's link answers, though nobody speaks"
            assert world.frames.empty(), "and no daemon is bothered with it"
            there._link.asks = False
            there._link._transport.pause_reading()  # as if the network were cut: nothing gets there, so nothing comes back
            assert "nothing came back for" in str(await ended)
            there.abort()

    run(loop, main())


def test_a_client_that_rests_is_not_asked_anything(world: World, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "CHECK_INTERVAL_S", 0.02)

    async def main() -> None:
        async with await listen(world.server, LOOPBACK, world.on_hello) as listener:
            here = await dial(world.client, listener.address, hello_of(world.client, role="client"))
            there = await world.accepted.get()
            here._link.asks = False
            received = here._link._received_bytes
            await asyncio.sleep(0.02 * 3 * limits.LOST_AFTER_TICKS)
            assert there.is_open
            assert here._link._received_bytes == received
            await here.close()

    run(loop, main())


def test_a_link_from_an_address_that_this_machine_has_no_more_ends_at_once(
    world: World, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with connected(world) as (_, here, _there):
            here.check_address()
            assert here.is_open
            monkeypatch.setattr(link, "is_ours", lambda _where: False)
            here.check_address()
            assert not here.is_open
            with pytest.raises(PeerLost, match=r"does not have the address 127\.0\.0\.1 any more"):
                here.send(Done(command_id=COMMAND))

    run(loop, main())


def test_a_name_is_dialled_at_each_of_its_addresses(world: World, loop: str) -> None:
    async def main() -> None:
        async with await listen(world.server, LOOPBACK, world.on_hello) as listener:
            named = Address(host="localhost", port=listener.address.port)  # ::1 comes first where a machine has it
            connection = await dial(world.client, named, hello_of(world.client))
            await connection.close()

    run(loop, main())
