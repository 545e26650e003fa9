"""Writing the shards of a plan: streamed, hashed, whole or not at all.

Everything is written into a hidden folder and appears under its name by one rename; a lock beside that folder tells a running split from a dead one.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from shardnet.errors import NoRoomError, ShardnetError, UsageError
from shardnet.files import FULL, sync_folder, write_whole
from shardnet.inference.gguf.layout import quantisation_of, step_bytes, vocabulary_size
from shardnet.inference.gguf.writer import Written, file_sha256, write_gguf
from shardnet.inference.splitting.manifest_file import MANIFEST, load_manifest, model_folder
from shardnet.inference.splitting.plan import MODEL_ID_KEY, TOKENIZER_FILE, CutRequest, FilePlan, SplitPlan, plan_split
from shardnet.log import human_bytes
from shardnet.manifest import BLANK_MODEL_ID, FileContent, Manifest, ModelContent, ShardContent, ShardFile

__all__ = ["CutRequest", "SplitPlan", "find_existing", "plan_split", "remove_stale_partials", "split_model"]

SHARDS = "shards"
PARTIAL_PREFIX = ".partial-"
SOURCE_NOTE = ".source.json"
"""Beside the shards: which files they were made of, so that a repeated split can tell at once that there is nothing to do."""
DISK_RESERVE_BYTES = 64 << 20

OnProgress = Callable[[int, int], None]
"""`(bytes done, bytes in all)`."""


def find_existing(plan: SplitPlan, cache: Path) -> tuple[Path, Manifest] | None:
    """Returns: the folder and manifest that an earlier run of this plan on the same, unchanged files has left whole; else None."""
    wanted = _source_note(plan)
    for note in sorted((cache / SHARDS).glob(f"*/{SOURCE_NOTE}")):
        try:
            if json.loads(note.read_text(encoding="utf-8")) == wanted:
                manifest = load_manifest(note.parent)
                if _is_whole(note.parent, plan):
                    return note.parent, manifest
        except (OSError, ValueError, ShardnetError):
            continue  # whatever is wrong with it, the split is made again
    return None


def _source_note(plan: SplitPlan) -> dict[str, object]:
    facts = [(path.absolute(), path.stat()) for path in plan.header.paths]
    note: dict[str, object] = {
        "name": plan.name,
        "layers": [[part.first, part.end] for part in plan.layers],
        "sources": [[str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino] for path, stat in facts],
    }
    return note | {"recipe": plan.header.recipe} if plan.header.recipe else note


def _is_whole(folder: Path, plan: SplitPlan) -> bool:
    files = (*plan.shards, plan.tokenizer)
    return all((folder / file.name).is_file() and (folder / file.name).stat().st_size == file.nbytes for file in files)


def split_model(
    plan: SplitPlan, cache: Path, on_progress: OnProgress = lambda _done, _all: None
) -> tuple[Path, Manifest]:
    """Write all files of a plan into `cache/shards/NAME-MODELID/`; the same input gives the same bytes.

    Returns: the folder and the manifest. What an earlier run has left whole is not made again, and keeps its certificate and signature.

    Raises: NoRoomError before the first byte, or when the disk fills up meanwhile; UsageError if `cache` cannot be written to; nothing
        half-written stays.
    """
    existing = find_existing(plan, cache)
    if existing is not None:
        return existing
    base = cache / SHARDS
    try:
        base.mkdir(parents=True, exist_ok=True)
        remove_stale_partials(base)
    except OSError as error:
        raise UsageError(f"cannot write to {base}: {error.strerror}") from error
    _check_disk(base, plan.nbytes)
    try:
        with partial_folder(base) as folder:
            manifest = _write(plan, folder, _Progress(plan.nbytes * 2, on_progress))
            return _publish(folder, model_folder(cache, manifest), manifest)
    except OSError as error:
        if error.errno == errno.EFBIG:
            largest = max(file.nbytes for file in (*plan.shards, plan.tokenizer))
            raise NoRoomError(
                f"the disk of {base}, or the limit for one file (ulimit -f), takes no file of {human_bytes(largest)}; "
                "make smaller shards with --max-shard-bytes, or choose another folder with --out; nothing was left behind",
                needed_bytes=largest,
            ) from error
        if error.errno in FULL:
            raise NoRoomError(
                f"the disk of {base} filled up while the shards were written ({human_bytes(plan.nbytes)} are needed); "
                "free some space and split again; nothing was left behind",
                needed_bytes=plan.nbytes,
                free_bytes=shutil.disk_usage(base).free,
            ) from error
        raise ShardnetError(f"cannot write the shards to {base}: {error.strerror or error}") from error


def _write(plan: SplitPlan, folder: Path, progress: _Progress) -> Manifest:
    note = _source_note(
        plan
    )  # before the first byte is read: if the source changes meanwhile, the note will not fit it
    written = [_write_file(folder, file, progress) for file in (*plan.shards, plan.tokenizer)]
    content = _content(plan, written)
    model_id = content.model_id
    paths = [folder / file.name for file in plan.shards]
    for path, facts in zip(paths, written, strict=False):
        _put_model_id(path, facts.mark_offset, model_id)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        hashes = list(pool.map(lambda path: file_sha256(path, progress.add), paths))
    for path in (*paths, folder / plan.tokenizer.name):
        _sync(path)
    reads = [
        step_bytes(plan.header, [(one.name, one.nbytes) for one in file.tensors], has_head=file is plan.shards[-1])
        for file in plan.shards
    ]
    files = tuple(ShardFile(sha256=digest, step_bytes=read) for digest, read in zip(hashes, reads, strict=True))
    manifest = Manifest(model_id=model_id, name=plan.name, content=content, files=files)
    write_whole(folder / SOURCE_NOTE, json.dumps(note).encode())
    write_whole(folder / MANIFEST, manifest.to_json().encode())
    return manifest


def _publish(folder: Path, target: Path, manifest: Manifest) -> tuple[Path, Manifest]:
    """Give the finished folder its name. Where that name is taken by the same model, what was just written takes the place of what is there."""
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        for file in sorted(folder.iterdir()):
            if file.name != MANIFEST:
                file.replace(target / file.name)
        manifest = _merged(target, manifest)
        write_whole(target / MANIFEST, manifest.to_json().encode())
    sync_folder(target.parent)
    return target, manifest


def _merged(target: Path, manifest: Manifest) -> Manifest:
    """Returns: the manifest that is there already if it says the same, since it may carry a certificate and a signature."""
    try:
        there = load_manifest(target)
    except ShardnetError:
        return manifest
    return (
        there
        if (there.content, there.files, there.name) == (manifest.content, manifest.files, manifest.name)
        else manifest
    )


def _write_file(folder: Path, file: FilePlan, progress: _Progress) -> Written:
    return write_gguf(folder / file.name, file.fields, file.tensors, mark=MODEL_ID_KEY, on_bytes=progress.add)


def _put_model_id(path: Path, offset: int, model_id: str) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        if file.read(len(BLANK_MODEL_ID)) != BLANK_MODEL_ID.encode():
            raise ShardnetError(f"{path} does not hold its blank model id where it was written")
        file.seek(offset)
        file.write(model_id.encode())


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _content(plan: SplitPlan, written: Sequence[Written]) -> ModelContent:
    header = plan.header
    shards = tuple(
        ShardContent(
            shard_id=index,
            layers=part,
            file=file.name,
            bytes=facts.nbytes,
            content_sha256=facts.sha256,
            kv_bytes_per_token=sum(plan.layout.kv_bytes_per_layer[part.first : part.end]),
        )
        for index, (part, file, facts) in enumerate(zip(plan.layers, plan.shards, written, strict=False))
    )
    return ModelContent(
        architecture=header.architecture,
        n_layers=plan.layers[-1].end,
        n_embd=int(header.arch("embedding_length")),
        n_vocab=vocabulary_size(header),
        n_ctx_train=int(header.arch("context_length")),
        n_params=plan.layout.n_params,
        quantisation=quantisation_of(header),
        shards=shards,
        tokenizer=FileContent(file=TOKENIZER_FILE, bytes=written[-1].nbytes, sha256=written[-1].sha256),
    )


class _Progress:
    """Adds up bytes from several threads; the sum may be a little late, never too large."""

    def __init__(self, total: int, report: OnProgress) -> None:
        self._total, self._report, self._done = total, report, 0

    def add(self, count: int) -> None:
        self._done = min(self._total, self._done + count)
        self._report(self._done, self._total)


def _check_disk(folder: Path, needed: int) -> None:
    """Raises: NoRoomError if the disk has not so much, and a reserve."""
    free = shutil.disk_usage(folder).free
    if needed + DISK_RESERVE_BYTES > free:
        raise NoRoomError(
            f"the shards take {human_bytes(needed)} and {human_bytes(DISK_RESERVE_BYTES)} have to stay free, "
            f"but the disk of {folder} has {human_bytes(free)} free; free some space or choose another folder with --out",
            needed_bytes=needed,
            free_bytes=free,
        )


@contextmanager
def partial_folder(base: Path) -> Iterator[Path]:
    """A hidden folder to work in, locked while we live, gone afterwards unless it was renamed. Raises: OSError."""
    while True:
        folder = base / f"{PARTIAL_PREFIX}{os.getpid()}-{os.urandom(4).hex()}"
        lock_path = base / f"{folder.name}.lock"
        with lock_path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # |-- open --|-- another split may take this for a dead one's lock, and unlink it --|-- flock --|
            if not _is_at(lock.fileno(), lock_path):
                continue
            try:
                folder.mkdir()
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                lock_path.unlink(missing_ok=True)
            return


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def remove_stale_partials(base: Path) -> None:
    """Delete what splits that were killed have left; a running one holds its lock and is let be. Raises: OSError."""
    for lock_path in base.glob(f"{PARTIAL_PREFIX}*.lock"):
        try:
            with lock_path.open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(base / lock_path.name.removesuffix(".lock"), ignore_errors=True)
                lock_path.unlink(missing_ok=True)
        except (BlockingIOError, FileNotFoundError):
            continue  # it lives, or its owner has just tidied up
