"""Models that may be served: manifests from the coordinator's own models cache and from nodes, and the vocabulary of each.

A manifest counts if the swarm's owner signed it, or if it lies in the coordinator's own cache (put there by hand; on the owner's machine it is
signed then). A tokenizer is read from the cache, else fetched in pieces from a node that holds the model, and only used once its SHA-256 is the
manifest's.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from cryptography import x509

from shardnet.coordinator.text.words import Words, open_words
from shardnet.errors import ShardCorrupt, ShardnetError, ShardNotFound, UsageError
from shardnet.files import unwritable, write_whole
from shardnet.ids import short
from shardnet.inference.splitting.manifest_file import scan_cache
from shardnet.log import get
from shardnet.manifest import FileContent, Manifest, by_claim
from shardnet.messages import MAX_FILE_PIECE
from shardnet.swarm.identity import SwarmIdentity
from shardnet.swarm.signing import sign, signature_is_valid

TOKENIZERS = "tokenizers"
MAX_TOKENIZER_BYTES = 256 << 20

FetchPiece = Callable[[str, int], Awaitable[tuple[int, bytes]]]
"""`(model_id, offset)` -> (total bytes, one piece)."""

log = get("catalogue")


def signature_fault(manifest: Manifest, authority: x509.Certificate) -> str | None:
    """Returns: why a manifest that lies elsewhere than in the coordinator's own cache may not be served; None if it may."""
    if signature_is_valid(manifest, authority):
        return None
    who = (
        "nobody signed its manifest"
        if manifest.signature is None
        else "its manifest is signed by another swarm's owner"
    )
    return (
        f"{who}: split the model on the machine that owns this swarm, "
        "or copy the folder with its manifest.json into the coordinator's models cache and start the coordinator again"
    )


class Catalogue:
    """Owns the files; what is served is the cluster's to know.

    Attributes:
        refused: why files and folders of the own cache are of no use, a sentence each.
    """

    def __init__(self, cache: Path, swarm: SwarmIdentity, fetch: FetchPiece) -> None:
        self._cache = cache.absolute()
        self._swarm = swarm
        self._fetch = fetch
        self.refused: tuple[str, ...] = ()
        self._folders: dict[str, Path] = {}
        self._words: dict[str, asyncio.Task[Words]] = {}

    def scan(self) -> list[Manifest]:
        """Read the own cache. Blocking. Returns: its manifests, signed where this machine may sign."""
        found = scan_cache(self._cache)
        for path, reason in found.refused:
            log.warning(
                "manifest_refused" if path.name == "manifest.json" else "shard_refused", path=str(path), reason=reason
            )
        self.refused = tuple(reason for _, reason in found.refused)
        manifests = []
        for model_id, (folder, manifest) in sorted(found.manifests.items()):
            self._folders[model_id] = folder
            if self._swarm.is_owner and not signature_is_valid(manifest, self._swarm.ca):
                manifest = sign(manifest, self._swarm)
            manifests.append(manifest)
        if not manifests:
            log.info("no_models_here", path=str(self._cache))
        return manifests

    def fault_of(self, manifest: Manifest) -> str | None:
        """Returns: why a manifest that a node offers may not be served, or None if it may."""
        return signature_fault(manifest, self._swarm.ca)

    async def words(self, manifest: Manifest) -> Words:
        """Returns: vocabulary and template, made at the first call.

        Raises: ShardNotFound, PeerLost, ... if the tokenizer cannot be had now (the next call tries again); EngineError if it cannot be used.
        """
        task = self._words.get(manifest.model_id)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = asyncio.create_task(self._open(manifest), name=f"words of {manifest.name}")
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._words[manifest.model_id] = task
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Free every vocabulary."""
        tasks, self._words = list(self._words.values()), {}
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Words):
                result.vocabulary.close()

    async def tokenizer_piece(self, manifest: Manifest, offset: int) -> tuple[int, bytes]:
        """Returns: total bytes and one piece of the tokenizer, for a node that asks. Raises: ShardNotFound if it is not here."""
        path = await asyncio.to_thread(self._local, manifest)
        if path is None:
            raise ShardNotFound(f"the coordinator does not have the tokenizer of {manifest.name}")
        return await asyncio.to_thread(_read_piece, path, offset)

    # -- inside --------------------------------------------------------------------------------------------------------------

    async def _open(self, manifest: Manifest) -> Words:
        path = await asyncio.to_thread(self._local, manifest)
        if path is None:
            path = await self._fetched(manifest)
        return await asyncio.to_thread(open_words, manifest.name, path)

    def _kept(self, file: FileContent) -> Path:
        return self._cache / TOKENIZERS / f"{file.sha256}.gguf"

    def _local(self, manifest: Manifest) -> Path | None:
        file = manifest.content.tokenizer
        folder = self._folders.get(manifest.model_id)
        beside = [folder / file.file] if folder is not None else []
        for path in [*beside, self._kept(file)]:
            if path.is_file() and not path.is_symlink() and path.stat().st_size == file.bytes:
                if _sha256(path) == file.sha256:
                    return path
                log.warning("tokenizer_damaged", path=str(path))
        return None

    async def _fetched(self, manifest: Manifest) -> Path:
        file = manifest.content.tokenizer
        if file.bytes > MAX_TOKENIZER_BYTES:
            raise UsageError(
                f"the tokenizer of {manifest.name} has {file.bytes} bytes, more than {MAX_TOKENIZER_BYTES}"
            )
        data = bytearray()
        while len(data) < file.bytes:
            total, piece = await self._fetch(manifest.model_id, len(data))
            if total != file.bytes or not piece:
                raise ShardCorrupt(
                    f"a node sent a tokenizer of {total} bytes for {manifest.name}, the manifest says {file.bytes}"
                )
            data += piece
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise ShardCorrupt(f"a node sent a damaged tokenizer of {manifest.name}; trying again later")
        path = self._kept(file)
        await asyncio.to_thread(_write, path, bytes(data))
        log.info("tokenizer_fetched", model=manifest.name, size_bytes=len(data))
        return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_piece(path: Path, offset: int) -> tuple[int, bytes]:
    with path.open("rb") as file:
        total = os.fstat(file.fileno()).st_size
        file.seek(offset)
        return total, file.read(MAX_FILE_PIECE)


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        raise unwritable(path, error, ShardnetError) from error


def model_names(manifests: list[Manifest]) -> str:
    """Returns: what people may ask for, for an error's sentence."""
    return ", ".join(sorted(f"{one.name} ({short(one.model_id)})" for one in manifests)) or "none"


def resolve(manifests: list[Manifest], wanted: str | None) -> Manifest:
    """Returns: the model that `wanted` means: a name, an id or the beginning of one (12 digits at least); None if there is only one name.

    Of several models with one name the newest proved one is meant (`by_claim`); the others are asked for by id.

    Raises: UsageError (`facts["unknown_model"]`) if none or several are meant.
    """
    if wanted is None and len({one.name for one in manifests}) == 1:
        return by_claim(manifests)[0]
    if wanted is None:
        raise UsageError(f"say which model: known are {model_names(manifests)}", unknown_model="")
    if named := [one for one in manifests if one.name == wanted]:
        return by_claim(named)[0]
    found = [one for one in manifests if len(wanted) >= 12 and one.model_id.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"the ids of several models begin with {wanted}: {model_names(found)}; say more of it", unknown_model=wanted
        )
    raise UsageError(f"model {wanted!r} is not known here; known are: {model_names(manifests)}", unknown_model=wanted)
