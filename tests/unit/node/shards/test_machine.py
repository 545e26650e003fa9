"""The node's shards as a pure machine: every test ends with its invariants whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from shardnet.errors import Busy, EngineError, ManifestError, ShardCorrupt, ShardNotFound
from shardnet.ids import ShardKey
from shardnet.manifest import Manifest, ShardFile
from shardnet.messages import CommandFailed, Done, LoadProgress, LoadShard, ShardOptions, ShardReady, UnloadShard
from shardnet.node.shards import effects as do
from shardnet.node.shards import events as ev
from shardnet.node.shards.assignment import Assignment, parse_binding
from shardnet.node.shards.machine import NodeState
from shardnet.node.shards.waiters import MAX_FINISHED
from shardnet.shards import LayerRange
from tests.support.node_world import make_manifest

CACHE = Path("/cache")
FOLDER = CACHE / "shards" / "m"
SMALL, LARGE = ShardOptions(n_ctx=128, n_seq=1, n_batch=32), ShardOptions(n_ctx=512, n_seq=4, n_batch=64)
E = TypeVar("E")


MANIFEST = make_manifest()
MODEL = MANIFEST.model_id


def key(shard_id: int) -> ShardKey:
    return ShardKey((MODEL, shard_id))


class World:
    """A state, and short words for what happens to it."""

    def __init__(self) -> None:
        self.state = NodeState(CACHE, Assignment(), can_fetch=False)
        self._ids = 0

    def start(self, *here: int, shards: tuple[str, ...] = (), can_fetch: bool = False, manifest: bool = True) -> None:
        self.state = NodeState(CACHE, Assignment(tuple(map(parse_binding, shards))), can_fetch=can_fetch)
        models = (ev.LocalModel(MANIFEST, FOLDER),) if manifest else ()
        found = tuple(
            ev.LocalShard(key(i), FOLDER / f"shard-{i}.gguf", LayerRange(first=i, end=i + 1), 100 + i) for i in here
        )
        self.state.handle(ev.CacheScanned(models, found))

    def command(self, shard_id: int, options: ShardOptions = SMALL, **more: object) -> LoadShard:
        self._ids += 1
        facts: dict[str, object] = {"command_id": f"{self._ids:016x}", "deadline_s": 60.0, "model_id": MODEL}
        return LoadShard.model_validate(facts | {"shard_id": shard_id, "options": options} | more)

    def load(
        self, shard_id: int, options: ShardOptions = SMALL, *, signed: bool = False, **more: object
    ) -> list[do.Effect]:
        return self.state.handle(ev.LoadAsked(self.command(shard_id, options, **more), signed, 10.0))

    def unload(self, shard_id: int) -> list[do.Effect]:
        self._ids += 1
        command = UnloadShard(command_id=f"{self._ids:016x}", deadline_s=5, model_id=MODEL, shard_id=shard_id)
        return self.state.handle(ev.UnloadAsked(command, 10.0))

    def into_memory(self, shard_id: int, options: ShardOptions = SMALL) -> None:
        """Load a shard all the way, whatever of it was done already."""
        pending = self.load(shard_id, options)
        for effect in pending:
            if isinstance(effect, do.Verify):
                pending += self.state.handle(ev.ShardVerified(effect.key))
            if isinstance(effect, do.Load):
                pending += self.state.handle(ev.ShardLoaded(effect.key, effect.options, 1000))
        assert answers(pending, ShardReady)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.state.check()


def of(effects: list[do.Effect], kind: type[E]) -> list[E]:
    return [effect for effect in effects if isinstance(effect, kind)]


def answers(effects: list[do.Effect], kind: type[E]) -> list[E]:
    return [effect.message for effect in of(effects, do.Send) if isinstance(effect.message, kind)]


def facts(effects: list[do.Effect]) -> list[str]:
    return [note.fact for note in of(effects, do.Note)]


# -- LOAD_SHARD --------------------------------------------------------------------------------------------------------------------


def test_a_local_shard_is_proved_then_loaded_then_answered(world: World) -> None:
    world.start(0)
    effects = world.load(0)
    assert of(effects, do.Verify) == [do.Verify(key(0), FOLDER / "shard-0.gguf", MANIFEST)]
    assert of(effects, do.StartTimer)[0].at_s == 70.0
    effects = world.state.handle(ev.ShardVerified(key(0)))
    assert of(effects, do.Offer) == [do.Offer(key(0), FOLDER / "shard-0.gguf", MANIFEST)]
    assert of(effects, do.Load) == [do.Load(key(0), FOLDER / "shard-0.gguf", 100, SMALL)]
    effects = world.state.handle(ev.ShardLoaded(key(0), SMALL, 1000))
    (ready,) = answers(effects, ShardReady)
    assert (ready.source, ready.held.loaded, ready.held.memory_bytes) == ("local", True, 1000)
    assert facts(effects) == ["inference_loaded_shard", "load_shard_local"]
    assert len(of(effects, do.StopTimer)) == 1
    assert world.state.chain_is_ready(MODEL, 0, 1)


def test_second_load_of_a_ready_shard_is_answered_at_once(world: World) -> None:
    world.start(0)
    world.into_memory(0, LARGE)
    for options in (LARGE, SMALL):  # what is loaded can do all that the smaller one asks for
        effects = world.load(0, options)
        assert [ready.source for ready in answers(effects, ShardReady)] == ["memory"]
        assert "load_shard_already_loaded" in facts(effects)


def test_a_load_with_larger_options_loads_the_shard_again(world: World) -> None:
    world.start(0)
    world.into_memory(0, SMALL)
    effects = world.load(0, LARGE)
    assert [load.options for load in of(effects, do.Load)] == [LARGE]
    assert not of(effects, do.Verify), "a proved file is not hashed again"
    assert not world.state.chain_is_ready(MODEL, 0, 1)
    effects = world.state.handle(ev.ShardLoaded(key(0), LARGE, 2000))
    assert [ready.source for ready in answers(effects, ShardReady)] == ["local"]


def test_concurrent_loads_of_one_shard_share_one_load(world: World) -> None:
    world.start(0)
    first, second = world.load(0), world.load(0)
    assert (len(of(first, do.Verify)), len(of(second, do.Verify))) == (1, 0)
    effects = world.state.handle(ev.ShardVerified(key(0)))
    assert len(of(effects, do.Load)) == 1
    assert len(answers(world.state.handle(ev.ShardLoaded(key(0), SMALL, 1)), ShardReady)) == 2


def test_a_file_that_is_only_to_be_kept_is_proved_and_not_loaded(world: World) -> None:
    world.start(0)
    world.load(0, keep_only=True)
    effects = world.state.handle(ev.ShardVerified(key(0)))
    (ready,) = answers(effects, ShardReady)
    assert (ready.source, ready.held.loaded) == ("local", False)
    assert not of(effects, do.Load)


def test_a_missing_shard_is_refused_with_a_clear_sentence(world: World) -> None:
    world.start(0)
    (failed,) = answers(world.load(1), CommandFailed)
    assert failed.error.code == "SHARD_NOT_FOUND"
    assert "shard 1 of m is not in this node's models cache (/cache)" in failed.error.message


def test_a_missing_shard_is_fetched_where_somebody_can(world: World) -> None:
    world.start(0, can_fetch=True)
    (fetch,) = of(world.load(1), do.Fetch)
    assert fetch.target == FOLDER / "shard-1.gguf"
    progress = world.state.handle(ev.Progressed(key(1), "fetch", 50, 101, 1e6, 3))
    assert [(p.done_bytes, p.peers) for p in answers(progress, LoadProgress)] == [(50, 3)]
    (held,) = [held for held in world.state.held({}) if held.shard_id == 1]
    assert held.progress == pytest.approx(50 / 101)
    load = ev.Progressed(key(1), "load", 50, 101, memory_bytes=700, cpu_cores=1.5)
    assert [(p.memory_bytes, p.cpu_cores) for p in answers(world.state.handle(load), LoadProgress)] == [(700, 1.5)]
    effects = world.state.handle(ev.ShardFetched(key(1), fetch.target))
    assert of(effects, do.Verify)
    world.state.handle(ev.ShardVerified(key(1)))
    effects = world.state.handle(ev.ShardLoaded(key(1), SMALL, 1))
    assert [ready.source for ready in answers(effects, ShardReady)] == ["torrent"]
    assert "load_shard_torrent" in facts(effects)


def test_a_repeated_command_gets_the_same_answer_and_causes_nothing(world: World) -> None:
    world.start(0)
    command = world.command(0)
    world.state.handle(ev.LoadAsked(command, False, 0))
    assert world.state.handle(ev.LoadAsked(command, False, 1)) == [], "it is being worked on"
    world.state.handle(ev.ShardVerified(key(0)))
    (ready,) = answers(world.state.handle(ev.ShardLoaded(key(0), SMALL, 1)), ShardReady)
    assert world.state.handle(ev.LoadAsked(command, False, 2)) == [do.Send(ready)]


def test_remembered_answers_are_bounded(world: World) -> None:
    world.start()

    def ask(command: LoadShard) -> list[do.Effect]:
        return world.state.handle(ev.LoadAsked(command, False, 0))

    commands = [world.command(0) for _ in range(MAX_FINISHED + 10)]
    first_time = [ask(command) for command in commands]
    assert all(of(effects, do.StartTimer) for effects in first_time)
    again = [
        ask(command) for command in reversed(commands)
    ]  # the newest first: what is remembered does not change for these
    remembered = [effects for effects in again if len(effects) == 1 and of(effects, do.Send)]
    assert remembered == again[:MAX_FINISHED]
    assert all(of(effects, do.StartTimer) for effects in again[MAX_FINISHED:]), "forgotten, and done anew"


def test_an_engine_that_refuses_fails_those_who_asked_for_the_same(world: World) -> None:
    world.start(0)
    world.load(0, SMALL)
    world.load(0, LARGE)
    world.load(0, SMALL)
    world.state.handle(ev.ShardVerified(key(0)))
    effects = world.state.handle(ev.LoadFailed(key(0), EngineError("no")))
    assert [failed.error.code for failed in answers(effects, CommandFailed)] == ["ENGINE", "ENGINE"]
    assert [load.options for load in of(effects, do.Load)] == [LARGE], "the other options may still work"
    world.state.handle(ev.ShardLoaded(key(0), LARGE, 1))


def test_a_shard_the_model_does_not_have_is_refused(world: World) -> None:
    world.start(0)
    (failed,) = answers(world.load(9), CommandFailed)
    assert failed.error.message == "model m has no shard 9: it has 3"


# -- manifests ---------------------------------------------------------------------------------------------------------------------


def cut_in_parts(*here: int, salt: str = "3") -> Manifest:
    """Returns: the manifest of a model that several machines cut, which knows the bytes of some shards."""
    shards = [
        one.model_copy(update={"content_sha256": None, "header_sha256": "1" * 64}) for one in MANIFEST.content.shards
    ]
    content = MANIFEST.content.model_copy(update={"shards": tuple(shards), "weights_sha256": "5" * 64, "format": 2})
    files = tuple(ShardFile(sha256=salt * 64 if index in here else None) for index in range(3))
    return Manifest(model_id=content.model_id, name="m", content=content, files=files)


def test_a_manifest_that_knows_shards_cut_here_is_not_replaced_by_one_that_does_not(world: World) -> None:
    mine, owners = cut_in_parts(1), cut_in_parts(0).model_copy(update={"signature": "c2lnbmVk"})
    catalogue = world.state.catalogue
    catalogue.models[mine.model_id] = ev.LocalModel(mine, FOLDER)
    assert catalogue.learn(owners, mine.model_id, is_signed=True) is None
    assert catalogue.find("m").manifest == mine
    whole = cut_in_parts(0, 1, 2).model_copy(update={"signature": "c2lnbmVk"})
    assert catalogue.learn(whole, mine.model_id, is_signed=True) == ev.LocalModel(whole, FOLDER)


def test_two_versions_of_a_model_that_is_cut_in_parts_are_never_mixed(world: World) -> None:
    mine, other = cut_in_parts(0, 1), cut_in_parts(1, salt="4").model_copy(update={"signature": "c2lnbmVk"})
    world.state.catalogue.models[mine.model_id] = ev.LocalModel(mine, FOLDER)
    with pytest.raises(ManifestError, match=r"promises other bytes for shard 1 .* cut of two versions of one model"):
        world.state.catalogue.learn(other, mine.model_id, is_signed=True)


def test_a_model_that_was_not_proved_is_kept_out_where_the_user_wants_proof(world: World) -> None:
    world.state = NodeState(CACHE, Assignment(), can_fetch=False, require_proof=True)
    shard = ev.LocalShard(key(0), FOLDER / "shard-0.gguf", LayerRange(first=0, end=1), 100)
    world.state.handle(ev.CacheScanned((ev.LocalModel(MANIFEST, FOLDER),), (shard,)))
    effects = world.state.handle(ev.PreloadAsked(everything=True, options=SMALL, at_s=0.0))
    assert "shard_kept_out" in facts(effects)
    assert not of(effects, do.Verify)
    (failed,) = answers(world.load(0), CommandFailed)
    assert failed.error.code == "REFUSED"
    assert (
        "models.require_proof keeps m out: its shards were never run against the unsplit model" in failed.error.message
    )


def test_a_signed_manifest_is_kept_and_an_unsigned_one_refused(world: World) -> None:
    world.start(manifest=False, can_fetch=True)
    (failed,) = answers(world.load(0, manifest=MANIFEST), CommandFailed)
    assert failed.error.code == "BAD_MANIFEST"
    assert "not signed by the swarm's owner" in failed.error.message
    effects = world.load(0, signed=True, manifest=MANIFEST)
    (saved,) = of(effects, do.SaveManifest)
    assert saved.folder == CACHE / "shards" / f"m-{MODEL[:12]}"
    assert of(effects, do.Fetch)[0].target.parent == saved.folder


def test_an_unsigned_manifest_is_taken_where_the_user_put_it_here(world: World) -> None:
    world.start(0)
    effects = world.load(0, manifest=MANIFEST)
    assert of(effects, do.Verify)
    assert not of(effects, do.SaveManifest)


def test_a_file_without_its_manifest_is_found_and_not_run(world: World) -> None:
    world.start(0, manifest=False)
    (failed,) = answers(world.load(0), CommandFailed)
    assert "manifest.json" in failed.error.message
    assert of(world.load(0, signed=True, manifest=MANIFEST), do.Verify), "with its manifest it is as good as any"


def test_a_manifest_of_another_model_is_refused(world: World) -> None:
    world.start(0)
    other = make_manifest("other", 2)
    (failed,) = answers(world.load(0, signed=True, manifest=other), CommandFailed)
    assert failed.error.code == "BAD_MANIFEST"


# -- damage ------------------------------------------------------------------------------------------------------------------------


def test_a_damaged_file_is_put_aside_and_never_loaded(world: World) -> None:
    world.start(0)
    world.load(0)
    effects = world.state.handle(ev.VerifyFailed(key(0), ShardCorrupt("damaged")))
    assert of(effects, do.Quarantine) == [do.Quarantine(key(0), FOLDER / "shard-0.gguf")]
    assert "shard_refused" in facts(effects)
    effects = world.state.handle(ev.Quarantined(key(0)))
    (failed,) = answers(effects, CommandFailed)
    assert failed.error.code == "SHARD_CORRUPT"
    assert not of(effects, do.Load)
    assert world.state.held({}) == ()


def test_a_damaged_file_is_fetched_anew_where_somebody_can(world: World) -> None:
    world.start(0, can_fetch=True)
    world.load(0)
    effects = world.state.handle(ev.VerifyFailed(key(0), ShardCorrupt("damaged")))
    assert of(effects, do.Quarantine)
    assert not of(effects, do.Fetch), "not before the damaged file is out of its way"
    effects = world.state.handle(ev.Quarantined(key(0)))
    assert of(effects, do.Fetch)
    assert not answers(effects, CommandFailed)
    effects = world.state.handle(ev.FetchFailed(key(0), ShardNotFound("nobody has it")))
    assert [failed.error.code for failed in answers(effects, CommandFailed)] == ["SHARD_NOT_FOUND"]


def test_a_fetched_file_that_is_damaged_is_not_fetched_again_and_again(world: World) -> None:
    world.start(can_fetch=True)
    (fetch,) = of(world.load(0), do.Fetch)
    world.state.handle(ev.ShardFetched(key(0), fetch.target))
    effects = world.state.handle(ev.VerifyFailed(key(0), ShardCorrupt("damaged")))
    assert [failed.error.code for failed in answers(effects, CommandFailed)] == ["SHARD_CORRUPT"]
    assert of(world.state.handle(ev.Quarantined(key(0))), do.Fetch) == []
    assert of(world.load(0), do.Fetch), "a new command tries anew"


def test_a_second_copy_is_tried_when_the_first_is_damaged(world: World) -> None:
    world.start(0)
    other = ev.LocalShard(key(0), CACHE / "shards" / "copy" / "shard-0.gguf", LayerRange(first=0, end=1), 100)
    world.state.handle(ev.CacheScanned((), (other,)))
    world.load(0)
    world.state.handle(ev.VerifyFailed(key(0), ShardCorrupt("damaged")))
    effects = world.state.handle(ev.Quarantined(key(0)))
    assert [verify.path for verify in of(effects, do.Verify)] == [other.path]


# -- a file that rots --------------------------------------------------------------------------------------------------------------

FILE = FOLDER / "shard-0.gguf"


def test_a_file_that_rots_after_it_was_proved_is_put_aside_at_once(world: World) -> None:
    world.start(0, can_fetch=True)
    world.load(0, keep_only=True)
    world.state.handle(ev.ShardVerified(key(0)))
    assert world.state.handle(ev.FileRotted(key(0), FOLDER / "another")) == []
    effects = world.state.handle(ev.FileRotted(key(0), FILE))
    assert of(effects, do.Quarantine) == [do.Quarantine(key(0), FILE)]
    assert "shard_refused" in facts(effects)
    assert world.state.held({}) == ()
    assert not of(world.load(0), do.Fetch), "not before the damaged file is out of its way"
    assert of(world.state.handle(ev.Quarantined(key(0))), do.Fetch)


def test_a_rotten_file_that_the_engine_has_open_is_put_aside_when_the_shard_is_unloaded(world: World) -> None:
    world.start(0)
    world.into_memory(0)
    effects = world.state.handle(ev.FileRotted(key(0), FILE))
    assert facts(effects) == ["shard_rotten"]
    assert not of(effects, do.Quarantine)
    assert world.state.chain_is_ready(MODEL, 0, 1), "what is in memory goes on running"
    assert answers(world.load(0), ShardReady)
    (failed,) = answers(world.load(0, keep_only=True), CommandFailed)
    assert "is damaged, and in use" in failed.error.message
    assert of(world.unload(0), do.Unload)
    effects = world.state.handle(ev.ShardUnloaded(key(0)))
    assert of(effects, do.Quarantine) == [do.Quarantine(key(0), FILE)]
    assert answers(world.state.handle(ev.Quarantined(key(0))), Done)
    assert world.state.held({}) == ()


def test_a_rotten_file_is_not_loaded_again_with_larger_options_but_fetched(world: World) -> None:
    world.start(0, can_fetch=True)
    world.into_memory(0, SMALL)
    world.state.handle(ev.FileRotted(key(0), FILE))
    effects = world.load(0, LARGE)
    assert of(effects, do.Unload)
    assert not of(effects, do.Load)
    effects = world.state.handle(ev.ShardUnloaded(key(0)))
    assert of(effects, do.Quarantine)
    assert of(world.state.handle(ev.Quarantined(key(0))), do.Fetch)


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_rotten_file_outlives_an_engine_crash_only_if_its_shard_does(world: World, comes_back: bool) -> None:
    world.start(0)
    world.into_memory(0)
    world.state.handle(ev.FileRotted(key(0), FILE))
    effects = world.state.handle(ev.EngineCameBack(((key(0), 1000, "resident", True),) if comes_back else ()))
    assert bool(of(effects, do.Quarantine)) != comes_back


def test_a_file_that_rots_while_it_is_loaded_is_known_to_be_rotten_afterwards(world: World) -> None:
    world.start(0)
    world.load(0)
    world.state.handle(ev.ShardVerified(key(0)))
    assert facts(world.state.handle(ev.FileRotted(key(0), FILE))) == ["shard_rotten"]
    assert answers(world.state.handle(ev.ShardLoaded(key(0), SMALL, 1000)), ShardReady)
    world.unload(0)
    assert of(world.state.handle(ev.ShardUnloaded(key(0))), do.Quarantine)


# -- UNLOAD_SHARD ------------------------------------------------------------------------------------------------------------------


def test_unloading_frees_memory_and_keeps_the_file(world: World) -> None:
    world.start(0)
    world.into_memory(0)
    assert of(world.unload(0), do.Unload) == [do.Unload(key(0))]
    assert not world.state.chain_is_ready(MODEL, 0, 1)
    effects = world.state.handle(ev.ShardUnloaded(key(0)))
    assert answers(effects, Done)
    assert [held.loaded for held in world.state.held({})] == [False]
    assert answers(world.unload(0), Done), "harmless when it is not loaded"
    assert answers(world.unload(2), Done), "or never was here"


def test_an_unload_waits_for_the_load_before_it(world: World) -> None:
    world.start(0)
    world.load(0)
    assert not answers(world.unload(0), Done)
    world.load(0)
    world.state.handle(ev.ShardVerified(key(0)))
    effects = world.state.handle(ev.ShardLoaded(key(0), SMALL, 1))
    assert len(answers(effects, ShardReady)) == 1
    assert of(effects, do.Unload)
    effects = world.state.handle(ev.ShardUnloaded(key(0)))
    assert answers(effects, Done)
    assert of(effects, do.Load), "the load that came after it"
    world.state.handle(ev.ShardLoaded(key(0), SMALL, 1))


# -- tasks -------------------------------------------------------------------------------------------------------------------------


def test_a_task_brings_its_stages_shards_into_memory_by_itself(world: World) -> None:
    world.start(0, 1)
    effects = world.state.handle(ev.TaskWaits(7, MODEL, 0, 2, SMALL))
    assert {verify.key for verify in of(effects, do.Verify)} == {key(0), key(1)}
    for shard_id in (0, 1):
        world.state.handle(ev.ShardVerified(key(shard_id)))
    assert not of(world.state.handle(ev.ShardLoaded(key(0), SMALL, 1)), do.RunTask)
    effects = world.state.handle(ev.ShardLoaded(key(1), SMALL, 1))
    assert of(effects, do.RunTask) == [do.RunTask(7)]
    assert "inference_loaded_shard" in facts(effects)


def test_tasks_that_wait_go_on_in_their_order(world: World) -> None:
    world.start(0)
    for ticket in (3, 4, 5):
        world.state.handle(ev.TaskWaits(ticket, MODEL, 0, 1, SMALL))
    world.state.handle(ev.ShardVerified(key(0)))
    effects = world.state.handle(ev.ShardLoaded(key(0), SMALL, 1))
    assert [run.ticket for run in of(effects, do.RunTask)] == [3, 4, 5]


def test_a_task_is_told_at_once_which_shard_is_missing(world: World) -> None:
    world.start(0, can_fetch=True)
    (failed,) = of(world.state.handle(ev.TaskWaits(1, MODEL, 0, 2, SMALL)), do.FailTask)
    assert isinstance(failed.error, ShardNotFound)
    assert failed.error.facts["shard_id"] == 1


def test_a_task_fails_with_the_shard_that_fails(world: World) -> None:
    world.start(0, 1)
    world.state.handle(ev.TaskWaits(1, MODEL, 0, 2, SMALL))
    world.state.handle(ev.ShardVerified(key(1)))
    world.state.handle(ev.VerifyFailed(key(0), ShardCorrupt("damaged")))
    (failed,) = of(world.state.handle(ev.Quarantined(key(0))), do.FailTask)
    assert failed.error.code == "SHARD_CORRUPT"
    assert not of(world.state.handle(ev.ShardLoaded(key(1), SMALL, 1)), do.RunTask)


def test_a_task_that_is_gone_is_not_run(world: World) -> None:
    world.start(0)
    world.state.handle(ev.TaskWaits(1, MODEL, 0, 1, SMALL))
    world.state.handle(ev.TaskGone(1))
    world.state.handle(ev.ShardVerified(key(0)))
    assert world.state.handle(ev.TaskGone(1)) == []


def test_shards_that_an_engine_crash_took_are_loaded_again_when_asked_for(world: World) -> None:
    world.start(0, 1)
    world.into_memory(0)
    world.into_memory(1)
    world.state.handle(ev.EngineCameBack(((key(1), 500, "resident", True),)))
    assert [(held.loaded, held.memory_bytes) for held in world.state.held({})] == [(False, 0), (True, 500)]
    assert not world.state.chain_is_ready(MODEL, 0, 2)
    assert of(world.state.handle(ev.TaskWaits(1, MODEL, 0, 2, SMALL)), do.Load)
    world.state.handle(ev.ShardLoaded(key(0), SMALL, 1))


# -- deadlines and the end ---------------------------------------------------------------------------------------------------------


def test_a_deadline_answers_the_command_and_lets_the_load_go_on(world: World) -> None:
    world.start(0)
    command = world.command(0)
    world.state.handle(ev.LoadAsked(command, False, 0))
    (failed,) = answers(world.state.handle(ev.DeadlinePassed(command.command_id)), CommandFailed)
    assert failed.error.code == "DEADLINE"
    assert "verifying its hash" in failed.error.message
    assert world.state.handle(ev.DeadlinePassed(command.command_id)) == []
    assert world.state.handle(ev.ShardVerified(key(0)))[0] == do.Offer(key(0), FOLDER / "shard-0.gguf", MANIFEST)


def test_a_download_that_nobody_waits_for_is_stopped(world: World) -> None:
    world.start(can_fetch=True)
    first, second = world.command(0), world.command(0)
    for command in (first, second):
        world.state.handle(ev.LoadAsked(command, False, 0))
    assert not of(world.state.handle(ev.DeadlinePassed(first.command_id)), do.StopFetch)
    assert of(world.state.handle(ev.DeadlinePassed(second.command_id)), do.StopFetch) == [do.StopFetch(key(0))]
    assert not of(world.load(0), do.Fetch), "the old download has not ended yet"
    effects = world.state.handle(ev.FetchFailed(key(0), ShardNotFound("stopped")))
    assert of(effects, do.Fetch), "it begins again for who came after"
    assert not answers(effects, CommandFailed)


def test_a_leaving_node_takes_no_more_shards(world: World) -> None:
    world.start(0, 1)
    world.load(0)
    effects = world.state.handle(ev.DrainBegan())
    assert [failed.error.code for failed in answers(effects, CommandFailed)] == [Busy.code]
    (failed,) = answers(world.load(1), CommandFailed)
    assert failed.error.code == Busy.code


# -- the start ---------------------------------------------------------------------------------------------------------------------


def preload(world: World, *, everything: bool = False) -> list[do.Effect]:
    return world.state.handle(ev.PreloadAsked(everything, SMALL, 0.0))


def test_the_assigned_shard_is_loaded_before_the_node_joins(world: World) -> None:
    world.start(0, 1, shards=("0",))
    effects = preload(world)
    assert [verify.key for verify in of(effects, do.Verify)] == [key(0)]
    assert not of(effects, do.PreloadDone)
    world.state.handle(ev.ShardVerified(key(0)))
    effects = world.state.handle(ev.ShardLoaded(key(0), SMALL, 1))
    assert facts(effects) == ["shard_loaded_before_join", "shard_path", "shard_available"]
    assert of(effects, do.PreloadDone)
    assert world.state.loaded_before_join


def test_an_assigned_shard_that_is_missing_is_said_twice_and_does_not_stop_the_node(world: World) -> None:
    world.start(0, shards=("m:1", "other:5"))
    effects = preload(world)
    assert facts(effects) == ["shard_not_found_locally", "shard_will_download"] * 2
    assert [note.facts["shard_id"] for note in of(effects, do.Note)] == [1, 1, 5, 5]
    assert of(effects, do.PreloadDone)
    assert not world.state.loaded_before_join


def test_a_node_with_no_assignment_joins_at_once_and_loads_all_only_when_told(world: World) -> None:
    world.start(0, 1)
    assert preload(world) == [do.PreloadDone()]
    effects = preload(world, everything=True)
    assert len(of(effects, do.Verify)) == 2
    for shard_id in (0, 1):
        world.state.handle(ev.VerifyFailed(key(shard_id), ShardCorrupt("damaged")))
        effects = world.state.handle(ev.Quarantined(key(shard_id)))
    assert "load_shard_failed" in facts(effects)
    assert of(effects, do.PreloadDone), "a damaged shard does not keep the node from joining"


def test_a_node_bound_to_a_shard_that_there_is_not_says_so_at_its_start(world: World) -> None:
    world.start(0, shards=("9", "m:9", "other:9"))
    effects = world.state.handle(ev.PreloadAsked(True, SMALL, 0.0))
    reasons = [str(note.facts["reason"]) for note in of(effects, do.Note) if note.fact == "shard_there_is_none"]
    assert [
        f"--shard {text} names ({MANIFEST.name} has {MANIFEST.n_shards}, 0 to" in reasons[i]
        for i, text in enumerate(("9", "m:9"))
    ] == [True, True]
    assert facts(effects).count("shard_will_download") == 1, "a model that is not known here may have it"


def test_a_file_that_somebody_deletes_is_withdrawn_and_told_to_nobody_any_more(world: World) -> None:
    world.start(0, can_fetch=True)
    world.load(0, keep_only=True)
    world.state.handle(ev.ShardVerified(key(0)))
    assert world.state.handle(ev.FileGone(key(0), FOLDER / "another")) == []
    effects = world.state.handle(ev.FileGone(key(0), FILE))
    assert of(effects, do.Withdraw)
    assert not of(effects, do.Quarantine), "there is nothing to put aside"
    assert world.state.held({}) == ()
    assert of(world.load(0), do.Fetch), "whoever wants it gets it from others"


def test_a_deleted_file_s_shard_stays_in_memory_and_is_fetched_once_the_engine_has_ended(world: World) -> None:
    world.start(0, can_fetch=True)
    world.into_memory(0)
    effects = world.state.handle(ev.FileGone(key(0), FILE))
    assert of(effects, do.Withdraw)
    assert facts(effects) == ["shard_file_gone"]
    assert world.state.handle(ev.FileGone(key(0), FILE)) == [], "said once"
    (held,) = world.state.held({})
    assert held.loaded
    assert held.detail.startswith("its file is gone")
    world.state.check()
    world.state.handle(ev.EngineCameBack(()))
    assert world.state.held({}) == ()
    effects = world.load(0)
    assert of(effects, do.Fetch)
    world.state.handle(ev.ShardFetched(key(0), FILE))
    effects = world.state.handle(ev.ShardVerified(key(0)))
    assert of(effects, do.Load)


def test_a_file_that_went_between_its_proof_and_its_load_is_fetched_for_the_same_command(world: World) -> None:
    world.start(0, can_fetch=True)
    world.load(0)
    world.state.handle(ev.ShardVerified(key(0)))
    effects = world.state.handle(ev.LoadFailed(key(0), ShardNotFound("gone")))
    assert of(effects, do.Withdraw)
    assert of(effects, do.Fetch)
    assert not answers(effects, CommandFailed)


def test_without_anybody_to_fetch_from_a_deleted_file_is_named(world: World) -> None:
    world.start(0)
    world.load(0)
    world.state.handle(ev.ShardVerified(key(0)))
    effects = world.state.handle(ev.LoadFailed(key(0), ShardNotFound("gone")))
    (failed,) = answers(effects, CommandFailed)
    assert f"{FILE} is gone" in failed.error.message


def test_a_bound_node_takes_no_other_shard(world: World) -> None:
    world.start(0, 1, shards=("m:0",))
    (failed,) = answers(world.load(1), CommandFailed)
    assert failed.error.code == "REFUSED"
    assert "bound it to shard m:0" in failed.error.message
    assert of(world.load(0), do.Verify)
