"""A shard in memory, as loading makes it and chains run it. Lives in the engine process only."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from shardnet.inference.engine.protocol import Load
from shardnet.inference.llama.batch import Rows
from shardnet.inference.llama.model import LlamaContext, LlamaModel
from shardnet.inference.llama.read_ahead import ReadAhead
from shardnet.messages import MemoryMode


@dataclass(slots=True)
class Shard:
    """One shard in memory. Of `memory_bytes`, `gpus`: bytes on each GPU; `mapped_bytes`: weights that are read from the mapped file.

    `ahead` reads those of a streamed shard. `why` it is held like this, for people; "" where there was no choice.
    """

    request: Load
    model: LlamaModel
    context: LlamaContext
    has_head: bool
    memory_bytes: int
    gpus: Counter[str]
    mapped_bytes: int
    ahead: ReadAhead | None = None
    why: str = ""

    @property
    def memory_mode(self) -> MemoryMode:
        """Returns: how it is held."""
        return "resident" if self.ahead is None else "streamed"

    def set_threads(self, threads: int) -> None:
        """Compute with so many CPU threads from the next batch on. It changes no number.

        A streamed shard leaves one of them to the thread that reads: with as many as cores, each waits for that one at every layer.
        """
        self.context.set_threads(threads if self.ahead is None else max(1, threads - 1))

    def decode(self, rows: Rows) -> None:
        """Run one batch, as `LlamaContext.decode`."""
        self.context.decode(rows)
        if self.ahead is not None:
            self.ahead.pass_done()

    def decode_for_embeddings(self, rows: Rows) -> None:
        """Run one batch, as `LlamaContext.decode_for_embeddings`."""
        self.context.decode_for_embeddings(rows)
        if self.ahead is not None:
            self.ahead.pass_done()

    def close(self) -> None:
        """Free its memory."""
        if self.ahead is not None:
            self.ahead.close()
        self.context.close()
        self.model.close()
