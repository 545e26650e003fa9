"""The control groups of this process, its own first, then each one above, as far up as they are mounted here.

A systemd unit is a group; its `MemoryMax=` and `CPUQuota=` are files there. Source: cgroups(7), the kernel's cgroup-v2.rst and cgroup-v1,
proc_pid_mountinfo(5).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/")
MOST_PATH_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Group:
    """One control group. `path` is its name as the kernel tells it; `/` is the root, or a container's own."""

    folder: Path
    path: str

    @property
    def label(self) -> str:
        """Returns: the path for people: printable, its end if it is long."""
        text = "".join(letter if letter.isprintable() else "?" for letter in self.path)
        return text if len(text) <= MOST_PATH_SHOWN else "..." + text[3 - MOST_PATH_SHOWN :]

    def words(self, file: str) -> list[str]:
        """Returns: the file's words; none if it is not there, as in a real root, or cannot be read."""
        return read_text(self.folder / file).split()

    def number(self, file: str) -> int | None:
        """Returns: the file's one number; None if it says none, as `max` does."""
        words = self.words(file)
        return int(words[0]) if words and words[0].isdecimal() else None

    def table(self, file: str) -> dict[str, int]:
        """Returns: name -> number, for a file with one of each on a line."""
        rows = [line.split() for line in read_text(self.folder / file).splitlines()]
        return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdecimal()}


class _Mount(NamedTuple):
    """A mounted hierarchy: the group that its folder shows, `controllers` of version 1, None for version 2."""

    folder: Path
    root: list[str]
    controllers: frozenset[str] | None


def read_text(path: Path) -> str:
    """Returns: the file's text; nothing if it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def groups_of(controller: str, root: Path = ROOT) -> tuple[Group, ...]:
    """Returns: the groups that may limit this process by `controller` (`memory`, `cpu`), its own first; version 1 before version 2."""
    mounts = _mounts(root)
    found: list[Group] = []
    rows = [line.split(":", 2) for line in read_text(root / "proc/self/cgroup").splitlines()]
    for row in sorted((row for row in rows if len(row) == 3), key=lambda row: row[1] == ""):
        _, names, path = row
        controllers = names.split(",") if names else None
        if controllers is not None and controller not in controllers:
            continue
        for mount in mounts:
            if mount.controllers is None if controllers is None else controller in (mount.controllers or ()):
                found += _chain(mount, _parts(path))
                break
    return tuple(found)


def _mounts(root: Path) -> list[_Mount]:
    found = []
    for line in read_text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        controllers = frozenset(kind[-1].split(",")) if kind[0] == "cgroup" else None
        found.append(_Mount(root / _unescape(fields[4]).lstrip("/"), _parts(_unescape(fields[3])), controllers))
    return found


def _unescape(text: str) -> str:
    """mountinfo writes a space as `\\040`."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def _chain(mount: _Mount, own: list[str]) -> list[Group]:
    """Returns: the groups from `own`, as the kernel names it, up to the one that the mount's folder shows."""
    known = own[: len(mount.root)]
    below = own[len(mount.root) :]
    if known != mount.root or ".." in below:
        # A container's namespace: the path begins outside of what is mounted (`/../..`). What lies within may be mounted by its last names; else
        # the mount's own group is the nearest one that can be seen.
        known, names = [], [part for part in own if part != ".."]
        suffixes = (names[skip:] for skip in range(len(names)))
        below = next((names for names in suffixes if mount.folder.joinpath(*names).is_dir()), [])
    lengths = range(len(below), -1, -1)
    return [
        Group(mount.folder.joinpath(*below[:length]), "/" + "/".join([*known, *below[:length]])) for length in lengths
    ]
