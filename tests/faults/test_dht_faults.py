"""Hostile datagrams, hostile members, wrong clocks: refused, counted, logged once, and the directory goes on serving."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from shardnet.dht.kademlia_directory import KademliaDirectory
from shardnet.dht.packets import (
    NOBODY,
    Body,
    Contact,
    Find,
    Found,
    Leave,
    Packet,
    Ping,
    Pong,
    Store,
    Stored,
    decode,
    encode,
    pong_statement,
)
from shardnet.dht.records import Kind, Record, compressed_public_key, provider_key, sign_raw, sign_record
from shardnet.dht.sealing import Sealer
from tests.support.dht_world import MODEL, SWARM_KEY, FakeClock, KeySigner, World, entry_of, eventually, world

pytestmark = pytest.mark.integration

KEY = provider_key(MODEL, 0)
Answer = Callable[[Packet], Body | bytes | None]


class Attacker(asyncio.DatagramProtocol):
    """A UDP socket without manners. With a sealer it is a compromised member; `answer` says what it replies to requests."""

    def __init__(self, clock: FakeClock, signer: KeySigner | None = None, answer: Answer | None = None) -> None:
        self.signer = signer or KeySigner()
        self.id = bytes.fromhex(self.signer.node_id)
        self.sealer = Sealer([SWARM_KEY], clock=clock)
        self.answer = answer
        self.received: list[bytes] = []
        self.replies: list[Packet] = []
        self.requests = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.received.append(data)
        packet = decode(self.sealer.open(data))
        if isinstance(packet.body, Pong | Found | Stored):
            self.replies.append(packet)
            return
        self.requests += 1
        body = self.answer(packet) if self.answer else self.honest(packet)
        if isinstance(body, bytes):
            self.transport.sendto(self.sealer.seal(body), addr)
        elif body is not None:
            self.send(replace(packet, source=self.id, target=packet.source, body=body), addr)

    def honest(self, packet: Packet) -> Body:
        """What a member in good standing with nothing to tell would answer."""
        match packet.body:
            case Ping(challenge):
                statement = pong_statement(challenge, packet.source, self.id)
                return Pong(compressed_public_key(self.signer.public_key_bytes), sign_raw(self.signer, statement))
            case Find():
                return Found(bytes(8), False, (), ())
            case _:
                return Stored(1, 0)

    def send(self, packet: Packet, address: tuple[str, int]) -> bytes:
        datagram = self.sealer.seal(encode(packet))
        self.transport.sendto(datagram, address)
        return datagram

    def ask(self, directory: KademliaDirectory, body: Body, **changes: bytes) -> bytes:
        """Send one request. Returns: the datagram."""
        target = directory._server.node.id
        packet = Packet(random.randbytes(8), self.id, target, body)
        return self.send(replace(packet, **changes), directory.address)  # type: ignore[arg-type]


@asynccontextmanager
async def attacker(
    net: World, signer: KeySigner | None = None, answer: Answer | None = None
) -> AsyncIterator[Attacker]:
    clock = net.clock
    assert isinstance(clock, FakeClock)
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(
        lambda: Attacker(clock, signer, answer), local_addr=("127.0.0.1", 0)
    )
    try:
        yield protocol
    finally:
        transport.close()
        await asyncio.sleep(0)


async def taken_in(directory: KademliaDirectory, count: int) -> None:
    """Wait until so many datagrams came in since the start: a sender that does not wait fills the socket's buffer, and proves nothing."""
    for _ in range(10_000):
        if directory.stats().datagrams_in >= count:
            return
        await asyncio.sleep(0)
    pytest.fail(f"only {directory.stats().datagrams_in} of {count} datagrams came in")


async def still_serves(net: World) -> None:
    """Everybody still announces and finds."""
    await net.nodes[0].announce(MODEL, 77, address=("127.0.0.1", 4000))
    found = await asyncio.gather(*(node.lookup(MODEL, 77) for node in net.nodes))
    assert all([record.node_id for record in records] == [net.id_of(net.nodes[0])] for records in found)


