"""The shards in the engine's memory, and running batches of steps through chains of them. Lives in the engine process only."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shardnet.errors import ContextExceeded, EngineError, SequenceGap, ShardnetError, ShardNotFound
from shardnet.inference.engine.steps import NO_SEQUENCE, READINGS, Step, parse_sampling
from shardnet.inference.llama.batch import Rows
from shardnet.inference.llama.grammar import Grammars
from shardnet.inference.worker.away import Away
from shardnet.inference.worker.reading import Reader
from shardnet.inference.worker.rows import Lane
from shardnet.inference.worker.sequences import SequenceState, SequenceTable
from shardnet.inference.worker.shard import Shard
from shardnet.inference.worker.step_sampling import sample
from shardnet.inference.worker.tasks import Outcome, Task, rows_of


@dataclass(slots=True)
class _Model:
    """All that the engine knows of one model."""

    shards: dict[int, Shard] = field(default_factory=dict)
    away: Away = field(default_factory=Away)
    sequences: SequenceTable = field(default_factory=SequenceTable)
    grammars: Grammars = field(default_factory=Grammars)


@dataclass(frozen=True, slots=True)
class _Chain:
    """Contiguous shards of a model, and what all of them can do."""

    model: _Model
    shards: list[Shard]
    n_batch: int
    n_ctx: int
    n_seq: int

    @property
    def has_head(self) -> bool:
        return self.shards[-1].has_head


class Chains:
    """Shards of any number of models."""

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}
        self._chains: dict[tuple[str, int, int], _Chain] = {}
        self.busy_s = 0.0
        self.memory_bytes = 0
        """Bytes of all shards here, and of what is kept of others; the loader's thread reads it."""
        self.gpus: Counter[str] = Counter()
        self.mapped_bytes = 0

    @property
    def n_sequences(self) -> int:
        """Returns: sequences with a slot, over all models."""
        return sum(len(model.sequences) for model in self._models.values())

    def shards(self) -> list[Shard]:
        """Returns: every shard that is here."""
        return [shard for model in self._models.values() for shard in model.shards.values()]

    def get(self, model_id: str, shard_id: int) -> Shard | None:
        """Returns: a shard, if it is here."""
        model = self._models.get(model_id)
        return None if model is None else model.shards.get(shard_id)

    def add(self, shard: Shard) -> None:
        """Take in a loaded shard, in place of an earlier one of the same id."""
        model = self._models.setdefault(shard.request.model_id, _Model())
        earlier = model.shards.get(shard.request.shard_id)
        if earlier is not None:
            self._close(model, earlier)
            model.sequences.shard_gone(shard.request.shard_id)
        self._chains.clear()
        model.shards[shard.request.shard_id] = shard
        self.memory_bytes += shard.memory_bytes + model.away.bring_back(shard, model.sequences)
        self.gpus = self.gpus + shard.gpus  # another one, since the loader's thread may be reading this
        self.mapped_bytes += shard.mapped_bytes

    def remove(self, model_id: str, shard_id: int, *, keep_sequences: bool = False) -> None:
        """Free a shard; nothing happens if it is not here.

        Args:
            keep_sequences: keep its sequences' KV for when it comes back.

        Raises: EngineError if they cannot be kept; the shard stays then.
        """
        model = self._models.get(model_id)
        if model is None:
            return
        shard = model.shards.get(shard_id)
        if keep_sequences and shard is not None:
            self.memory_bytes += model.away.keep(shard, model.sequences)
        if shard is not None:
            self._close(model, shard)
        if not keep_sequences:
            self.memory_bytes += model.away.drop(shard_id)
            model.sequences.shard_gone(shard_id)
        if not model.shards and not model.away:
            del self._models[model_id]

    def _close(self, model: _Model, shard: Shard) -> None:
        self._chains.clear()
        del model.shards[shard.request.shard_id]
        if shard.has_head:
            model.grammars.drop_all()  # they hold on to its vocabulary
        shard.close()
        self.memory_bytes -= shard.memory_bytes
        self.gpus = self.gpus - shard.gpus
        self.mapped_bytes -= shard.mapped_bytes

    def forget(self, sequence_id: str) -> None:
        """Drop a sequence in every model."""
        for model in self._models.values():
            model.grammars.drop(sequence_id)
            state = model.sequences.forget(sequence_id)
            if state is not None:
                for shard_id in state.lengths.keys() & model.shards.keys():
                    model.shards[shard_id].context.truncate(state.slot, 0)
                self.memory_bytes += model.away.forget(sequence_id)
                state.lengths.clear()  # a lane may still have it, and its slot is another's now

    def check(self, task: Task) -> int:
        """Look a step over before it waits.

        Returns: most rows that one batch of its chain may have.
        Raises: ShardNotFound, ContextExceeded, or EngineError for tensors that do not fit.
        """
        step = task.step
        chain = self._chain(step)
        n_tokens = step.n_tokens
        if n_tokens > chain.n_batch:
            raise EngineError(
                f"a step of {n_tokens} rows, where this stage takes {chain.n_batch} at once", n_batch=chain.n_batch
            )
        if step.position + n_tokens > chain.n_ctx:
            raise ContextExceeded(
                f"the sequence would have {step.position + n_tokens} tokens, and its context has {chain.n_ctx}",
                n_ctx=chain.n_ctx,
            )
        if task.tokens.shape != (n_tokens,):
            raise EngineError(f"tokens of shape {task.tokens.shape}, where ({n_tokens},) is needed")
        model = chain.shards[0].model
        if step.first_shard == 0:
            ids = task.tokens.tolist()
            if min(ids) < 0 or max(ids) >= model.n_vocab:
                raise EngineError(f"a token id is outside the vocabulary of {model.n_vocab}")
        elif task.hidden is None or task.hidden.shape != (n_tokens, model.n_embd):
            shape = None if task.hidden is None else task.hidden.shape
            raise EngineError(f"hidden states of shape {shape}, where ({n_tokens}, {model.n_embd}) is needed")
        if step.reads and chain.has_head:
            if step.samples and READINGS[step.reads] != "logprobs":
                raise EngineError(
                    "a step that reads hidden states samples nothing: some models compute no logits beside them"
                )
            n_vocab = chain.shards[-1].model.n_vocab
            following = (*task.tokens.tolist(), max(0, step.next_token))
            if min(following) < 0 or max(following) >= n_vocab:
                raise EngineError(f"a token id is outside the vocabulary of {n_vocab}")
        return chain.n_batch

    def room(self, step: Step, position: int) -> int:
        """Returns: how many tokens of a sequence find room from `position` on; 0 where this step's shards are not a whole model."""
        if step.first_shard:
            return 0
        try:
            chain = self._chain(step)
        except ShardnetError:
            return 0
        return chain.n_ctx - position if chain.has_head else 0

    def n_ctx(self, step: Step) -> int:
        """Returns: tokens of context that a step's chain has; 0 if it is not here."""
        try:
            return self._chain(step).n_ctx
        except ShardnetError:
            return 0

    def slot(self, step: Step) -> int:
        """Returns: the place that a step's sequence has in every shard; 0 if it is not here."""
        model = self._models.get(step.model_id)
        state = None if model is None else model.sequences.get(step.sequence_id)
        return 0 if state is None else state.slot

    def lane(self, step: Step) -> Lane | None:
        """Returns: the short way of the rows that follow this step, of a sequence that is here; None if it has none, or not any more."""
        try:
            chain = self._chain(step)
        except ShardnetError:
            return None
        state = chain.model.sequences.get(step.sequence_id)
        contexts = [shard.context for shard in chain.shards]
        sampling = parse_sampling(step.sampling)
        if state is None or state.slot >= chain.n_seq or not Lane.fits(contexts, sampling):
            return None
        return Lane(contexts, range(step.first_shard, step.end_shard), state, sampling)

    def _chain(self, step: Step) -> _Chain:
        key = (step.model_id, step.first_shard, step.end_shard)
        chain = self._chains.get(key)
        if chain is None:
            chain = self._chains[key] = self._find_chain(*key)
        return chain

    def _find_chain(self, model_id: str, first: int, end: int) -> _Chain:
        if end <= first:
            raise EngineError(f"shards [{first}, {end}) are none")
        model = self._models.get(model_id)
        missing = [i for i in range(first, end) if model is None or i not in model.shards]
        if model is None or missing:
            raise ShardNotFound(
                f"shard {', '.join(map(str, missing[:8]))} is not loaded in this engine", shard_id=missing[0]
            )
        shards = [model.shards[i] for i in range(first, end)]
        if any(shard.has_head for shard in shards[:-1]):
            raise EngineError(f"shards [{first}, {end}) go on behind the model's last layer")
        return _Chain(
            model=model,
            shards=shards,
            n_batch=min(shard.context.n_batch for shard in shards),
            n_ctx=min(shard.context.n_ctx for shard in shards),
            n_seq=min(shard.context.n_seq for shard in shards),
        )

    def run(self, tasks: Sequence[Task], answer: Callable[[Outcome], None]) -> None:
        """Run one step, or several of equally many rows, of one chain and different sequences, as one batch; answer each as soon as it is known."""
        began = time.perf_counter()
        try:
            chain = self._chain(tasks[0].step)
        except ShardnetError as error:  # unloaded while they waited
            for task in tasks:
                answer(Outcome(task, error=error))
            return
        ready: list[tuple[Task, SequenceState]] = []
        for task in tasks:
            try:
                ready.append((task, self._prepare(task.step, chain)))
            except ShardnetError as error:
                answer(Outcome(task, error=error))
        if not ready:
            return
        ready.sort(key=lambda pair: pair[1].slot)
        reader = Reader(ready[0][0]) if chain.has_head and ready[0][0].step.reads else None  # such a step is alone
        try:
            hidden = self._decode(chain, ready, reader)
        except ShardnetError as error:
            for task, _ in ready:
                if task.step.copy_from != NO_SEQUENCE:  # llama.cpp copies when it decodes: whether it did is not known
                    self.forget(task.step.sequence_id)
            if len(ready) == 1:
                answer(Outcome(ready[0][0], error=error))
            else:  # one of them may be at fault: steps are repeatable, so each is tried alone
                for task, _ in ready:
                    self.run([task], answer)
            return
        n_each = tasks[0].step.n_tokens
        outcomes = []
        for index, (task, state) in enumerate(ready):
            end = (index + 1) * n_each
            outcome = Outcome(task, batch_rows=n_each * len(ready))
            if hidden is not None:
                outcome.hidden = hidden[end - n_each : end]
            elif task.step.samples:
                last_row = end - 1 if reader is None else reader.last_row
                sample(task, state, chain.shards[-1].context, last_row, chain.model.grammars, outcome)
            if reader is not None:
                outcome.read = reader.read
            outcomes.append(outcome)
        compute_s = time.perf_counter() - began
        self.busy_s += compute_s
        for outcome in outcomes:
            outcome.compute_s = compute_s  # of the whole batch, all its sampling included
            answer(outcome)

    def _prepare(self, step: Step, chain: _Chain) -> SequenceState:
        """Copy what the step begins with from another sequence, if it says so, and apply the position rule to the KV caches."""
        if step.copy_from != NO_SEQUENCE:
            self._copy(step, chain)
        rewind = chain.model.sequences.prepare(
            step.sequence_id,
            range(step.first_shard, step.end_shard),
            step.position,
            n_seq=chain.n_seq,
            keeps_history=chain.has_head,
        )
        state = rewind.state
        for shard_id in rewind.shards:
            if not chain.model.shards[shard_id].context.truncate(state.slot, step.position):
                self.forget(step.sequence_id)
                raise SequenceGap(
                    "this model's state cannot be taken back to an earlier position: replay the sequence from its start",
                    have=0,
                    position=step.position,
                )
            state.lengths[shard_id] = step.position
        return state

    def _copy(self, step: Step, chain: _Chain) -> None:
        if any(shard.model.is_recurrent for shard in chain.shards):
            raise SequenceGap(
                "this model's state is that of its last token: no beginning of it can be copied",
                have=0,
                position=step.position,
            )
        copy = chain.model.sequences.copy(
            step.sequence_id,
            step.copy_from,
            range(step.first_shard, step.end_shard),
            step.position,
            n_seq=chain.n_seq,
            keeps_history=chain.has_head,
        )
        if copy is None:
            return
        for shard_id in copy.shards:
            chain.model.shards[shard_id].context.copy(copy.source.slot, copy.state.slot, step.position)
            copy.state.lengths[shard_id] = step.position

    def _decode(
        self, chain: _Chain, ready: list[tuple[Task, SequenceState]], reader: Reader | None
    ) -> NDArray[np.float32] | None:
        """Returns: the hidden states of all rows after the last shard, or None if that has the head and holds logits now."""
        rows = rows_of(ready)
        first_shard = ready[0][0].step.first_shard
        hidden: NDArray[np.float32] | None = None
        for shard_id, shard in enumerate(chain.shards, first_shard):
            try:
                if reader is not None and shard.has_head:
                    reader.decode(shard, rows)
                else:
                    shard.decode(rows)
                if not shard.has_head:
                    hidden = shard.context.hidden(len(rows.positions))
                    rows = Rows(rows.positions, rows.slots, rows.outputs, hidden=hidden)
            except ShardnetError:
                for task, state in ready:  # how far llama.cpp came is not known: back to where the step began
                    _cut_back(shard, shard_id, state, task.step.position)
                raise
            for task, state in ready:
                state.lengths[shard_id] = task.step.position + task.step.n_tokens
        if not chain.has_head:
            return hidden
        for task, state in ready:
            state.history.frombytes(task.tokens.tobytes())
        return None


def _cut_back(shard: Shard, shard_id: int, state: SequenceState, position: int) -> None:
    if shard.context.truncate(state.slot, position):
        state.lengths[shard_id] = position
    else:
        shard.context.truncate(state.slot, 0)
        state.lengths[shard_id] = 0
