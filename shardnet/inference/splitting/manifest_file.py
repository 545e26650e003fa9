"""Manifests and shard files on disk: reading, writing, finding, and proving them right.

Links: a models cache, its `shards`, and the folder of a model may be symbolic links and are followed. The files in such a folder (manifest,
shards, tokenizer) may not: a download mends and completes them in place, and through a link it would write into a file of somebody else's.
"""

from __future__ import annotations

import json
import os
import re
import stat
import threading
from dataclasses import dataclass, field
from pathlib import Path

from shardnet.errors import GgufError, ManifestError, ShardCorrupt, ShardnetError, ShardNotFound, UsageError
from shardnet.files import unwritable, write_whole
from shardnet.ids import short
from shardnet.inference.gguf.cursor import opened
from shardnet.inference.gguf.header import read_gguf_header, read_leading_fields
from shardnet.inference.gguf.writer import OnBytes, file_sha256
from shardnet.manifest import Manifest, parse_manifest
from shardnet.shards import LayerRange

MANIFEST = "manifest.json"
SHARDS = "shards"
HASHES = "hashes.json"
MAX_MANIFEST_BYTES = 64 << 20
"""Ten thousand shards take about 5 MB."""
LEADING_FIELDS = 16
"""A shard's own keys stand at its beginning, so that a scan need not walk over vocabularies."""


def no_link(path: Path) -> None:
    """Raises: ShardCorrupt if a file of a model folder is a symbolic link. What is not there, or no file, is for others to say."""
    if path.is_symlink():
        raise ShardCorrupt(
            f"{path} is a link: a model's folder may be one, its files may not; put the file itself here (cp -L)"
        )