def real_datagrams(net: World, target: KademliaDirectory) -> list[bytes]:
    clock = net.clock
    sealer = Sealer([SWARM_KEY], clock=clock)
    source, own = bytes.fromhex(KeySigner().node_id), target._server.node.id
    bodies: list[Body] = [
        Ping(bytes(32)),
        Pong(b"\2" * 33, bytes(64)),
        Find(KEY, NOBODY, True, True),
        Found(bytes(8), False, (Contact(source, "127.0.0.1", 9),), ()),
        Store(KEY, (bytes(139),)),
        Stored(1, 0),
        Leave(),
    ]
    return [sealer.seal(encode(Packet(bytes(8), source, own, body))) for body in bodies]


async def test_thousands_of_random_and_mutated_datagrams_get_nothing_and_change_nothing(tmp_path: Path) -> None:
    """10,000 random and 20,000 mutated datagrams, without the swarm's key: no exception, no contact, not one byte back."""
    async with world(tmp_path, FakeClock()) as net:
        nodes = await net.grow(4)
        target = nodes[1]
        await nodes[0].announce(MODEL, 0, address=("127.0.0.1", 4000))
        before, chance = target.stats(), random.Random(11)
        templates = real_datagrams(net, target)
        outside = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        outside.setblocking(False)
        outside.bind(("127.0.0.1", 0))
        sent = 0
        try:
            for n in range(30_000):
                if n < 10_000:
                    datagram = chance.randbytes(chance.randrange(1_500))
                else:
                    mutated = bytearray(chance.choice(templates))
                    for _ in range(chance.randint(1, 3)):
                        mutated[chance.randrange(len(mutated))] ^= 1 << chance.randrange(8)
                    datagram = bytes(mutated[: chance.choice([len(mutated), chance.randrange(len(mutated) + 1)])])
                    if datagram in templates:
                        continue
                outside.sendto(datagram, target.address)
                sent += 1
                if sent % 40 == 0:
                    await taken_in(target, before.datagrams_in + sent)
            await taken_in(target, before.datagrams_in + sent)
            with pytest.raises(BlockingIOError):
                outside.recv(2_000)
        finally:
            outside.close()
        after = target.stats()
        refused = sum(count for kind, count in after.refused.items() if kind.startswith("datagram_"))
        assert refused == sent > 29_000
        assert set(after.refused) <= {"datagram_unsealed", "datagram_oversized", "late_reply"}
        assert (after.contacts, after.keys, after.records) == (before.contacts, before.keys, before.records)
        told = [line for line in net.logs if line["event"] == "dht_rejected"]
        assert len(told) <= 2
        await still_serves(net)


async def test_unsealed_queries_are_never_answered(tmp_path: Path) -> None:
    """A stock kademlia client without the key: no reply, so nothing to amplify."""
    async with world(tmp_path, FakeClock()) as net:
        nodes = await net.grow(2)
        stranger = net.make([entry_of(nodes[0])], swarm_key=bytes(32))
        await net.start(stranger)
        assert await stranger.add_peers([entry_of(nodes[0])]) == 0
        assert stranger.stats().datagrams_in == 0
        assert nodes[0].stats().refused["datagram_unsealed"] >= 3
        assert nodes[0].stats().contacts == 1


async def test_a_recorded_datagram_is_refused_when_it_comes_again(tmp_path: Path) -> None:
    async with world(tmp_path, FakeClock()) as net:
        nodes = await net.grow(2)
        async with attacker(net) as member, attacker(net) as thief:
            recorded = member.ask(nodes[0], Find(KEY, NOBODY, True, True))
            await eventually(lambda: len(member.replies) == 1)
            for _ in range(20):
                thief.transport.sendto(recorded, nodes[0].address)
            thief.transport.sendto(recorded, nodes[1].address)
            await eventually(lambda: nodes[0].stats().refused.get("datagram_replayed") == 20)
            await eventually(lambda: nodes[1].stats().refused.get("datagram_misdirected") == 1)
            assert thief.received == []
        assert len([line for line in net.logs if line.get("kind") == "datagram_replayed"]) == 1


