"""Control groups of the machine that runs the tests, with a small limit of memory; only where the tests may make some."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from shardnet.limits.cgroups import groups_of

REMOVE_TRIES = 100


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path]:
    """Two new groups, one within the other; the outer one has the limit. Gives the inner one's folder. Skips the test where that is not allowed."""
    outer = _new_group()
    inner = outer / "inner"
    try:
        try:
            inner.mkdir()
            (outer / _limit_file(outer)).write_text(str(limit_bytes))
        except OSError as error:
            pytest.skip(f"control groups cannot be limited here ({error})")
        yield inner
    finally:
        for folder in (inner, outer):
            _remove(folder)


def _new_group() -> Path:
    """Returns: a new group at the top of a hierarchy that limits memory."""
    tops = [group for group in groups_of("memory") if group.path == "/"]
    for top in tops:
        folder = top.folder / f"shardnet-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        if _limit_file(folder):
            return folder
        folder.rmdir()
    pytest.skip("no control groups of memory can be made here")


def _limit_file(folder: Path) -> str:
    return next((name for name in ("memory.limit_in_bytes", "memory.max") if (folder / name).exists()), "")


def _remove(folder: Path) -> None:
    """The kernel lets a group go a moment after its last process."""
    for _ in range(REMOVE_TRIES):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.05)
        else:
            return


def run_in(group: Path, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments as a member of the group."""
    script = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
    return subprocess.run(
        ["sh", "-c", script, str(group), sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
