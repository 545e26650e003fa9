"""What a node knows of one shard, and who waits for it. Plain data."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

from shardnet.errors import ShardnetError
from shardnet.ids import ShardKey
from shardnet.messages import HeldShard, MemoryMode, ShardOptions, ShardSource
from shardnet.node.tasks.timings import ShardTimes


class Phase(StrEnum):
    """What is being done about a shard; one thing at a time."""

    IDLE = ""
    VERIFYING = "verifying its hash"
    FETCHING = "fetching it"
    LOADING = "taking it into memory"
    UNLOADING = "freeing its memory"
    CLEARING = "putting a damaged file aside"


class Kind(StrEnum):
    """Why somebody waits for a shard."""

    LOAD = "LOAD_SHARD"
    KEEP = "LOAD_SHARD, file only"
    UNLOAD = "UNLOAD_SHARD"
    TASK = "EXECUTE_TASK"
    PRELOAD = "start"
    SHARE = "sharing with others"


@dataclass(slots=True)
class Want:
    """One waiter. `command_id` for LOAD, KEEP and UNLOAD; `ticket` for TASK."""

    kind: Kind
    options: ShardOptions
    command_id: str = ""
    ticket: int = -1
    deadline_s: float = 0.0
    sources: tuple[ShardSource, ...] = ()
    source: Literal["memory", "local", "torrent"] = "memory"

    @property
    def may_fetch(self) -> bool:
        """True if the shard may be fetched from other nodes for this."""
        return self.kind in (Kind.LOAD, Kind.KEEP)


@dataclass(frozen=True, slots=True)
class InMemory:
    """How a shard was loaded, and what that took. `options.repack` is what became of it."""

    options: ShardOptions
    memory_bytes: int
    memory_mode: MemoryMode = "resident"

    def covers(self, wanted: ShardOptions) -> bool:
        """True if the loaded shard can do all that `wanted` asks for: context, sequences and batch at least as large, that kind of numbers."""
        have = self.options
        if wanted.repack is not None and wanted.repack != (have.repack is not False):
            return False
        return have.n_ctx >= wanted.n_ctx and have.n_seq >= wanted.n_seq and have.n_batch >= wanted.n_batch


@dataclass(slots=True)
class ShardRecord:
    """One shard of one model on this node.

    Invariants (`check`): nobody waits while nothing is being done; what is in memory came from a proved file; a proved file exists.
    """

    key: ShardKey
    paths: list[Path] = field(default_factory=list)
    """Files that say they are this shard; the first is used."""
    is_verified: bool = False
    """The first file's bytes are proved."""
    phase: Phase = Phase.IDLE
    memory: InMemory | None = None
    loading: ShardOptions | None = None
    wants: deque[Want] = field(default_factory=deque)
    progress: float | None = None
    trouble: ShardnetError | None = None
    """Why the last file was given up."""
    is_rotten: bool = False
    """The first file was found damaged after it was proved. It goes as soon as what was loaded from it is out of memory."""
    is_gone: bool = False
    """If it is rotten: there is no file any more that could be put aside."""
    is_fetch_stopped: bool = False
    is_fresh: bool = False
    """The first file was just fetched, and is not proved yet."""

    def satisfies(self, want: Want) -> bool:
        """True if `want` can be answered now."""
        match want.kind:
            case Kind.KEEP | Kind.SHARE:
                return self.is_verified and not self.is_rotten
            case Kind.TASK | Kind.PRELOAD:
                return self.memory is not None
            case Kind.LOAD:
                return self.memory is not None and self.memory.covers(want.options)
            case Kind.UNLOAD:
                return self.memory is None

    def begin(self, phase: Phase) -> None:
        """Something is being done about it now."""
        self.phase = phase
        self.progress = 0.0

    def end(self) -> None:
        """What was being done is over, whatever came of it."""
        self.phase = Phase.IDLE
        self.loading = None
        self.progress = None

    def as_held(self, times: ShardTimes) -> HeldShard | None:
        """Returns: the shard as the coordinator is told of it; None if it is neither here nor on its way."""
        if not self.paths and self.phase is not Phase.FETCHING:
            return None
        return HeldShard(
            model_id=self.key[0],
            shard_id=self.key[1],
            loaded=self.memory is not None,
            memory_bytes=self.memory.memory_bytes if self.memory else 0,
            memory_mode=self.memory.memory_mode if self.memory else "resident",
            repacked=self.memory is None or self.memory.options.repack is not False,
            step_us=times.step_us if self.memory else None,
            rows_us=times.rows_us if self.memory else (),
            progress=self.progress if self.phase is not Phase.IDLE else None,
            detail=self.phase.value or self._file_trouble,
        )

    @property
    def _file_trouble(self) -> str:
        """Returns: what is wrong with the file of a shard that is in memory; "" if nothing is."""
        if not self.is_rotten or self.memory is None:
            return ""
        what = "is gone" if self.is_gone else "is damaged, and given to nobody"
        return f"its file {what}: what is in memory works on, and has to be fetched once the engine ends"

    def check(self) -> None:
        """Raises: AssertionError where an invariant is broken: a bug of ours."""
        assert not (self.wants and self.phase is Phase.IDLE), f"{self.key}: somebody waits for nothing"
        assert self.memory is None or self.is_verified, f"{self.key}: loaded without proof"
        assert not self.is_rotten or self.paths, f"{self.key}: damaged without a file"
        assert not self.is_verified or self.paths, f"{self.key}: proved without a file"
        assert (self.loading is not None) == (self.phase is Phase.LOADING), (
            f"{self.key}: {self.phase} of {self.loading}"
        )