async def test_a_ping_from_a_recording_multiplies_nothing(tmp_path: Path) -> None:
    async with world(tmp_path, FakeClock()) as net:
        nodes = await net.grow(2)
        async with attacker(net) as member:
            sent = member.ask(nodes[0], Ping(bytes(32)), target=NOBODY)
            await eventually(lambda: len(member.replies) == 1)
            assert len(member.received[0]) <= len(sent)
            member.ask(nodes[0], Find(KEY, NOBODY, True, True), target=NOBODY)
            await eventually(lambda: nodes[0].stats().refused.get("datagram_misdirected") == 1)


async def test_clocks_too_far_apart_are_named_in_the_log(tmp_path: Path) -> None:
    clock = FakeClock()
    async with world(tmp_path, clock) as net:
        nodes = await net.grow(3)
        late = await net.start(net.make(clock=FakeClock(clock.now - 3_600)))
        assert await late.announce(MODEL, 0, address=("127.0.0.1", 4000)) == 0
        assert await nodes[1].lookup(MODEL, 0) == []
        assert nodes[0].stats().refused["datagram_skewed"] > 0
        told = [line for line in net.logs if line.get("kind") == "datagram_skewed"]
        assert any("3600 s behind ours; set both clocks right" in line["reason"] for line in told)


def is_refused(directory: KademliaDirectory, kind: str, times: int) -> bool:
    return directory.stats().refused.get(kind, 0) == times


def bad_records(clock: FakeClock) -> dict[str, list[bytes]]:
    """Records that nobody may keep, by the reason."""
    honest, victim = KeySigner(), KeySigner()

    class Liar(KeySigner):
        @property
        def public_key_bytes(self) -> bytes:
            return victim.public_key_bytes

        def sign(self, data: bytes) -> bytes:
            return honest.sign(data)

    def record(signer: KeySigner, key: bytes = KEY, life_s: float = 120) -> Record:
        return sign_record(
            signer,
            key,
            Kind.PROVIDER,
            address=("127.0.0.1", 6666),
            sequence=1 << 60,
            expires_at=clock.now + life_s,
        )

    flipped = bytearray(record(honest).raw)
    flipped[-1] ^= 1
    nowhere = bytearray(record(honest).raw)
    nowhere[47:63] = bytes(16)
    return {
        "record_signature": [
            record(Liar()).raw,
            record(honest, provider_key(MODEL, 1)).raw,
            bytes(flipped),
        ],
        "record_expired": [record(honest, life_s=-1).raw],
        "record_ttl": [record(honest, life_s=365 * 86_400).raw],
        "record_address": [bytes(nowhere)],
        "record_public_key": [bytes([1, 1]) + b"\2" + b"\xff" * 32 + record(honest).raw[35:]],
        "record_kind": [bytes([9]) + record(honest).raw[1:]],
    }


async def test_a_member_cannot_have_bad_records_stored(tmp_path: Path) -> None:
    """Forged, moved from another key, altered, expired, promised for a year, at an impossible address: refused by every holder."""
    clock = FakeClock()
    async with world(tmp_path, clock) as net:
        nodes = await net.grow(3)
        async with attacker(net) as member:
            for kind, records in bad_records(clock).items():
                for raw in records * 2:
                    member.ask(nodes[0], Store(KEY, (raw,)))
                await eventually(partial(is_refused, nodes[0], kind, 2 * len(records)))
            await eventually(lambda: len(member.replies) >= 16)
            assert all(reply.body == Stored(0, 1) for reply in member.replies if isinstance(reply.body, Stored))
        assert await nodes[1].lookup(MODEL, 0) == []
        kinds = [line["kind"] for line in net.logs if line["event"] == "dht_rejected"]
        assert sorted(kinds) == sorted(set(kinds))


