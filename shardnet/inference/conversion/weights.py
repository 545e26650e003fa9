"""One tensor of a checkpoint, read block by block in the type in which it goes on: FP8 with its scales applied, all else as it is.

Refuses to know what the tensor is for.

Source: transformers 5.24.0, integrations/finegrained_fp8.py: weight = stored * weight_scale_inv, one scale for each block of rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from shardnet.errors import CheckpointError
from shardnet.inference.checkpoints.config import CheckpointConfig
from shardnet.inference.checkpoints.header import StoredTensor
from shardnet.inference.checkpoints.sharded import ShardedSafeTensors

BLOCK_BYTES = 4 << 20
"""Of what is read at once. A block has whole heads, whole blocks of scales, or one expert, however large these are."""

BF16 = np.dtype(ml_dtypes.bfloat16)
F8 = frozenset({"F8_E4M3", "F8_E5M2"})
GOES_ON_AS: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f4"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BF16,
    "F8_E4M3": BF16,
    "F8_E5M2": BF16,
}
"""dtype in the file -> dtype that is read here; BF16 holds every F8 exactly, and is what models with F8 are trained in."""

SCALE = "_scale_inv"
QUANTISED_OTHERWISE = "which is not undone here: fetch the checkpoint before it was quantised, or a GGUF"

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor, and the scales that belong to it. `scale_block` is (rows, columns) of one scale; None without scales."""

    checkpoint: ShardedSafeTensors
    stored: StoredTensor
    scales: StoredTensor | None = None
    scale_block: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Returns: of what `blocks` gives."""
        return GOES_ON_AS[self.stored.dtype]

    def blocks(self, multiple: int = 1) -> Iterator[Array]:
        """Yield all rows in order, in blocks whose number of rows is a multiple of `multiple` (the last may end early).

        Raises: CheckpointError if the file has changed.
        """
        if not self.stored.shape:
            yield self.checkpoint.tensor(self.stored.name).astype(self.dtype)
            return
        step = multiple * (self.scale_block[0] if self.scale_block else 1)
        row_bytes = max(self.stored.nbytes // self.stored.n_rows, 1)
        step *= max(1, BLOCK_BYTES // (row_bytes * step))
        for first in range(0, self.stored.n_rows, step):
            end = min(first + step, self.stored.n_rows)
            yield self._scaled(self.checkpoint.rows(self.stored.name, first, end), first)

    def _scaled(self, rows: Array, first: int) -> Array:
        if self.scales is None or self.scale_block is None:
            return rows.astype(self.dtype, copy=False)
        n_rows, n_columns = self.scale_block
        scales = self.checkpoint.tensor(self.scales.name).astype(np.float32)
        values = rows.astype(np.float32)
        if scales.ndim < 2:  # one scale for the whole tensor
            return (values * scales.reshape(())).astype(self.dtype)
        scales = scales[first // n_rows : -(-(first + len(rows)) // n_rows)]
        wide = np.repeat(np.repeat(scales, n_rows, axis=0)[: len(rows)], n_columns, axis=1)[:, : rows.shape[1]]
        return (values * wide).astype(self.dtype)


def read_weights(checkpoint: ShardedSafeTensors, config: CheckpointConfig) -> dict[str, Weight]:
    """Returns: name -> weight for each tensor of a checkpoint; scales are part of the weight that they belong to.

    Raises: CheckpointError if the weights are quantised in a way that cannot be undone here, or have a type that none can have.
    """
    if config.quantised_by not in (None, "fp8"):
        raise CheckpointError(
            f"{config.path} says that the weights are quantised by {config.quantised_by}, {QUANTISED_OTHERWISE}"
        )
    stored = {
        name: tensor for name, tensor in checkpoint.tensors.items() if not name.endswith((SCALE, "activation_scale"))
    }
    return {name: _weight(checkpoint, config, tensor) for name, tensor in stored.items()}


def _weight(checkpoint: ShardedSafeTensors, config: CheckpointConfig, stored: StoredTensor) -> Weight:
    if stored.dtype not in GOES_ON_AS:
        raise CheckpointError(
            f"tensor {stored.name!r} in {stored.path} has the dtype {stored.dtype}: weights have one of {', '.join(GOES_ON_AS)}"
        )
    if not stored.n_elements:
        raise CheckpointError(f"tensor {stored.name!r} in {stored.path} is empty")
    if stored.dtype not in F8:
        return Weight(checkpoint, stored)
    scales = checkpoint.tensors.get(stored.name + SCALE)
    if scales is None:
        raise CheckpointError(
            f"tensor {stored.name!r} in {stored.path} is {stored.dtype}, and has no scales ({stored.name}{SCALE}), {QUANTISED_OTHERWISE}"
        )
    block = _scale_block(config)
    due = tuple(-(-length // size) for length, size in zip(stored.shape, block, strict=False))
    if scales.n_elements != 1 and (len(stored.shape) != 2 or scales.shape != due):
        raise CheckpointError(
            f"tensor {scales.name!r} in {scales.path} has the shape {list(scales.shape)}, where {list(due)} is due for blocks of {list(block)}"
        )
    return Weight(checkpoint, stored, scales, block)


def _scale_block(config: CheckpointConfig) -> tuple[int, int]:
    """Returns: (rows, columns) of the weights that share a scale."""
    block = (config.text.get("quantization_config") or {}).get("weight_block_size")
    match block:
        case None:
            return 1, 1  # one scale for all
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
        case _:
            raise CheckpointError(f"{config.path} is damaged: its weight_block_size is {block!r}")
