"""A shard in memory, as loading makes it and chains run it. Lives in the engine process only."""

from __future__ import annotations

from dataclasses import dataclass

from shardnet.inference.engine.protocol import Load
from shardnet.inference.llama.model import LlamaContext, LlamaModel


@dataclass(slots=True)
class Shard:
    """One shard in memory. `mapped_bytes`: of `memory_bytes`, weights that are read from the mapped file."""

    request: Load
    model: LlamaModel
    context: LlamaContext
    has_head: bool
    memory_bytes: int
    gpu_bytes: int
    mapped_bytes: int

    def close(self) -> None:
        """Free its memory."""
        self.context.close()
        self.model.close()
