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
from typing import Any

from shardnet.errors import NoRoomError, ShardnetError, UsageError
from shardnet.files import DENIED, FULL, sync_folder, write_whole
from shardnet.inference.gguf.header import GgufHeader
from shardnet.inference.gguf.writer import OnBytes, Written, file_sha256, write_gguf
from shardnet.inference.splitting.content import content_of_files, shard_file
from shardnet.inference.splitting.keeping import (
    Here,
    already_written,
    forget_work,
    kept_folder,
    reusing,
    unfinished_bytes,
    write_on,
)
from shardnet.inference.splitting.manifest_file import MANIFEST, load_manifest, model_folder
from shardnet.inference.splitting.plan import MODEL_ID_KEY, CutRequest, FilePlan, SplitPlan, plan_split
from shardnet.log import human_bytes
from shardnet.manifest import BLANK_MODEL_ID, Manifest

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
    wanted = source_note(plan)
    for note in sorted((cache / SHARDS).glob(f"*/{SOURCE_NOTE}")):
        try:
            if json.loads(note.read_text(encoding="utf-8")) == wanted:
                manifest = load_manifest(note.parent)
                if _is_whole(note.parent, plan):
                    return note.parent, manifest
        except (OSError, ValueError, ShardnetError):
            continue  # whatever is wrong with it, the split is made again
    return None


def source_note(plan: SplitPlan) -> dict[str, Any]:
    """Returns: which version of which files is cut, and how."""
    note: dict[str, Any] = {
        "name": plan.name,
        "layers": [[part.first, part.end] for part in plan.layers],
        "sources": source_facts(plan.header),
    }
    return note | {"recipe": plan.header.recipe} if plan.header.recipe else note


def source_facts(header: GgufHeader) -> list[list[object]]:
    """Returns: of each file that a model is made of, what changes when the file does. Raises: OSError."""
    facts = [(path.absolute(), path.stat()) for path in header.paths]
    found: list[list[object]] = [[str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino] for path, stat in facts]
    return found + [[origin.place, origin.version] for origin in header.origins]


def _is_whole(folder: Path, plan: SplitPlan) -> bool:
    files = (*plan.shards, plan.tokenizer)
    return all((folder / file.name).is_file() and (folder / file.name).stat().st_size == file.nbytes for file in files)


def split_model(
    plan: SplitPlan, cache: Path, on_progress: OnProgress = lambda _done, _all: None
) -> tuple[Path, Manifest]:
    """Write all files of a plan into `cache/shards/NAME-MODELID/`; the same input gives the same bytes, wherever it is.

    Broken off, it leaves nothing; of a model that comes from afar it leaves what it has, and the next split goes on with it.

    Returns: the folder and the manifest. What an earlier run has left whole is not made again, and keeps its certificate and signature.

    Raises: NoRoomError before the first byte, or when the disk fills up meanwhile; UsageError if `cache` cannot be written to; GgufError if
        the model changed since it was begun to be cut.
    """
    existing = find_existing(plan, cache)
    if existing is not None:
        return existing
    base = shards_folder(cache)
    with disk_errors(base, plan.shards, is_kept=bool(plan.header.origins)):
        if not plan.header.origins:
            check_disk(base, plan.nbytes)
            with partial_folder(base) as folder:
                progress = Progress(plan.nbytes * 2, on_progress)
                manifest = _write(plan, folder, progress.add, progress.add)
                return _publish(folder, model_folder(cache, manifest), manifest)
        note = source_note(plan)
        with kept_folder(base, note) as folder:
            files = (*plan.shards, plan.tokenizer)
            check_disk(base, sum(unfinished_bytes(folder, file) for file in files))
            progress = Progress(plan.nbytes, on_progress)
            manifest = _write(plan, folder, progress.add, lambda _count: None)
            forget_work(folder)
            return _publish(folder, model_folder(cache, manifest), manifest)


def shards_folder(cache: Path) -> Path:
    """Returns: the folder of all models of a cache, made if need be, what dead splits have left tidied up. Raises: UsageError."""
    return working_folder(cache / SHARDS)


def working_folder(base: Path) -> Path:
    """Returns: `base`, made if need be, what dead splits have left tidied up. Raises: UsageError."""
    try:
        base.mkdir(parents=True, exist_ok=True)
        remove_stale_partials(base)
    except OSError as error:
        raise UsageError(f"cannot write to {base}: {error.strerror}; name another folder") from error
    return base


