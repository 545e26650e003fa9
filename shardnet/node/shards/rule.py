"""What is done about a shard next, and what the outcome of each thing done changes. Pure.

At most one thing is being done about a shard. While nothing is, and somebody waits for it, this is the whole story:

    file not proved -> verify it; damaged -> quarantine it; no file -> fetch it, where somebody can; proved -> load it; loaded -> answer

Knows one shard at a time: its record. Why somebody wants it, and how that one is told, is for `waiters`.
"""

from __future__ import annotations

from pathlib import Path

from shardnet.errors import GgufError, ShardCorrupt, ShardnetError, ShardNotFound
from shardnet.messages import ShardOptions
from shardnet.node.shards.catalogue import Catalogue
from shardnet.node.shards.effects import (
    Effect,
    Fetch,
    Load,
    Note,
    Offer,
    Quarantine,
    StopFetch,
    Unload,
    Verify,
    Withdraw,
)
from shardnet.node.shards.records import InMemory, Kind, Phase, ShardRecord, Want
from shardnet.node.shards.waiters import Waiters


class Rule:
    """Moves shards on, each by its own record.

    Args:
        can_fetch: somebody can get shards from other nodes.
    """

    def __init__(self, catalogue: Catalogue, waiters: Waiters, *, can_fetch: bool) -> None:
        self._catalogue = catalogue
        self._waiters = waiters
        self._can_fetch = can_fetch

    # -- what is next --------------------------------------------------------------------------------------------------------

    def advance(self, record: ShardRecord) -> list[Effect]:
        """Answer whoever can be answered, and begin the next step that the first of the others needs."""
        effects: list[Effect] = []
        while record.phase is Phase.IDLE and (record.wants or record.is_rotten):
            if record.is_rotten and record.memory is None:
                effects += self._put_aside(record)
            if record.phase is not Phase.IDLE or not record.wants:
                break
            want = record.wants[0]
            if record.satisfies(want):
                record.wants.popleft()
                effects += self._waiters.ready(record, want)
            elif want.kind is Kind.UNLOAD:
                effects += self._unload(record)
            else:
                effects += self._next_step(record, want)
        return effects

    def _next_step(self, record: ShardRecord, want: Want) -> list[Effect]:
        model = self._catalogue.models.get(record.key[0])
        if model is None:
            error = self._catalogue.no_manifest(record.key, record.paths[0] if record.paths else None)
            return self._waiters.fail_front(record, error)
        if record.paths and not record.is_verified:
            record.begin(Phase.VERIFYING)
            return [Verify(record.key, record.paths[0], model.manifest)]
        if record.is_rotten and want.kind in (Kind.KEEP, Kind.SHARE):
            record.wants.popleft()
            return self._waiters.fail(
                record,
                want,
                ShardCorrupt(
                    f"{record.paths[0]} is {'gone' if record.is_gone else 'damaged'}, and in use: unload the shard first"
                ),
            )
        if record.is_rotten:  # it has to be loaded again, and not from this file
            return self._unload(record)
        shard = model.manifest.content.shards[record.key[1]]
        if record.paths:
            return self._load(record, shard.bytes, want.options)
        if want.may_fetch and self._can_fetch:
            record.begin(Phase.FETCHING)
            return [Fetch(record.key, model.manifest, model.folder / shard.file, want.sources)]
        return self._waiters.fail_front(record, record.trouble or self._catalogue.not_found(record.key))

    def _load(self, record: ShardRecord, nbytes: int, options: ShardOptions) -> list[Effect]:
        record.begin(Phase.LOADING)
        record.memory = None  # the engine frees the old one before it loads with other options
        record.loading = options
        return [Load(record.key, record.paths[0], nbytes, options)]

    def _unload(self, record: ShardRecord) -> list[Effect]:
        record.begin(Phase.UNLOADING)
        record.memory = None
        return [Unload(record.key)]

    def _put_aside(self, record: ShardRecord) -> list[Effect]:
        path = record.paths.pop(0)
        record.is_verified = record.is_rotten = False
        if record.is_gone:
            return self._lost(record, path)
        record.trouble = ShardCorrupt(
            f"{path} was damaged after it was proved, and was put aside; fetch the shard again"
        )
        record.begin(Phase.CLEARING)
        facts = {"path": str(path), "reason": "it was damaged after it was proved, and is put aside"}
        return [Note("shard_refused", "warning", facts), Withdraw(record.key), Quarantine(record.key, path)]

    def _lost(self, record: ShardRecord, path: Path) -> list[Effect]:
        """The first file, now off the list, was moved or deleted by somebody: nobody is promised it any more."""
        reason = "it was moved or deleted while this node ran"
        record.trouble = ShardNotFound(
            f"{path} is gone: {reason}; fetch the shard again, or put the file back and start the node again"
        )
        return [Note("shard_refused", "warning", {"path": str(path), "reason": reason}), Withdraw(record.key)]

    def stop_idle_fetch(self, record: ShardRecord) -> list[Effect]:
        """Somebody left the queue: a download that nobody waits for any more ends."""
        if record.phase is not Phase.FETCHING or record.is_fetch_stopped or any(w.may_fetch for w in record.wants):
            return []
        record.is_fetch_stopped = True
        return [StopFetch(record.key)]

    # -- what came of it -----------------------------------------------------------------------------------------------------

    def verified(self, record: ShardRecord) -> list[Effect]:
        """The first file is proved."""
        record.end()
        record.is_verified = True
        record.is_fresh = False
        record.trouble = None
        if record.is_rotten:
            return self.advance(record)
        offer = Offer(record.key, record.paths[0], self._catalogue.models[record.key[0]].manifest)
        return [offer, *self.advance(record)]

    def verify_failed(self, record: ShardRecord, error: ShardnetError) -> list[Effect]:
        """The first file is not there, not the promised one, or not readable."""
        record.end()
        record.trouble = error
        path = record.paths[0]
        if isinstance(error, ShardCorrupt | GgufError):
            record.paths.pop(0)
            record.is_rotten = False
            effects: list[Effect] = [Note("shard_refused", "warning", {"path": str(path), "reason": str(error)})]
            if record.is_fresh:  # who sent this would send it again
                record.is_fresh = False
                effects += self._waiters.fail_front(record, error)
            record.begin(Phase.CLEARING)
            return [*effects, Withdraw(record.key), Quarantine(record.key, path)]
        if isinstance(error, ShardNotFound):
            record.paths.pop(0)
            record.is_rotten = False
            return self.advance(record)
        return [*self._waiters.fail_front(record, error), *self.advance(record)]

    def quarantined(self, record: ShardRecord) -> list[Effect]:
        """A damaged file is out of the way."""
        record.end()
        return self.advance(record)

    def rotted(self, record: ShardRecord, path: Path) -> list[Effect]:
        """The file at `path` was found damaged after it was proved. Nothing is done if it is not the one that is used."""
        if not record.paths or record.paths[0] != path:
            return []
        record.is_rotten, record.is_gone = True, False
        if record.memory is None and record.phase is not Phase.LOADING:
            return self.advance(record)
        advice = "it stays until the shard is unloaded, as the engine has it open, and is put aside then"
        facts = {"shard_id": record.key[1], "path": str(path), "advice": advice}
        return [Note("shard_rotten", "warning", facts), *self.advance(record)]

    def gone(self, record: ShardRecord, path: Path) -> list[Effect]:
        """The file at `path` is not there any more. What is in memory stays; while it is being proved or loaded, that tells."""
        if path not in record.paths or (record.is_rotten and record.is_gone):
            return []
        if record.paths[0] != path:
            record.paths.remove(path)
            return []
        if record.phase is not Phase.IDLE:
            return []
        record.is_rotten = record.is_gone = True
        if record.memory is None:
            return self.advance(record)
        advice = "what was loaded from it works on; without it the shard is fetched anew once it is out of memory"
        facts = {"shard_id": record.key[1], "path": str(path), "advice": advice}
        return [Note("shard_file_gone", "warning", facts), Withdraw(record.key)]

    def fetched(self, record: ShardRecord, path: Path) -> list[Effect]:
        """Another holder's copy is at `path`."""
        record.end()
        record.paths.insert(0, path)
        record.is_verified = record.is_rotten = False
        record.is_fresh = True
        for want in record.wants:
            want.source = "torrent"
        return self.advance(record)

    def fetch_failed(self, record: ShardRecord, error: ShardnetError) -> list[Effect]:
        """No copy could be had, or the download was stopped."""
        record.end()
        if record.is_fetch_stopped:
            record.is_fetch_stopped = False
            return self.advance(record)  # for those who came after it was stopped
        return [*self._waiters.fail_front(record, error), *self.advance(record)]

    def loaded(self, record: ShardRecord, memory: InMemory) -> list[Effect]:
        """The shard is in the engine's memory."""
        record.end()
        record.memory = memory
        for want in record.wants:
            if want.source == "memory":
                want.source = "local"
        path = str(record.paths[0])
        effects: list[Effect] = []
        if record.wants and record.wants[0].kind is not Kind.PRELOAD:
            effects.append(Note("inference_loaded_shard", facts={"shard_id": record.key[1], "path": path}))
        return [*effects, *self.advance(record)]

    def load_failed(self, record: ShardRecord, error: ShardnetError) -> list[Effect]:
        """The engine could not take it."""
        options = record.loading
        record.end()
        if isinstance(error, ShardNotFound):  # moved or deleted after it was proved
            record.is_verified = record.is_rotten = False
            return [*self._lost(record, record.paths.pop(0)), *self.advance(record)]
        return [*self._waiters.fail_front(record, error, options), *self.advance(record)]

    def unloaded(self, record: ShardRecord) -> list[Effect]:
        """Its memory is free again."""
        record.end()
        facts = {"shard_id": record.key[1], "model": self._catalogue.name_of(record.key)}
        return [Note("shard_unloaded", facts=facts), *self.advance(record)]
