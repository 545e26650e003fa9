"""Real directories on loopback, in one process: what many nodes promise together."""

from __future__ import annotations

import asyncio
import json
import time
from functools import partial
from pathlib import Path

import pytest

from shardnet.dht.kademlia_directory import KademliaDirectory
from shardnet.dht.packets import Packet
from shardnet.dht.records import provider_key
from shardnet.errors import LocalProtocolError, SettingsError, UsageError
from tests.support.dht_world import MODEL, FakeClock, KeySigner, entry_of, eventually, world

pytestmark = pytest.mark.integration


def address(number: int) -> tuple[str, int]:
    return "127.0.0.1", 20_000 + number


async def holders(directory: KademliaDirectory, shard_id: int = 0) -> set[str]:
    return {record.node_id for record in await directory.lookup(MODEL, shard_id)}


def packets_of(directory: KademliaDirectory) -> list[Packet]:
    """Returns: a list that grows by each packet that the directory sends from now on."""
    sent: list[Packet] = []
    protocol = directory._server.protocol
    send = protocol._send

    def note(packet: Packet, to: tuple[str, int]) -> None:
        sent.append(packet)
        send(packet, to)

    protocol._send = note
    return sent


async def test_twenty_providers_of_one_shard_are_all_returned_to_every_node(tmp_path: Path) -> None:
    async with world(tmp_path) as net:
        nodes = await net.grow(24)
        providers = nodes[:20]
        await asyncio.gather(
            *(
                node.announce(MODEL, 3, address=address(n), torrent_port=6881 + n, memory_free_bytes=n << 30)
                for n, node in enumerate(providers)
            )
        )
        expected = {net.id_of(node) for node in providers}

        async def all_see_all() -> bool:
            return all([await holders(node, 3) == expected for node in nodes])

        await eventually(all_see_all)  # at once, but for a machine so busy that an announcement is repeated
        one = next(r for r in await nodes[23].lookup(MODEL, 3) if r.node_id == net.id_of(providers[5]))
        assert (one.address, one.torrent_port, one.memory_free_bytes) == (address(5), 6886, 5 << 30)
        assert (one.model_id, one.shard_id) == (MODEL, 3)
        assert all(node.stats().refused.get("record_signature", 0) == 0 for node in nodes)


async def test_lookups_succeed_after_half_of_the_network_died_at_once(tmp_path: Path) -> None:
    async with world(tmp_path) as net:
        nodes = await net.grow(20, crawl_timeout_s=30)  # a busy machine may take its time
        living, dying = nodes[::2], nodes[1::2]
        await asyncio.gather(*(living[n % 10].announce(MODEL, n, address=address(n)) for n in range(30)))
        await net.kill(*dying)
        found = await asyncio.gather(*(holders(living[(n + 3) % 10], n) for n in range(30)))
        assert found == [{net.id_of(living[n % 10])} for n in range(30)]
        dead = {bytes.fromhex(net.id_of(node)) for node in dying}
        await asyncio.gather(*(node.sweep() for node in living))
        for node in living:
            assert not dead & {contact.id for contact in node._server.protocol.router.contacts()}
        asked = [packets_of(node) for node in living]
        for n in range(10):
            await living[n].lookup(MODEL, n)
        assert not dead & {packet.target for packets in asked for packet in packets}  # no lookup waits for one of them


async def test_a_withdrawn_shard_vanishes_at_once_and_for_everybody(tmp_path: Path) -> None:
    async with world(tmp_path) as net:
        nodes = await net.grow(12)
        await nodes[1].announce(MODEL, 0, address=address(1))
        await nodes[2].announce(MODEL, 0, address=address(2))
        await nodes[1].withdraw(MODEL, 0)
        for node in nodes:
            assert await holders(node) == {net.id_of(nodes[2])}
        await nodes[1].announce(MODEL, 0, address=address(1))
        assert await holders(nodes[5]) == {net.id_of(nodes[1]), net.id_of(nodes[2])}


async def where(node: KademliaDirectory) -> list[tuple[str, int]]:
    """Returns: at which addresses shard 0 is to be had, as `node` is told."""
    return [record.address for record in await node.lookup(MODEL, 0)]


