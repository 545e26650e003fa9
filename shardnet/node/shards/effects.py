"""What the node's state asks the daemon to do. Each outcome comes back as an event, failure included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from shardnet.errors import ShardnetError
from shardnet.ids import ShardKey
from shardnet.manifest import Manifest
from shardnet.messages import CommandFailed, Done, LoadProgress, ShardOptions, ShardReady, ShardSource

Answer = ShardReady | Done | CommandFailed | LoadProgress


@dataclass(frozen=True, slots=True)
class Send:
    """To the coordinator, if there is one at the moment."""

    message: Answer


@dataclass(frozen=True, slots=True)
class StartTimer:
    """Come back with `DeadlinePassed` at that time."""

    command_id: str
    at_s: float


@dataclass(frozen=True, slots=True)
class StopTimer:
    """The command has its answer."""

    command_id: str


@dataclass(frozen=True, slots=True)
class SaveManifest:
    """Keep a manifest in the cache, as `folder/manifest.json`."""

    manifest: Manifest
    folder: Path


@dataclass(frozen=True, slots=True)
class Verify:
    """Hold the file against the manifest's SHA-256."""

    key: ShardKey
    path: Path
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Move a damaged file out of the way."""

    key: ShardKey
    path: Path


@dataclass(frozen=True, slots=True)
class Fetch:
    """Get the shard from its other holders, to `target`."""

    key: ShardKey
    manifest: Manifest
    target: Path
    sources: tuple[ShardSource, ...]


@dataclass(frozen=True, slots=True)
class StopFetch:
    """Nobody waits for it any more. What is there may be kept for another time."""

    key: ShardKey


@dataclass(frozen=True, slots=True)
class Load:
    """Take a proved file into the engine's memory."""

    key: ShardKey
    path: Path
    nbytes: int
    options: ShardOptions


@dataclass(frozen=True, slots=True)
class Unload:
    """Free a shard's memory."""

    key: ShardKey


@dataclass(frozen=True, slots=True)
class Offer:
    """A proved file of this shard is here now: others may have it."""

    key: ShardKey
    path: Path
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Withdraw:
    """The file is no longer good: others may not have it."""

    key: ShardKey


@dataclass(frozen=True, slots=True)
class RunTask:
    """All its shards are in memory."""

    ticket: int


@dataclass(frozen=True, slots=True)
class FailTask:
    """A shard of it cannot be had."""

    ticket: int
    error: ShardnetError


@dataclass(frozen=True, slots=True)
class PreloadDone:
    """The node may join: nothing more to load before."""


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the log."""

    fact: str
    level: Literal["info", "warning"] = "info"
    facts: Mapping[str, Any] = field(default_factory=dict)


Effect = (
    Send
    | StartTimer
    | StopTimer
    | SaveManifest
    | Verify
    | Quarantine
    | Fetch
    | StopFetch
    | Load
    | Unload
    | Offer
    | Withdraw
    | RunTask
    | FailTask
    | PreloadDone
    | Note
)
