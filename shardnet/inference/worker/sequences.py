"""Sequences of one model inside an engine: which slot each has, how far each shard has come, and the position rule. Pure.

The rule: a step that starts at `position` first drops what is there at and after it, then runs. So a step can be repeated, a proposal taken back and
a sequence rebuilt, all in the same way. A step that starts beyond what is there is a gap, and says from where to replay.

A sequence has the same slot in every shard of its model: the rows of a batch then stand in the same order all along a chain. The lowest free slot is
taken first, since llama.cpp computes in one piece only slots that are neighbours.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from shardnet.errors import Busy, SequenceGap

RETRY_AFTER_S = 1.0


@dataclass(slots=True)
class SequenceState:
    """One sequence.

    Invariant: no shard has KV for positions at or after its entry in `lengths`.

    Attributes:
        slot: its place in every context of the model.
        lengths: shard id -> tokens with KV there.
        history: int32, its tokens, kept where the model's head is.
    """

    slot: int
    lengths: dict[int, int] = field(default_factory=dict)
    history: array[int] = field(default_factory=lambda: array("i"))


@dataclass(frozen=True, slots=True)
class Rewind:
    """What is to be done before a step runs: `shards` drop the slot's KV at and after the step's position."""

    state: SequenceState
    shards: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Copy:
    """The beginning of `source` is to be that of `state` too, in `shards`."""

    source: SequenceState
    state: SequenceState
    shards: tuple[int, ...]


class SequenceTable:
    """All sequences of one model."""

    def __init__(self) -> None:
        self._states: dict[str, SequenceState] = {}

    def __len__(self) -> int:
        return len(self._states)

    def get(self, sequence_id: str) -> SequenceState | None:
        """Returns: a sequence, if it is here."""
        return self._states.get(sequence_id)

    def __contains__(self, sequence_id: str) -> bool:
        return sequence_id in self._states

    def in_shard(self, shard: int) -> Iterator[tuple[str, SequenceState]]:
        """Yield the sequences that have KV in a shard, with their ids."""
        for sequence_id, state in self._states.items():
            if state.lengths.get(shard):
                yield sequence_id, state

    def prepare(
        self, sequence_id: str, shards: Sequence[int], position: int, *, n_seq: int, keeps_history: bool
    ) -> Rewind:
        """Give a step its slot, and apply the position rule to what is known of the sequence.

        Args:
            shards: ids of the shards that the step runs through.
            n_seq: slots that all of these shards have.
            keeps_history: the last of these shards has the head.

        Raises: SequenceGap with `have`; Busy if the sequence is new and no slot is free.
        """
        state = self._states.get(sequence_id)
        if state is not None and state.slot >= n_seq:
            del self._states[sequence_id]  # a shard came back with fewer slots
            state = None
        have = 0
        if state is not None:
            have = min(state.lengths.get(shard, 0) for shard in shards)
            if keeps_history:
                have = min(have, len(state.history))
        if position > have:
            raise SequenceGap(
                f"the step starts at position {position}, but only {have} tokens of this sequence are here: replay from there",
                have=have,
                position=position,
            )
        if state is None:
            state = self._states[sequence_id] = SequenceState(self._free_slot(n_seq))
        stale = tuple(shard for shard in shards if state.lengths.get(shard, 0) > position)
        del state.history[position:]
        return Rewind(state, stale)

    def copy(
        self, sequence_id: str, source_id: str, shards: Sequence[int], position: int, *, n_seq: int, keeps_history: bool
    ) -> Copy | None:
        """Give a sequence the first `position` tokens of another one, for the step that starts there.

        Returns: what is to be copied in which shards; None if the sequence has so many tokens itself.
        Raises: SequenceGap if the other one is not here, or has not so many; Busy if no slot is free.
        """
        state = self._states.get(sequence_id)
        lengths = {} if state is None or state.slot >= n_seq else state.lengths
        missing = tuple(shard for shard in shards if lengths.get(shard, 0) < position)
        if not missing:
            return None
        source = self._states.get(source_id)
        have = 0 if source is None else min(source.lengths.get(shard, 0) for shard in missing)
        if source is None or source.slot >= n_seq or have < position:
            raise SequenceGap(
                f"{position} tokens are to be copied from another sequence, of which {have} are here: begin without it",
                have=0,
                position=position,
            )
        if state is None or state.slot >= n_seq:
            state = self._states[sequence_id] = SequenceState(self._free_slot(n_seq))
        if keeps_history:
            state.history = source.history[:position]
        return Copy(source, state, missing)

    def _free_slot(self, n_seq: int) -> int:
        taken = {state.slot for state in self._states.values()}
        for slot in range(n_seq):
            if slot not in taken:
                return slot
        raise Busy(
            f"all {n_seq} sequences that this stage has room for are in use: try again, or load its shards with a larger n_seq",
            n_seq=n_seq,
            retry_after_s=RETRY_AFTER_S,
        )

    def forget(self, sequence_id: str) -> SequenceState | None:
        """Take a sequence out. Returns: its state, whose slot in each shard of `lengths` is to be emptied."""
        return self._states.pop(sequence_id, None)

    def shard_gone(self, shard: int) -> None:
        """A shard was unloaded, and all its KV with it."""
        for sequence_id, state in list(self._states.items()):
            state.lengths.pop(shard, None)
            if not state.lengths:
                del self._states[sequence_id]
