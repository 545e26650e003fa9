"""What a node tells Prometheus of its shards."""

from __future__ import annotations

from shardnet.messages import HeldShard
from shardnet.node.figures import count_states
from shardnet.node.shards.records import Phase

MODEL = "ab" * 32


def held(shard_id: int, *, loaded: bool, phase: Phase = Phase.IDLE, trouble: str = "") -> HeldShard:
    progress = None if phase is Phase.IDLE else 0.5
    return HeldShard(model_id=MODEL, shard_id=shard_id, loaded=loaded, progress=progress, detail=phase.value or trouble)


def test_a_shard_whose_file_is_gone_or_damaged_is_in_memory_still() -> None:
    trouble = "its file is gone: what is in memory works on, and has to be fetched once the engine ends"
    found = count_states([held(0, loaded=True, trouble=trouble), held(1, loaded=True), held(2, loaded=False)])
    assert (found["in_memory"], found["on_disk"], sum(found.values())) == (2, 1, 3)


def test_what_is_being_done_is_told_by_its_name() -> None:
    busy = [phase for phase in Phase if phase is not Phase.IDLE]
    found = count_states([held(number, loaded=False, phase=phase) for number, phase in enumerate(busy)])
    assert {phase.name.lower(): found[phase.name.lower()] for phase in busy} == {
        phase.name.lower(): 1 for phase in busy
    }
    assert found["in_memory"] == found["on_disk"] == 0
