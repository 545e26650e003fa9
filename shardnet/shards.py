"""Layer ranges and tensor descriptions: the plain data that every part of shardnet speaks of.

No I/O, and no import of ours but `errors`.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from math import prod
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

DTYPE_BYTES = {"float32": 4, "float16": 2, "int32": 4}


class Dtype(StrEnum):
    """Element types that may travel."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT32 = "int32"


class Frozen(BaseModel):
    """Base of all plain data: immutable, strict, unknown fields refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class LayerRange(Frozen):
    """Half-open range `[first, end)` of a model's layers."""

    first: int = Field(ge=0, le=10_000)
    end: int = Field(ge=1, le=10_000)

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.end <= self.first:
            raise ValueError(f"layer range [{self.first}, {self.end}) is empty")
        return self

    def __len__(self) -> int:
        return self.end - self.first

    def __str__(self) -> str:
        return f"[{self.first}, {self.end})"


def joined(ranges: Iterable[LayerRange]) -> list[LayerRange]:
    """Returns: the ranges in order, neighbours joined."""
    result: list[LayerRange] = []
    for one in sorted(ranges, key=lambda layers: layers.first):
        if result and result[-1].end == one.first:
            result[-1] = LayerRange(first=result[-1].first, end=one.end)
        else:
            result.append(one)
    return result


class TensorSpec(Frozen):
    """One tensor that follows a header: C order, little endian."""

    name: str = Field(max_length=32, pattern=r"^[a-z_]+$")
    dtype: Dtype = Field(strict=False)
    shape: tuple[int, ...] = Field(max_length=4, strict=False)

    @model_validator(mode="after")
    def _sizes_are_sane(self) -> Self:
        if any(side < 0 or side > 1 << 31 for side in self.shape):
            raise ValueError(f"tensor {self.name}: a side of {self.shape} is out of range")
        return self

    @property
    def nbytes(self) -> int:
        """Returns: bytes of the tensor's data on the wire."""
        return prod(self.shape) * DTYPE_BYTES[self.dtype]
