"""Torrents as bytes: make one of a shard file, and prove a received one harmless before libtorrent sees it.

BitTorrent v2 only (BEP 52): one file, SHA-256 merkle tree, no SHA-1. Everything in it follows from the file, its name and the swarm's authority,
so the same file gives the same torrent on every machine. A swarm's SSL torrent has an info-hash of its own, since the authority is part of it;
`TorrentFacts.open_info_hash` is what it would be without, the one that a manifest can promise.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libtorrent as lt

from shardnet.errors import ManifestError, ShardCorrupt
from shardnet.manifest import FILE_NAME

SMALLEST_PIECE = 64 << 10
LARGEST_PIECE = 16 << 20
PIECES_WANTED = 512
"""Enough pieces that five peers share a shard evenly, few enough that the metadata of any shard under 8 GB stays below 16 kB."""

MAX_TORRENT_BYTES = 8 << 20
"""Checked before parsing: 32 bytes a piece make 120 kB for the largest sane shard."""

V2_ONLY = lt.create_torrent.v2_only


@dataclass(frozen=True, slots=True)
class TorrentFacts:
    """What a torrent says of its one file."""

    name: str
    file_bytes: int
    info_hash: str
    """BitTorrent v2 info-hash, 64 hex digits."""
    open_info_hash: str
    """Info-hash of the same file's torrent without authority and private flag, 64 hex digits."""
    file_root: str
    """Root of the file's SHA-256 merkle tree, 64 hex digits: the same in every torrent of the file."""
    root_cert_pem: bytes | None
    """The authority whose members may take part; None for an open torrent."""
    web_seeds: tuple[str, ...]


def piece_bytes_for(file_bytes: int) -> int:
    """Returns: piece size, a power of two: 64 KiB for small files, about 512 pieces in the middle, at most 16 MiB."""
    size = SMALLEST_PIECE
    while size < LARGEST_PIECE and size * PIECES_WANTED < file_bytes:
        size *= 2
    return size


def make_torrent(path: Path, *, name: str, root_cert_pem: bytes | None, web_seeds: Sequence[str] = ()) -> bytes:
    """Hash one shard file and describe it. Reads the whole file (about 1.5 GB/s): call it in a thread.

    Args:
        name: the file's name for every peer, whatever it is called here.
        root_cert_pem: authority of the swarm: the torrent is private and all its connections TLS. None makes an ordinary torrent.
        web_seeds: HTTP addresses of the very file.

    Raises: ShardCorrupt if the file is missing, empty or not a regular file; ManifestError if the name cannot be a file name.
    """
    if not re.match(FILE_NAME, name):
        raise ManifestError(f"{name!r} cannot be the name of a shard file")
    if path.is_symlink() or not path.is_file():
        raise ShardCorrupt(f"{path} is not a regular file; nothing to make a torrent of", path=str(path))
    size = path.stat().st_size
    if size == 0:
        raise ShardCorrupt(f"{path} is empty; nothing to make a torrent of", path=str(path))
    builder = lt.create_torrent([lt.create_file_entry(path.name, size, 0, 0)], piece_bytes_for(size), V2_ONLY)
    try:
        lt.set_piece_hashes(builder, str(path.parent))
    except RuntimeError as error:
        raise ShardCorrupt(f"cannot read {path}: {error}", path=str(path)) from error
    document: Any = builder.generate()
    leaf = document[b"info"][b"file tree"][path.name.encode()]
    info: dict[bytes, Any] = {
        b"file tree": {name.encode(): leaf},
        b"meta version": 2,
        b"name": name.encode(),
        b"piece length": piece_bytes_for(size),
    }
    info |= _of_swarm(root_cert_pem)
    torrent: dict[bytes, Any] = {b"info": info, b"piece layers": document.get(b"piece layers", {})}
    if web_seeds:
        torrent[b"url-list"] = [url.encode() for url in web_seeds]
    return bytes(lt.bencode(torrent))


def _of_swarm(root_cert_pem: bytes | None) -> dict[bytes, Any]:
    return {} if root_cert_pem is None else {b"private": 1, b"ssl-cert": root_cert_pem}


