"""How many engines share this machine, so that their threads do not fight.

OpenMP's threads spin for milliseconds after each graph before they sleep. Two engines with a thread per core each then steal the cores from one
another: a pipeline of three nodes on two cores was twenty times slower than with one thread each. So each engine takes its share of the cores.
Every engine holds a lock on a file of its own in a folder that all engines of one user share; a file that nobody locks is that of a dead engine.
Where there is no such folder, since none can be written to or has room, an engine counts itself alone.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

from shardnet.inference.llama.devices import free_threads, usable_threads
from shardnet.inference.llama.thread_choice import ThreadChoice


def default_folder() -> Path:
    """Returns: a folder for this user's engines on this machine."""
    return Path(tempfile.gettempdir()) / f"shardnet-engines-{os.getuid()}"


def share_of_cores(cores: int, engines: int) -> int:
    """Returns: threads for each of `engines` engines on `cores` cores; at least one."""
    return max(1, cores // max(1, engines))


def learnt_share() -> ThreadChoice:
    """Returns: threads for a process that computes for a while and is no engine: its share of the cores, of which it learns how many serve best."""
    return ThreadChoice(share_of_cores(usable_threads(), EngineCensus().count()), first=free_threads())


class EngineCensus:
    """This engine's entry among the engines of the machine; the kernel ends the entry of a process that dies."""

    def __init__(self, folder: Path | None = None) -> None:
        self._path: Path | None = None
        try:
            folder = folder or default_folder()
            folder.mkdir(mode=0o700, exist_ok=True)
            path = folder / f"{os.getpid()}.lock"
            self._own = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError:
            return
        self._path = path
        fcntl.flock(self._own, fcntl.LOCK_EX)

    def close(self) -> None:
        """Take this engine off the list."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._own)

    def count(self) -> int:
        """Returns: engines alive on this machine, this one included. Files of dead ones are removed."""
        if self._path is None:
            return 1
        alive = 1
        for path in self._path.parent.glob("*.lock"):
            if path != self._path:
                alive += _is_locked(path)
        return alive


def _is_locked(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        path.unlink(missing_ok=True)
        return False
    finally:
        os.close(handle)
