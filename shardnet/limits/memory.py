"""How much memory this process can have: the smallest of the machine's, its control groups' and its resource limits.

What a group has free is its limit less what it uses, where page cache does not count as used: the kernel drops that before it kills anybody. Swap
never adds room, for weights in swap are slower than weights that are read from their file again; but where both share a limit, swap uses it up.
`memory.high` counts like a limit: a process above it is not killed, but slowed until it hardly moves.

Source: the kernel's cgroup-v2.rst, cgroup-v1/memory.rst; getrlimit(2), proc_pid_status(5).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from shardnet.errors import NoRoomError, SettingsError
from shardnet.limits.cgroups import ROOT, Group, groups_of, read_text
from shardnet.log import human_bytes

KIB = 1024


@dataclass(frozen=True, slots=True)
class Bound:
    """One limit: its bytes, how many of them are left, and where it stands, as `memory.max of cgroup /x`."""

    limit_bytes: int
    free_bytes: int
    source: str

    def __str__(self) -> str:
        return f"{human_bytes(self.limit_bytes)} by {self.source}"


@dataclass(frozen=True, slots=True)
class Room:
    """Memory for this process.

    Attributes:
        total_bytes: the most it could have with everything else gone.
        free_bytes: what it can have now.
        bound: the limit that leaves so little; None if that is the machine itself.
    """

    total_bytes: int
    free_bytes: int
    bound: Bound | None = None


def room_here(*, reserved_bytes: int = 0, mapped_bytes: int = 0) -> Room:
    """Returns: what this process can have on the machine it runs on; arguments as in `memory_room`.

    Raises: SettingsError where the system does not say.
    """
    try:
        machine = psutil.virtual_memory()
    except OSError as error:
        raise SettingsError(f"how much memory there is cannot be read ({error}): mount /proc") from error
    return memory_room(
        int(machine.total), int(machine.available), reserved_bytes=reserved_bytes, mapped_bytes=mapped_bytes
    )


def memory_room(
    machine_total_bytes: int,
    machine_free_bytes: int,
    root: Path = ROOT,
    *,
    reserved_bytes: int = 0,
    mapped_bytes: int = 0,
) -> Room:
    """Returns: what the machine has, within every limit of this process.

    Args:
        reserved_bytes: address space that the process will reserve beside what it asks for; it counts against resource limits only.
        mapped_bytes: mapped files that it cannot do without. To the kernel they are page cache, which is free; here they are not.

    A limit above the machine's memory is none. Where several limits leave equally little, the innermost one is named.
    """
    bounds = [
        bound for bound in memory_bounds(root, reserved_bytes, mapped_bytes) if bound.limit_bytes < machine_total_bytes
    ]
    machine_free_bytes = max(0, machine_free_bytes - mapped_bytes)
    total = min([machine_total_bytes, *(bound.limit_bytes for bound in bounds)])
    tightest = min(bounds, key=lambda bound: bound.free_bytes, default=None)
    if tightest is None:
        return Room(total, min(total, machine_free_bytes))
    if machine_free_bytes < tightest.free_bytes:  # the machine is full: what is to be told is how large it could get
        return Room(total, machine_free_bytes, min(bounds, key=lambda bound: bound.limit_bytes))
    return Room(total, tightest.free_bytes, tightest)


def memory_bounds(root: Path = ROOT, reserved_bytes: int = 0, mapped_bytes: int = 0) -> tuple[Bound, ...]:
    """Returns: every limit of this process's memory: groups from its own upwards, then resource limits."""
    found: list[Bound] = []
    is_counted = True
    for group in groups_of("memory", root):
        if is_counted:
            found += _limits_1(group, mapped_bytes)
        # Before Linux 5.11 a group of version 1 could be told to let its children be.
        is_counted = is_counted and group.number("memory.use_hierarchy") != 0
        found += _limits_2(group, mapped_bytes)
    return (*found, *_resource_limits(root, reserved_bytes))


def refuse_to_map(path: Path, root: Path = ROOT) -> None:
    """Look whether a file can be mapped: it takes its whole size of the address space, however little of it is ever in memory.

    Raises: NoRoomError if `ulimit -v` leaves less.
    """
    size = path.stat().st_size
    for bound in _resource_limits(root, 0):
        if bound.source == ADDRESS_SPACE and bound.free_bytes < size:
            raise NoRoomError(
                f"{path} is mapped as a whole, {human_bytes(size)} of address space, and {human_bytes(bound.free_bytes)} are left within the limit "
                f"of {bound}: raise that limit; it does not have to be in memory as a whole",
                needed_bytes=size,
                free_bytes=bound.free_bytes,
                limit=str(bound),
            )


def _limits_1(group: Group, mapped_bytes: int) -> Iterator[Bound]:
    """Version 1 writes "no limit" as a number larger than any machine."""
    rows = group.table("memory.stat")
    cache = rows.get("total_inactive_file", 0) + rows.get("total_active_file", 0)
    for kind in ("memory", "memory.memsw"):
        yield from _bound(group, f"{kind}.limit_in_bytes", f"{kind}.usage_in_bytes", cache - mapped_bytes)


def _limits_2(group: Group, mapped_bytes: int) -> Iterator[Bound]:
    rows = group.table("memory.stat")
    cache = sum(rows.get(name, 0) for name in ("inactive_file", "active_file", "slab_reclaimable"))
    for file in ("memory.max", "memory.high"):
        yield from _bound(group, file, "memory.current", cache - mapped_bytes)


def _bound(group: Group, limit_file: str, usage_file: str, free_cache_bytes: int) -> Iterator[Bound]:
    limit = group.number(limit_file)
    if limit is not None:
        used = max(0, (group.number(usage_file) or 0) - free_cache_bytes)
        yield Bound(limit, max(0, limit - used), f"{limit_file} of cgroup {group.label}")


ADDRESS_SPACE = "RLIMIT_AS (ulimit -v)"
_RESOURCES = (
    ("Max address space", "VmSize", ADDRESS_SPACE),
    # Weights that are only mapped do not count as data; but llama.cpp copies most quantised ones to lay them out anew.
    ("Max data size", "VmData", "RLIMIT_DATA (ulimit -d)"),
)


def _resource_limits(root: Path, reserved_bytes: int) -> Iterator[Bound]:
    limits = read_text(root / "proc/self/limits").splitlines()
    status = dict(line.partition(":")[::2] for line in read_text(root / "proc/self/status").splitlines())
    for name, used_name, source in _RESOURCES:
        words = next((line[len(name) :].split() for line in limits if line.startswith(name)), [])
        used = status.get(used_name, "").split()
        if words and words[0].isdecimal() and used and used[0].isdecimal():
            limit = int(words[0])
            yield Bound(limit, max(0, limit - int(used[0]) * KIB - reserved_bytes), source)
