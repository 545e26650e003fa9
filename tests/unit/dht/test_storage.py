"""The merging storage and the small parts around it, without a socket."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from kademlia.node import Node
from pydantic import ValidationError
from structlog.testing import capture_logs

from shardnet.dht.peers import PeersFile, RememberedPeer, read_peers, write_peers
from shardnet.dht.records import Kind, Record, RecordVerifier, provider_key, sign_record
from shardnet.dht.refusals import MAX_SOURCES, Refusals
from shardnet.dht.routing import ExactRoutingTable
from shardnet.dht.settings import DhtSettings, split_host_port
from shardnet.dht.storage import RecordStorage, StorageLimits
from shardnet.errors import RemoteProtocolError, SettingsError
from shardnet.settings import Section, load_settings
from tests.support.dht_world import MODEL, FakeClock, KeySigner

KEY = provider_key(MODEL, 0)
SIGNERS = [KeySigner() for _ in range(80)]


class Shelf:
    """A storage with a clock in hand; its invariants are checked after each test."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.make(StorageLimits())

    def make(self, limits: StorageLimits) -> RecordStorage:
        verifier = RecordVerifier(max_ttl_s=600, max_skew_s=30, allow_loopback=True)
        self.storage = RecordStorage(verifier, limits, clock=self.clock)
        return self.storage

    def record(
        self, who: int, sequence: int = 1, *, key: bytes = KEY, life_s: float = 120, withdrawn: bool = False
    ) -> Record:
        return sign_record(
            SIGNERS[who],
            key,
            Kind.PROVIDER,
            address=("10.0.0.1", 4000 + who),
            sequence=sequence,
            expires_at=self.clock.now + life_s,
            withdrawn=withdrawn,
        )

    def put(self, who: int, sequence: int = 1, **changes: object) -> Record:
        record = self.record(who, sequence, **changes)  # type: ignore[arg-type]
        return self.storage.merge(changes.get("key", KEY), record.raw)  # type: ignore[arg-type]


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    made = Shelf()
    yield made
    made.storage.check()


def test_several_providers_of_one_key_stand_side_by_side(shelf: Shelf) -> None:
    for who in range(20):
        shelf.put(who)
    assert {record.node_id for record in shelf.storage.records(KEY)} == {signer.node_id for signer in SIGNERS[:20]}


def test_the_highest_sequence_of_a_node_counts_in_any_order(shelf: Shelf) -> None:
    for sequence in (3, 1, 7, 5):
        shelf.put(0, sequence)
    assert [record.sequence for record in shelf.storage.records(KEY)] == [7]


def test_a_late_copy_does_not_bring_a_withdrawn_record_back(shelf: Shelf) -> None:
    shelf.put(0, 1)
    shelf.put(0, 2, withdrawn=True)
    assert shelf.put(0, 1).is_withdrawn
    assert [record.is_withdrawn for record in shelf.storage.records(KEY)] == [True]


def test_records_go_when_their_time_is_up(shelf: Shelf) -> None:
    shelf.put(0, life_s=10)
    shelf.put(1, life_s=20)
    shelf.put(0, 2, life_s=30)
    shelf.clock.now += 15
    assert len(shelf.storage.records(KEY)) == 2
    shelf.clock.now += 10
    assert [record.node_id for record in shelf.storage.records(KEY)] == [SIGNERS[0].node_id]
    shelf.clock.now += 10
    assert shelf.storage.records(KEY) == []
    assert (len(shelf.storage), shelf.storage.held_keys()) == (0, [])


def test_one_key_has_at_most_64_holders_and_the_first_ones_stay(shelf: Shelf) -> None:
    for who in range(64):
        shelf.put(who)
    for who in range(64, 80):
        with pytest.raises(RemoteProtocolError, match="64 holders"):
            shelf.put(who)
    shelf.put(5, 2)
    assert len(shelf.storage.records(KEY)) == 64


