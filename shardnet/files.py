"""Small files that are there whole or not at all, and what it means when the disk will not take them. Blocking: call it in a thread."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

from shardnet.errors import NoRoomError, ShardnetError, UsageError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The disk, a quota, or the largest file that the file system or the process's limit allows."""

DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR})
"""A folder that is somebody else's, of a disk that is read only, or a file: another one has to be named."""


def write_whole(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Make `data` the content of `path`: a reader sees the old file or the new one, and a crash leaves one of them.

    Args:
        mode: of the new file; the process's umask takes its bits away, as always.
    Raises: OSError if the disk does not take it; then nothing of it is left.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable. Raises: OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unwritable(path: Path, error: OSError, kind: type[ShardnetError] = UsageError) -> ShardnetError:
    """Returns: the failure to write a small file, as people should read it: NoRoomError if there was no room, else `kind`."""
    if error.errno in FULL:
        return NoRoomError(f"cannot write {path}: {error.strerror}; free some space and try again")
    return kind(f"cannot write {path}: {error.strerror or error}")


def text_of(path: str | Path, flag: str) -> str:
    """Returns: the text of a file. Raises: UsageError if it cannot be read, or is no text."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{flag} {path} is no text in UTF-8") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{flag} {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
