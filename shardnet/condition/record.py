"""The file that says how a running daemon is: `nodes/<name>/condition.json` in the home folder.

Its content changes when the daemon's state does; its time of change is moved on while the daemon's event loop turns. That the daemon lives at all
its identity's lock says. Blocking.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, TypeAdapter

from shardnet.errors import ShardnetError, UnreachableError
from shardnet.shards import Frozen
from shardnet.swarm.home import Home, is_held, load_records, write_in_home

FILE = "condition.json"
BEAT_S = 5.0
STALE_S = 30.0
"""A daemon that has not moved its file's time on for so long hangs: six beats."""

State = Literal["starting", "waiting", "ready", "stopping"]


class Told(Frozen):
    """How a daemon is."""

    role: Literal["node", "coordinator"]
    state: State = Field(
        description="starting; waiting: up, but of no use yet: not joined, or no model is ready; ready; stopping"
    )
    sentence: str = Field(description="the state in words")
    pid: int = Field(description="of the process, as it sees it itself")


_TOLD: TypeAdapter[Told] = TypeAdapter(Told)


@dataclass(frozen=True, slots=True)
class Found:
    """A daemon that runs in this home.

    Attributes:
        told: None if its file cannot be read.
        silent_s: seconds since it last said anything.
    """

    name: str
    told: Told | None
    silent_s: float

    def trouble(self, *, must_be_ready: bool) -> str:
        """Returns: what is wrong with it; "" if nothing is."""
        if self.told is None:
            return f"cannot be told how it is: its {FILE} cannot be read"
        if self.silent_s > STALE_S:
            return f"hangs: it has said nothing for {self.silent_s:.0f} s (process {self.told.pid}); end it, and start it again"
        if self.told.state == "starting" or (must_be_ready and self.told.state != "ready"):
            return f"is {self.told.state}: {self.told.sentence}"
        return ""


def write_record(folder: Path, told: Told) -> None:
    """Say how the daemon is whose identity lies in `folder`. Raises: NoRoomError, SettingsError."""
    write_in_home(folder / FILE, _TOLD.dump_json(told) + b"\n")


def beat(folder: Path) -> None:
    """Say that it is still so. Raises: OSError."""
    os.utime(folder / FILE)


def running_daemons(home: Home, name: str | None = None) -> list[Found]:
    """Returns: the daemons that run in this home, by name.

    Raises: UnreachableError if there is none, or none of that name; SettingsError for a home that cannot be used.
    """
    found = []
    if home.nodes.is_dir():
        with home.locked():
            held = [path.parent for path in sorted(home.nodes.glob("*/lock")) if is_held(path)]
        # Who holds an identity and has no such file is no daemon: `shardnet seed`, say.
        found = [_look(folder) for folder in held if name in (None, folder.name) and (folder / FILE).exists()]
    if not found:
        which = f"no daemon called {name!r}" if name else "no daemon"
        raise UnreachableError(f"{which} runs in {home.path}: start `shardnet coordinator` or `shardnet node` there")
    return found


def _look(folder: Path) -> Found:
    path = folder / FILE
    try:
        told = load_records(path, _TOLD)
        return Found(folder.name, told, time.time() - path.stat().st_mtime)
    except (OSError, ShardnetError):
        return Found(folder.name, None, 0.0)
