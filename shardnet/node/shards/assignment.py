"""Which shards a node's user bound it to (`--shard MODEL:ID`, `--shard ID`), and what that means for the models at hand. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shardnet.errors import UsageError
from shardnet.ids import ShardKey
from shardnet.manifest import Manifest, by_claim

_ID_PREFIX = re.compile(r"^[0-9a-f]{6,64}$")
MAX_SHARD_ID = 9_999


@dataclass(frozen=True, slots=True)
class Binding:
    """One `--shard`. `model` is a name, a model id or the beginning of one; None means any model."""

    model: str | None
    shard_id: int

    def admits(self, model_id: str, shard_id: int, name: str | None) -> bool:
        """True if this binding means that shard. `name`: the model's, where it is known."""
        if shard_id != self.shard_id:
            return False
        return self.model is None or self.model == name or self.names(model_id)

    def names(self, model_id: str) -> bool:
        """True if this binding says the model's id, or the beginning of it."""
        return self.model is not None and bool(_ID_PREFIX.match(self.model)) and model_id.startswith(self.model)

    def __str__(self) -> str:
        return str(self.shard_id) if self.model is None else f"{self.model}:{self.shard_id}"


def means_none(binding: Binding, manifests: Iterable[Manifest]) -> str:
    """Returns: why a binding means no shard of any model; "" if it means one, or if no model that it could mean is known."""
    named = [one for one in manifests if binding.model in (None, one.name) or binding.names(one.model_id)]
    if not named or any(binding.shard_id < one.n_shards for one in named):
        return ""
    known = "; ".join(f"{one.name} has {one.n_shards}, 0 to {one.n_shards - 1}" for one in named)
    return f"no known model has the shard that --shard {binding} names ({known}): give another, or none, and the coordinator chooses"


def parse_binding(text: str) -> Binding:
    """Returns: what `MODEL:ID` or `ID` means.

    Raises: UsageError if it is neither.
    """
    model, _, number = text.strip().rpartition(":")
    if not (number.isascii() and number.isdecimal()) or int(number[:6]) > MAX_SHARD_ID or text.strip().startswith(":"):
        raise UsageError(f"{text!r} names no shard: write MODEL:ID, as in SmolLM2:0, or ID alone")
    return Binding(model or None, int(number))


@dataclass(frozen=True, slots=True)
class Assignment:
    """All bindings of a node; none: it takes what it is given."""

    bindings: tuple[Binding, ...] = ()

    @property
    def accepts_any(self) -> bool:
        """True if the node's user did not bind it."""
        return not self.bindings

    def admits(self, model_id: str, shard_id: int, name: str | None) -> bool:
        """True if the node may hold that shard."""
        return self.accepts_any or any(binding.admits(model_id, shard_id, name) for binding in self.bindings)

    def resolve(
        self, manifests: Mapping[str, Manifest], present: Iterable[ShardKey]
    ) -> tuple[tuple[ShardKey, ...], tuple[Binding, ...]]:
        """Returns: the shards that the bindings mean among the models known here, in order; and the bindings that mean none of them yet.

        Of several models with one name a binding means the one that the name means (`by_claim`), unless it says an id.
        """
        named: dict[str, list[Manifest]] = {}
        for manifest in manifests.values():
            named.setdefault(manifest.name, []).append(manifest)
        left_out = {one.model_id for rivals in named.values() for one in by_claim(rivals)[1:]}
        known = {ShardKey((model_id, shard_id)) for model_id, m in manifests.items() for shard_id in range(m.n_shards)}
        known |= set(present)
        keys: dict[ShardKey, None] = {}
        open_bindings = []
        for binding in self.bindings:
            meant = [
                key
                for key in sorted(known)
                if binding.admits(*key, manifests[key[0]].name if key[0] in manifests else None)
                and (key[0] not in left_out or binding.names(key[0]))
            ]
            if not meant and binding.model is not None and len(binding.model) == 64 and _ID_PREFIX.match(binding.model):
                meant = [ShardKey((binding.model, binding.shard_id))]
            if not meant:
                open_bindings.append(binding)
            keys |= dict.fromkeys(meant)
        return tuple(keys), tuple(open_bindings)
