"""Where to cut a model: pure functions over bytes per layer and the family's legal cut points."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from shardnet.errors import UsageError
from shardnet.shards import LayerRange

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)[bB]?\s*$")
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True)
class Weights:
    """What has to be balanced, bytes. `first` and `last` come on top of the first and last shard: embedding and head."""

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
    """Returns: `n_shards - 1` legal cuts that make the largest shard as small as can be; among equals, the earliest.

    Args:
        forbidden_lengths: numbers of layers that no shard of several may have.

    Raises: UsageError naming how many shards are possible.
    """
    n_layers = len(weights.layers)
    if n_shards < 1 or n_shards > len(legal) + 1:
        raise UsageError(
            f"{n_shards} shards are not possible: this model has {len(legal)} legal cut points, so 1 to {len(legal) + 1}"
        )
    points = (0, *legal, n_layers)
    sizes = {
        (a, b): weights.of(points[a], points[b])
        for a in range(len(points))
        for b in range(a + 1, len(points))
        if n_shards == 1 or points[b] - points[a] not in forbidden_lengths
    }
    # best[b] after k rounds: the smallest largest shard that covers points[0..b] with k shards, and its cuts.
    best: dict[int, tuple[int, tuple[int, ...]]] = {
        b: (sizes[0, b], ()) for b in range(1, len(points)) if (0, b) in sizes
    }
    for _ in range(n_shards - 1):
        following: dict[int, tuple[int, tuple[int, ...]]] = {}
        for b in range(1, len(points)):
            options = [
                (max(best[a][0], sizes[a, b]), (*best[a][1], points[a]))
                for a in range(1, b)
                if a in best and (a, b) in sizes
            ]
            if options:
                following[b] = min(options)
        best = following
    if len(points) - 1 not in best:
        lengths = ", ".join(map(str, sorted(forbidden_lengths)))
        raise UsageError(
            f"{n_shards} shards are not possible: llama.cpp mistakes shards of {lengths} layers for another model"
        )
    return best[len(points) - 1][1]


def cuts_by_size(
    weights: Weights, legal: Sequence[int], max_bytes: int, forbidden_lengths: frozenset[int] = frozenset()
) -> tuple[int, ...]:
    """Returns: balanced cuts for the fewest shards none of which is larger than `max_bytes`.

    Raises: UsageError naming the smallest size that is possible.
    """
    smallest = 0
    for n_shards in range(1, len(legal) + 2):
        cuts = balanced_cuts(weights, legal, n_shards, forbidden_lengths)
        smallest = max(weights.of(part.first, part.end) for part in ranges(cuts, len(weights.layers)))
        if smallest <= max_bytes:
            return cuts
    raise UsageError(f"no legal cut keeps every shard under {max_bytes} bytes; the smallest possible is {smallest}")


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
