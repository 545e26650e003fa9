"""Those who wait for shards, and what each is told in the end: an answer to a command, a task that may run, a node that may join. Pure.

Decides nothing about shards: who is ready and who has failed is said by `rule`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from shardnet.errors import Busy, ShardnetError
from shardnet.ids import ShardKey
from shardnet.messages import CommandFailed, Done, ErrorInfo, ShardOptions, ShardReady
from shardnet.node.shards.catalogue import Catalogue
from shardnet.node.shards.effects import Effect, FailTask, Note, PreloadDone, RunTask, Send, StopTimer
from shardnet.node.shards.records import Kind, ShardRecord, Want
from shardnet.node.tasks.timings import ShardTimes

MAX_FINISHED = 1024
"""Answers kept for commands that are repeated. The coordinator repeats within seconds, and has few load commands under way."""


class Waiters:
    """Whoever stands in a shard's queue.

    Args:
        records: all shards, with their queues; shared with the node's state.
    """

    def __init__(self, records: Mapping[ShardKey, ShardRecord], catalogue: Catalogue) -> None:
        self._records = records
        self._catalogue = catalogue
        self._finished: OrderedDict[str, ShardReady | Done | CommandFailed] = OrderedDict()
        self._tasks: dict[int, set[ShardKey]] = {}  # ticket -> shards that are not there yet
        self._preloading: set[ShardKey] = set()
        self.loaded_before_join = False

    # -- who they are --------------------------------------------------------------------------------------------------------

    def expect_task(self, ticket: int, missing: Iterable[ShardKey]) -> None:
        """A task waits until the last of `missing` is there."""
        self._tasks[ticket] = set(missing)

    def has_task(self, ticket: int) -> bool:
        """True if the task waits still."""
        return ticket in self._tasks

    def task_gone(self, ticket: int) -> None:
        """Nobody wants the task any more, or it has failed: it leaves every queue. Harmless when repeated."""
        for key in self._tasks.pop(ticket, ()):
            wants = self._records[key].wants
            for want in [want for want in wants if want.ticket == ticket]:
                wants.remove(want)

    def expect_preload(self, keys: Iterable[ShardKey]) -> None:
        """The node joins once each of `keys` is in memory, or cannot be."""
        self._preloading = set(keys)

    # -- what they are told --------------------------------------------------------------------------------------------------

    def ready(self, record: ShardRecord, want: Want) -> list[Effect]:
        """The shard is as `want`, now taken out of its queue, asks for."""
        match want.kind:
            case Kind.LOAD | Kind.KEEP:
                held = record.as_held(ShardTimes())
                assert held is not None
                source = "local" if want.kind is Kind.KEEP and want.source == "memory" else want.source
                fact = {
                    "memory": "load_shard_already_loaded",
                    "local": "load_shard_local",
                    "torrent": "load_shard_torrent",
                }
                note = Note(
                    fact[source], facts={"shard_id": record.key[1], "model": self._catalogue.name_of(record.key)}
                )
                return [note, *self.answer(ShardReady(command_id=want.command_id, held=held, source=source))]
            case Kind.SHARE:
                return []
            case Kind.UNLOAD:
                return self.answer(Done(command_id=want.command_id))
            case Kind.TASK:
                keys = self._tasks[want.ticket]
                keys.discard(record.key)
                if keys:
                    return []
                del self._tasks[want.ticket]
                return [RunTask(want.ticket)]
            case Kind.PRELOAD:
                self.loaded_before_join = True
                facts = {"shard_id": record.key[1], "path": str(record.paths[0])}
                notes = ("shard_loaded_before_join", "shard_path", "shard_available")
                return [*(Note(fact, facts=facts) for fact in notes), *self._preloaded(record)]

    def fail(self, record: ShardRecord, want: Want, error: ShardnetError) -> list[Effect]:
        """The shard cannot be had as `want`, now taken out of its queue, asks for."""
        match want.kind:
            case Kind.LOAD | Kind.KEEP | Kind.UNLOAD:
                return self.fail_command(want.command_id, record.key, error)
            case Kind.TASK:
                self.task_gone(want.ticket)
                return [FailTask(want.ticket, error)]
            case Kind.SHARE:
                return []  # the file was refused or is gone, and that was logged
            case Kind.PRELOAD:
                note = Note("load_shard_failed", "warning", {"shard_id": record.key[1], "reason": str(error)})
                return [note, *self._preloaded(record)]

    def fail_front(
        self, record: ShardRecord, error: ShardnetError, options: ShardOptions | None = None
    ) -> list[Effect]:
        """Answer all who wait for what just failed: those before the next UNLOAD, and, for a load, with the same options."""
        failed: list[Want] = []
        for want in record.wants:
            if want.kind is Kind.UNLOAD:
                break
            if options is None or want.options == options:
                failed.append(want)
        effects: list[Effect] = []
        for want in failed:
            if want in record.wants:
                record.wants.remove(want)
                effects += self.fail(record, want, error)
        return effects

    def _preloaded(self, record: ShardRecord) -> list[Effect]:
        self._preloading.discard(record.key)
        return [] if self._preloading else [PreloadDone()]

    # -- commands ------------------------------------------------------------------------------------------------------------

    def repeated(self, command_id: str) -> list[Effect] | None:
        """Returns: the answer that was given before, nothing if it is still being worked on; None if the command is new."""
        if command_id in self._finished:
            return [Send(self._finished[command_id])]
        if any(want.command_id == command_id for record in self._records.values() for want in record.wants):
            return []
        return None

    def answer(self, message: ShardReady | Done | CommandFailed) -> list[Effect]:
        """Give a command its one final answer, and remember it. One that was refused by a busy node may be tried again."""
        if not isinstance(message, CommandFailed) or message.error.code != Busy.code:
            self._finished[message.command_id] = message
            if len(self._finished) > MAX_FINISHED:
                self._finished.popitem(last=False)
        return [StopTimer(message.command_id), Send(message)]

    def fail_command(self, command_id: str, key: ShardKey, error: ShardnetError) -> list[Effect]:
        """Answer a command about the shard with an error."""
        note = Note("load_shard_failed", "warning", {"shard_id": key[1], "reason": str(error)})
        return [note, *self.answer(CommandFailed(command_id=command_id, error=ErrorInfo.of(error)))]

    # -- invariants ----------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises: AssertionError where an invariant is broken: a bug of ours."""
        for key, record in self._records.items():
            for want in record.wants:
                assert want.kind is not Kind.TASK or key in self._tasks[want.ticket]
                assert want.command_id not in self._finished, f"{want.command_id} waits and was answered"
        for ticket, keys in self._tasks.items():
            for key in keys:
                assert any(want.ticket == ticket for want in self._records[key].wants), (
                    f"task {ticket} waits for nobody"
                )