async def test_bad_records_told_in_a_lookup_are_not_believed(tmp_path: Path) -> None:
    clock = FakeClock()
    bad = bad_records(clock)
    async with world(tmp_path, clock) as net:
        nodes = await net.grow(3)
        await nodes[0].announce(MODEL, 0, address=("127.0.0.1", 4000))
        told = tuple(raw for records in bad.values() for raw in records)

        def lie(packet: Packet) -> Body:
            if isinstance(packet.body, Find):
                return Found(
                    b"lie-lie-", packet.body.wants_records, (), told[:4] if packet.body.after == NOBODY else told[4:]
                )
            return liar.honest(packet)

        async with attacker(net, answer=lie) as liar:
            liar.ask(nodes[1], Ping(bytes(32)))
            await eventually(lambda: nodes[1].stats().contacts == 3)
            found = await nodes[1].lookup(MODEL, 0)
            assert [record.node_id for record in found] == [net.id_of(nodes[0])]
            assert nodes[1].stats().refused.get("record_signature", 0) >= 1


async def test_old_records_do_not_come_back_by_replay(tmp_path: Path) -> None:
    clock = FakeClock()
    async with world(tmp_path, clock) as net:
        nodes = await net.grow(3)
        await nodes[0].announce(MODEL, 0, address=("127.0.0.1", 4000))
        old = nodes[1]._storage.records(KEY)[0].raw
        await nodes[0].withdraw(MODEL, 0)
        async with attacker(net) as member:
            for node in nodes:
                member.ask(node, Store(KEY, (old,)))
            await eventually(lambda: len([r for r in member.replies if isinstance(r.body, Stored)]) == 3)
        assert await nodes[2].lookup(MODEL, 0) == []


async def test_ten_thousand_fake_holders_are_capped_and_push_nobody_out(tmp_path: Path) -> None:
    """DEPENDENCIES B7. Each holder is a key pair of its own: the most that a member can make up."""
    clock = FakeClock()
    async with world(tmp_path, clock) as net:
        nodes = await net.grow(3)
        await nodes[0].announce(MODEL, 0, address=("127.0.0.1", 4000))
        target = nodes[1]
        for _ in range(1_000):
            fake = sign_record(
                KeySigner(), KEY, Kind.PROVIDER, address=("10.1.2.3", 1), sequence=1, expires_at=clock.now + 600
            )
            answer = target._server.protocol._answers.store(KEY, [fake.raw] * 10, b"x" * 20)
            assert answer.kept + answer.refused == 10
        assert len(target._storage.records(KEY)) == 64
        assert target.stats().refused["record_full"] == (1_000 - 63) * 10
        found = await nodes[2].lookup(MODEL, 0)
        assert net.id_of(nodes[0]) in {record.node_id for record in found}
        target._storage.check()


async def test_a_member_cannot_take_another_nodes_place_in_the_table(tmp_path: Path) -> None:
    """It claims the id of a node that is not there, and even signs, but with its own key."""
    victim = KeySigner()
    victim_id = bytes.fromhex(victim.node_id)

    def pose(packet: Packet) -> Body | bytes:
        body = poser.honest(packet)
        if isinstance(packet.body, Ping) and isinstance(body, Pong):
            statement = pong_statement(packet.body.challenge, packet.source, victim_id)
            body = Pong(compressed_public_key(victim.public_key_bytes), sign_raw(KeySigner(), statement))
        return encode(replace(packet, source=victim_id, target=packet.source, body=body))

    async with world(tmp_path, FakeClock()) as net:
        nodes = await net.grow(3)
        async with attacker(net, answer=pose) as poser:
            poser.ask(nodes[0], Find(KEY, NOBODY, True, True), source=victim_id)
            await eventually(lambda: nodes[0].stats().refused.get("contact_signature", 0) > 0)
            assert nodes[0]._server.protocol.router.get(victim_id) is None
        await still_serves(net)


