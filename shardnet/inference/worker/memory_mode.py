"""How a shard is held in memory: as a whole, or streamed, with some layers staying and the others read for each pass. Pure arithmetic.

A streamed shard may have what is free, less its KV cache, its buffers and a spare share, since the kernel drops pages that are needed before the
limit is reached to the byte. Where there is more than it has weights, all of them stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from shardnet.errors import NoRoomError
from shardnet.inference.engine.memory import SPARE_DIVISOR, Need, refuse_if_too_large
from shardnet.inference.llama.residency import bytes_to_keep, least_budget
from shardnet.inference.worker.budgets import Shared, share_out
from shardnet.limits.memory import Room
from shardnet.log import human_bytes
from shardnet.messages import MemoryMode


@dataclass(frozen=True, slots=True)
class Chosen:
    """What was decided, and why, for people.

    Attributes:
        budget: of a streamed shard, bytes of weights that may be in memory.
        needed: bytes that the load takes at least.
        repack: as `ShardOptions.repack`.
        others: the budgets that shards streamed before are to have from now on.
    """

    mode: MemoryMode
    needed: int
    why: str = ""
    budget: int = 0
    repack: bool = True
    others: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """A shard that is to be loaded.

    Attributes:
        what: its name, for people.
        need: what it takes as a whole.
        spared_bytes: of that, what GPUs spare main memory; a streamed shard is computed by the processor alone.
        stages: bytes of each of its stages, as `residency` has them.
        process_bytes: what llama.cpp takes beside.
        repack: as `ShardOptions.repack`.
        is_mixture: it has experts that are read as they are chosen.
    """

    what: str
    need: Need
    spared_bytes: int
    stages: Sequence[int]
    process_bytes: int
    repack: bool | None = None
    is_mixture: bool = False


@dataclass(frozen=True, slots=True)
class Free:
    """What there is for it. `used_bytes`, `limit_bytes` as in `refuse_if_too_large`; `shared`: what streamed shards have, and may yield."""

    room: Room
    used_bytes: int
    limit_bytes: int
    shared: Shared = field(default=Shared())

    @property
    def nbytes(self) -> int:
        """Returns: what is left of both."""
        left = self.limit_bytes - self.used_bytes if self.limit_bytes else self.room.free_bytes
        return max(0, min(self.room.free_bytes, left))

    def refuse_if_too_large(self, what: str, needed_bytes: int) -> None:
        """Raises: NoRoomError if so much is not free."""
        refuse_if_too_large(what, needed_bytes, self.room, used_bytes=self.used_bytes, limit_bytes=self.limit_bytes)


def fits_twice(asked: Asked, chosen: Chosen, free: Free) -> bool:
    """Returns: True if a resident shard's weights may be copied out of their file: there is room for them, and for the file's page cache.

    Copies cannot be dropped and read again, as mapped weights can where others need the memory later; so they are made only where that is far away.
    """
    return chosen.mode == "resident" and free.nbytes >= chosen.needed + asked.need.weights


def choose(wanted: Literal["resident", "streamed", "auto"], asked: Asked, free: Free) -> Chosen:
    """Decide how a shard is held. Raises: NoRoomError if it cannot be as `wanted`, or as `asked.repack` has it."""
    if asked.repack and wanted == "streamed":
        raise NoRoomError(
            f"{asked.what} is asked for with its weights repacked, and this node streams all shards, whose weights are not: "
            'use inference.memory_mode "auto", or "resident"'
        )
    resident = max(0, asked.need.total - asked.spared_bytes) + asked.process_bytes
    repack = asked.repack is not False
    if wanted == "resident" or asked.repack:
        free.refuse_if_too_large(asked.what, resident)
        return Chosen("resident", resident, repack=repack)
    sizes = f"{human_bytes(resident)} are needed, {human_bytes(free.nbytes)} are free"
    if wanted == "auto":
        try:
            free.refuse_if_too_large(asked.what, resident)
        except NoRoomError:
            pass
        else:
            return Chosen("resident", resident, f"it fits: {sizes}", repack=repack)
    beside = asked.need.kv + asked.need.compute + asked.process_bytes
    shared, least = free.shared, least_budget(asked.stages)
    yielding = max(0, shared.total - shared.least)
    free.refuse_if_too_large(f"{asked.what}, streamed,", max(0, beside + least - yielding))
    together = free.nbytes + shared.total
    total = max(shared.least + least, together - together // SPARE_DIVISOR - beside)
    *others, budget = share_out(total, [*shared.stages, asked.stages])
    weights, kept = sum(asked.stages), sum(bytes_to_keep(asked.stages, budget))
    asked_for = "it is asked for" if wanted == "streamed" else "it does not fit"
    read = f"{human_bytes(weights - kept)} are read for each token"
    if asked.is_mixture:
        read += ", experts only where they are chosen"
    beside_others = f", beside {len(others)} more that are streamed" if others else ""
    return Chosen(
        "streamed",
        beside + budget,
        f"{asked_for}: {sizes}{beside_others}; {human_bytes(kept)} of weights stay, {read}",
        budget,
        repack=False,
        others=tuple(others),
    )
