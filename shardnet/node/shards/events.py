"""What can happen to a node's shards. Plain data; time arrives as `at_s` (the event loop's clock, seconds)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shardnet.errors import ShardnetError
from shardnet.ids import ShardKey
from shardnet.manifest import Manifest
from shardnet.messages import LoadShard, MemoryMode, ShardOptions, UnloadShard
from shardnet.shards import LayerRange


@dataclass(frozen=True, slots=True)
class LocalShard:
    """A shard file that was found. It says of itself what it is; its bytes are not proved yet."""

    key: ShardKey
    path: Path
    layers: LayerRange
    nbytes: int


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A manifest that was found, and the folder that it lies in."""

    manifest: Manifest
    folder: Path


@dataclass(frozen=True, slots=True)
class CacheScanned:
    """The models cache was read."""

    models: tuple[LocalModel, ...]
    shards: tuple[LocalShard, ...]


@dataclass(frozen=True, slots=True)
class PreloadAsked:
    """Take the assigned shards (or all that were found) into memory before joining."""

    everything: bool
    options: ShardOptions
    at_s: float


@dataclass(frozen=True, slots=True)
class ShareAsked:
    """Prove every file that is here and not proved yet, so that others may have it."""


@dataclass(frozen=True, slots=True)
class FileGivenUp:
    """The shard's file makes room for another one, and is deleted now."""

    key: ShardKey


@dataclass(frozen=True, slots=True)
class FileRotted:
    """A proved file was found damaged while it was given to others. They get it no more."""

    key: ShardKey
    path: Path


@dataclass(frozen=True, slots=True)
class FileGone:
    """A shard's file is no longer where it was: somebody moved or deleted it."""

    key: ShardKey
    path: Path


@dataclass(frozen=True, slots=True)
class LoadAsked:
    """LOAD_SHARD. `manifest_is_signed`: the swarm's owner signed the manifest in the command."""

    command: LoadShard
    manifest_is_signed: bool
    at_s: float


@dataclass(frozen=True, slots=True)
class UnloadAsked:
    """UNLOAD_SHARD."""

    command: UnloadShard
    at_s: float


@dataclass(frozen=True, slots=True)
class TaskWaits:
    """A task arrived whose shards `[first_shard, end_shard)` are not all in memory."""

    ticket: int
    model_id: str
    first_shard: int
    end_shard: int
    options: ShardOptions


@dataclass(frozen=True, slots=True)
class TaskGone:
    """Nobody waits for that task any more."""

    ticket: int


@dataclass(frozen=True, slots=True)
class ShardVerified:
    """The file's SHA-256 is the one that the manifest promises."""

    key: ShardKey


@dataclass(frozen=True, slots=True)
class VerifyFailed:
    """The file is not there, not the promised one, or not readable."""

    key: ShardKey
    error: ShardnetError


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A damaged file is out of the way, or cannot be moved; in any case it is not used again."""

    key: ShardKey


@dataclass(frozen=True, slots=True)
class ShardFetched:
    """Another holder's copy is here, whole, under `path`."""

    key: ShardKey
    path: Path


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """It could not be had."""

    key: ShardKey
    error: ShardnetError


@dataclass(frozen=True, slots=True)
class ShardLoaded:
    """The shard is in the engine's memory."""

    key: ShardKey
    options: ShardOptions
    memory_bytes: int
    memory_mode: MemoryMode = "resident"


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The engine could not take it."""

    key: ShardKey
    error: ShardnetError


@dataclass(frozen=True, slots=True)
class ShardUnloaded:
    """Its memory is free again."""

    key: ShardKey


@dataclass(frozen=True, slots=True)
class EngineCameBack:
    """The engine process died and runs again. `loaded`: (shard, memory bytes, mode, whether it is repacked) of what it has again."""

    loaded: tuple[tuple[ShardKey, int, MemoryMode, bool], ...]


@dataclass(frozen=True, slots=True)
class Progressed:
    """A shard is on its way."""

    key: ShardKey
    stage: Literal["fetch", "verify", "load"]
    done_bytes: int
    total_bytes: int
    bytes_per_s: float = 0.0
    peers: int = 0
    memory_bytes: int = 0
    cpu_cores: float = 0.0


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """A command's time is over."""

    command_id: str


@dataclass(frozen=True, slots=True)
class DrainBegan:
    """The node is leaving."""


Event = (
    CacheScanned
    | PreloadAsked
    | ShareAsked
    | FileGivenUp
    | FileRotted
    | FileGone
    | LoadAsked
    | UnloadAsked
    | TaskWaits
    | TaskGone
    | ShardVerified
    | VerifyFailed
    | Quarantined
    | ShardFetched
    | FetchFailed
    | ShardLoaded
    | LoadFailed
    | ShardUnloaded
    | EngineCameBack
    | Progressed
    | DeadlinePassed
    | DrainBegan
)
