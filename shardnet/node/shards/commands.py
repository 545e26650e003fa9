"""LOAD_SHARD and UNLOAD_SHARD: what is refused at once, what joins a shard's queue, and what becomes of those whose time is over. Pure.

A command that is repeated causes nothing: it gets the answer that it got before, or waits for the one that is being worked on.
"""

from __future__ import annotations

from shardnet.errors import Busy, DeadlineExceeded, ShardnetError
from shardnet.ids import ShardKey
from shardnet.manifest import Manifest
from shardnet.messages import Done, LoadProgress, ShardOptions
from shardnet.node.shards.catalogue import Catalogue
from shardnet.node.shards.effects import Effect, Note, SaveManifest, Send, StartTimer
from shardnet.node.shards.events import LoadAsked, Progressed, UnloadAsked
from shardnet.node.shards.records import Kind, Phase, ShardRecord, Want
from shardnet.node.shards.rule import Rule
from shardnet.node.shards.waiters import Waiters


class Commands:
    """The coordinator's commands about shards.

    Args:
        records: all shards, with their queues; shared with the node's state. A LOAD_SHARD may add one.
    """

    def __init__(
        self, records: dict[ShardKey, ShardRecord], catalogue: Catalogue, waiters: Waiters, rule: Rule
    ) -> None:
        self._records = records
        self._catalogue = catalogue
        self._waiters = waiters
        self._rule = rule
        self.is_draining = False

    def load_asked(self, event: LoadAsked) -> list[Effect]:
        """LOAD_SHARD."""
        command = event.command
        if (repeated := self._waiters.repeated(command.command_id)) is not None:
            return repeated
        key = ShardKey((command.model_id, command.shard_id))
        effects: list[Effect] = []
        try:
            if self.is_draining:
                raise Busy("this node is leaving: load the shard elsewhere")
            if command.manifest is not None:
                effects += self._learn(command.manifest, command.model_id, is_signed=event.manifest_is_signed)
            self._catalogue.check_may_hold(key)
        except ShardnetError as error:
            return [*effects, *self._waiters.fail_command(command.command_id, key, error)]
        effects.append(Note("load_shard_received", facts={"shard_id": key[1], "model": self._catalogue.name_of(key)}))
        want = Want(
            Kind.KEEP if command.keep_only else Kind.LOAD,
            command.options,
            command_id=command.command_id,
            deadline_s=command.deadline_s,
            sources=command.sources,
        )
        record = self._records.setdefault(key, ShardRecord(key))
        record.wants.append(want)
        effects.append(StartTimer(command.command_id, event.at_s + command.deadline_s))
        return [*effects, *self._rule.advance(record)]

    def _learn(self, manifest: Manifest, model_id: str, *, is_signed: bool) -> list[Effect]:
        news = self._catalogue.learn(manifest, model_id, is_signed=is_signed)
        if news is None:
            return []
        for key, record in self._records.items():
            if key[0] == model_id and record.memory is None and record.phase is Phase.IDLE:
                record.is_verified = False  # it was held against the other manifest
        return [SaveManifest(news.manifest, news.folder)]

    def unload_asked(self, event: UnloadAsked) -> list[Effect]:
        """UNLOAD_SHARD. A shard that was never here is unloaded already."""
        command = event.command
        if (repeated := self._waiters.repeated(command.command_id)) is not None:
            return repeated
        record = self._records.get(ShardKey((command.model_id, command.shard_id)))
        if record is None:
            return self._waiters.answer(Done(command_id=command.command_id))
        record.wants.append(
            Want(Kind.UNLOAD, ShardOptions(), command_id=command.command_id, deadline_s=command.deadline_s)
        )
        return [StartTimer(command.command_id, event.at_s + command.deadline_s), *self._rule.advance(record)]

    def progressed(self, record: ShardRecord, event: Progressed) -> list[Effect]:
        """A shard is on its way: whoever asked for it is told how far it is."""
        record.progress = min(1.0, event.done_bytes / event.total_bytes) if event.total_bytes else None
        return [
            Send(
                LoadProgress(
                    command_id=want.command_id,
                    stage=event.stage,
                    done_bytes=event.done_bytes,
                    total_bytes=event.total_bytes,
                    bytes_per_s=event.bytes_per_s,
                    peers=event.peers,
                    memory_bytes=event.memory_bytes,
                    cpu_cores=event.cpu_cores,
                )
            )
            for want in record.wants
            if want.kind in (Kind.LOAD, Kind.KEEP)
        ]

    def deadline_passed(self, command_id: str) -> list[Effect]:
        """The command's time is over: it is answered, and what is being done for it goes on, but for a download."""
        for record in self._records.values():
            for want in record.wants:
                if want.command_id == command_id:
                    record.wants.remove(want)
                    error = DeadlineExceeded(
                        f"{want.kind} of shard {record.key[1]} of {self._catalogue.name_of(record.key)} was not done within "
                        f"{want.deadline_s:g} s: the node was still {record.phase.value}"
                    )
                    failed = self._waiters.fail_command(command_id, record.key, error)
                    return [*failed, *self._rule.stop_idle_fetch(record)]
        return []

    def drain(self) -> list[Effect]:
        """The node is leaving: it takes no more shards."""
        self.is_draining = True
        effects: list[Effect] = []
        for record in self._records.values():
            for want in [want for want in record.wants if want.may_fetch]:
                record.wants.remove(want)
                error = Busy("this node is leaving: load the shard elsewhere")
                effects += self._waiters.fail_command(want.command_id, record.key, error)
            effects += self._rule.stop_idle_fetch(record)
        return effects
