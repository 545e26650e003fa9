"""Blocking file work of a download: room, hashing, fsync, resume files. Every function here is called in a thread."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import libtorrent as lt

from shardnet.errors import NoRoomError, ShardCorrupt
from shardnet.files import sync_folder
from shardnet.log import human_bytes

Stamp = tuple[int, int, int]
"""A file's size, modification time (ns) and inode: while they stay the same, so do its bytes."""


def stamp(path: Path) -> Stamp:
    """Returns: the file's stamp now. Raises: OSError if it is not there."""
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns, facts.st_ino


def prove(path: Path, *, file_bytes: int, sha256: str) -> Stamp | None:
    """Make the file's bytes durable and compare them. Returns: the stamp that it had when it was read; None if it is another file."""
    here = stamp(path)
    return here if here[0] == file_bytes and sha256_and_sync(path) == sha256 else None


def sha256_and_sync(path: Path) -> str:
    """Make the file's bytes durable and hash them. Returns: SHA-256, hex."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def regular_size(path: Path) -> int | None:
    """Returns: bytes of a regular file that is no symbolic link; None for anything else."""
    try:
        facts = path.lstat()
    except OSError:
        return None
    return facts.st_size if stat.S_ISREG(facts.st_mode) else None


def absolute(path: Path) -> Path:
    """Returns: `path` from the root, symbolic links left as they are. Does not touch the disk."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute keeps `..`


def prepare_partial(partial: Path, target: Path, *, file_bytes: int, sha256: str) -> Stamp | None:
    """Bring the folder into a state that a download can start from.

    A wrong file under the final name becomes the partial file, so that only its bad pieces are fetched again.

    Returns: the stamp of `target` if it is already there with the right bytes, and nothing is to be done.
    Raises: ShardCorrupt if something that is not a regular file is in the way.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for path in (target, partial):
        if os.path.lexists(path) and regular_size(path) is None:
            what = (
                "a link: a model's folder may be one, its files may not" if path.is_symlink() else "not a regular file"
            )
            raise ShardCorrupt(f"{path} is in the way and {what}; move it aside", path=str(path))
    if target.exists():
        if (here := prove(target, file_bytes=file_bytes, sha256=sha256)) is not None:
            return here
        target.replace(partial)
    if partial.exists() and partial.stat().st_size > file_bytes:
        os.truncate(partial, file_bytes)
    return None


def check_room(partial: Path, *, file_bytes: int, keep_free_bytes: int) -> None:
    """Raises: NoRoomError if the rest of the file does not fit onto the disk. Counts blocks, since a partial file has holes."""
    here = partial.stat().st_blocks * 512 if partial.exists() else 0
    needed = max(0, file_bytes - here)
    free = shutil.disk_usage(partial.parent).free
    if needed and needed + keep_free_bytes > free:
        raise NoRoomError(
            f"{human_bytes(needed)} more are needed in {partial.parent} besides the {human_bytes(keep_free_bytes)} to be left free, "
            f"and {human_bytes(free)} are free",
            needed_bytes=needed + keep_free_bytes,
            free_bytes=free,
        )


def write_resume(file: Path, partial: Path, resume: bytes) -> None:
    """Remember which pieces of a partial file are verified, together with a stamp of the file that this is true for.

    Raises: OSError if the disk does not take it; then nothing of it is left.
    """
    if not partial.exists():
        return
    with partial.open("rb") as data:
        os.fsync(data.fileno())
    file.parent.mkdir(parents=True, exist_ok=True)
    document: Any = {b"resume": resume, b"stamp": list(stamp(partial))}
    temporary = _unfinished(file)
    try:
        with temporary.open("wb") as out:
            out.write(lt.bencode(document))
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(file.parent)


def _unfinished(resume_file: Path) -> Path:
    return resume_file.with_suffix(".tmp")


def take_resume(file: Path, partial: Path) -> bytes | None:
    """Read and delete a resume file, so that it exists only while it is true: after a `kill -9` there is none and the bytes are hashed.

    Returns: libtorrent's resume data, or None if there is none or the partial file has changed since.
    """
    try:
        _unfinished(file).unlink(missing_ok=True)  # what a `kill -9` left
        document: Any = lt.bdecode(file.read_bytes())
        file.unlink()
        resume = document[b"resume"]
        if not isinstance(resume, bytes) or document[b"stamp"] != list(stamp(partial)):
            return None
        lt.read_resume_data(resume)  # raises where it is none
        return resume
    except (OSError, RuntimeError, KeyError, TypeError, ValueError):
        return None
