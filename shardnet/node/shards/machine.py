"""What this node holds, and what to do about it: events in, effects out. No I/O, no clock, no event loop.

Each shard has one queue of waiters (commands, tasks, the start itself) and at most one thing being done about it. So concurrent requests for a shard
share one verification, one download and one load, and are answered in the order in which they came.

`NodeState` keeps the shards' records and gives each event to whom it is for: `commands` puts what the coordinator asks into the queues, `rule` does
what the first in a queue needs, `waiters` tells each of them how it ended.

Knows nothing of the network, of how a file is hashed or fetched, nor of tasks' arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import assert_never

from shardnet.ids import ShardKey
from shardnet.log import human_bytes
from shardnet.manifest import Manifest
from shardnet.messages import HeldShard, ShardOptions
from shardnet.node.shards.assignment import Assignment, Binding, means_none
from shardnet.node.shards.catalogue import Catalogue
from shardnet.node.shards.commands import Commands
from shardnet.node.shards.effects import Effect, FailTask, Note, PreloadDone
from shardnet.node.shards.events import (
    CacheScanned,
    DeadlinePassed,
    DrainBegan,
    EngineCameBack,
    Event,
    FetchFailed,
    FileGivenUp,
    FileGone,
    FileRotted,
    LoadAsked,
    LoadFailed,
    PreloadAsked,
    Progressed,
    Quarantined,
    ShardFetched,
    ShardLoaded,
    ShardUnloaded,
    ShardVerified,
    ShareAsked,
    TaskGone,
    TaskWaits,
    UnloadAsked,
    VerifyFailed,
)
from shardnet.node.shards.records import InMemory, Kind, Phase, ShardRecord, Want
from shardnet.node.shards.rule import Rule
from shardnet.node.shards.waiters import Waiters
from shardnet.node.tasks.timings import ShardTimes


class NodeState:
    """One node's shards.

    Args:
        cache: the models cache, where files of new models are to be put.
        can_fetch: somebody can get shards from other nodes.
        require_proof: models that were not proved are not run.
    """

    def __init__(self, cache: Path, assignment: Assignment, *, can_fetch: bool, require_proof: bool = False) -> None:
        self.catalogue = Catalogue(cache, assignment, require_proof=require_proof)
        self._assignment = assignment
        self._records: dict[ShardKey, ShardRecord] = {}
        self._waiters = Waiters(self._records, self.catalogue)
        self._rule = Rule(self.catalogue, self._waiters, can_fetch=can_fetch)
        self._commands = Commands(self._records, self.catalogue, self._waiters, self._rule)
        self._ready_chains: set[tuple[str, int, int]] = set()  # until the next event

    # -- questions -----------------------------------------------------------------------------------------------------------

    @property
    def is_draining(self) -> bool:
        """True once the node is leaving."""
        return self._commands.is_draining

    @property
    def loaded_before_join(self) -> bool:
        """True if a shard was taken into memory at the start."""
        return self._waiters.loaded_before_join

    def knows(self, model_id: str) -> bool:
        """True if the model's manifest is here."""
        return model_id in self.catalogue.models

    def in_use(self, key: ShardKey) -> bool:
        """True if something is being done with the shard, or it is in memory: its file may not go."""
        record = self._records.get(key)
        return record is not None and (record.memory is not None or record.phase is not Phase.IDLE)

    def files(self) -> tuple[tuple[ShardKey, Path], ...]:
        """Returns: every file that this node takes for a shard's."""
        return tuple((key, path) for key, record in self._records.items() for path in record.paths)

    def held_manifests(self) -> tuple[Manifest, ...]:
        """Returns: manifests of models of which at least one shard is here."""
        here = {key[0] for key, record in self._records.items() if record.paths}
        return tuple(model.manifest for model_id, model in self.catalogue.models.items() if model_id in here)

    def chain_is_ready(self, model_id: str, first_shard: int, end_shard: int) -> bool:
        """True if all shards of the stage are in memory. Asked for every task."""
        chain = (model_id, first_shard, end_shard)
        if chain in self._ready_chains:
            return True
        for shard_id in range(first_shard, end_shard):
            record = self._records.get(ShardKey((model_id, shard_id)))
            if record is None or record.memory is None:
                return False
        self._ready_chains.add(chain)
        return True

    def is_fetch_stopped(self, key: ShardKey) -> bool:
        """True if the shard's download was ended because nobody waits for it."""
        return self._records[key].is_fetch_stopped

    def n_layers(self) -> dict[ShardKey, int]:
        """Returns: how many layers each shard in memory has."""
        models = self.catalogue.models
        return {
            key: len(models[key[0]].manifest.content.shards[key[1]].layers)
            for key, record in self._records.items()
            if record.memory is not None
        }

    def held(self, times: Mapping[ShardKey, ShardTimes]) -> tuple[HeldShard, ...]:
        """Returns: every shard that is here or on its way, as the coordinator is told."""
        found = (record.as_held(times.get(key, ShardTimes())) for key, record in sorted(self._records.items()))
        return tuple(held for held in found if held is not None)

    def memory_wanted(self) -> tuple[int, int]:
        """Returns: bytes of the files of all shards in memory, and bytes of their KV caches by the options they were loaded with."""
        weights = kv = 0
        for (model_id, shard_id), record in self._records.items():
            if record.memory is not None and model_id in self.catalogue.models:
                shard = self.catalogue.models[model_id].manifest.content.shards[shard_id]
                options = record.memory.options
                weights += shard.bytes
                kv += options.n_ctx * options.n_seq * shard.kv_bytes_per_token
        return weights, kv

    def assigned(self) -> tuple[ShardKey, ...]:
        """Returns: the shards this node is bound to, as far as their models are known."""
        return self._resolve()[0]

    def check(self) -> None:
        """Raises: AssertionError where an invariant is broken: a bug of ours."""
        for key, record in self._records.items():
            assert key == record.key
            record.check()
        self._waiters.check()
        for chain in self._ready_chains:
            assert all(self._records[ShardKey((chain[0], i))].memory for i in range(chain[1], chain[2]))

    # -- events --------------------------------------------------------------------------------------------------------------

    def handle(self, event: Event) -> list[Effect]:
        """Take in what happened. Returns: what to do, in order."""
        self._ready_chains.clear()
        match event:
            case CacheScanned():
                return self._scanned(event)
            case PreloadAsked():
                return self._preload(event)
            case ShareAsked():
                return self._share()
            case FileGivenUp():
                record = self._records[event.key]
                record.paths.clear()
                record.is_verified = record.is_rotten = False
                return []
            case FileRotted():
                rotten = self._records.get(event.key)
                return [] if rotten is None else self._rule.rotted(rotten, event.path)
            case FileGone():
                left = self._records.get(event.key)
                return [] if left is None else self._rule.gone(left, event.path)
            case LoadAsked():
                return self._commands.load_asked(event)
            case UnloadAsked():
                return self._commands.unload_asked(event)
            case TaskWaits():
                return self._task_waits(event)
            case TaskGone():
                self._waiters.task_gone(event.ticket)
                return []
            case ShardVerified():
                return self._rule.verified(self._records[event.key])
            case VerifyFailed():
                return self._rule.verify_failed(self._records[event.key], event.error)
            case Quarantined():
                return self._rule.quarantined(self._records[event.key])
            case ShardFetched():
                return self._rule.fetched(self._records[event.key], event.path)
            case FetchFailed():
                return self._rule.fetch_failed(self._records[event.key], event.error)
            case ShardLoaded():
                return self._rule.loaded(
                    self._records[event.key], InMemory(event.options, event.memory_bytes, event.memory_mode)
                )
            case LoadFailed():
                return self._rule.load_failed(self._records[event.key], event.error)
            case ShardUnloaded():
                return self._rule.unloaded(self._records[event.key])
            case EngineCameBack():
                return self._engine_came_back(event)
            case Progressed():
                return self._commands.progressed(self._records[event.key], event)
            case DeadlinePassed():
                return self._commands.deadline_passed(event.command_id)
            case DrainBegan():
                return self._commands.drain()
            case _:
                assert_never(event)

    def _scanned(self, event: CacheScanned) -> list[Effect]:
        for model in event.models:
            self.catalogue.models.setdefault(model.manifest.model_id, model)
        effects: list[Effect] = []
        for shard in event.shards:
            paths = self._records.setdefault(shard.key, ShardRecord(shard.key)).paths
            if shard.path not in paths:
                paths.append(shard.path)
            effects.append(
                Note(
                    "shard_found",
                    facts={
                        "shard_id": shard.key[1],
                        "model": self.catalogue.name_of(shard.key),
                        "layers": str(shard.layers),
                        "size": human_bytes(shard.nbytes),
                        "path": str(shard.path),
                    },
                )
            )
        return effects

    def _preload(self, event: PreloadAsked) -> list[Effect]:
        keys, open_bindings = self._resolve()
        manifests = [model.manifest for model in self.catalogue.models.values()]
        nothing = {binding: why for binding in open_bindings if (why := means_none(binding, manifests))}
        effects: list[Effect] = [
            Note("shard_there_is_none", "warning", {"shard_id": binding.shard_id, "reason": why})
            for binding, why in nothing.items()
        ]
        for shard_id in [
            *(key[1] for key in keys if key not in self._records),
            *(binding.shard_id for binding in open_bindings if binding not in nothing),
        ]:
            effects.append(Note("shard_not_found_locally", "warning", {"shard_id": shard_id}))
            effects.append(Note("shard_will_download", "warning", {"shard_id": shard_id}))
        wanted = [key for key in (sorted(self._records) if event.everything else keys) if key in self._records]
        kept_out = {key: reason for key in wanted if (reason := self.catalogue.kept_out(key[0]))}
        effects += [
            Note("shard_kept_out", "warning", {"shard_id": key[1], "reason": reason})
            for key, reason in kept_out.items()
        ]
        wanted = [key for key in wanted if key not in kept_out]
        self._waiters.expect_preload(wanted)
        for key in wanted:
            record = self._records[key]
            record.wants.append(Want(Kind.PRELOAD, event.options))
            effects += self._rule.advance(record)
        return effects if wanted else [*effects, PreloadDone()]

    def _share(self) -> list[Effect]:
        effects: list[Effect] = []
        for record in [one for _, one in sorted(self._records.items()) if one.paths and not one.is_verified]:
            if record.key[0] in self.catalogue.models:
                record.wants.append(Want(Kind.SHARE, ShardOptions()))
                effects += self._rule.advance(record)
        return effects

    def _task_waits(self, event: TaskWaits) -> list[Effect]:
        keys = [ShardKey((event.model_id, shard_id)) for shard_id in range(event.first_shard, event.end_shard)]
        missing = [key for key in keys if key not in self._records or self._records[key].memory is None]
        for key in missing:
            record = self._records.get(key)
            if record is None or (not record.paths and record.phase is not Phase.FETCHING):
                return [FailTask(event.ticket, self.catalogue.not_found(key))]
        self._waiters.expect_task(event.ticket, missing)
        effects: list[Effect] = []
        for key in missing:
            if not self._waiters.has_task(event.ticket):
                break  # another shard of it failed at once
            self._records[key].wants.append(Want(Kind.TASK, event.options, ticket=event.ticket))
            effects += self._rule.advance(self._records[key])
        return effects

    def _engine_came_back(self, event: EngineCameBack) -> list[Effect]:
        loaded = {key: (memory_bytes, mode, repacked) for key, memory_bytes, mode, repacked in event.loaded}
        for key, record in self._records.items():
            if record.memory is None:
                continue
            options, record.memory = record.memory.options, None
            if key in loaded:
                memory_bytes, mode, repacked = loaded[key]
                record.memory = InMemory(options.model_copy(update={"repack": repacked}), memory_bytes, mode)
        return [
            effect for record in self._records.values() if record.is_rotten for effect in self._rule.advance(record)
        ]

    def _resolve(self) -> tuple[tuple[ShardKey, ...], tuple[Binding, ...]]:
        return self._assignment.resolve(
            {model_id: model.manifest for model_id, model in self.catalogue.models.items()},
            [key for key, record in self._records.items() if record.paths],
        )
