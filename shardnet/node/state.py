"""What this node holds, and what to do about it: events in, effects out. No I/O, no clock, no event loop.

Each shard has one queue of waiters (commands, tasks, the start itself) and at most one thing being done about it. So concurrent requests for a shard
share one verification, one download and one load, and are answered in the order in which they came. The rule of `_advance` is the whole story:

    file not proved -> verify it; damaged -> quarantine it; no file -> fetch it, where somebody can; proved -> load it; loaded -> answer

Knows nothing of the network, of how a file is hashed or fetched, nor of tasks' arithmetic.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import assert_never

from shardnet.errors import (
    Busy,
    DeadlineExceeded,
    GgufError,
    ShardCorrupt,
    ShardnetError,
    ShardNotFound,
)
from shardnet.ids import ShardKey
from shardnet.log import human_bytes
from shardnet.manifest import Manifest
from shardnet.messages import (
    CommandFailed,
    Done,
    ErrorInfo,
    HeldShard,
    LoadProgress,
    ShardOptions,
    ShardReady,
)
from shardnet.node.assignment import Assignment, Binding
from shardnet.node.catalogue import Catalogue
from shardnet.node.effects import (
    Effect,
    FailTask,
    Fetch,
    Load,
    Note,
    Offer,
    PreloadDone,
    Quarantine,
    RunTask,
    SaveManifest,
    Send,
    StartTimer,
    StopFetch,
    StopTimer,
    Unload,
    Verify,
    Withdraw,
)
from shardnet.node.events import (
    CacheScanned,
    DeadlinePassed,
    DrainBegan,
    EngineCameBack,
    Event,
    FetchFailed,
    FileGivenUp,
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
from shardnet.node.records import InMemory, Kind, Phase, ShardRecord, Want
from shardnet.node.timings import ShardTimes

MAX_FINISHED = 1024
"""Answers kept for commands that are repeated. The coordinator repeats within seconds, and has few load commands under way."""

Effects = list[Effect]


class NodeState:
    """One node's shards.

    Args:
        cache: the models cache, where files of new models are to be put.
        can_fetch: somebody can get shards from other nodes.
    """

    def __init__(self, cache: Path, assignment: Assignment, *, can_fetch: bool) -> None:
        self.catalogue = Catalogue(cache, assignment)
        self._assignment = assignment
        self._can_fetch = can_fetch
        self._records: dict[ShardKey, ShardRecord] = {}
        self._finished: OrderedDict[str, ShardReady | Done | CommandFailed] = OrderedDict()
        self._tasks: dict[int, set[ShardKey]] = {}  # ticket -> shards that are not there yet
        self._preloading: set[ShardKey] = set()
        self._ready_chains: set[tuple[str, int, int]] = set()
        self.is_draining = False
        self.loaded_before_join = False

    # -- questions -----------------------------------------------------------------------------------------------------------

    def knows(self, model_id: str) -> bool:
        """True if the model's manifest is here."""
        return model_id in self.catalogue.models

    def in_use(self, key: ShardKey) -> bool:
        """True if something is being done with the shard, or it is in memory: its file may not go."""
        record = self._records.get(key)
        return record is not None and (record.memory is not None or record.phase is not Phase.IDLE)

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

    def assigned(self) -> tuple[ShardKey, ...]:
        """Returns: the shards this node is bound to, as far as their models are known."""
        return self._resolve()[0]

    def check(self) -> None:
        """Raises: AssertionError where an invariant is broken: a bug of ours."""
        for key, record in self._records.items():
            assert key == record.key
            record.check()
            for want in record.wants:
                assert want.kind is not Kind.TASK or key in self._tasks[want.ticket]
                assert want.command_id not in self._finished, f"{want.command_id} waits and was answered"
        for ticket, keys in self._tasks.items():
            for key in keys:
                assert any(want.ticket == ticket for want in self._records[key].wants), (
                    f"task {ticket} waits for nobody"
                )
        for chain in self._ready_chains:
            assert all(self._records[ShardKey((chain[0], i))].memory for i in range(chain[1], chain[2]))

    # -- events --------------------------------------------------------------------------------------------------------------

    def handle(self, event: Event) -> Effects:
        """Take in what happened. Returns: what to do, in order."""
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
                return self._rotted(event)
            case LoadAsked():
                return self._load_asked(event)
            case UnloadAsked():
                return self._unload_asked(event)
            case TaskWaits():
                return self._task_waits(event)
            case TaskGone():
                return self._task_gone(event.ticket)
            case ShardVerified():
                return self._verified(self._records[event.key])
            case VerifyFailed():
                return self._verify_failed(self._records[event.key], event.error)
            case Quarantined():
                return self._quarantined(self._records[event.key])
            case ShardFetched():
                return self._fetched(self._records[event.key], event.path)
            case FetchFailed():
                return self._fetch_failed(self._records[event.key], event.error)
            case ShardLoaded():
                return self._loaded(self._records[event.key], event)
            case LoadFailed():
                return self._load_failed(self._records[event.key], event.error)
            case ShardUnloaded():
                return self._unloaded(self._records[event.key])
            case EngineCameBack():
                return self._engine_came_back(event)
            case Progressed():
                return self._progressed(self._records[event.key], event)
            case DeadlinePassed():
                return self._deadline_passed(event.command_id)
            case DrainBegan():
                return self._drain()
            case _:
                assert_never(event)

    def _scanned(self, event: CacheScanned) -> Effects:
        for model in event.models:
            self.catalogue.models.setdefault(model.manifest.model_id, model)
        effects: Effects = []
        for shard in event.shards:
            paths = self._record(shard.key).paths
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

    def _preload(self, event: PreloadAsked) -> Effects:
        keys, open_bindings = self._resolve()
        effects: Effects = []
        for shard_id in [
            *(key[1] for key in keys if key not in self._records),
            *(binding.shard_id for binding in open_bindings),
        ]:
            effects.append(Note("shard_not_found_locally", "warning", {"shard_id": shard_id}))
            effects.append(Note("shard_will_download", "warning", {"shard_id": shard_id}))
        wanted = [key for key in (sorted(self._records) if event.everything else keys) if key in self._records]
        self._preloading = set(wanted)
        for key in wanted:
            record = self._records[key]
            record.wants.append(Want(Kind.PRELOAD, event.options))
            effects += self._advance(record)
        return effects if wanted else [*effects, PreloadDone()]

    def _share(self) -> Effects:
        effects: Effects = []
        for record in [one for _, one in sorted(self._records.items()) if one.paths and not one.is_verified]:
            if record.key[0] in self.catalogue.models:
                record.wants.append(Want(Kind.SHARE, ShardOptions()))
                effects += self._advance(record)
        return effects

    def _load_asked(self, event: LoadAsked) -> Effects:
        command = event.command
        if (repeated := self._repeated(command.command_id)) is not None:
            return repeated
        key = ShardKey((command.model_id, command.shard_id))
        effects: Effects = []
        try:
            if self.is_draining:
                raise Busy("this node is leaving: load the shard elsewhere")
            if command.manifest is not None:
                effects += self._learn(command.manifest, command.model_id, is_signed=event.manifest_is_signed)
            self.catalogue.check_may_hold(key)
        except ShardnetError as error:
            return [*effects, *self._fail_command(command.command_id, key, error)]
        effects.append(Note("load_shard_received", facts={"shard_id": key[1], "model": self.catalogue.name_of(key)}))
        want = Want(
            Kind.KEEP if command.keep_only else Kind.LOAD,
            command.options,
            command_id=command.command_id,
            deadline_s=command.deadline_s,
            sources=command.sources,
        )
        record = self._record(key)
        record.wants.append(want)
        effects.append(StartTimer(command.command_id, event.at_s + command.deadline_s))
        return [*effects, *self._advance(record)]

    def _learn(self, manifest: Manifest, model_id: str, *, is_signed: bool) -> Effects:
        news = self.catalogue.learn(manifest, model_id, is_signed=is_signed)
        if news is None:
            return []
        for key, record in self._records.items():
            if key[0] == model_id and record.memory is None and record.phase is Phase.IDLE:
                record.is_verified = False  # it was held against the other manifest
        return [SaveManifest(news.manifest, news.folder)]

    def _unload_asked(self, event: UnloadAsked) -> Effects:
        command = event.command
        if (repeated := self._repeated(command.command_id)) is not None:
            return repeated
        record = self._records.get(ShardKey((command.model_id, command.shard_id)))
        if record is None:
            return self._answer(Done(command_id=command.command_id))
        record.wants.append(
            Want(Kind.UNLOAD, ShardOptions(), command_id=command.command_id, deadline_s=command.deadline_s)
        )
        return [StartTimer(command.command_id, event.at_s + command.deadline_s), *self._advance(record)]

    def _task_waits(self, event: TaskWaits) -> Effects:
        keys = [ShardKey((event.model_id, shard_id)) for shard_id in range(event.first_shard, event.end_shard)]
        missing = [key for key in keys if key not in self._records or self._records[key].memory is None]
        for key in missing:
            record = self._records.get(key)
            if record is None or (not record.paths and record.phase is not Phase.FETCHING):
                return [FailTask(event.ticket, self.catalogue.not_found(key))]
        self._tasks[event.ticket] = set(missing)
        effects: Effects = []
        for key in missing:
            if event.ticket not in self._tasks:
                break  # another shard of it failed at once
            self._records[key].wants.append(Want(Kind.TASK, event.options, ticket=event.ticket))
            effects += self._advance(self._records[key])
        return effects

    def _task_gone(self, ticket: int) -> Effects:
        for key in self._tasks.pop(ticket, ()):
            wants = self._records[key].wants
            for want in [want for want in wants if want.ticket == ticket]:
                wants.remove(want)
        return []

    # -- outcomes ------------------------------------------------------------------------------------------------------------

    def _verified(self, record: ShardRecord) -> Effects:
        self._idle(record)
        record.is_verified = True
        record.is_fresh = False
        record.trouble = None
        if record.is_rotten:
            return self._advance(record)
        offer = Offer(record.key, record.paths[0], self.catalogue.models[record.key[0]].manifest)
        return [offer, *self._advance(record)]

    def _verify_failed(self, record: ShardRecord, error: ShardnetError) -> Effects:
        self._idle(record)
        record.trouble = error
        path = record.paths[0]
        if isinstance(error, ShardCorrupt | GgufError):
            record.paths.pop(0)
            record.is_rotten = False
            effects: Effects = [Note("shard_refused", "warning", {"path": str(path), "reason": str(error)})]
            if record.is_fresh:  # who sent this would send it again
                record.is_fresh = False
                effects += self._fail_front(record, error)
            self._begin(record, Phase.CLEARING)
            return [*effects, Withdraw(record.key), Quarantine(record.key, path)]
        if isinstance(error, ShardNotFound):
            record.paths.pop(0)
            record.is_rotten = False
            return self._advance(record)
        return [*self._fail_front(record, error), *self._advance(record)]

    def _quarantined(self, record: ShardRecord) -> Effects:
        self._idle(record)
        return self._advance(record)

    def _rotted(self, event: FileRotted) -> Effects:
        record = self._records.get(event.key)
        if record is None or not record.paths or record.paths[0] != event.path:
            return []
        record.is_rotten = True
        if record.memory is None and record.phase is not Phase.LOADING:
            return self._advance(record)
        advice = "it stays until the shard is unloaded, as the engine has it open, and is put aside then"
        facts = {"shard_id": event.key[1], "path": str(event.path), "advice": advice}
        return [Note("shard_rotten", "warning", facts), *self._advance(record)]

    def _put_aside(self, record: ShardRecord) -> Effects:
        path = record.paths.pop(0)
        record.is_verified = record.is_rotten = False
        record.trouble = ShardCorrupt(
            f"{path} was damaged after it was proved, and was put aside; fetch the shard again"
        )
        self._begin(record, Phase.CLEARING)
        facts = {"path": str(path), "reason": "it was damaged after it was proved, and is put aside"}
        return [Note("shard_refused", "warning", facts), Withdraw(record.key), Quarantine(record.key, path)]

    def _fetched(self, record: ShardRecord, path: Path) -> Effects:
        self._idle(record)
        record.paths.insert(0, path)
        record.is_verified = record.is_rotten = False
        record.is_fresh = True
        for want in record.wants:
            want.source = "torrent"
        return self._advance(record)

    def _fetch_failed(self, record: ShardRecord, error: ShardnetError) -> Effects:
        self._idle(record)
        if record.is_fetch_stopped:
            record.is_fetch_stopped = False
            return self._advance(record)  # for those who came after it was stopped
        return [*self._fail_front(record, error), *self._advance(record)]

    def _loaded(self, record: ShardRecord, event: ShardLoaded) -> Effects:
        self._idle(record)
        record.memory = InMemory(event.options, event.memory_bytes)
        for want in record.wants:
            if want.source == "memory":
                want.source = "local"
        path = str(record.paths[0])
        effects: Effects = []
        if record.wants and record.wants[0].kind is not Kind.PRELOAD:
            effects.append(Note("inference_loaded_shard", facts={"shard_id": record.key[1], "path": path}))
        return [*effects, *self._advance(record)]

    def _load_failed(self, record: ShardRecord, error: ShardnetError) -> Effects:
        options = record.loading
        self._idle(record)
        return [*self._fail_front(record, error, options), *self._advance(record)]

    def _unloaded(self, record: ShardRecord) -> Effects:
        self._idle(record)
        facts = {"shard_id": record.key[1], "model": self.catalogue.name_of(record.key)}
        return [Note("shard_unloaded", facts=facts), *self._advance(record)]

    def _engine_came_back(self, event: EngineCameBack) -> Effects:
        loaded = dict(event.loaded)
        self._ready_chains.clear()
        for key, record in self._records.items():
            if record.memory is not None:
                record.memory = InMemory(record.memory.options, loaded[key]) if key in loaded else None
        return [effect for record in self._records.values() if record.is_rotten for effect in self._advance(record)]

    def _progressed(self, record: ShardRecord, event: Progressed) -> Effects:
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
                )
            )
            for want in record.wants
            if want.kind in (Kind.LOAD, Kind.KEEP)
        ]

    def _deadline_passed(self, command_id: str) -> Effects:
        for record in self._records.values():
            for want in record.wants:
                if want.command_id == command_id:
                    record.wants.remove(want)
                    error = DeadlineExceeded(
                        f"{want.kind} of shard {record.key[1]} of {self.catalogue.name_of(record.key)} was not done within "
                        f"{want.deadline_s:g} s: the node was still {record.phase.value}"
                    )
                    return [*self._fail_command(command_id, record.key, error), *self._stop_idle_fetch(record)]
        return []

    def _drain(self) -> Effects:
        self.is_draining = True
        effects: Effects = []
        for record in self._records.values():
            for want in [want for want in record.wants if want.may_fetch]:
                record.wants.remove(want)
                error = Busy("this node is leaving: load the shard elsewhere")
                effects += self._fail_command(want.command_id, record.key, error)
            effects += self._stop_idle_fetch(record)
        return effects

    # -- the rule ------------------------------------------------------------------------------------------------------------

    def _advance(self, record: ShardRecord) -> Effects:
        """Answer whoever can be answered, and begin the next step that the first of the others needs."""
        effects: Effects = []
        while record.phase is Phase.IDLE and (record.wants or record.is_rotten):
            if record.is_rotten and record.memory is None:
                effects += self._put_aside(record)
                break
            if not record.wants:
                break
            want = record.wants[0]
            if record.satisfies(want):
                record.wants.popleft()
                effects += self._ready(record, want)
            elif want.kind is Kind.UNLOAD:
                self._begin(record, Phase.UNLOADING)
                record.memory = None
                effects.append(Unload(record.key))
            else:
                effects += self._next_step(record, want)
        return effects

    def _next_step(self, record: ShardRecord, want: Want) -> Effects:
        model = self.catalogue.models.get(record.key[0])
        if model is None:
            return self._fail_front(
                record, self.catalogue.no_manifest(record.key, record.paths[0] if record.paths else None)
            )
        if record.paths and not record.is_verified:
            self._begin(record, Phase.VERIFYING)
            return [Verify(record.key, record.paths[0], model.manifest)]
        if record.is_rotten and want.kind in (Kind.KEEP, Kind.SHARE):
            record.wants.popleft()
            return self._fail(
                record, want, ShardCorrupt(f"{record.paths[0]} is damaged, and in use: unload the shard first")
            )
        if record.is_rotten:  # it has to be loaded again, and not from this file
            self._begin(record, Phase.UNLOADING)
            record.memory = None
            return [Unload(record.key)]
        shard = model.manifest.content.shards[record.key[1]]
        if record.paths:
            self._begin(record, Phase.LOADING)
            record.memory = None  # the engine frees the old one before it loads with other options
            record.loading = want.options
            return [Load(record.key, record.paths[0], shard.bytes, want.options)]
        if want.may_fetch and self._can_fetch:
            self._begin(record, Phase.FETCHING)
            return [Fetch(record.key, model.manifest, model.folder / shard.file, want.sources)]
        return self._fail_front(record, record.trouble or self.catalogue.not_found(record.key))

    def _begin(self, record: ShardRecord, phase: Phase) -> None:
        record.phase = phase
        record.progress = 0.0
        self._ready_chains.clear()

    def _idle(self, record: ShardRecord) -> None:
        record.phase = Phase.IDLE
        record.loading = None
        record.progress = None

    def _ready(self, record: ShardRecord, want: Want) -> Effects:
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
                    fact[source], facts={"shard_id": record.key[1], "model": self.catalogue.name_of(record.key)}
                )
                return [note, *self._answer(ShardReady(command_id=want.command_id, held=held, source=source))]
            case Kind.SHARE:
                return []
            case Kind.UNLOAD:
                return self._answer(Done(command_id=want.command_id))
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

    def _fail_front(self, record: ShardRecord, error: ShardnetError, options: ShardOptions | None = None) -> Effects:
        """Answer all who wait for what just failed: those before the next UNLOAD, and, for a load, with the same options."""
        failed: list[Want] = []
        for want in record.wants:
            if want.kind is Kind.UNLOAD:
                break
            if options is None or want.options == options:
                failed.append(want)
        effects: Effects = []
        for want in failed:
            if want in record.wants:
                record.wants.remove(want)
                effects += self._fail(record, want, error)
        return effects

    def _fail(self, record: ShardRecord, want: Want, error: ShardnetError) -> Effects:
        match want.kind:
            case Kind.LOAD | Kind.KEEP | Kind.UNLOAD:
                return self._fail_command(want.command_id, record.key, error)
            case Kind.TASK:
                self._task_gone(want.ticket)
                return [FailTask(want.ticket, error)]
            case Kind.SHARE:
                return []  # the file was refused or is gone, and that was logged
            case Kind.PRELOAD:
                note = Note("load_shard_failed", "warning", {"shard_id": record.key[1], "reason": str(error)})
                return [note, *self._preloaded(record)]

    def _preloaded(self, record: ShardRecord) -> Effects:
        self._preloading.discard(record.key)
        return [] if self._preloading else [PreloadDone()]

    def _stop_idle_fetch(self, record: ShardRecord) -> Effects:
        if record.phase is not Phase.FETCHING or record.is_fetch_stopped or any(w.may_fetch for w in record.wants):
            return []
        record.is_fetch_stopped = True
        return [StopFetch(record.key)]

    # -- answers -------------------------------------------------------------------------------------------------------------

    def _repeated(self, command_id: str) -> Effects | None:
        """Returns: the answer that was given before, nothing if it is still being worked on; None if the command is new."""
        if command_id in self._finished:
            return [Send(self._finished[command_id])]
        if any(want.command_id == command_id for record in self._records.values() for want in record.wants):
            return []
        return None

    def _answer(self, message: ShardReady | Done | CommandFailed) -> Effects:
        if not isinstance(message, CommandFailed) or message.error.code != Busy.code:
            self._finished[message.command_id] = message
            if len(self._finished) > MAX_FINISHED:
                self._finished.popitem(last=False)
        return [StopTimer(message.command_id), Send(message)]

    def _fail_command(self, command_id: str, key: ShardKey, error: ShardnetError) -> Effects:
        note = Note("load_shard_failed", "warning", {"shard_id": key[1], "reason": str(error)})
        return [note, *self._answer(CommandFailed(command_id=command_id, error=ErrorInfo.of(error)))]

    # -- small things --------------------------------------------------------------------------------------------------------

    def _record(self, key: ShardKey) -> ShardRecord:
        return self._records.setdefault(key, ShardRecord(key))

    def _resolve(self) -> tuple[tuple[ShardKey, ...], tuple[Binding, ...]]:
        return self._assignment.resolve(
            {model_id: model.manifest for model_id, model in self.catalogue.models.items()},
            [key for key, record in self._records.items() if record.paths],
        )
