"""What quantising loses: sums that are gathered while rows are made, and the figures that follow from them.

Pure arithmetic. Of a tensor x that became y only three sums are kept, of d = x - y: x·x, x·d and d·d. From them cosine and root mean square error
follow without the cancellation that x·y would suffer.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DOT_LENGTH = 4096
"""Sums of so many products are made in float32, and added up in float64. Below what makes a BLAS start threads of its own."""


class Sums(NamedTuple):
    """Of `n_weights` weights x, and what they lost, d."""

    n_weights: int
    xx: float
    xd: float
    dd: float

    def __add__(self, other: object) -> Sums:
        if not isinstance(other, Sums):
            return NotImplemented
        return Sums(self.n_weights + other.n_weights, self.xx + other.xx, self.xd + other.xd, self.dd + other.dd)

    @property
    def rmse(self) -> float:
        """Returns: root mean square of what a weight lost."""
        return sqrt(self.dd / self.n_weights) if self.n_weights else 0.0

    @property
    def cosine(self) -> float:
        """Returns: cosine similarity of the weights before and after; 1 if both are all zeros, 0 if only one is."""
        if self.xx == 0:
            return 1.0 if self.dd == 0 else 0.0
        along, lost = self.xd / self.xx, self.dd / self.xx
        length = 1 - 2 * along + lost
        return (1 - along) / sqrt(length) if length > 0 else 0.0


NOTHING = Sums(0, 0.0, 0.0, 0.0)


def dot(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    """Returns: the sum of products of two vectors of the same length; inf or nan if a number is not finite."""
    whole = left.size // DOT_LENGTH * DOT_LENGTH
    parts = np.vecdot(left[:whole].reshape(-1, DOT_LENGTH), right[:whole].reshape(-1, DOT_LENGTH))
    return float(parts.sum(dtype=np.float64)) + float(np.vecdot(left[whole:], right[whole:]))


@dataclass(frozen=True, slots=True)
class TensorLoss:
    """One tensor before and after. `is_weighed`: an importance matrix said which columns matter."""

    name: str
    type_before: str
    type_after: str
    bytes_before: int
    bytes_after: int
    sums: Sums
    is_weighed: bool

    def facts(self) -> dict[str, object]:
        """Returns: what JSON says of it."""
        return {
            "name": self.name,
            "from": self.type_before,
            "to": self.type_after,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "cosine": self.sums.cosine,
            "rmse": self.sums.rmse,
            "importance": self.is_weighed,
        }


@dataclass(frozen=True, slots=True)
class LossReport:
    """A model before and after: `tensors` are those that changed; the bytes are of all, so also of those that kept their type.

    `n_unmeasured` tensors changed, but were written by an earlier run that was broken off.
    """

    tensors: tuple[TensorLoss, ...]
    bytes_before: int
    bytes_after: int
    n_unmeasured: int

    @property
    def ratio(self) -> float:
        """Returns: how many times smaller the tensors have become."""
        return self.bytes_before / self.bytes_after if self.bytes_after else inf

    @property
    def overall(self) -> Sums:
        """Returns: over all weights of the tensors that changed."""
        return sum((loss.sums for loss in self.tensors), NOTHING)

    def facts(self) -> dict[str, object]:
        """Returns: what JSON says: the whole, then tensor by tensor."""
        return {
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "ratio": self.ratio,
            "cosine": self.overall.cosine,
            "rmse": self.overall.rmse,
            "unmeasured": self.n_unmeasured,
            "tensors": [loss.facts() for loss in self.tensors],
        }
