"""Where what is needed for a while lies: folders that go when their owner does, and what a child process says on its standard error.

A machine may have no folder for temporary files that this user may write to, or none with room: a read-only container, a full disk. What needs a
folder then says so in one sentence; what a child says needs none on Linux.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from shardnet.errors import NoRoomError, SettingsError, ShardnetError
from shardnet.files import FULL


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """A folder of one's own, which is gone at the end.

    Args:
        purpose: a word that its name shows.
    Raises: SettingsError if there is no folder for temporary files; NoRoomError if it is full.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix=f"shardnet-{purpose}-", ignore_cleanup_errors=True)
    except OSError as error:
        raise _no_folder(error) from error
    with folder as path:
        yield Path(path)


def words_file() -> IO[bytes]:
    """Returns: a file without a name for what a child process says; in memory where there is such a thing (Linux).

    Raises: elsewhere, as `scratch_folder`.
    """
    if sys.platform == "linux":
        return os.fdopen(os.memfd_create("shardnet-words", os.MFD_CLOEXEC), "w+b")
    try:
        return tempfile.TemporaryFile()
    except OSError as error:
        raise _no_folder(error) from error


def _no_folder(error: OSError) -> ShardnetError:
    """Returns: why there is no scratch folder, and what to do. Python tries several, and tells unwritable ones and full ones not apart."""
    if error.errno in FULL:
        return NoRoomError(
            f"the folder for temporary files is full ({error}): free some space, or set TMPDIR to another"
        )
    return SettingsError(
        f"no folder for temporary files can be used ({error.strerror or error}): set TMPDIR to a folder that you may write to and that has room"
    )
