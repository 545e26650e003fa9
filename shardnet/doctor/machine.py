"""Memory, processors, open files and the temporary folder: what this process may have of the machine."""

from __future__ import annotations

import resource
import shutil
import tempfile
from dataclasses import dataclass

import psutil

from shardnet.doctor.findings import Finding, Level
from shardnet.errors import ShardnetError
from shardnet.inference.llama.devices import main_memory, processors
from shardnet.limits.memory import Room
from shardnet.limits.processors import Processors
from shardnet.log import counted, human_bytes
from shardnet.node.settings import NodeSettings
from shardnet.scratch import scratch_folder

LITTLE_BYTES = 512 << 20
"""An engine without any shard, its libraries and buffers; less is of no use to anybody."""
BESIDE_PEERS = 128
"""Files, sockets and pipes of a daemon that talks to nobody yet, and some room."""
TEMP_BYTES = 64 << 20


def memory_findings(
    room: Room, *, machine_bytes: int, swap_used_bytes: int = 0, wanted_bytes: int = 0
) -> list[Finding]:
    """Decide about memory.

    Args:
        wanted_bytes: `inference.memory_limit_bytes`; 0: not set.
        swap_used_bytes: of the whole machine.
    """
    limit = f", of {room.bound}" if room.bound else f" of {human_bytes(room.total_bytes)}"
    told = f"{human_bytes(room.free_bytes)} free{limit}"
    if room.free_bytes < LITTLE_BYTES:
        raise_it = f"Raise {room.bound.source}" if room.bound else "End other programs"
        return [Finding("memory", "fault", f"{told}: hardly a shard can be loaded", raise_it)]
    if wanted_bytes > room.total_bytes:
        return [
            Finding(
                "memory",
                "warning",
                f"inference.memory_limit_bytes allows shards {human_bytes(wanted_bytes)}, and it has {human_bytes(room.total_bytes)} at most",
                "Lower it: what does not fit is refused when it is loaded",
            )
        ]
    if room.bound is not None and room.total_bytes < machine_bytes // 2:
        return [Finding("memory", "note", f"{told}, on a machine of {human_bytes(machine_bytes)}")]
    if swap_used_bytes > machine_bytes // 10:
        return [
            Finding(
                "memory",
                "note",
                f"{told}; {human_bytes(swap_used_bytes)} are in swap, where weights are slower than in their file",
            )
        ]
    return [Finding("memory", "ok", told)]


def look_at_memory(settings: NodeSettings) -> list[Finding]:
    """Gather, and decide."""
    return memory_findings(
        main_memory(),
        machine_bytes=int(psutil.virtual_memory().total),
        swap_used_bytes=int(psutil.swap_memory().used),
        wanted_bytes=settings.inference.memory_limit_bytes,
    )


def thread_findings(found: Processors, *, wanted: int, load: float, logical: int) -> list[Finding]:
    """Decide about processors.

    Args:
        wanted: `inference.threads`; 0: not set. load: processes that wanted to run, in the last minute.
    """
    told = f"{counted(found.threads, 'thread')} compute" + (f", by {found.limit}" if found.limit else "")
    if wanted > found.threads:
        return [
            Finding(
                "threads",
                "warning",
                f"inference.threads is {wanted}, and {found.threads} can run at the same time: they would wait for each other in every layer",
                f"Set it to {found.threads}, or leave it out",
            )
        ]
    if load > 1.5 * logical:
        return [
            Finding(
                "threads",
                "warning",
                f"{told}; {load:.1f} processes want to run on {logical} processors: one busy core can halve the speed of all threads",
                "End the others, or give the node fewer --threads",
            )
        ]
    return [Finding("threads", "note" if found.limit else "ok", told)]


def look_at_threads(settings: NodeSettings) -> list[Finding]:
    """Gather, and decide."""
    load, logical = psutil.getloadavg()[0], psutil.cpu_count() or 1
    return thread_findings(processors(), wanted=settings.inference.threads, load=load, logical=logical)


def file_findings(soft: int, hard: int, *, connections: int) -> list[Finding]:
    """Decide about open files.

    Args:
        soft, hard: RLIMIT_NOFILE; -1: none. connections: `torrent.max_connections`.
    """
    needed = connections + BESIDE_PEERS
    if soft < 0 or soft >= needed:
        return [Finding("open files", "ok", "no limit" if soft < 0 else f"{soft} at a time")]
    remedy = (
        f"Run `ulimit -n {needed}`, or set LimitNOFILE={needed} in the unit"
        if hard < 0 or hard >= needed
        else f"Have root raise the limit (LimitNOFILE={needed} in the unit, /etc/security/limits.conf), or lower torrent.max_connections"
    )
    level: Level = "fault" if soft < BESIDE_PEERS else "warning"
    return [
        Finding(
            "open files",
            level,
            f"{soft} may be open at a time (ulimit -n), and {connections} connections of transfers alone may want one each",
            remedy,
        )
    ]


def look_at_files(settings: NodeSettings) -> list[Finding]:
    """Gather, and decide."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return file_findings(soft, hard, connections=settings.torrent.max_connections)


@dataclass(frozen=True, slots=True)
class TempFacts:
    """The folder for temporary files. `trouble`: why it cannot be used."""

    path: str = ""
    free_bytes: int = 0
    trouble: str = ""


def temp_findings(facts: TempFacts) -> list[Finding]:
    """Decide about the temporary folder."""
    if facts.trouble:
        return [Finding("temporary folder", "fault", facts.trouble)]
    told = f"{facts.path} has {human_bytes(facts.free_bytes)} free"
    if facts.free_bytes < TEMP_BYTES:
        return [Finding("temporary folder", "warning", told, "Free some space, or set TMPDIR to another folder")]
    return [Finding("temporary folder", "ok", told)]


def look_at_temp() -> TempFacts:
    """Gather: make a folder, which is gone at once."""
    try:
        with scratch_folder("doctor") as folder:
            return TempFacts(tempfile.gettempdir(), shutil.disk_usage(folder).free)
    except ShardnetError as error:
        return TempFacts(trouble=str(error))