@contextmanager
def disk_errors(base: Path, files: Sequence[FilePlan], *, is_kept: bool) -> Iterator[None]:
    """Raises: NoRoomError, UsageError, ShardnetError for what the disk says while these files are written."""
    left = "what was written is kept, and gone on with" if is_kept else "nothing was left behind"
    try:
        yield
    except OSError as error:
        if error.errno == errno.EFBIG:
            largest = max(file.nbytes for file in files)
            raise NoRoomError(
                f"the disk of {base}, or the limit for one file (ulimit -f), takes no file of {human_bytes(largest)}; "
                f"make smaller shards with --max-shard-bytes, or choose another folder with --out; {left}",
                needed_bytes=largest,
            ) from error
        if error.errno in FULL:
            needed = sum(file.nbytes for file in files)
            raise NoRoomError(
                f"the disk of {base} filled up while the shards were written ({human_bytes(needed)} are needed); "
                f"free some space and split again; {left}",
                needed_bytes=needed,
                free_bytes=shutil.disk_usage(base).free,
            ) from error
        kind = UsageError if error.errno in DENIED else ShardnetError
        raise kind(f"cannot write the shards to {base}: {error.strerror or error}; {left}") from error


def _write(plan: SplitPlan, folder: Path, on_written: OnBytes, on_hashed: OnBytes) -> Manifest:
    note = source_note(plan)  # before the first byte is read: if the source changes meanwhile, the note will not fit it
    files = (*plan.shards, plan.tokenizer)
    if plan.header.origins:
        written = _write_kept(folder, files, on_written)
    else:
        written = [
            write_gguf(folder / file.name, file.fields, file.tensors, mark=MODEL_ID_KEY, on_bytes=on_written)
            for file in files
        ]
    content = content_of_files(plan, written)
    model_id = content.model_id
    paths = [folder / file.name for file in plan.shards]
    for path, facts in zip(paths, written, strict=False):
        _put_model_id(path, facts.mark_offset, model_id)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        hashes = list(pool.map(lambda path: file_sha256(path, on_hashed), paths))
    for path in (*paths, folder / plan.tokenizer.name):
        _sync(path)
    shards = tuple(shard_file(plan, index, digest) for index, digest in enumerate(hashes))
    manifest = Manifest(model_id=model_id, name=plan.name, content=content, files=shards)
    write_whole(folder / SOURCE_NOTE, json.dumps(note).encode())
    write_whole(folder / MANIFEST, manifest.to_json().encode())
    return manifest


def _write_kept(folder: Path, files: Sequence[FilePlan], on_bytes: OnBytes) -> list[Written]:
    """A tensor that two shards hold, such as a tied embedding, is fetched once."""
    here: Here = {}
    written = []
    for file in files:
        written.append(write_on(folder, reusing(file, here), on_bytes))
        here |= already_written(file, folder / file.name)
    return written


def _publish(folder: Path, target: Path, manifest: Manifest) -> tuple[Path, Manifest]:
    """Give the finished folder its name. Where that name is taken by the same model, what was just written takes the place of what is there."""
    try:
        folder.rename(target)
    except OSError as error:
        is_linked = error.errno == errno.ENOTDIR and target.is_dir()
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) and not is_linked:
            raise
        for file in sorted(folder.iterdir()):
            if file.name != MANIFEST:
                shutil.move(file, target / file.name)  # the folder may be a link to another disk
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
    # The torrents of its files are promised afterwards, and say nothing of the bytes.
    same = [(one.content, one.name, [file.sha256 for file in one.files]) for one in (there, manifest)]
    return there if same[0] == same[1] else manifest


def _put_model_id(path: Path, offset: int, model_id: str) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        if file.read(len(BLANK_MODEL_ID)) not in (BLANK_MODEL_ID.encode(), model_id.encode()):
            raise ShardnetError(f"{path} does not hold its blank model id where it was written")
        file.seek(offset)
        file.write(model_id.encode())


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


class Progress:
    """Adds up bytes from several threads; the sum may be a little late, never too large."""

    def __init__(self, total: int, report: OnProgress) -> None:
        self._total, self._report, self._done = total, report, 0

    def add(self, count: int) -> None:
        """So many bytes more are done."""
        self._done = min(self._total, self._done + count)
        self._report(self._done, self._total)


def check_disk(folder: Path, needed: int) -> None:
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