async def test_a_living_contact_is_not_moved_by_whoever_relays_its_proofs(tmp_path: Path) -> None:
    async with world(tmp_path, FakeClock()) as net:
        nodes = await net.grow(3)
        victim = net.signers[nodes[2]]
        async with attacker(net, signer=victim) as relay:  # the strongest case: it can sign as the victim
            relay.ask(nodes[0], Find(KEY, NOBODY, True, True))
            await eventually(lambda: len(relay.replies) == 1)
            await asyncio.sleep(0.05)
            contact = nodes[0]._server.protocol.router.get(bytes.fromhex(victim.node_id))
            assert (contact.ip, contact.port) == nodes[2].address


async def test_a_goodbye_in_another_nodes_name_evicts_nobody(tmp_path: Path) -> None:
    async with world(tmp_path, FakeClock()) as net:
        nodes = await net.grow(3)
        victim = nodes[2]._server.node.id
        async with attacker(net) as member:
            before = nodes[0].stats().datagrams_in
            for _ in range(10):
                member.ask(nodes[0], Leave(), source=victim)
            await taken_in(nodes[0], before + 10)
            assert member.received == []
        nodes[0]._server.protocol._doubt(victim, nodes[2].address)  # as if the source address were forged too
        await eventually(lambda: not nodes[0]._server.protocol._introductions)
        assert nodes[0]._server.protocol.router.get(victim) is not None


def malformed_answers() -> dict[str, Answer]:
    def raw(tail: bytes, operation: int) -> Answer:
        return lambda packet: bytes([operation]) + packet.call_id + packet.target + packet.source + tail

    contact = b"\1" * 20 + bytes(10) + b"\xff\xff\x7f\0\0\1\0\0"
    return {
        "empty": lambda _packet: b"",
        "no such operation": raw(b"", 250),
        "found, cut": raw(bytes(5), 4),
        "found, counts lie": raw(bytes(8) + b"\0\xff\xff", 4),
        "found, not a boolean": raw(bytes(8) + b"\7\0\0", 4),
        "found, port 0": raw(bytes(8) + b"\0\1\0" + contact, 4),
        "found, endless pages": raw(bytes(8) + b"\1\0\0", 4),
        "stored, too long": raw(bytes(9), 6),
        "the wrong kind of answer": lambda _packet: Stored(255, 255),
        "silence": lambda _packet: None,
    }


@pytest.mark.parametrize("name", malformed_answers())
async def test_a_malformed_reply_never_reaches_the_caller(tmp_path: Path, name: str) -> None:
    answer = malformed_answers()[name]

    def after_the_greeting(packet: Packet) -> Body | bytes | None:
        return evil.honest(packet) if isinstance(packet.body, Ping) else answer(packet)

    async with world(tmp_path, FakeClock()) as net:
        nodes = await net.grow(3, call_retry_s=0.03)
        async with attacker(net, answer=after_the_greeting) as evil:
            evil.ask(nodes[0], Ping(bytes(32)))
            await eventually(lambda: nodes[0].stats().contacts == 3)
            asked = evil.requests
            assert await nodes[0].announce(MODEL, 0, address=("127.0.0.1", 4000)) >= 2
            assert len(await nodes[0].lookup(MODEL, 0)) == 1
            assert evil.requests > asked


