"""A shard in memory, as loading makes it and chains run it. Lives in the engine process only."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from shardnet.inference.engine.protocol import Load
from shardnet.inference.llama.model import LlamaContext, LlamaModel


@dataclass(slots=True)
class Shard:
    """One shard in memory. Of `memory_bytes`, `gpus`: bytes on each GPU; `mapped_bytes`: weights that are read from the mapped file."""

    request: Load
    model: LlamaModel
    context: LlamaContext
    has_head: bool
    memory_bytes: int
    gpus: Counter[str]
    mapped_bytes: int

    def close(self) -> None:
        """Free its memory."""
        self.context.close()
        self.model.close()
