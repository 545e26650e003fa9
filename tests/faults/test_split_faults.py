"""A split that is killed, or runs beside another, leaves a cache that is either without the model or has all of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shardnet.inference.splitting.cutting import CutRequest, plan_split, split_model
from shardnet.inference.splitting.manifest_file import HashCache, check_shard, load_manifest, scan_cache
from tests.support.random_models import tiny_llama
from tests.support.small_disks import fill, small_disk

STOPS_IN_THE_MIDDLE = """
import os, signal, sys
from pathlib import Path
from shardnet.inference.splitting.cutting import CutRequest, plan_split, split_model
model, cache, share, how = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4]

def on_progress(done, total):
    if done >= share * total:
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        os.write(1, b"waiting\\n")  # whole, though several threads come here
        sys.stdin.readline()

split_model(plan_split(model, CutRequest(n_shards=3)), cache, on_progress)
print("done", flush=True)
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "tiny.gguf", n_layers=6)


def start(model: Path, cache: Path, share: float, how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", STOPS_IN_THE_MIDDLE, str(model), str(cache), str(share), how]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )


def check_whole(cache: Path) -> None:
    scan = scan_cache(cache)
    assert scan.refused == []
    assert len(scan.shards) == 3
    for shard in scan.shards:
        assert shard.manifest is not None
        check_shard(shard.path, shard.manifest, shard.shard_id, HashCache(cache))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9])
def test_after_kill_9_nothing_stands_under_a_final_name_and_the_next_split_tidies_up(
    model: Path, tmp_path: Path, share: float
) -> None:
    cache = tmp_path / "cache"
    with start(model, cache, share, "kill") as process:
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert all(path.name.startswith(".partial-") for path in (cache / "shards").iterdir())
    assert scan_cache(cache).shards == []
    split_model(plan_split(model, CutRequest(n_shards=3)), cache)
    assert [path.name for path in (cache / "shards").iterdir() if path.name.startswith(".")] == []
    check_whole(cache)


def test_after_ctrl_c_nothing_is_left_at_all(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with start(model, cache, 0.4, "interrupt") as process:
        _, errors = process.communicate("\n" * 1000, timeout=60)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert list((cache / "shards").iterdir()) == []


def test_two_splits_at_the_same_time_do_not_disturb_each_other(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with start(model, cache, 0.5, "wait") as slow:
        assert slow.stdout is not None
        assert slow.stdout.readline() == "waiting\n"
        folder, manifest = split_model(plan_split(model, CutRequest(n_shards=3)), cache)
        inodes = {path.name: path.stat().st_ino for path in folder.iterdir()}
        output, errors = slow.communicate("\n" * 1000, timeout=60)
    assert slow.returncode == 0, errors
    assert output.endswith("done\n")
    assert load_manifest(folder) == manifest
    assert set(inodes) == {path.name for path in folder.iterdir()}
    assert list((cache / "shards").iterdir()) == [folder]
    check_whole(cache)


def test_a_disk_that_fills_up_in_the_middle_is_told_and_nothing_is_left(model: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "80m"):
        with start(model, disk, 0.1, "wait") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "waiting\n"
            fill(disk / "filler")
            _, errors = process.communicate("\n" * 1000, timeout=60)
        assert "NoRoomError: the disk of" in errors
        assert "filled up while the shards were written" in errors
        assert [path.name for path in disk.rglob("*") if path.is_file()] == ["filler"]
