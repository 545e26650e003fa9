"""Torrents as bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import libtorrent as lt
import pytest

from shardnet.errors import ManifestError, ShardCorrupt
from shardnet.torrent.metainfo import (
    LARGEST_PIECE,
    SMALLEST_PIECE,
    check_torrent,
    info_hash,
    make_torrent,
    parse_torrent,
    piece_bytes_for,
)
from tests.support.torrent_world import Authority, make_shard

CA = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def altered(torrent: bytes, **changes: Any) -> bytes:
    document: Any = lt.bdecode(torrent)
    for key, value in changes.items():
        document[b"info"][key.replace("_", " ").encode()] = value
    return bytes(lt.bencode(document))


@pytest.mark.parametrize("size", [1, 16_384, 70_000, 1_000_000])
def test_the_same_file_gives_the_same_torrent_wherever_it_lies_and_whatever_it_is_called(
    tmp_path: Path, size: int
) -> None:
    first = make_shard(tmp_path / "a", size)
    other = tmp_path / "b" / "örtlich.bin"
    other.parent.mkdir()
    other.write_bytes(first.path.read_bytes())
    assert make_torrent(other, name="shard-0.gguf", root_cert_pem=None) == first.torrent
    facts = parse_torrent(first.torrent)
    assert (facts.name, facts.file_bytes, facts.root_cert_pem) == ("shard-0.gguf", size, None)
    assert facts.info_hash == facts.open_info_hash == info_hash(first.torrent)


def test_a_swarms_torrent_is_private_and_leads_back_to_the_open_one(tmp_path: Path) -> None:
    shard = make_shard(tmp_path, 300_000)
    inside = make_torrent(shard.path, name="shard-0.gguf", root_cert_pem=CA)
    facts, plain = parse_torrent(inside), parse_torrent(shard.torrent)
    assert facts.info_hash != plain.info_hash
    assert facts.open_info_hash == plain.info_hash
    assert parse_torrent(inside).file_root == parse_torrent(shard.torrent).file_root == facts.file_root
    assert facts.root_cert_pem == CA
    parsed: Any = lt.load_torrent_buffer(inside).ti
    assert parsed.priv()


def test_libtorrent_reads_the_same_info_hash(tmp_path: Path) -> None:
    shard = make_shard(tmp_path, 5_000_000, Authority().pem)
    assert str(lt.load_torrent_buffer(shard.torrent).info_hashes.v2) == info_hash(shard.torrent)
    assert not lt.load_torrent_buffer(shard.torrent).info_hashes.has_v1()


def test_piece_size_follows_the_file_between_its_bounds() -> None:
    assert piece_bytes_for(1) == SMALLEST_PIECE
    assert piece_bytes_for(500_000_000) == 1 << 20
    assert piece_bytes_for(4 << 30) == 8 << 20
    assert piece_bytes_for(1 << 40) == LARGEST_PIECE


def test_metadata_stays_small(tmp_path: Path) -> None:
    assert len(make_shard(tmp_path, 40_000_000, Authority().pem).torrent) < 20_000


def test_what_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "good").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "good")
    for name in ("missing", "empty", "link", "."):
        with pytest.raises(ShardCorrupt):
            make_torrent(tmp_path / name, name="shard-0.gguf", root_cert_pem=None)
    for name in ("../up", "", "a/b", ".hidden", "x" * 200):
        with pytest.raises(ManifestError):
            make_torrent(tmp_path / "good", name=name, root_cert_pem=None)


def test_odd_torrents_are_refused(tmp_path: Path) -> None:
    good = make_shard(tmp_path, 300_000).torrent
    document: Any = lt.bdecode(good)
    leaf = document[b"info"][b"file tree"][b"shard-0.gguf"]
    bad = [
        b"",
        b"de",
        b"d4:infode",
        good[:-1],
        b"x" * (9 << 20),
        altered(good, name=b"other.gguf"),
        altered(good, name=b"../../etc", file_tree={b"../../etc": leaf}),
        altered(good, file_tree={b"a": leaf, b"b": leaf}),
        altered(good, file_tree={b"dir": {b"shard-0.gguf": leaf}}),
        altered(good, pieces=b"x" * 20, length=300_000),
        altered(good, meta_version=1),
        altered(good, piece_length=0),
        bytes(lt.bencode({**document, b"piece layers": {}})),
    ]
    for torrent in bad:
        with pytest.raises(ManifestError):
            parse_torrent(torrent)


def test_every_flipped_byte_is_refused_or_changes_the_info_hash_or_nothing_that_counts(tmp_path: Path) -> None:
    good = make_shard(tmp_path, 300_000, CA).torrent
    root = parse_torrent(good).file_root
    for position in range(0, len(good), 7):
        damaged = bytearray(good)
        damaged[position] ^= 0x11
        try:
            facts = parse_torrent(bytes(damaged))
        except ManifestError:
            continue
        assert facts.info_hash != info_hash(good) or facts.file_root == root


def test_a_torrent_must_be_the_one_that_is_wanted(tmp_path: Path) -> None:
    shard = make_shard(tmp_path, 300_000)
    promised = info_hash(shard.torrent)
    check_torrent(shard.torrent, expect_bytes=300_000, root_cert_pem=None, expect_open_info_hash=promised)
    with pytest.raises(ManifestError, match="300000 bytes"):
        check_torrent(shard.torrent, expect_bytes=1, root_cert_pem=None)
    with pytest.raises(ManifestError, match="open torrent"):
        check_torrent(shard.torrent, expect_bytes=300_000, root_cert_pem=CA)
    inside = make_torrent(shard.path, name="shard-0.gguf", root_cert_pem=CA)
    with pytest.raises(ManifestError, match="another swarm"):
        check_torrent(inside, expect_bytes=300_000, root_cert_pem=b"other")
    with pytest.raises(ManifestError, match="info-hash"):
        check_torrent(shard.torrent, expect_bytes=300_000, root_cert_pem=None, expect_open_info_hash="0" * 64)