async def test_a_node_that_moved_is_found_where_it_is_now_under_every_key(tmp_path: Path) -> None:
    async with world(tmp_path) as net:
        nodes = await net.grow(8)
        await nodes[1].announce(MODEL, 0, address=address(1), torrent_port=6881)
        await nodes[1].announce_manifest(MODEL, address=address(1))
        await nodes[1].move(address(2))
        for node in (nodes[0], nodes[5]):
            await eventually(partial(_is_at, node, address(2)))
        assert [record.address for record in await nodes[6].lookup_manifest(MODEL)] == [address(2)]
        assert [record.torrent_port for record in await nodes[6].lookup(MODEL, 0)] == [6881]


async def test_a_node_that_nobody_can_dial_is_not_found_until_it_can_be(tmp_path: Path) -> None:
    async with world(tmp_path) as net:
        nodes = await net.grow(8)
        assert await nodes[1].announce(MODEL, 0, address=None) == 0
        assert await where(nodes[5]) == []
        await nodes[1].move(address(1))
        await eventually(partial(_is_at, nodes[5], address(1)))
        await nodes[1].move(None)
        assert await where(nodes[5]) == []


async def test_a_node_that_shares_its_key_with_another_falls_silent_and_withdraws_nothing_in_its_name(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as net:
        nodes = await net.grow(6)
        copy = await net.start(net.make(signer=net.signers[nodes[1]], record_ttl_s=3))
        await copy.announce(MODEL, 0, address=address(2))
        copy.hush()
        await nodes[1].announce(MODEL, 0, address=address(1))
        assert await where(nodes[4]) == [address(1)]
        await copy.announce(MODEL, 0, address=None)
        await asyncio.sleep(1.5)  # longer than it would renew after
        assert await where(nodes[4]) == [address(1)]
        await copy.close()
        assert await where(nodes[4]) == [address(1)], "nor when it leaves"
        net.nodes.remove(copy)


async def _is_at(node: KademliaDirectory, wanted: tuple[str, int]) -> bool:
    return await where(node) == [wanted]


async def test_a_clean_leave_withdraws_everything(tmp_path: Path) -> None:
    async with world(tmp_path) as net:
        nodes = await net.grow(8)
        leaving = net.make()
        async with leaving:
            await leaving.announce(MODEL, 0, address=address(1))
            await leaving.announce_manifest(MODEL, address=address(1))
            await leaving.announce_coordinator(address=address(1))
            assert await holders(nodes[3]) == {net.id_of(leaving)}
        assert await holders(nodes[3]) == set()
        assert await nodes[4].lookup_manifest(MODEL) == []
        assert await nodes[5].lookup_coordinators() == []


async def test_nobody_waits_for_a_node_that_said_goodbye(tmp_path: Path) -> None:
    async with world(tmp_path) as net:
        nodes = await net.grow(6, call_retry_s=1)  # nothing is sent twice only because the machine is busy
        await nodes[1].announce(MODEL, 0, address=address(1))
        leaving = nodes.pop()
        net.nodes.remove(leaving)
        await leaving.close()
        gone = bytes.fromhex(net.id_of(leaving))
        await eventually(lambda: all(node._server.protocol.router.get(gone) is None for node in nodes))
        for node in nodes:
            sent = node.stats().datagrams_out
            assert len(await holders(node)) == 1
            assert node.stats().datagrams_out - sent <= 4


async def test_a_dead_provider_is_forgotten_when_its_record_expires(tmp_path: Path) -> None:
    clock = FakeClock()
    async with world(tmp_path, clock) as net:
        nodes = await net.grow(8)
        await nodes[1].announce(MODEL, 0, address=address(1))
        await net.kill(nodes[1])
        clock.now += 119
        assert len(await holders(nodes[2])) == 1
        clock.now += 1.5
        assert await holders(nodes[2]) == set()
        await asyncio.gather(*(node.sweep() for node in net.nodes))
        assert all(node.stats().records == 0 for node in net.nodes)


async def test_a_living_provider_is_renewed_before_it_expires(tmp_path: Path) -> None:
    async with world(tmp_path) as net:
        nodes = await net.grow(5, record_ttl_s=60, announce_interval_s=0.05)
        await nodes[1].announce(MODEL, 0, address=address(1))
        first = (await nodes[2].lookup(MODEL, 0))[0].sequence

        async def is_newer() -> bool:
            return (await nodes[2].lookup(MODEL, 0))[0].sequence > first

        await eventually(is_newer)


async def test_announcing_again_replaces_the_facts(tmp_path: Path) -> None:
    async with world(tmp_path) as net:
        nodes = await net.grow(5)
        await nodes[1].announce(MODEL, 0, address=address(1), memory_free_bytes=5)
        await nodes[1].announce(MODEL, 0, address=address(1), memory_free_bytes=4)
        assert [record.memory_free_bytes for record in await nodes[3].lookup(MODEL, 0)] == [4]


async def test_a_newcomer_is_handed_the_keys_it_should_hold(tmp_path: Path) -> None:
    async with world(tmp_path) as net:
        nodes = await net.grow(10)
        for n in range(30):
            await nodes[n % 10].announce(MODEL, n, address=address(n))
        (newcomer,) = await net.grow(1)
        # Eleven nodes with k = 16: the newcomer is among the nearest of every key.
        await eventually(lambda: newcomer.stats().keys == 30)
        await net.kill(*nodes[1:])
        assert {n for n in range(30) if await holders(newcomer, n)} == set(range(30))


async def test_a_newcomer_far_from_a_key_is_not_burdened_with_it(tmp_path: Path) -> None:
    async with world(tmp_path) as net:
        # Who should hold what follows from the ids alone: with these, the newcomer is among the nearest six of ten keys.
        nodes = [await net.start(net.make(signer=KeySigner(number), ksize=6)) for number in range(301, 325)]
        await eventually(lambda: all(node.stats().contacts >= 6 for node in nodes))

        async def announce_all() -> None:
            for n in range(40):
                await nodes[n % 24].announce(MODEL, n, address=address(n))

        await announce_all()
        newcomer = await net.start(net.make(signer=KeySigner(325), ksize=6))
        await eventually(lambda: newcomer.stats().contacts >= 6)
        ids = [int(net.id_of(node), 16) for node in [*nodes, newcomer]]
        own = int(net.id_of(newcomer), 16)

        def should_hold(key: bytes) -> bool:
            wanted = int.from_bytes(key, "big")
            return sum(other ^ wanted < own ^ wanted for other in ids) < 6

        expected = {key for key in (provider_key(MODEL, n) for n in range(40)) if should_hold(key)}
        assert len(expected) == 10

        async def has_what_it_should() -> bool:
            await announce_all()  # a key's holders need not have met the newcomer: the next renewal reaches it
            return expected <= set(newcomer._storage.held_keys())

        await eventually(has_what_it_should)
        assert newcomer.stats().keys <= len(expected) + 10  # nobody knows the whole network, so some are generous


async def test_a_restarted_node_finds_its_peers_without_a_bootstrap_entry(tmp_path: Path) -> None:
    async with world(tmp_path) as net:
        nodes = await net.grow(6)
        await nodes[0].announce(MODEL, 0, address=address(0))
        signer = KeySigner()
        first = net.make(signer=signer)
        async with first:
            await eventually(lambda: first.stats().contacts >= 6)
        remembered = json.loads((tmp_path / f"{signer.node_id}.json").read_text())
        assert len(remembered["peers"]) >= 6
        again = await net.start(net.make([], signer=signer))
        await eventually(lambda: again.stats().contacts >= 6)
        assert await holders(again) == {net.id_of(nodes[0])}


async def test_a_node_that_came_back_on_another_port_is_found_there(tmp_path: Path) -> None:
    async with world(tmp_path) as net:
        nodes = await net.grow(5)
        signer = KeySigner()
        first = await net.start(net.make(signer=signer))
        await eventually(lambda: nodes[1].stats().contacts == 5)
        await net.kill(first)
        again = await net.start(net.make(signer=signer))
        port = again.address[1]
        node_id = bytes.fromhex(signer.node_id)

        def is_known_there() -> bool:
            contact = nodes[1]._server.protocol.router.get(node_id)
            return contact is not None and contact.port == port

        await eventually(is_known_there)


async def test_a_damaged_peers_file_costs_nothing_but_the_memory(tmp_path: Path) -> None:
    async with world(tmp_path) as net:
        nodes = await net.grow(2)
        signer = KeySigner()
        (tmp_path / f"{signer.node_id}.json").write_text('{"format": 1, "peers": [{"node_id": "../..", "host": 5}]}')
        third = await net.start(net.make(signer=signer))
        await eventually(lambda: third.stats().contacts >= 2)
        assert len(nodes) == 2


async def test_the_bootstrap_peer_may_start_last(tmp_path: Path) -> None:
    async with world(tmp_path) as net:
        reserved = await net.start(net.make([]))
        entry = entry_of(reserved)
        await net.kill(reserved)
        early = [await net.start(net.make([entry])) for _ in range(4)]
        counts = [await node.announce(MODEL, n, address=address(n)) for n, node in enumerate(early)]
        assert counts == [0, 0, 0, 0]
        await net.start(net.make([entry], listen_port=int(entry.rpartition(":")[2])))
        await eventually(lambda: all(node.stats().contacts == 4 for node in net.nodes))
        for n, node in enumerate(early):
            for asking in net.nodes:

                async def is_found(
                    asking: KademliaDirectory = asking, n: int = n, node: KademliaDirectory = node
                ) -> bool:
                    return await holders(asking, n) == {net.id_of(node)}

                await eventually(is_found)


async def test_all_at_once_is_a_good_order_too(tmp_path: Path) -> None:
    async with world(tmp_path) as net:
        first = await net.start(net.make([]))
        others = [net.make() for _ in range(15)]
        await asyncio.gather(*(net.start(node) for node in others))
        await asyncio.gather(*(node.announce(MODEL, 0, address=address(n)) for n, node in enumerate(others)))
        expected = {net.id_of(node) for node in others}

        async def all_found() -> bool:
            return await holders(first) == expected

        await eventually(all_found)


async def test_whoever_lost_everybody_comes_back_as_soon_as_they_do(tmp_path: Path) -> None:
    async with world(tmp_path) as net:
        first = await net.start(net.make([]))
        entry = entry_of(first)
        lonely = await net.start(net.make([entry]))
        await lonely.announce(MODEL, 0, address=address(0))
        await net.kill(first)
        assert await lonely.lookup(MODEL, 1) == []  # finds out that nobody is there
        await eventually(lambda: any(line["event"] == "dht_alone" for line in net.logs))
        again = await net.start(net.make([], listen_port=int(entry.rpartition(":")[2])))

        async def is_found() -> bool:
            return await holders(again) == {net.id_of(lonely)}

        await eventually(is_found)
        assert [line["peers"] for line in net.logs if line["event"] == "dht_joined"][-1] == 1


async def test_a_process_that_was_held_up_does_not_blame_its_peers(tmp_path: Path) -> None:
    async with world(tmp_path) as net:
        nodes = await net.grow(6)
        work = [asyncio.ensure_future(node.announce(MODEL, 0, address=address(0))) for node in nodes]
        for _ in range(3):
            await asyncio.sleep(0)
            time.sleep(0.5)  # noqa: ASYNC251 - the event loop is to be blocked
        assert min(await asyncio.gather(*work)) >= 1
        assert [node.stats().contacts for node in nodes] == [5] * 6


async def test_two_islands_with_a_common_bootstrap_entry_become_one(tmp_path: Path) -> None:
    async with world(tmp_path) as net:
        one, two = [await net.start(net.make([], sweep_interval_s=0.2)) for _ in range(2)]
        await net.start(net.make([entry_of(one)], sweep_interval_s=0.2))
        await net.start(net.make([entry_of(two)], sweep_interval_s=0.2))
        await net.start(net.make([entry_of(one), entry_of(two)], sweep_interval_s=0.2))
        await eventually(lambda: all(node.stats().contacts == 4 for node in net.nodes))


async def test_a_swarm_finds_its_coordinators_and_its_manifests(tmp_path: Path) -> None:
    async with world(tmp_path) as net:
        nodes = await net.grow(6)
        await nodes[0].announce_coordinator(address=("127.0.0.1", 4100))
        await nodes[1].announce_manifest(MODEL, address=("127.0.0.1", 4200))
        await nodes[2].announce_manifest(MODEL, address=("127.0.0.1", 4201))
        found = await nodes[4].lookup_coordinators()
        assert [(record.node_id, record.address) for record in found] == [(net.id_of(nodes[0]), ("127.0.0.1", 4100))]
        assert {record.address[1] for record in await nodes[5].lookup_manifest(MODEL)} == {4200, 4201}
        assert await nodes[4].lookup(MODEL, 0) == []


async def test_two_swarms_side_by_side_never_meet(tmp_path: Path) -> None:
    async with world(tmp_path) as net:
        nodes = await net.grow(3)
        stranger = await net.start(net.make(swarm_key=bytes(32)))
        assert await stranger.add_peers([entry_of(node) for node in nodes]) == 0
        assert stranger.stats().contacts == 0
        assert nodes[0].stats().refused["datagram_unsealed"] > 0
        assert all(node.stats().contacts == 2 for node in nodes)


async def test_a_swarm_changes_its_key_while_it_runs(tmp_path: Path) -> None:
    new_key = bytes(reversed(range(32)))
    async with world(tmp_path) as net:
        await net.grow(3, previous=[new_key])
        await net.grow(2, swarm_key=new_key, previous=[bytes(range(32))])
        await net.nodes[0].announce(MODEL, 0, address=address(0))
        assert await holders(net.nodes[4]) == {net.id_of(net.nodes[0])}


async def test_a_burst_of_announcements_loses_no_contact(tmp_path: Path) -> None:
    async with world(tmp_path) as net:
        # Sixteen nodes share one event loop here, and maybe a busy machine: each keeps to one announcement at a time.
        nodes = await net.grow(16, max_publications_at_once=1)
        before = [node.stats().contacts for node in nodes]
        counts = await asyncio.gather(*(nodes[n % 16].announce(MODEL, n, address=address(n)) for n in range(100)))
        assert min(counts) > 0
        assert all(node.stats().contacts >= count for node, count in zip(nodes, before, strict=True))
        assert all(await asyncio.gather(*(holders(nodes[(n + 5) % 16], n) for n in range(100))))


async def test_peers_can_be_added_while_running(tmp_path: Path) -> None:
    async with world(tmp_path) as net:
        one, two = await net.start(net.make([])), await net.start(net.make([]))
        assert await one.add_peers([entry_of(two)]) == 1
        with pytest.raises(UsageError, match="host:port"):
            await one.add_peers(["nonsense"])


async def test_an_address_that_nobody_could_reach_is_not_announced(tmp_path: Path) -> None:
    async with world(tmp_path) as net:
        node = await net.start(net.make([]))
        for bad in ("0.0.0.0", "example.org", "224.0.0.1", ""):
            with pytest.raises(UsageError, match="cannot be announced"):
                await node.announce(MODEL, 0, address=(bad, 4000))
        with pytest.raises(UsageError, match="torrent port"):
            await node.announce(MODEL, 0, address=address(0), torrent_port=70_000)
        with pytest.raises(UsageError, match="1 to 65535"):
            await node.announce(MODEL, 0, address=("127.0.0.1", 0))
        wide = await net.start(net.make([], listen_host="0.0.0.0"))
        with pytest.raises(UsageError, match="beyond this machine"):
            await wide.announce(MODEL, 0, address=("127.0.0.1", 4000))


async def test_a_taken_port_is_a_clear_error(tmp_path: Path) -> None:
    async with world(tmp_path) as net:
        node = await net.start(net.make([]))
        with pytest.raises(SettingsError, match="listen_port"):
            await net.make([], listen_port=node.address[1]).__aenter__()


async def test_a_directory_that_does_not_run_says_so(tmp_path: Path) -> None:
    async with world(tmp_path) as net:
        node = net.make([])
        with pytest.raises(LocalProtocolError, match="not running"):
            await node.lookup(MODEL, 0)
        async with node:
            assert await node.lookup(MODEL, 0) == []
        await node.close()
        with pytest.raises(LocalProtocolError, match="not running"):
            await node.announce(MODEL, 0, address=address(0))


async def test_ipv6_loopback_works(tmp_path: Path) -> None:
    async with world(tmp_path) as net:
        try:
            one = await net.start(net.make([], listen_host="::1"))
        except SettingsError:
            pytest.skip("no IPv6 on this machine")
        two = await net.start(net.make([f"[::1]:{one.address[1]}"], listen_host="::1"))
        await eventually(lambda: two.stats().contacts == 1 and one.stats().contacts == 1)
        await one.announce(MODEL, 0, address=("::1", 4000))
        assert [record.address for record in await two.lookup(MODEL, 0)] == [("::1", 4000)]
