"""Which shard files to delete when the disk budget is reached. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from shardnet.errors import NoRoomError
from shardnet.log import human_bytes


@dataclass(frozen=True, slots=True)
class StoredShard:
    """One shard file on this node's disk."""

    model_id: str
    shard_id: int
    file_bytes: int
    is_loaded: bool
    """In memory, or being loaded or fetched: never evicted."""
    is_assigned: bool
    """The coordinator wants this node to hold it, though it is not loaded now."""
    other_holders: int
    """Other nodes known to have the file; 0 makes this the last known copy, never evicted."""
    last_used_s: float
    """When it was last loaded or asked for; any clock, larger is later."""


def plan_eviction(files: Iterable[StoredShard], needed_bytes: int, budget_bytes: int) -> list[StoredShard]:
    """Choose the least needed files: not assigned before assigned, then those with most other holders, then those unused for longest.

    Args:
        needed_bytes: size of what is to come.
        budget_bytes: most bytes of shard files on this node; 0 means no budget.
    Returns: files to delete, in this order, so that what is left and `needed_bytes` fit the budget. Empty if they fit already.
    Raises: NoRoomError if deleting everything that may be deleted is not enough; then nothing should be deleted.
    """
    stored = list(files)
    if budget_bytes == 0:
        return []
    excess = sum(file.file_bytes for file in stored) + needed_bytes - budget_bytes
    expendable = sorted(
        (file for file in stored if not file.is_loaded and file.other_holders > 0),
        key=lambda file: (file.is_assigned, -file.other_holders, file.last_used_s, file.model_id, file.shard_id),
    )
    chosen: list[StoredShard] = []
    for file in expendable:
        if excess <= 0:
            break
        chosen.append(file)
        excess -= file.file_bytes
    if excess > 0:
        raise NoRoomError(
            f"disk budget of {human_bytes(budget_bytes)} is {human_bytes(excess)} too small: the other shards here are loaded or the last known copy",
            needed_bytes=needed_bytes,
            free_bytes=max(0, needed_bytes - excess),
        )
    # A later, larger file may have made an earlier, smaller one unnecessary.
    for file in list(chosen):
        if excess + file.file_bytes <= 0:
            chosen.remove(file)
            excess += file.file_bytes
    return chosen