async def test_endless_pages_and_invented_contacts_end_with_the_crawl(tmp_path: Path) -> None:
    """A member that always has one more page, and names sixteen new peers in every answer, costs bounded time and earns no contact."""

    def tell(packet: Packet) -> Body:
        if not isinstance(packet.body, Find):
            return evil.honest(packet)
        invented = tuple(Contact(random.randbytes(20), "127.0.0.1", random.randint(1, 1023)) for _ in range(16))
        last = sign_record(
            KeySigner(),
            packet.body.key,
            Kind.PROVIDER,
            address=("127.0.0.1", 1),
            sequence=1,
            expires_at=clock.now + 60,
        )
        return Found(random.randbytes(8), True, invented, (last.raw,))

    clock = FakeClock()
    async with world(tmp_path, clock) as net:
        nodes = await net.grow(3, call_retry_s=0.03, crawl_timeout_s=0.5)
        await nodes[0].announce(MODEL, 0, address=("127.0.0.1", 4000))
        async with attacker(net, answer=tell) as evil:
            evil.ask(nodes[1], Ping(bytes(32)))
            await eventually(lambda: nodes[1].stats().contacts == 3)
            loop = asyncio.get_running_loop()
            started = loop.time()
            found = await nodes[1].lookup(MODEL, 0)
            assert loop.time() - started < 2
            assert net.id_of(nodes[0]) in {record.node_id for record in found}
            assert len(found) <= 4 * 4 * 64
            assert nodes[1].stats().contacts == 3


async def test_a_reply_to_somebody_elses_call_is_refused(tmp_path: Path) -> None:
    """The right call id from the wrong address."""
    async with world(tmp_path, FakeClock()) as net:
        nodes = await net.grow(2)
        async with attacker(net) as other:

            def leak(packet: Packet) -> None:
                if isinstance(packet.body, Find):
                    forged = replace(
                        packet, source=packet.target, target=packet.source, body=Found(bytes(8), False, (), ())
                    )
                    other.send(forged, nodes[0].address)

            def answer(packet: Packet) -> Body | None:
                leak(packet)
                return None if isinstance(packet.body, Find) else slow.honest(packet)

            async with attacker(net, answer=answer) as slow:
                slow.ask(nodes[0], Ping(bytes(32)))
                await eventually(lambda: nodes[0].stats().contacts == 2)
                await nodes[0].lookup(MODEL, 0)
                await eventually(lambda: nodes[0].stats().refused.get("datagram_unasked", 0) >= 1)


async def test_mutated_messages_of_a_member_raise_nothing(tmp_path: Path) -> None:
    """Inside the seal, where a compromised member can write what it likes."""
    clock = FakeClock()
    async with world(tmp_path, clock) as net:
        nodes = await net.grow(3)
        target, chance = nodes[0], random.Random(5)
        before = target.stats().datagrams_in
        sealer = Sealer([SWARM_KEY], clock=clock)
        async with attacker(net) as member:
            good = [
                sealer.open(Sealer([SWARM_KEY], clock=clock).seal(sealer.open(d))) for d in real_datagrams(net, target)
            ]
            for n in range(4_000):
                payload = bytearray(chance.choice(good))
                for _ in range(chance.randint(1, 4)):
                    payload[chance.randrange(len(payload))] = chance.randrange(256)
                cut = bytes(payload) if n % 3 else bytes(payload[: chance.randrange(len(payload))])
                member.transport.sendto(sealer.seal(cut), target.address)
                if n % 40 == 39:
                    await taken_in(target, before + n)
        assert target.stats().refused["datagram_malformed"] > 500
        await eventually(lambda: not target._server.protocol._introductions)
        assert target.stats().contacts == 2
        await still_serves(net)


async def test_cancelling_an_announcement_or_a_lookup_leaves_everything_whole(tmp_path: Path) -> None:
    async with world(tmp_path, FakeClock()) as net:
        nodes = await net.grow(6)
        for turns in range(12):
            for work in (nodes[0].announce(MODEL, 1, address=("127.0.0.1", 4000)), nodes[1].lookup(MODEL, 1)):
                task = asyncio.ensure_future(work)
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                protocol = nodes[0]._server.protocol
                assert protocol._calls._slots._value == 32
        await nodes[0].announce(MODEL, 1, address=("127.0.0.1", 4000))
        assert len(await nodes[5].lookup(MODEL, 1)) == 1
        await still_serves(net)
