"""The models cache: room and speed of its disk, and which shards in it are of use to whom."""

from __future__ import annotations

import mmap
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from shardnet.coordinator.placement.catalogue import signature_fault
from shardnet.doctor.findings import Finding
from shardnet.errors import ShardnetError
from shardnet.ids import short
from shardnet.inference.splitting.manifest_file import SHARDS, HashCache, scan_cache
from shardnet.log import human_bytes
from shardnet.manifest import by_claim
from shardnet.swarm.home import Home
from shardnet.swarm.identity import open_swarm

LITTLE_BYTES = 2 << 30
LEAST_READ_BYTES = 16 << 20
"""Less says more of the first access than of the disk."""
READ_BYTES, READ_S, BLOCK_BYTES = 64 << 20, 0.5, 1 << 20
SLOW_BYTES_PER_S = 100e6


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """The disk that the cache lies on.

    Attributes:
        is_there: the cache's folder is.
        trouble: why it cannot be used; "": nothing.
        free_bytes: of the disk; `keep_free_bytes`: what downloads leave alone of it.
        bytes_per_s: of reading a shard past the page cache; None: there is none to read, or the disk cannot tell.
    """

    path: str
    is_there: bool
    free_bytes: int = 0
    keep_free_bytes: int = 0
    is_writable: bool = True
    bytes_per_s: float | None = None
    trouble: str = ""


def disk_findings(facts: DiskFacts) -> list[Finding]:
    """Decide about the disk."""
    if facts.trouble:
        return [Finding("disk", "fault", facts.trouble, "Name another folder with --models-cache")]
    found = []
    room = f"{human_bytes(facts.free_bytes)} free for {facts.path}"
    if facts.free_bytes < facts.keep_free_bytes:
        found.append(
            Finding(
                "disk",
                "fault",
                f"{room}, less than torrent.keep_free_bytes ({human_bytes(facts.keep_free_bytes)}): no shard can be fetched",
                "Free some space",
            )
        )
    elif facts.free_bytes < LITTLE_BYTES:
        found.append(Finding("disk", "warning", room, "Free some space before you split or fetch a model"))
    if not facts.is_writable:
        found.append(
            Finding("disk", "note", f"{facts.path} cannot be written to: no shard can be fetched or split into it")
        )
    speed = f", read at {human_bytes(facts.bytes_per_s)}/s" if facts.bytes_per_s else ""
    if facts.bytes_per_s and facts.bytes_per_s < SLOW_BYTES_PER_S:
        found.append(
            Finding(
                "disk",
                "note",
                f"{facts.path} is read at {human_bytes(facts.bytes_per_s)}/s: loading a model takes long, and streaming one is of no use",
            )
        )
    return found or [Finding("disk", "ok", f"{room}{speed}")]


def look_at_disk(cache: Path, keep_free_bytes: int) -> DiskFacts:
    """Gather. Reads some of the largest shard, past the page cache."""
    path = cache.absolute()
    if path.exists() and not path.is_dir():
        return DiskFacts(str(path), is_there=True, trouble=f"{path} is no folder")
    there = next(one for one in (path, *path.parents) if one.exists())
    files = sorted(path.glob(f"{SHARDS}/*/*.gguf"), key=_size, reverse=True) if path.is_dir() else []
    return DiskFacts(
        str(path),
        is_there=path.is_dir(),
        free_bytes=shutil.disk_usage(there).free,
        keep_free_bytes=keep_free_bytes,
        is_writable=os.access(there, os.W_OK | os.X_OK),
        bytes_per_s=read_speed(files[0]) if files else None,
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def read_speed(path: Path) -> float | None:
    """Returns: bytes a second of reading a file past the page cache; None where the file system cannot do that, or there is too little to read."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:
        return None
    block = mmap.mmap(-1, BLOCK_BYTES)  # aligned, as O_DIRECT wants it
    try:
        read, began_s = 0, time.perf_counter()
        while read < READ_BYTES and time.perf_counter() - began_s < READ_S:
            count = os.preadv(handle, [block], read)
            read += count
            if count < BLOCK_BYTES:
                break
        return read / (time.perf_counter() - began_s) if read >= LEAST_READ_BYTES else None
    except OSError:
        return None
    finally:
        block.close()
        os.close(handle)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """One model in the cache.

    Attributes:
        fault: why a coordinator would not serve it; "": it would.
        is_meant: of several with its name it is the one that the name means.
        shards: files of it that are here, of `n_shards`; `unhashed`: of these, not hashed since they were last changed.
    """

    name: str
    model_id: str
    fault: str = ""
    is_meant: bool = True
    shards: int = 0
    n_shards: int = 0
    unhashed: int = 0


@dataclass(frozen=True, slots=True)
class CacheFacts:
    """What lies there. `refused`: why files and folders are of no use. `orphans`: shards without a manifest."""

    path: str
    models: tuple[ModelFacts, ...] = ()
    refused: tuple[str, ...] = ()
    orphans: tuple[str, ...] = ()


def cache_findings(facts: CacheFacts) -> list[Finding]:
    """Decide about the shards in the cache."""
    found = [Finding("models cache", "warning", one) for one in facts.refused]
    found += [
        Finding(
            "models cache",
            "warning",
            f"{path} has no manifest.json beside it, so that nothing proves it",
            "Copy the manifest there, or delete the file",
        )
        for path in facts.orphans
    ]
    for model in facts.models:
        label = f"{model.name} ({short(model.model_id)})"
        if model.fault:
            found.append(Finding("models cache", "warning", f"{label} is not served: {model.fault}"))
        elif not model.is_meant:
            found.append(
                Finding(
                    "models cache",
                    "note",
                    f"{label} has the name of a newer or better proved model, and is asked for by its id",
                    "Delete it, or leave it",
                )
            )
        if model.unhashed:
            found.append(
                Finding(
                    "models cache",
                    "note",
                    f"{model.unhashed} of {model.shards} shards of {label} were not hashed since they last changed: a node does that first",
                )
            )
    if not found:
        shards = sum(model.shards for model in facts.models)
        told = (
            f"{shards} shards of {len(facts.models)} models in {facts.path}"
            if facts.models
            else f"{facts.path} holds no model yet"
        )
        found.append(Finding("models cache", "ok", told))
    return found


def look_at_cache(cache: Path, home: Home) -> CacheFacts:
    """Gather. Reads headers only; hashes nothing."""
    path = cache.absolute()
    scan = scan_cache(path)
    hashes = HashCache(path)
    manifests = [manifest for _, manifest in scan.manifests.values()]
    meant = {
        name: by_claim(one for one in manifests if one.name == name)[0] for name in {one.name for one in manifests}
    }
    try:
        swarm = open_swarm(home)
    except ShardnetError:
        swarm = None
    models = []
    for manifest in sorted(manifests, key=lambda one: (one.name, one.model_id)):
        files = [one.path for one in scan.shards if one.model_id == manifest.model_id]
        # An owner's coordinator signs what lies in its own cache.
        fault = None if swarm is None or swarm.is_owner else signature_fault(manifest, swarm.ca)
        models.append(
            ModelFacts(
                manifest.name,
                manifest.model_id,
                fault or "",
                is_meant=meant[manifest.name].model_id == manifest.model_id,
                shards=len(files),
                n_shards=manifest.n_shards,
                unhashed=sum(hashes.known(file) is None for file in files),
            )
        )
    orphans = tuple(str(one.path) for one in scan.shards if one.manifest is None)
    return CacheFacts(str(path), tuple(models), tuple(reason for _, reason in scan.refused), orphans)
