"""A models cache may hold anything: what is not a whole shard of its manifest is refused with the reason, and hides nothing else."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from shardnet.errors import (
    GgufError,
    ManifestError,
    NoRoomError,
    ShardCorrupt,
    ShardnetError,
    ShardNotFound,
    UsageError,
)
from shardnet.inference.gguf.writer import string_value, u32_value, write_gguf
from shardnet.inference.splitting.cutting import CutRequest, plan_split, split_model
from shardnet.inference.splitting.manifest_file import (
    HASHES,
    HashCache,
    check_shard,
    identify_shard,
    load_manifest,
    save_manifest,
    scan_cache,
)
from shardnet.manifest import Manifest
from tests.support.random_models import tiny_llama


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with one model in three shards and one in two."""
    root = tmp_path_factory.mktemp("pristine")
    for name, count, seed in (("one", 3, 1), ("two", 2, 2)):
        model = tiny_llama(root / f"{name}.gguf", n_layers=4, seed=seed)
        split_model(plan_split(model, CutRequest(n_shards=count)), root / "cache")
    return root / "cache"


@pytest.fixture
def cache(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "cache"))


def folder_of(cache: Path, name: str) -> Path:
    return next((cache / "shards").glob(f"{name}-*"))


def reasons(cache: Path) -> dict[str, str]:
    return {path.name: reason for path, reason in scan_cache(cache).refused}


def test_every_shard_is_found_with_its_manifest(cache: Path) -> None:
    scan = scan_cache(cache)
    assert scan.refused == []
    assert len(scan.manifests) == 2
    assert sorted((s.manifest.name, s.shard_id) for s in scan.shards if s.manifest) == [
        ("one", 0), ("one", 1), ("one", 2), ("two", 0), ("two", 1),
    ]  # fmt: skip
    for shard in scan.shards:
        folder, manifest = scan.manifests[shard.model_id]
        assert shard.path.parent == folder
        assert (shard.nbytes, shard.n_layers) == (manifest.content.shards[shard.shard_id].bytes, 4)


def test_an_empty_or_missing_cache_holds_nothing(tmp_path: Path) -> None:
    assert scan_cache(tmp_path / "nowhere").shards == []
    (tmp_path / "shards").mkdir()
    assert scan_cache(tmp_path).shards == []


def test_a_shard_without_a_manifest_still_names_itself(cache: Path) -> None:
    folder = folder_of(cache, "one")
    manifest = load_manifest(folder)
    (folder / "manifest.json").unlink()
    (folder / "shard-1.gguf").rename(cache / "shards" / "renamed.gguf")
    loose = {(s.model_id, s.shard_id) for s in scan_cache(cache).shards if s.manifest is None}
    assert loose == {(manifest.model_id, index) for index in range(3)}


