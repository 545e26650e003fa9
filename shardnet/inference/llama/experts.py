"""Which experts of a mixture stay in memory: those that were used most of late. Pure arithmetic over plain data.

Of a layer's experts each token uses a few, which the layer's router chooses when it is computed; only those need to be read. Nobody knows beforehand
which they will be, but a few experts are used far more often than others: they stay, as many as have room, and whichever is used least gives way.

Knows sizes and uses. Refuses to know the graph that tells them (`capture`), and files, which `read_ahead` reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shardnet.inference.llama.residency import Extent

FADING = 0.95
"""A use counts for so much less with each batch through its layer: half as much after 14."""

Expert = tuple[int, int]
"""(layer, number of the expert)"""


@dataclass(frozen=True, slots=True)
class LayerExperts:
    """Experts of one layer: tensors of which each has `count` equal parts, one behind the other."""

    tensors: tuple[Extent, ...]
    count: int

    @property
    def nbytes(self) -> int:
        """Returns: bytes of all of them."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def parts(self, expert: int) -> tuple[Extent, ...]:
        """Returns: where the bytes of one expert lie."""
        sizes = [tensor.nbytes // self.count for tensor in self.tensors]
        return tuple(
            Extent(tensor.path, tensor.offset + expert * size, size)
            for tensor, size in zip(self.tensors, sizes, strict=True)
        )


class ExpertCache:
    """Decides what is read and what goes. Not for several threads at once.

    Args:
        layers: layer -> its experts.
        budget: bytes of experts that may be in memory; more than those of the largest layer, since a long batch uses all.
    """

    def __init__(self, layers: Mapping[int, LayerExperts], budget: int) -> None:
        self.layers = layers
        self.budget = budget
        self._sizes = {layer: one.nbytes // one.count for layer, one in layers.items()}
        self._uses: dict[Expert, float] = {}
        self._here: set[Expert] = set()
        self.used_bytes = 0

    def choose(self, layer: int, wanted: Sequence[int]) -> tuple[list[Expert], list[Expert]]:
        """Take note of a router's choice. Returns: experts to let go, then those to read, which count as here from now on."""
        now = {(layer, expert) for expert in wanted if 0 <= expert < self.layers[layer].count}
        for expert in range(self.layers[layer].count):
            key = (layer, expert)
            self._uses[key] = self._uses.get(key, 0.0) * FADING + (key in now)
        missing = sorted(now - self._here)
        gone = self._make_room(self._sizes[layer] * len(missing), now)
        self._here.update(missing)
        self.used_bytes += self._sizes[layer] * len(missing)
        return gone, missing

    def _make_room(self, nbytes: int, needed: set[Expert]) -> list[Expert]:
        gone: list[Expert] = []
        if self.used_bytes + nbytes <= self.budget:
            return gone
        for key in sorted(self._here - needed, key=lambda one: (self._uses.get(one, 0.0), one)):
            if self.used_bytes + nbytes <= self.budget:
                break
            self._here.remove(key)
            self.used_bytes -= self._sizes[key[0]]
            gone.append(key)
        return gone
