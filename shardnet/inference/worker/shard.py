"""A shard in memory, as loading makes it and chains run it. Lives in the engine process only."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from shardnet.inference.engine.protocol import Load
from shardnet.inference.llama.batch import Rows
from shardnet.inference.llama.model import LlamaContext, LlamaModel
from shardnet.inference.llama.read_ahead import ReadAhead
from shardnet.inference.llama.residency import least_budget
from shardnet.inference.worker.budgets import Budgets
from shardnet.messages import MemoryMode, StreamedWeights


@dataclass(slots=True)
class Shard:
    """One shard in memory. Of `memory_bytes`, `gpus`: bytes on each GPU; `mapped_bytes`: weights that are read from the mapped file.

    `ahead` reads those of a streamed shard, within a budget that comes on top. `why` it is held like this, for people; "" where there was no choice.
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
    repacked: bool = True
    budgets: Budgets | None = None

    @property
    def whole_bytes(self) -> int:
        """Returns: `memory_bytes`, and the budget of a streamed shard."""
        return self.memory_bytes + (0 if self.ahead is None else self.ahead.budget)

    @property
    def streamed(self) -> StreamedWeights | None:
        """Returns: what streaming it costs; None where all of it stays."""
        ahead = self.ahead
        if ahead is None:
            return None
        return StreamedWeights(
            weights_bytes=sum(ahead.stage_bytes),
            stays_bytes=ahead.stays_bytes,
            budget_bytes=ahead.budget,
            least_bytes=least_budget(ahead.stage_bytes),
            bytes_per_s=ahead.bytes_per_s,
            passing_bytes=ahead.measured_pass_bytes,
        )

    @property
    def memory_mode(self) -> MemoryMode:
        """Returns: how it is held."""
        return "resident" if self.ahead is None else "streamed"

    def decode(self, rows: Rows) -> None:
        """Run one batch, as `LlamaContext.decode`."""
        if self.ahead is not None:
            self.ahead.begin_pass()
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
            if self.budgets is not None:
                self.budgets.leave(self.ahead)
        self.context.close()
        self.model.close()