def test_linked_folders_are_followed_wherever_they_lie(cache: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.move(folder_of(cache, "two"), elsewhere / "two")
    (cache / "shards" / "linked").symlink_to(elsewhere / "two")
    shutil.move(cache / "shards", elsewhere / "shards")
    (cache / "shards").symlink_to(elsewhere / "shards")
    (tmp_path / "link").symlink_to(cache)
    scan = scan_cache(tmp_path / "link")
    assert len(scan.shards) == 5
    assert scan.refused == []
    hashes = HashCache(tmp_path)
    for shard in scan.shards:
        assert shard.manifest is not None
        check_shard(shard.path, shard.manifest, shard.shard_id, hashes)


def test_links_that_go_round_or_lead_to_the_same_folder_count_it_once(cache: Path) -> None:
    (cache / "shards" / "again").symlink_to(cache / "shards")
    (folder_of(cache, "one") / "up").symlink_to(cache / "shards")
    (cache / "shards" / "a-twin").symlink_to(folder_of(cache, "one"))
    scan = scan_cache(cache)
    assert len(scan.shards) == 5
    assert not any(path.is_symlink() for shard in scan.shards for path in shard.path.parents)


def test_work_in_progress_is_passed_over(cache: Path) -> None:
    shutil.copytree(folder_of(cache, "one"), cache / "shards" / ".partial-7-x")
    assert len(scan_cache(cache).shards) == 5
    assert scan_cache(cache).refused == []


def damage(cache: Path, how: str) -> tuple[str, str]:
    """Returns: the file that must be refused, and a part of the reason."""
    one, two = folder_of(cache, "one"), folder_of(cache, "two")
    shard = one / "shard-1.gguf"
    match how:
        case "truncated":
            os.truncate(shard, shard.stat().st_size - 10)
            return shard.name, "the manifest promises"
        case "empty":
            os.truncate(shard, 0)
            return shard.name, "it has only 0 bytes"
        case "symlink":
            shutil.move(shard, cache / "elsewhere.gguf")
            shard.symlink_to(cache / "elsewhere.gguf")
            return shard.name, "is a link"
        case "tokenizer a link":
            shutil.move(one / "tokenizer.gguf", cache / "elsewhere.gguf")
            (one / "tokenizer.gguf").symlink_to(cache / "elsewhere.gguf")
            return "tokenizer.gguf", "is a link"
        case "manifest a link":
            shutil.move(one / "manifest.json", cache / "elsewhere.json")
            (one / "manifest.json").symlink_to(cache / "elsewhere.json")
            return "manifest.json", "is a link"
        case "manifest a link to nothing":
            (one / "manifest.json").unlink()
            (one / "manifest.json").symlink_to(cache / "nowhere.json")
            return "manifest.json", "is a link"
        case "folder a link to nothing":
            (cache / "shards" / "gone").symlink_to(cache / "unmounted")
            return "gone", "which is not there"
        case "pipe":
            shard.unlink()
            os.mkfifo(shard)
            return shard.name, "not a regular file"
        case "folder":
            shard.unlink()
            shard.mkdir()
            return shard.name, "not a regular file"
        case "another model's":
            shutil.copy(two / "shard-1.gguf", shard)
            return shard.name, "belongs to model"
        case "another shard's":
            shutil.copy(one / "shard-0.gguf", shard)
            return shard.name, "which the manifest calls shard-0.gguf"
        case "no shard":
            tiny_llama(shard)
            return shard.name, "is a GGUF but no shard of shardnet"
        case "no gguf":
            shard.write_bytes(b"x" * 1000)
            return shard.name, "is not a GGUF"
        case "manifest of another model":
            shutil.copy(two / "manifest.json", one / "manifest.json")
            return "shard-0.gguf", "put it beside its own manifest"
        case "manifest altered":
            text = (one / "manifest.json").read_text()
            (one / "manifest.json").write_text(text.replace('"n_embd": 64', '"n_embd": 65'))
            return "manifest.json", "model_id is not the hash of the content"
        case "manifest a pipe":
            (one / "manifest.json").unlink()
            os.mkfifo(one / "manifest.json")
            return "manifest.json", "not a regular file"
        case "manifest binary":
            (one / "manifest.json").write_bytes(os.urandom(500))
            return "manifest.json", "is not a usable manifest"
        case _:
            os.truncate(one / "manifest.json", 1 << 40)
            return "manifest.json", "it has 1099511627776 bytes"


@pytest.mark.parametrize(
    "how",
    [
        "truncated", "empty", "symlink", "pipe", "folder", "another model's", "another shard's", "no shard", "no gguf",
        "manifest of another model", "manifest altered", "manifest a pipe", "manifest binary", "manifest endless",
        "tokenizer a link", "manifest a link", "manifest a link to nothing", "folder a link to nothing",
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_with_the_reason_and_the_rest_is_found(cache: Path, how: str) -> None:
    name, reason = damage(cache, how)
    assert reason in reasons(cache)[name]
    found = [shard for shard in scan_cache(cache).shards if shard.manifest and shard.manifest.name == "two"]
    assert len(found) == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_id", string_value("../" * 21 + "x")),
        ("model_id", string_value("F" * 64)),
        ("shard_id", u32_value(9)),
        ("shard_id", string_value("0")),
        ("layer_end", u32_value(0)),
        ("layer_end", u32_value(5)),
        ("n_layers", u32_value(4_000_000_000)),
    ],
)
def test_a_file_that_says_impossible_things_of_itself_is_refused(tmp_path: Path, key: str, value: object) -> None:
    fields = {"general.architecture": string_value("llama"), "shardnet.model_id": string_value("a" * 64)}
    fields |= {f"shardnet.{name}": u32_value(number) for name, number in
               (("shard_id", 0), ("layer_first", 0), ("layer_end", 2), ("n_layers", 4))}  # fmt: skip
    path = tmp_path / "good.gguf"
    write_gguf(path, dict(fields), [], mark="shardnet.model_id", on_bytes=lambda _count: None)
    assert identify_shard(path, None).n_layers == 4
    bad = tmp_path / "bad.gguf"
    write_gguf(bad, {**fields, f"shardnet.{key}": value}, [], mark="shardnet.model_id", on_bytes=lambda _count: None)  # type: ignore[dict-item]
    with pytest.raises(GgufError):
        identify_shard(bad, None)


def test_a_file_that_vanishes_during_the_scan_is_one_refused_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        identify_shard(tmp_path / "gone.gguf", None)


def test_sixty_shards_are_scanned_in_well_under_a_second(cache: Path, tmp_path: Path) -> None:
    """Their vocabularies are not even walked over: a shard's own keys come first."""
    folder = folder_of(cache, "one")
    manifest = load_manifest(folder)
    for index in range(20):
        shutil.copytree(folder, cache / "shards" / f"copy-{index}")
    began = time.thread_time()
    scan = scan_cache(cache)
    assert len(scan.shards) == 65
    assert time.thread_time() - began < 0.5
    assert manifest.model_id in scan.manifests


# -- manifests -----------------------------------------------------------------------------------------------------------------------------


def test_a_manifest_is_saved_whole_and_read_back(cache: Path, tmp_path: Path) -> None:
    manifest = load_manifest(folder_of(cache, "one"))
    save_manifest(tmp_path / "new", manifest)
    assert load_manifest(tmp_path / "new") == manifest == load_manifest(tmp_path / "new" / "manifest.json")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["manifest.json"]


def test_a_save_that_fails_leaves_the_old_manifest(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(cache, "one")
    before = sorted((path.name, path.stat().st_size) for path in folder.iterdir())

    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(NoRoomError, match=r"cannot write .*manifest.json: No space left on device; free some space"):
        save_manifest(folder, load_manifest(folder))
    assert sorted((path.name, path.stat().st_size) for path in folder.iterdir()) == before


def test_no_manifest_is_wrong_usage_and_a_bad_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no manifest to read"):
        load_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(ManifestError, match="not a usable manifest"):
        load_manifest(tmp_path)


# -- hashes --------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def one(cache: Path) -> tuple[Path, Manifest]:
    folder = folder_of(cache, "one")
    return folder, load_manifest(folder)


def test_a_whole_shard_is_proved_once_and_then_remembered(cache: Path, one: tuple[Path, Manifest]) -> None:
    folder, manifest = one
    read: list[int] = []
    check_shard(folder / "shard-1.gguf", manifest, 1, HashCache(cache), read.append)
    assert sum(read) == manifest.content.shards[1].bytes
    check_shard(folder / "shard-1.gguf", manifest, 1, HashCache(cache), read.append)
    assert sum(read) == manifest.content.shards[1].bytes
    assert HashCache(cache).known(folder / "shard-0.gguf") is None


def test_a_flipped_byte_is_found_though_the_size_is_right(cache: Path, one: tuple[Path, Manifest]) -> None:
    folder, manifest = one
    path, hashes = folder / "shard-2.gguf", HashCache(cache)
    check_shard(path, manifest, 2, hashes)
    with path.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(bytes([file.read(1)[0] ^ 1]))
    with pytest.raises(
        ShardCorrupt, match=rf"SHA-256 begins [0-9a-f]{{12}}, the manifest promises {manifest.sha256_of(2)[:12]}"
    ):
        check_shard(path, manifest, 2, hashes)


def test_a_missing_shard_and_a_shard_that_never_was_are_told_apart(cache: Path, one: tuple[Path, Manifest]) -> None:
    folder, manifest = one
    with pytest.raises(ShardNotFound, match="shard 1 of one is not at"):
        check_shard(folder / "no.gguf", manifest, 1, HashCache(cache))
    with pytest.raises(ManifestError, match="has no shard 7"):
        check_shard(folder / "shard-1.gguf", manifest, 7, HashCache(cache))


def test_a_shard_in_anothers_place_is_not_taken_for_it(cache: Path, one: tuple[Path, Manifest]) -> None:
    folder, manifest = one
    with pytest.raises(ShardnetError):
        check_shard(folder / "shard-0.gguf", manifest, 1, HashCache(cache))


def test_hashes_are_forgotten_with_their_file_and_a_broken_cache_is_begun_anew(
    cache: Path, one: tuple[Path, Manifest]
) -> None:
    folder, manifest = one
    hashes = HashCache(cache)
    hashes.sha256(folder / "shard-0.gguf")
    (folder / "shard-0.gguf").unlink()
    hashes.sha256(folder / "shard-1.gguf")
    assert len(json.loads((cache / HASHES).read_text())) == 1
    for content in ("[1]", "{", '{"a": 1}', '{"a": [1, 2, 3]}'):
        (cache / HASHES).write_text(content)
        assert HashCache(cache).sha256(folder / "shard-1.gguf") == manifest.sha256_of(1)


def test_a_hash_is_that_of_the_bytes_that_were_read(cache: Path, one: tuple[Path, Manifest]) -> None:
    """A file that changes while it is hashed must not be remembered under its new stamp."""
    folder, _ = one
    path, hashes = folder / "shard-0.gguf", HashCache(cache)

    def touch(_count: int) -> None:
        os.utime(path, (1, 1))

    hashes.sha256(path, touch)
    assert hashes.known(path) is None
