"""Torrents of shard files, kept beside them in `.torrents/`, so that no file is hashed twice. Blocking: every function is called in a thread.

A torrent follows from the file's bytes, its name and the swarm's authority; so it is kept under the file's SHA-256 and the swarm,
and can never be out of date.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from shardnet.errors import ManifestError, ShardError
from shardnet.files import unwritable, write_whole
from shardnet.manifest import Manifest
from shardnet.torrent.metainfo import check_torrent, for_swarm, make_torrent, parse_torrent

FOLDER = ".torrents"


def torrent_file(folder: Path, manifest: Manifest, shard_id: int, authority_pem: bytes | None) -> Path:
    """Returns: where the torrent of a shard of the model in `folder` is kept; without an authority, the open one. Touches no disk."""
    swarm = hashlib.sha256(authority_pem).hexdigest()[:12] if authority_pem is not None else "open"
    return folder / FOLDER / f"{manifest.sha256_of(shard_id)[:24]}-{swarm}.torrent"


def read_kept(folder: Path, manifest: Manifest, shard_id: int, authority_pem: bytes | None) -> bytes | None:
    """Returns: the kept torrent; None if there is none that is of use."""
    try:
        torrent = torrent_file(folder, manifest, shard_id, authority_pem).read_bytes()
        check_torrent(
            torrent,
            expect_bytes=manifest.content.shards[shard_id].bytes,
            root_cert_pem=authority_pem,
            expect_open_info_hash=manifest.files[shard_id].info_hash,
        )
    except (OSError, ManifestError):
        return None
    return torrent


def keep(folder: Path, manifest: Manifest, shard_id: int, authority_pem: bytes | None, torrent: bytes) -> None:
    """Keep a torrent for the next start. Raises: NoRoomError if the disk is full; ShardError if it cannot be written."""
    file = torrent_file(folder, manifest, shard_id, authority_pem)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, torrent)
    except OSError as error:
        raise unwritable(file, error, ShardError) from error


def forget(folder: Path, manifest: Manifest, shard_id: int, authority_pem: bytes) -> None:
    """The kept torrent was no good."""
    torrent_file(folder, manifest, shard_id, authority_pem).unlink(missing_ok=True)


def read_or_make(path: Path, manifest: Manifest, shard_id: int, authority_pem: bytes | None) -> bytes:
    """Returns: the torrent of a proved file, hashed only if it was not before, for this swarm or openly.

    Raises: ShardCorrupt if the file cannot be read; ShardError if the torrent cannot be kept.
    """
    kept = read_kept(path.parent, manifest, shard_id, authority_pem)
    if kept is not None:
        return kept
    open_one = read_kept(path.parent, manifest, shard_id, None)
    if open_one is not None:
        torrent = for_swarm(open_one, authority_pem)
    else:
        torrent = make_torrent(path, name=manifest.content.shards[shard_id].file, root_cert_pem=authority_pem)
    keep(path.parent, manifest, shard_id, authority_pem, torrent)
    return torrent


def promise_torrents(folder: Path, manifest: Manifest) -> Manifest:
    """Have the manifest of a model in `folder` promise the info-hash of each shard's torrent, where it does not yet and the file is here.

    A promised torrent that is wrong is refused before the first byte; without the promise, only after all of them. Each file is hashed once for it;
    the open torrents are kept, and those of every swarm follow from them, so that seeding hashes nothing. The model's id does not depend on it.

    Returns: the manifest, without its signature if anything was added.
    Raises: ShardCorrupt, ShardError as `read_or_make`.
    """
    files = list(manifest.files)
    for shard, file in zip(manifest.content.shards, manifest.files, strict=True):
        path = folder / shard.file
        if file.info_hash is None and file.sha256 is not None and path.is_file():
            torrent = read_or_make(path, manifest, shard.shard_id, None)
            files[shard.shard_id] = file.model_copy(update={"info_hash": parse_torrent(torrent).open_info_hash})
    if tuple(files) == manifest.files:
        return manifest
    return manifest.model_copy(update={"files": tuple(files), "signature": None})
