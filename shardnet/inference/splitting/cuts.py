"""Where to cut a model: pure functions over bytes per layer and the family's legal cut points."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise

from shardnet.errors import UsageError
from shardnet.log import counted, human_bytes
from shardnet.shards import LayerRange

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*$", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True)
class Weights:
    """What has to be balanced: bytes, or what stands for time. `first` and `last` come on top of the first and last shard: embedding and head."""

    layers: tuple[int, ...]
    first: int = 0
    last: int = 0

    def of(self, start: int, end: int) -> int:
        """Returns: bytes of a shard `[start, end)`."""
        total = sum(self.layers[start:end])
        return total + (self.first if start == 0 else 0) + (self.last if end == len(self.layers) else 0)


def ranges(cuts: Sequence[int], n_layers: int) -> tuple[LayerRange, ...]:
    """Returns: the layer ranges between cuts."""
    return tuple(LayerRange(first=first, end=end) for first, end in pairwise((0, *cuts, n_layers)))


def balanced_cuts(
    weights: Weights, legal: Sequence[int], n_shards: int, forbidden_lengths: frozenset[int] = frozenset()
) -> tuple[int, ...]:
    """Returns: `n_shards - 1` legal cuts that make the largest shard as small as can be, and the others as even as that allows.

    Args:
        forbidden_lengths: numbers of layers that no shard of several may have.

    Raises: UsageError naming how many shards are possible.
    """
    if not 1 <= n_shards <= len(legal) + 1:
        raise UsageError(
            f"{n_shards} shards are not possible: this model has {counted(len(legal), 'legal cut point')}, so 1 to {len(legal) + 1}"
        )
    parts = _Parts(weights, legal, forbidden_lengths if n_shards > 1 else frozenset())
    largest = next(islice(parts.smallest_largest(), n_shards - 1, None))
    if largest is None:
        lengths = ", ".join(map(str, sorted(forbidden_lengths)))
        raise UsageError(
            f"{n_shards} shards are not possible: llama.cpp mistakes shards of {lengths} layers for another model"
        )
    return parts.evenest(n_shards, largest)


def cuts_by_size(
    weights: Weights, legal: Sequence[int], max_bytes: int, forbidden_lengths: frozenset[int] = frozenset()
) -> tuple[int, ...]:
    """Returns: balanced cuts for the fewest shards none of which is larger than `max_bytes`.

    Raises: UsageError naming the smallest size that is possible.
    """
    smallest = weights.of(0, len(weights.layers))
    if smallest <= max_bytes:
        return ()
    parts = _Parts(weights, legal, forbidden_lengths)
    for n_shards, largest in enumerate(parts.smallest_largest(), 1):
        if n_shards == 1 or largest is None:
            continue
        if largest <= max_bytes:
            return parts.evenest(n_shards, largest)
        smallest = min(smallest, largest)
    raise UsageError(
        f"no legal cuts keep every shard under {human_bytes(max_bytes)}: the largest one takes {human_bytes(smallest)} at least"
    )


class _Parts:
    """The ways to divide a model: points 0, each legal cut, the end; and the bytes of every allowed stretch between two points."""

    def __init__(self, weights: Weights, legal: Sequence[int], forbidden_lengths: frozenset[int]) -> None:
        self.points = (0, *legal, len(weights.layers))
        self.last = len(self.points) - 1
        sums = (0, *accumulate(weights.layers))
        self.sizes: list[dict[int, int]] = [{} for _ in self.points]
        """`sizes[b][a]`: bytes of the stretch from point a to point b."""
        for b in range(1, self.last + 1):
            for a in range(b):
                start, end = self.points[a], self.points[b]
                if end - start not in forbidden_lengths:
                    ends = (weights.first if a == 0 else 0) + (weights.last if b == self.last else 0)
                    self.sizes[b][a] = sums[end] - sums[start] + ends

    def smallest_largest(self) -> Iterator[int | None]:
        """Yield for 1, 2, 3, ... shards: how small the largest can be, None where that many are not possible."""
        best = {0: 0}  # point -> over all ways to reach it with so many shards, the smallest largest
        for _ in range(self.last):
            best = {
                b: min(options)
                for b, stretches in enumerate(self.sizes)
                if (options := [max(best[a], size) for a, size in stretches.items() if a in best])
            }
            yield best.get(self.last)

    def evenest(self, n_shards: int, largest: int) -> tuple[int, ...]:
        """Returns: the cuts for `n_shards` of at most `largest` bytes with the least sum of squares; among equals, the earliest."""
        best: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}
        for _ in range(n_shards):
            best = {
                b: min(options)
                for b, stretches in enumerate(self.sizes)
                if (
                    options := [
                        (best[a][0] + size * size, (*best[a][1], self.points[b]))
                        for a, size in stretches.items()
                        if a in best and size <= largest
                    ]
                )
            }
        return best[self.last][1][:-1]


def checked_cuts(cuts: Sequence[int], legal: Sequence[int], n_layers: int) -> tuple[int, ...]:
    """Returns: the user's own cuts. Raises: UsageError naming the first that is not legal, and what is."""
    if list(cuts) != sorted(set(cuts)):
        raise UsageError(f"cuts must be in rising order without repeats, not {','.join(map(str, cuts))}")
    for cut in cuts:
        if not 0 < cut < n_layers:
            raise UsageError(f"cut {cut} is outside the model's layers: cuts lie between 1 and {n_layers - 1}")
        if cut not in legal:
            raise UsageError(f"cut {cut} is not legal for this model; legal cut points: {describe_points(legal)}")
    return tuple(cuts)


def describe_points(points: Sequence[int]) -> str:
    """Returns: `1-29`, `6,12,18`: runs of numbers in short."""
    if not points:
        return "none"
    runs: list[list[int]] = []
    for point in points:
        if runs and point == runs[-1][-1] + 1:
            runs[-1].append(point)
        else:
            runs.append([point])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def parse_size(text: str) -> int:
    """Returns: bytes of `1.5GB` (decimal), `800MiB` (binary), `1000`. Raises: UsageError."""
    match = _SIZE.match(text)
    if match is None:
        raise UsageError(f"{text!r} is no size: write 1.5GB, 800MiB or a number of bytes")
    base = 1024 if match[3] else 1000
    size = int(float(match[1]) * base ** _POWERS[match[2].upper()])
    if size <= 0:
        raise UsageError(f"{text!r} is no size: it must be more than 0")
    return size


def parse_ids(texts: Sequence[str], count: int) -> tuple[int, ...]:
    """Returns: the shards that `0`, `0,2` or `all` name, in order, each once. Raises: UsageError if one of them is none of `count` shards."""
    if not texts:
        raise UsageError(f"name the shards to cut: 0 to {count - 1}, or all of them")
    ids: set[int] = set()
    for text in (part.strip() for one in texts for part in one.split(",")):
        if text == "all":
            ids |= set(range(count))
        elif text.isascii() and text.isdigit() and len(text) < 10 and int(text) < count:
            ids.add(int(text))
        else:
            raise UsageError(f"there is no shard {text[:20]!r}: cut like this, the model has shards 0 to {count - 1}")
    return tuple(sorted(ids))