def test_a_tombstone_gives_way_to_a_living_holder(shelf: Shelf) -> None:
    shelf.make(StorageLimits(holders_per_key=3))
    for who in range(3):
        shelf.put(who)
    shelf.put(1, 2, withdrawn=True)
    shelf.put(3)
    assert {record.node_id for record in shelf.storage.records(KEY)} == {SIGNERS[n].node_id for n in (0, 2, 3)}


def test_keys_records_and_each_nodes_share_are_capped(shelf: Shelf) -> None:
    shelf.make(StorageLimits(keys=4, records=6, keys_per_node=3))
    for shard in range(3):
        shelf.put(0, key=provider_key(MODEL, shard))
    with pytest.raises(RemoteProtocolError, match="the node has 3 keys"):
        shelf.put(0, key=provider_key(MODEL, 3))
    shelf.put(1, key=provider_key(MODEL, 3))
    with pytest.raises(RemoteProtocolError, match="4 keys"):
        shelf.put(1, key=provider_key(MODEL, 4))
    shelf.put(2)
    shelf.put(3)
    with pytest.raises(RemoteProtocolError, match="6 records"):
        shelf.put(4)
    shelf.clock.now += 121
    shelf.put(4)
    assert len(shelf.storage) == 1


def test_renewing_without_end_does_not_grow_the_memory(shelf: Shelf) -> None:
    for sequence in range(1, 1_300):
        shelf.put(0, sequence)
    assert len(shelf.storage._by_expiry) <= 1_010


def test_pages_tell_all_records_once_and_share_a_digest(shelf: Shelf) -> None:
    for who in range(20):
        shelf.put(who)
    told, after, digests, has_more = [], "", set(), True
    while has_more:
        records, has_more, digest = shelf.storage.page(KEY, after, 6)
        told += [record.node_id for record in records]
        digests.add(digest)
        after = told[-1]
    assert told == sorted(signer.node_id for signer in SIGNERS[:20])
    assert len(digests) == 1
    shelf.put(0, 2)
    assert shelf.storage.page(KEY, "", 6)[2] not in digests


def test_an_unknown_key_is_an_empty_page(shelf: Shelf) -> None:
    assert shelf.storage.page(KEY, "", 6) == ([], False, bytes(8))
    assert shelf.storage.get(KEY) is None
    with pytest.raises(KeyError):
        shelf.storage[KEY]


def test_it_is_a_kademlia_storage(shelf: Shelf) -> None:
    one, two = shelf.record(0), shelf.record(1)
    shelf.storage[KEY] = one.raw
    shelf.storage[KEY] = two.raw
    assert sorted(shelf.storage[KEY]) == sorted([one.raw, two.raw])
    assert dict(shelf.storage) == {KEY: shelf.storage[KEY]}
    assert list(shelf.storage.iter_older_than(0)) == []


def test_a_bad_record_changes_nothing(shelf: Shelf) -> None:
    with pytest.raises(RemoteProtocolError):
        shelf.storage.merge(KEY, bytes(139))
    assert len(shelf.storage) == 0


def test_the_nearest_contacts_are_the_nearest_of_all() -> None:
    chance = random.Random(3)
    own = Node(chance.randbytes(20))
    table = ExactRoutingTable(None, 16, own)
    nodes = [Node(chance.randbytes(20), "10.0.0.1", n + 1) for n in range(200)]
    for node in nodes:
        table.add_contact(node)
    held = list(table.contacts())
    assert len(table) == len(held) > 16
    for _ in range(50):
        target = Node(chance.randbytes(20))
        best = sorted(held, key=target.distance_to)[:16]
        assert table.find_neighbors(target) == best
        assert table.find_neighbors(target, exclude=best[0])[0] is best[1]
    assert table.get(held[0].id) is held[0]
    assert table.get(chance.randbytes(20)) is None


def test_crowded_ids_do_not_split_buckets_for_ever() -> None:
    own = Node(bytes(20))
    table = ExactRoutingTable(None, 2, own)
    for n in range(1, 300):
        table.add_contact(Node(n.to_bytes(20, "big"), "10.0.0.1", n))
    assert len(table) < 300
    assert len(table.buckets) <= 320


