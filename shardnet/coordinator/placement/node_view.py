"""What the coordinator knows of one node. Plain data; only the cluster changes it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Self

from shardnet.errors import NoRoomError, ShardnetError
from shardnet.log import human_bytes
from shardnet.manifest import Manifest
from shardnet.messages import Address, Capabilities, HeldShard, Hello, LoadProgress

Key = tuple[str, int]
"""`(model_id, shard_id)`"""
ID_SHOWN = 6
"""Characters of an id, where names do not tell nodes apart."""
MAX_UNSERVED = 64
"""Refused manifests of one node whose reason is kept."""


@dataclass(slots=True)
class Load:
    """A LOAD_SHARD on its way."""

    since_s: float
    reserved_bytes: int
    keep_only: bool = False
    repack: bool = True
    progress: LoadProgress | None = None


@dataclass(slots=True)
class Refusal:
    """A node could not load a shard, `repack` as it was asked for; it is asked again after a while. `waits` until then."""

    error: ShardnetError
    retry_at_s: float
    delay_s: float
    waits: bool = True
    repack: bool = True

    def keeps_from(self, *, repack: bool) -> bool:
        """True if a shard of that kind is not to be asked for now: want of room for one kind says nothing of the other."""
        return self.waits and (self.repack == repack or not isinstance(self.error, NoRoomError))


@dataclass(frozen=True, slots=True)
class Unserved:
    """A model that a node has and that is not served, and why."""

    model_id: str
    name: str
    reason: str


@dataclass(slots=True)
class NodeView:
    """One connected node.

    Invariants: a key of `ready` is loaded in `held`; no key is in both `loads` and `ready`.

    Attributes:
        run_id: which start of the node this is, where it says so.
        ready: shards that the node confirmed to have in memory with this coordinator's options -> when it did.
        address: where others dial it; None: nobody can. `trouble`: why that is so, or may be, in a sentence.
        unserved: model_id -> a manifest that the node offered and that may not be served.
        clock_ahead_s: by how much its clock was ahead of the coordinator's when it joined, less the way of its greeting; None: not known.
        shares_name: another connected node has its name: each machine's first node is called `node`.
        refused: sentences about files of its models cache that are of no use.
    """

    node_id: str
    name: str
    address: Address | None
    capabilities: Capabilities
    joined_at_s: float
    heard_at_s: float
    held: dict[Key, HeldShard] = field(default_factory=dict)
    ready: dict[Key, float] = field(default_factory=dict)
    loads: dict[Key, Load] = field(default_factory=dict)
    refusals: dict[Key, Refusal] = field(default_factory=dict)
    unserved: dict[str, Unserved] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    memory_free_bytes: int = 0
    load: float = 0.0
    sequences: int = 0
    handover_us: float | None = None
    draining: bool = False
    trouble: str = ""
    run_id: str | None = None
    clock_ahead_s: float | None = None
    shares_name: bool = False

    @property
    def label(self) -> str:
        """Returns: what people read: its name, with the beginning of its id where another connected node has the same name."""
        if not self.name:
            return self.node_id[:12]
        return f"{self.name} ({self.node_id[:ID_SHOWN]})" if self.shares_name else self.name

    @property
    def free_bytes(self) -> int:
        """Returns: memory for more shards, what is promised to loads under way left out."""
        return max(0, self.memory_free_bytes - sum(load.reserved_bytes for load in self.loads.values()))

    @property
    def limit(self) -> str:
        """Returns: what allows it less memory than its machine has, in one phrase; "" if nothing does."""
        cpu = next((device for device in self.capabilities.devices if device.kind == "cpu"), None)
        own = self.capabilities.memory_limit_bytes
        if own and (cpu is None or own < cpu.total_bytes):
            return f"{human_bytes(own)} by inference.memory_limit_bytes"
        return cpu.limit if cpu is not None else ""

    @classmethod
    def of(cls, hello: Hello, at_s: float, clock_s: float | None = None) -> Self:
        """Returns: a node that has just joined.

        Args:
            clock_s: Unix time here when it did.
        """
        software = hello.capabilities.software
        return cls(
            node_id=hello.node_id,
            name=hello.name,
            address=hello.listen,
            capabilities=hello.capabilities,
            joined_at_s=at_s,
            heard_at_s=at_s,
            held={(shard.model_id, shard.shard_id): shard for shard in hello.held},
            refused=hello.refused,
            trouble=hello.trouble,
            run_id=hello.run_id,
            clock_ahead_s=None if software is None or clock_s is None else software.clock_s - clock_s,
            memory_free_bytes=_free_of(hello),
        )

    def allowed(self, model_id: str, name: str) -> frozenset[int] | None:
        """Returns: shards of a model that this node may be given; None: any."""
        if self.capabilities.accepts_any:
            return None
        known = {shard for model, shard in self.capabilities.assigned if model == model_id}
        return frozenset(known.union(*(_meant(text, model_id, name) for text in self.capabilities.bound)))

    def bound_to_nothing(self, manifests: Collection[Manifest]) -> list[str]:
        """Returns: a sentence for each shard that the node's user bound it to and that no model has, as far as models it could mean are known."""
        told = []
        for text in self.capabilities.bound:
            model = text.rpartition(":")[0]
            named = [one for one in manifests if _names(model, one.model_id, one.name)]
            if named and not any(
                shard < one.n_shards for one in named for shard in _meant(text, one.model_id, one.name)
            ):
                known = "; ".join(f"{one.name} has {one.n_shards}, 0 to {one.n_shards - 1}" for one in named)
                told.append(
                    f"it is bound to shard {text}, which no known model has ({known}): start it with another --shard, or none"
                )
        return told

    def check(self) -> None:
        """Raises: AssertionError if an invariant is broken."""
        assert all(self.held[key].loaded for key in self.ready), self
        assert not self.ready.keys() & self.loads.keys(), self


def is_whole(held: HeldShard) -> bool:
    """True if the holder has all of the shard: it is not still being fetched."""
    return held.loaded or held.progress is None or held.progress >= 1


def _free_of(hello: Hello) -> int:
    """Until the first heartbeat, one second later: what the device with most memory has free, within the user's limit less what is loaded."""
    free = max((device.free_bytes for device in hello.capabilities.devices), default=0)
    limit = hello.capabilities.memory_limit_bytes
    if limit:
        left = max(0, limit - sum(shard.memory_bytes for shard in hello.held if shard.loaded))
        return min(left, free) if hello.capabilities.devices else left
    return free


def _meant(binding: str, model_id: str, name: str) -> set[int]:
    """Returns: the shard of this model that a node's `--shard MODEL:ID` or `--shard ID` means, if it means one."""
    model, _, number = binding.rpartition(":")
    if not (number.isascii() and number.isdecimal()) or not _names(model, model_id, name):
        return set()
    return {int(number[:6])}


def _names(model: str, model_id: str, name: str) -> bool:
    """True if a binding's MODEL, "" for any, means this model."""
    return model in ("", name) or (len(model) >= 6 and model_id.startswith(model))
