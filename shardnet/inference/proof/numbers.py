"""The numbers of a proof: kept in files between passes, so that memory stays that of the largest model, and compared."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardnet.errors import NoRoomError
from shardnet.files import FULL
from shardnet.log import human_bytes

DIFFERENT_BEYOND_MEASURE = float(np.finfo(np.float32).max)
"""Stands for NaN and infinity, which JSON cannot carry."""


def max_abs_diff(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Returns: the largest absolute difference; `DIFFERENT_BEYOND_MEASURE` if either side holds a NaN or an infinity."""
    with np.errstate(invalid="ignore", over="ignore"):
        worst = float(np.abs(ours - theirs).max(initial=0.0))
    return worst if np.isfinite(worst) else DIFFERENT_BEYOND_MEASURE


def check_room(scratch: Path, needed: int) -> None:
    """Raises: NoRoomError if the disk of `scratch` has not so many bytes free."""
    free = shutil.disk_usage(scratch).free
    if needed > free:
        raise _no_room(scratch, needed, free)


def array_in(path: Path, rows: int, width: int) -> NDArray[np.float32]:
    """Returns: float32 (rows, width), zeros in a new file.

    Raises: NoRoomError if others filled the disk meanwhile: a mapped file without its blocks would be a SIGBUS later.
    """
    nbytes = 4 * rows * width
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, nbytes)
    except OSError as error:
        if error.errno in FULL:
            raise _no_room(path.parent, nbytes, shutil.disk_usage(path.parent).free) from error
        raise
    return np.memmap(path, dtype=np.float32, mode="r+", shape=(rows, width))


def _no_room(scratch: Path, needed: int, free: int) -> NoRoomError:
    return NoRoomError(
        f"comparing this model takes {human_bytes(needed)} in {scratch.parent}, which has {human_bytes(free)}; "
        "set TMPDIR to a larger disk",
        needed_bytes=needed,
        free_bytes=free,
    )