def load_manifest(folder: Path) -> Manifest:
    """Read the manifest in a folder, or a manifest file.

    Raises: UsageError if there is none; ManifestError if it is not usable, or a link.
    """
    file = folder / MANIFEST if folder.is_dir() else folder
    try:
        no_link(file)
        with opened(file) as (descriptor, size):
            if size > MAX_MANIFEST_BYTES:
                raise ManifestError(f"{file} is not a usable manifest: it has {size} bytes")
            return parse_manifest(os.pread(descriptor, size, 0), source=str(file))
    except ShardCorrupt as error:
        raise ManifestError(str(error)) from error
    except UsageError as error:
        raise UsageError(f"there is no manifest to read: {error}") from error


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` whole or not at all.

    Raises: NoRoomError if the disk is full; UsageError if the folder cannot be written to.
    """
    file = folder / MANIFEST
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, manifest.to_json().encode())
    except OSError as error:
        raise unwritable(file, error) from error


def model_folder(cache: Path, manifest: Manifest) -> Path:
    """Returns: where a model's shards live in a models cache."""
    return cache / SHARDS / f"{manifest.name.replace(':', '_')}-{short(manifest.model_id)}"


@dataclass(frozen=True)
class FoundShard:
    """A shard file that says of itself what it is. `manifest` is None for a file without one beside it."""

    path: Path
    model_id: str
    shard_id: int
    layers: LayerRange
    n_layers: int
    nbytes: int
    manifest: Manifest | None


@dataclass
class CacheScan:
    """What a models cache holds."""

    root: Path
    shards: list[FoundShard] = field(default_factory=list)
    manifests: dict[str, tuple[Path, Manifest]] = field(default_factory=dict)
    """model_id -> (folder, manifest)"""
    refused: list[tuple[Path, str]] = field(default_factory=list)
    """Files that will not be used, each with the reason."""


def scan_cache(root: Path) -> CacheScan:
    """Find every manifest and every shard below `root/shards`, in linked folders too. One bad file never hides the others. Hashes nothing, and
    reads no vocabulary."""
    scan = CacheScan(root)
    for folder in sorted(_folders(root / SHARDS, scan)):
        scan_folder(folder, scan)
    return scan


def _folders(base: Path, scan: CacheScan) -> set[Path]:
    """Returns: `base` and the folders below it, each once, however many links lead to it; hidden ones are work in progress."""
    found: dict[tuple[int, int], Path] = {}
    waiting, linked = [base], list[Path]()
    while waiting or linked:  # a folder's own name comes before those that links give it
        folder = waiting.pop() if waiting else linked.pop(0)
        try:
            facts = folder.stat()
            if found.setdefault((facts.st_dev, facts.st_ino), folder) is not folder:
                continue
            entries = sorted(folder.iterdir())
        except OSError as error:
            if folder != base or not isinstance(error, FileNotFoundError):
                scan.refused.append((folder, f"{folder} cannot be read: {error.strerror or error}"))
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_symlink() and not entry.exists() and entry.suffix != ".gguf" and entry.name != MANIFEST:
                scan.refused.append((entry, f"{entry} is a link to {entry.readlink()}, which is not there"))
            elif entry.is_dir():
                (linked if entry.is_symlink() else waiting).append(entry)
    return set(found.values())


def models_named(cache: Path, name: str) -> list[Manifest]:
    """Returns: the models of a cache that have this name."""
    return [manifest for _, manifest in scan_cache(cache).manifests.values() if manifest.name == name]


def scan_folder(folder: Path, scan: CacheScan) -> None:
    """Add the manifest and the shards of one folder to a scan."""
    manifest = _manifest_of(folder, scan)
    tokenizer = manifest.content.tokenizer.file if manifest else "tokenizer.gguf"
    for path in sorted(folder.glob("*.gguf")):
        if path.name.startswith("."):
            continue
        try:
            if path.name == tokenizer:
                no_link(path)
                continue
            scan.shards.append(identify_shard(path, manifest))
        except ShardnetError as error:
            scan.refused.append((path, str(error)))


def _manifest_of(folder: Path, scan: CacheScan) -> Manifest | None:
    if not os.path.lexists(folder / MANIFEST):
        return None
    try:
        manifest = load_manifest(folder)
    except ShardnetError as error:
        scan.refused.append((folder / MANIFEST, str(error)))
        return None
    scan.manifests[manifest.model_id] = (folder, manifest)
    return manifest


def identify_shard(path: Path, manifest: Manifest | None) -> FoundShard:
    """Read what a shard file says of itself and hold it against the manifest; its bytes are not hashed.

    Raises: ShardCorrupt if it is not a regular file of the promised size or is of another model; GgufError if it is no shard.
    """
    no_link(path)
    try:
        facts = path.lstat()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(facts.st_mode):
        raise ShardCorrupt(f"{path} is not a regular file")
    if manifest is None:
        read_gguf_header(path)  # nobody has promised a size, so the file's own tensors must say whether it is whole
    found = _self_description(path, facts.st_size)
    if manifest is None:
        return found
    if found.model_id != manifest.model_id:
        raise ShardCorrupt(
            f"{path} belongs to model {short(found.model_id)}, the manifest beside it to {short(manifest.model_id)}: "
            "put it beside its own manifest"
        )
    if found.shard_id >= manifest.n_shards or manifest.content.shards[found.shard_id].layers != found.layers:
        raise ShardCorrupt(
            f"{path} says it is shard {found.shard_id} with layers {found.layers}, which the manifest does not know"
        )
    promised = manifest.content.shards[found.shard_id]
    if promised.file != path.name:
        raise ShardCorrupt(f"{path} holds shard {found.shard_id}, which the manifest calls {promised.file}")
    if promised.bytes != facts.st_size:
        raise ShardCorrupt(
            f"{path} has {facts.st_size} bytes where the manifest promises {promised.bytes}: fetch it again"
        )
    return FoundShard(path, found.model_id, found.shard_id, found.layers, found.n_layers, found.nbytes, manifest)


def _self_description(path: Path, nbytes: int) -> FoundShard:
    leading = read_leading_fields(path, LEADING_FIELDS)
    keys = ("model_id", "shard_id", "layer_first", "layer_end", "n_layers")
    model_id, *numbers = (leading.get(f"shardnet.{key}") for key in keys)
    counts = [number for number in numbers if type(number) is int]
    if not isinstance(model_id, str) or not re.fullmatch("[0-9a-f]{64}", model_id) or len(counts) != len(numbers):
        raise GgufError(f"{path} is a GGUF but no shard of shardnet: make shards of it with `shardnet split`")
    shard_id, first, end, n_layers = counts
    if not 0 <= first < end <= n_layers <= 10_000 or not 0 <= shard_id < n_layers:
        raise GgufError(f"{path} names the impossible layer range [{first}, {end}) of {n_layers}")
    return FoundShard(path, model_id, shard_id, LayerRange(first=first, end=end), n_layers, nbytes, None)


class HashCache:
    """SHA-256 of files, remembered while size, modification time and inode stay the same. Safe to use from several threads."""

    def __init__(self, root: Path) -> None:
        self._file = root / HASHES
        self._lock = threading.Lock()
        self._known = self._read()

    def _read(self) -> dict[str, list[object]]:
        try:
            known = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return (
            {str(k): v for k, v in known.items() if isinstance(v, list) and len(v) == 4}
            if isinstance(known, dict)
            else {}
        )

    @staticmethod
    def _stamp(path: Path) -> list[object]:
        facts = path.stat()
        return [facts.st_size, facts.st_mtime_ns, facts.st_ino]

    def known(self, path: Path) -> str | None:
        """Returns: the file's SHA-256 if it was computed for the file as it is now."""
        entry = self._known.get(str(path.absolute()))
        return str(entry[3]) if entry is not None and entry[:3] == self._stamp(path) else None

    def remember(self, path: Path, sha256: str) -> None:
        """Note a hash that was just computed, and save the cache."""
        with self._lock:
            self._known[str(path.absolute())] = [*self._stamp(path), sha256]
            self._known = {name: entry for name, entry in self._known.items() if Path(name).exists()}
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._file, json.dumps(self._known, indent=0, sort_keys=True).encode())

    def sha256(self, path: Path, on_bytes: OnBytes = lambda _count: None) -> str:
        """Returns: the file's SHA-256, computed only if it is not known. Blocking: call it in a thread. Raises: OSError."""
        digest = self.known(path)
        if digest is None:
            before = self._stamp(path)
            digest = file_sha256(path, on_bytes)
            if self._stamp(path) == before:  # else it changed under our hands, and nobody knows which bytes were hashed
                self.remember(path, digest)
        return digest


def check_shard(
    path: Path, manifest: Manifest, shard_id: int, cache: HashCache, on_bytes: OnBytes = lambda _count: None
) -> None:
    """Prove that a file is the shard that the manifest promises. Blocking: call it in a thread.

    Raises: ShardNotFound if it is not there; ShardCorrupt if its bytes are others; GgufError if it is no GGUF.
    """
    if not 0 <= shard_id < manifest.n_shards:
        raise ManifestError(f"model {manifest.name} has no shard {shard_id}: it has {manifest.n_shards}")
    if not os.path.lexists(path):
        raise ShardNotFound(f"shard {shard_id} of {manifest.name} is not at {path}")
    identify_shard(path, manifest)
    wanted, found = manifest.sha256_of(shard_id), cache.sha256(path, on_bytes)
    if found != wanted:
        raise ShardCorrupt(
            f"{path} is damaged: its SHA-256 begins {found[:12]}, the manifest promises {wanted[:12]}; delete it and fetch it again",
            shard_id=shard_id,
        )
