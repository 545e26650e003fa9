"""Small disks of their own: what a test fills to the brim is not the machine's disk."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[str], None]]:
    """Make `folder` a disk of this size, as mount(8) writes it: `30m`. Skips the test where that is not allowed.

    Yields: what changes the size.
    """
    folder.mkdir()
    if os.geteuid() != 0 or not _mount(folder, f"size={size}"):
        pytest.skip("needs the right to mount a tmpfs")

    def resize(size: str) -> None:
        assert _mount(folder, f"remount,size={size}")

    try:
        yield resize
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path, step: int = 1 << 12) -> None:
    """Write until the disk takes nothing more, `step` bytes at a time."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(step))


def _mount(folder: Path, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