def test_a_refusal_is_logged_once_and_counted_always() -> None:
    refusals = Refusals()
    with capture_logs() as logs:
        for n in range(1_000):
            refusals.note("datagram", RemoteProtocolError("not sealed", reason="unsealed"), f"10.0.{n % 4}.1")
    assert refusals.counts() == {"datagram_unsealed": 1_000}
    assert [line["event"] for line in logs] == ["dht_rejected"] * 4
    with capture_logs() as logs:
        for n in range(1_000):
            refusals.note(
                "datagram", RemoteProtocolError("not sealed", reason="unsealed"), f"10.{n // 200}.{n % 200}.9"
            )
    assert len(logs) == MAX_SOURCES - 4


def test_peers_are_remembered_and_the_file_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "peers.json"
    assert read_peers(file) == PeersFile()
    content = PeersFile(sequence=7, peers=(RememberedPeer(node_id="ab" * 20, host="10.0.0.1", port=4000),))
    assert write_peers(file, content)
    assert read_peers(file) == content
    assert [path.name for path in file.parent.iterdir()] == ["peers.json"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"format": 2}', '{"peers": [{"node_id": "x", "host": "10.0.0.1", "port": 1}]}', "x" * 70_000,
     json.dumps({"peers": [{"node_id": "ab" * 20, "host": "example.org", "port": 1}]}), '{"sequence": -1}', "[" * 50_000],
)  # fmt: skip
def test_an_unusable_peers_file_is_nothing_with_a_warning(tmp_path: Path, text: str) -> None:
    file = tmp_path / "peers.json"
    file.write_text(text)
    with capture_logs() as logs:
        assert read_peers(file) == PeersFile()
    assert [line["event"] for line in logs] == ["dht_peers_unreadable"]


def test_a_disk_that_takes_nothing_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with capture_logs() as logs:
        assert not write_peers(tmp_path / "file" / "peers.json", PeersFile())
    assert [line["event"] for line in logs] == ["dht_peers_not_saved"]


def test_settings_renew_at_a_third_of_the_life() -> None:
    assert DhtSettings().renew_every_s == 40
    assert DhtSettings(announce_interval_s=7).renew_every_s == 7
    assert all(field.description for field in DhtSettings.model_fields.values())


@pytest.mark.parametrize(
    "values",
    [
        {"bootstrap": ["nowhere"]},
        {"bootstrap": ["host:0"]},
        {"bootstrap": ["::1:4000"]},
        {"record_ttl_s": 700},
        {"announce_interval_s": 120},
        {"ksize": 17},
        {"unknown": 1},
    ],
)
def test_settings_that_cannot_work_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DhtSettings.model_validate(values)


def test_settings_errors_name_the_key(tmp_path: Path) -> None:
    class Both(Section):
        dht: DhtSettings = DhtSettings()

    file = tmp_path / "node.toml"
    file.write_text('[dht]\nbootstrap = ["nowhere"]\n')
    with pytest.raises(SettingsError, match=r"dht\.bootstrap.*nowhere"):
        load_settings(Both, file=file, environ={})


@pytest.mark.parametrize(
    ("text", "expected"), [("a:1", ("a", 1)), ("[::1]:65535", ("::1", 65535)), ("10.0.0.1:4100", ("10.0.0.1", 4100))]
)
def test_host_and_port_are_read(text: str, expected: tuple[str, int]) -> None:
    assert split_host_port(text) == expected


@pytest.mark.parametrize(
    "text", ["", ":1", "a", "a:", "a:x", "a:-1", "a:65536", "a:١", "::1:5", "a" * 300 + ":1", "a:" + "9" * 5000]
)
def test_what_is_no_host_and_port_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        split_host_port(text)


def test_no_loop_is_needed_for_any_of_this() -> None:
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
