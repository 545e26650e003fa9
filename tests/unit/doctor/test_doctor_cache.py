"""The models cache: what lies in it, for whom, and on what a disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shardnet.doctor.cache import (
    CacheFacts,
    DiskFacts,
    ModelFacts,
    cache_findings,
    disk_findings,
    look_at_cache,
    look_at_disk,
    read_speed,
)
from shardnet.inference.splitting.cutting import CutRequest, plan_split, split_model
from shardnet.inference.splitting.manifest_file import HashCache, load_manifest, save_manifest
from shardnet.swarm.home import Home
from shardnet.swarm.identity import ensure_swarm
from shardnet.swarm.signing import sign
from tests.support.random_models import tiny_llama


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a model in two shards, in a models cache, its files hashed."""
    model = tiny_llama(tmp_path / "tiny.gguf")
    made, manifest = split_model(plan_split(model, CutRequest(n_shards=2)), tmp_path / "cache")
    hashes = HashCache(tmp_path / "cache")
    for shard in manifest.content.shards:
        hashes.sha256(made / shard.file)
    return made


@pytest.fixture
def member(tmp_path: Path) -> Home:
    """The home of a machine that does not own its swarm."""
    home = Home(tmp_path / "member")
    ensure_swarm(home)
    home.ca_key.unlink()
    return home


def lines(folder: Path, home: Home) -> list[str]:
    return [one.line() for one in cache_findings(look_at_cache(folder.parents[1], home))]


def test_a_model_that_nobody_signed_is_served_from_the_owners_cache_and_told_at_a_members(
    folder: Path, tmp_path: Path, member: Home
) -> None:
    owner = Home(tmp_path / "owner")
    ensure_swarm(owner)
    assert lines(folder, owner)[0].startswith("✓ models cache: 2 shards of 1 models")
    (told,) = lines(folder, member)
    assert "is not served: nobody signed its manifest: split the model on the machine that owns this swarm" in told


def test_a_model_of_another_swarm_is_told_by_that_name(folder: Path, tmp_path: Path, member: Home) -> None:
    stranger = ensure_swarm(Home(tmp_path / "stranger"))
    save_manifest(folder, sign(load_manifest(folder), stranger))
    assert "its manifest is signed by another swarm's owner" in lines(folder, member)[0]


def test_damaged_cut_and_orphaned_files_and_those_never_hashed_are_told(folder: Path, tmp_path: Path) -> None:
    home = Home(tmp_path / "none")
    (folder / "shard-1.gguf").write_bytes((folder / "shard-1.gguf").read_bytes()[:-1])
    assert any("fetch it again" in line for line in lines(folder, home))
    (folder / "shard-0.gguf").touch()
    assert any("1 of 1 shards of" in line and "were not hashed" in line for line in lines(folder, home))
    orphan = folder.parent / "elsewhere"
    orphan.mkdir()
    shutil.copy(folder / "shard-0.gguf", orphan / "lost.gguf")
    assert any("has no manifest.json beside it" in line for line in lines(folder, home))


def test_of_two_models_with_one_name_the_one_that_is_not_meant_is_told(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "tiny.gguf"
    split_model(plan_split(model, CutRequest(n_shards=3)), tmp_path / "cache")
    told = [
        line for line in lines(folder, Home(tmp_path / "none")) if "has the name of a newer or better proved" in line
    ]
    assert len(told) == 1


def test_an_empty_cache_is_well_and_more_sentences_than_anybody_reads_are_a_matter_of_findings(tmp_path: Path) -> None:
    assert "holds no model yet" in cache_findings(look_at_cache(tmp_path / "none", Home(tmp_path)))[0].what
    fine = CacheFacts("/c", (ModelFacts("m", "a" * 64, shards=3, n_shards=3),))
    assert cache_findings(fine)[0].what == "3 shards of 1 models in /c"


def test_room_and_speed_of_a_disk_are_told_before_a_download_fails(folder: Path) -> None:
    facts = look_at_disk(folder.parents[1], 128 << 20)
    assert facts.is_there
    assert facts.free_bytes > 0
    assert disk_findings(DiskFacts("/c", is_there=True, free_bytes=100, keep_free_bytes=200))[0].level == "fault"
    assert disk_findings(DiskFacts("/c", is_there=True, free_bytes=1 << 30))[0].level == "warning"
    assert disk_findings(DiskFacts("/c", is_there=True, free_bytes=9 << 30, bytes_per_s=5e7))[0].level == "note"
    assert (
        "read at 1.0 GB/s" in disk_findings(DiskFacts("/c", is_there=True, free_bytes=9 << 30, bytes_per_s=1e9))[0].what
    )
    assert disk_findings(DiskFacts("/c", is_there=True, free_bytes=9 << 30, is_writable=False))[0].level == "note"


def test_a_cache_that_is_a_file_is_a_fault_and_a_file_is_read_past_the_page_cache_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(3 << 20))
    assert disk_findings(look_at_disk(file, 0))[0].level == "fault"
    speed = read_speed(file)
    assert speed is None or speed > 0
    assert read_speed(tmp_path / "none") is None