def for_swarm(torrent: bytes, root_cert_pem: bytes | None) -> bytes:
    """Returns: the torrent that `make_torrent` would make of the same file for another authority, or for none; nothing is hashed.

    Raises: ManifestError as `parse_torrent`.
    """
    parse_torrent(torrent)
    document: Any = lt.bdecode(torrent)
    plain = {key: value for key, value in document[b"info"].items() if key not in (b"private", b"ssl-cert")}
    made: Any = {b"info": plain | _of_swarm(root_cert_pem), b"piece layers": document.get(b"piece layers", {})}
    return bytes(lt.bencode(made))


def parse_torrent(torrent: bytes) -> TorrentFacts:
    """Read a torrent that may come from anybody.

    Raises: ManifestError unless it is a v2-only torrent of exactly one safely named file, within limits and with its hashes whole.
    """
    if len(torrent) > MAX_TORRENT_BYTES:
        raise ManifestError(f"torrent of {len(torrent)} bytes is larger than any shard's can be")
    try:
        parsed = lt.load_torrent_buffer(torrent)
        document: Any = lt.bdecode(torrent)
        info = document[b"info"]
        plain = {key: value for key, value in info.items() if key not in (b"private", b"ssl-cert")}
        ((name, leaf),) = info[b"file tree"].items()
        (entry,) = leaf.values()
        name, length, root = name.decode(), entry[b"length"], entry[b"pieces root"]
        is_v2_only = info[b"meta version"] == 2 and b"pieces" not in info and b"files" not in info
        same_name = info[b"name"].decode() == name
        canonical = hashlib.sha256(lt.bencode(info)).hexdigest()
        n_pieces = -(-length // info[b"piece length"])
        layer = document.get(b"piece layers", {}).get(root, b"")
        is_whole = len(layer) == (32 * n_pieces if n_pieces > 1 else 0)
        urls = document.get(b"url-list", [])
        web_seeds = tuple(url.decode() for url in ([urls] if isinstance(urls, bytes) else urls))
    except (RuntimeError, KeyError, ValueError, ArithmeticError, TypeError, AttributeError) as error:
        raise ManifestError(f"not a BitTorrent v2 torrent of one file: {error}") from error
    if not (is_v2_only and same_name and set(leaf) == {b""} and re.match(FILE_NAME, name)):
        raise ManifestError(f"torrent of {name!r} is not a BitTorrent v2 torrent of one safely named file")
    if str(parsed.info_hashes.v2) != canonical or length <= 0 or len(root) != 32 or not is_whole:
        raise ManifestError(f"torrent of {name!r} is not in canonical form, or its piece hashes are not all there")
    certificate = info.get(b"ssl-cert")
    return TorrentFacts(
        name=name,
        file_bytes=length,
        info_hash=canonical,
        open_info_hash=hashlib.sha256(lt.bencode(plain)).hexdigest(),
        file_root=root.hex(),
        root_cert_pem=certificate if isinstance(certificate, bytes) else None,
        web_seeds=web_seeds,
    )


def info_hash(torrent: bytes) -> str:
    """Returns: the torrent's v2 info-hash, 64 hex digits. Raises: ManifestError as `parse_torrent`."""
    return parse_torrent(torrent).info_hash


def check_torrent(
    torrent: bytes, *, expect_bytes: int, root_cert_pem: bytes | None, expect_open_info_hash: str | None = None
) -> TorrentFacts:
    """Prove that a received torrent is the one wanted.

    Args:
        expect_bytes: the file's length by the manifest.
        root_cert_pem: our swarm's authority, or None where open torrents are wanted.
        expect_open_info_hash: what the manifest promises, if it does.

    Raises: ManifestError saying which promise is broken.
    """
    facts = parse_torrent(torrent)
    if facts.file_bytes != expect_bytes:
        raise ManifestError(
            f"torrent of {facts.name} is for {facts.file_bytes} bytes; the manifest says {expect_bytes}"
        )
    if facts.root_cert_pem != root_cert_pem:
        whose = "an open torrent" if facts.root_cert_pem is None else "another swarm's torrent"
        raise ManifestError(
            f"torrent of {facts.name} is {whose}; this session only takes "
            + ("open ones" if root_cert_pem is None else "those of its own swarm")
        )
    if expect_open_info_hash is not None and facts.open_info_hash != expect_open_info_hash:
        raise ManifestError(f"torrent of {facts.name} does not have the info-hash that the manifest promises")
    return facts
