"""How far the loads of a model are: bytes, rate, time left. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from shardnet.coordinator.placement.cluster import Cluster
from shardnet.errors import LOADING, Fact
from shardnet.log import human_bytes
from shardnet.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Arriving:
    """All loads of one model together: a shard is read, and before that fetched where its node has no copy.

    Attributes:
        done_bytes: of what each load does now; one that has not said anything yet counts with all its bytes to come.
        bytes_per_s: of all loads together; 0 while nobody knows.
    """

    done_bytes: int
    total_bytes: int
    bytes_per_s: float

    @property
    def share(self) -> float:
        """Returns: 0 to 1."""
        return self.done_bytes / self.total_bytes if self.total_bytes else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Returns: at the present rate; None where there is none."""
        return (self.total_bytes - self.done_bytes) / self.bytes_per_s if self.bytes_per_s else None

    def __str__(self) -> str:
        text = f"{100 * self.share:.0f} % of {human_bytes(self.total_bytes)}"
        return text if self.seconds_left is None else f"{text}, about {self.seconds_left:.0f} s left"

    def facts(self) -> dict[str, Fact]:
        """Returns: the same for programs."""
        left = self.seconds_left
        return {
            f"{LOADING}share": round(self.share, 3),
            f"{LOADING}done_bytes": self.done_bytes,
            f"{LOADING}total_bytes": self.total_bytes,
            f"{LOADING}bytes_per_s": round(self.bytes_per_s),
            f"{LOADING}seconds_left": None if left is None else round(left, 1),
        }


def arriving(cluster: Cluster, manifest: Manifest) -> Arriving | None:
    """Returns: how far a model's loads are; None where nothing of it is being loaded."""
    loads = [
        (manifest.content.shards[shard_id].bytes, load.progress)
        for node in cluster.nodes.values()
        for (model_id, shard_id), load in node.loads.items()
        if model_id == manifest.model_id and shard_id < manifest.n_shards
    ]
    if not loads:
        return None
    done = total = 0
    rate = 0.0
    for size_bytes, progress in loads:
        told = progress.total_bytes if progress is not None else 0
        total += told or size_bytes
        if progress is not None:
            done += min(progress.done_bytes, told)
            rate += progress.bytes_per_s
    return Arriving(done, total, rate)
