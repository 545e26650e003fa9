"""A folder of half-written shards that stays when a split is broken off, and is gone on with by the next one that wants the same.

Knows which split a folder is of, and which of its files are finished. Refuses to know what becomes of them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from shardnet.errors import GgufError, UsageError
from shardnet.files import write_whole
from shardnet.inference.gguf.continuing import continue_gguf
from shardnet.inference.gguf.header import StreamedData, padded
from shardnet.inference.gguf.writer import OnBytes, OutTensor, Written
from shardnet.inference.splitting.plan import MODEL_ID_KEY, FilePlan

UNFINISHED_PREFIX = ".unfinished-"
KEPT_NOTE = "of.json"
DONE_SUFFIX = ".done"

Facts = dict[str, Any]
Here = dict[str, tuple[Path, int]]
"""The model's tensors that stand in a file here: where each begins."""


@contextmanager
def kept_folder(base: Path, note: Facts) -> Iterator[Path]:
    """A hidden folder to work in, ours alone while we live. It is gone once all shards were taken out of it.

    Args:
        note: what is being split, and how; `sources` are its files, each with its place first and then which version of it. Another place,
            or another way, has another folder.

    Raises: UsageError if another process works in it; GgufError if what stands in it was cut of other versions; OSError.
    """
    sources: list[list[object]] = note["sources"]
    what = note | {"sources": [place for place, *_version in sources]}
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
    folder = base / f"{UNFINISHED_PREFIX}{key}"
    lock_path = base / f"{folder.name}.lock"
    with lock_path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another process is making these shards, in {folder}: wait for it") from None
        folder.mkdir(exist_ok=True)
        _check_versions(folder, sources)
        yield folder
        if not any(folder.glob("*.gguf")):  # another shard that was broken off is still to be gone on with
            shutil.rmtree(folder, ignore_errors=True)
            lock_path.unlink(missing_ok=True)


def _check_versions(folder: Path, sources: list[list[object]]) -> None:
    note = folder / KEPT_NOTE
    try:
        before = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    if before is None:
        for file in folder.iterdir():  # nobody knows of what they are
            file.unlink()
        write_whole(note, json.dumps(sources).encode())
    elif before != sources:
        place, then, now = next(
            (new[0], old[1:], new[1:]) for old, new in zip(before, sources, strict=True) if old != new
        )
        raise GgufError(
            f"{place} changed since it was begun to be cut: then {_words(then)}, now {_words(now)}; the shards begun are of no use: "
            f"delete {folder} and split again"
        )


def _words(version: list[object]) -> str:
    return ", ".join(map(str, version))


def finished(folder: Path, file: FilePlan) -> Written | None:
    """Returns: what a file of a kept folder is, if it was finished; else None."""
    try:
        done = Written(**json.loads((folder / (file.name + DONE_SUFFIX)).read_text(encoding="utf-8")))
        return done if (folder / file.name).stat().st_size == done.nbytes else None
    except (OSError, ValueError, TypeError):
        return None


def write_on(folder: Path, file: FilePlan, on_bytes: OnBytes) -> Written:
    """Write a file of a kept folder, or the rest of it; one that is finished is not looked at again. Raises: as `continue_gguf`."""
    done = finished(folder, file)
    if done is not None:
        on_bytes(done.nbytes)
        return done
    written = continue_gguf(folder / file.name, file.fields, file.tensors, mark=MODEL_ID_KEY, on_bytes=on_bytes)
    write_whole(folder / (file.name + DONE_SUFFIX), json.dumps(asdict(written)).encode())
    return written


def unfinished_bytes(folder: Path, file: FilePlan) -> int:
    """Returns: bytes of a file that are still to be written."""
    try:
        return max(0, file.nbytes - (folder / file.name).stat().st_size)
    except OSError:
        return file.nbytes


def already_written(file: FilePlan, path: Path) -> Here:
    """Returns: where the tensors of a finished file stand."""
    at = file.nbytes - sum(padded(tensor.nbytes) for tensor in file.tensors)
    here: Here = {}
    for tensor in file.tensors:
        if tensor.source is not None:
            here[tensor.source.name] = (path, at)
        at += padded(tensor.nbytes)
    return here


def reusing(file: FilePlan, here: Here) -> FilePlan:
    """Returns: the same file, what came from afar once copied from where it is now."""

    def near(tensor: OutTensor) -> OutTensor:
        source = tensor.source
        if source is None or not isinstance(source.data, StreamedData) or source.name not in here:
            return tensor
        path, offset = here[source.name]
        return replace(tensor, source=replace(source, path=path, offset=offset, data=None))

    return replace(file, tensors=tuple(map(near, file.tensors)))


def forget_work(folder: Path) -> None:
    """Remove the notes of the work from a folder whose files are all finished."""
    for note in (folder / KEPT_NOTE, *folder.glob(f"*{DONE_SUFFIX}")):
        note.unlink(missing_ok=True)
