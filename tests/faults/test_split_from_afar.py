"""A split from an address that is broken off goes on where it was, comes to the same bytes, and never mixes two versions of a model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from shardnet.errors import GgufError, NoRoomError, UsageError
from shardnet.inference.gguf import continuing
from shardnet.inference.opening import opened, traffic_of
from shardnet.inference.remote import ranges
from shardnet.inference.remote import tensors as tensors_module
from shardnet.inference.splitting.cutting import CutRequest, plan_split, split_model
from shardnet.inference.splitting.manifest_file import HashCache, check_shard, scan_cache
from shardnet.inference.splitting.parts import cut_parts
from shardnet.inference.splitting.plan import plan_model
from shardnet.manifest import Manifest
from tests.support.gguf_parts import parts_of
from tests.support.random_models import tiny_llama
from tests.support.range_server import Served, range_server

THREE = CutRequest(n_shards=3)
STEP = 32 << 10

BREAKS_OFF = """
import os, signal, sys
from pathlib import Path
from shardnet.inference.gguf import continuing
from shardnet.inference.opening import opened
from shardnet.inference.remote import tensors
from shardnet.inference.splitting.cutting import CutRequest, split_model
from shardnet.inference.splitting.parts import cut_parts
from shardnet.inference.splitting.plan import plan_model
url, cache, share, how, only = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4], sys.argv[5]
continuing.SYNC_BYTES = tensors.RANGE_BYTES = 32 << 10

def on_progress(done, total):
    if done >= share * total:
        os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGINT)

with opened(url) as header:
    plan = plan_model(header, CutRequest(n_shards=3))
    if only:
        cut_parts(plan, tuple(map(int, only.split(","))), cache, on_progress)
    else:
        split_model(plan, cache, on_progress)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("m") / "tiny.gguf", n_layers=6, n_embd=128)


@pytest.fixture
def served(model: Path) -> Iterator[tuple[str, Served]]:
    with range_server({"/tiny.gguf": model}) as (url, served):
        yield f"{url}/tiny.gguf", served


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuing, "SYNC_BYTES", STEP)
    monkeypatch.setattr(tensors_module, "RANGE_BYTES", STEP)
    monkeypatch.setattr(tensors_module, "SAMPLE_GAP", 2048)
    monkeypatch.setattr(ranges, "FIRST_BACKOFF_S", 0.01)


def break_off(url: str, cache: Path, share: float, how: str, only: str = "") -> None:
    command = [sys.executable, "-c", BREAKS_OFF, url, str(cache), str(share), how, only]
    ended = subprocess.run(command, capture_output=True, check=False)
    assert ended.returncode == -(signal.SIGKILL if how == "kill" else signal.SIGINT), ended.stderr.decode()


def split(url: str, cache: Path) -> tuple[Path, Manifest, float]:
    """Returns: the folder, the manifest, and the bytes asked for over the model's size."""
    with opened(url) as header:
        folder, manifest = split_model(plan_model(header, THREE), cache)
        traffic = traffic_of(header)
    assert traffic is not None
    return folder, manifest, traffic.asked_bytes / traffic.file_bytes


def same_files(one: Path, other: Path) -> bool:
    names = {path.name for path in one.glob("*.gguf")}
    return names == {path.name for path in other.glob("*.gguf")} and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names
    )


def test_from_an_address_come_the_bytes_and_the_id_of_a_split_of_the_file(
    served: tuple[str, Served], model: Path, tmp_path: Path
) -> None:
    here, manifest = split_model(plan_split(model, THREE), tmp_path / "here")
    there, from_afar, share = split(served[0], tmp_path / "there")
    assert from_afar.model_copy(update={"made_s": None}) == manifest
    assert same_files(here, there)
    assert share < 1.05, "a tied embedding, which two shards hold, is fetched once"
    assert not list((tmp_path / "there" / "shards").glob(".*"))


def test_a_second_split_of_the_same_version_makes_nothing(served: tuple[str, Served], tmp_path: Path) -> None:
    split(served[0], tmp_path)
    assert split(served[0], tmp_path)[2] < 0.1
    served[1].etags["/tiny.gguf"] = '"another"'
    assert split(served[0], tmp_path)[2] > 0.9


@pytest.mark.parametrize(("how", "share"), [("kill", 0.1), ("interrupt", 0.5), ("kill", 0.9)])
def test_what_was_broken_off_is_gone_on_with(
    served: tuple[str, Served], model: Path, tmp_path: Path, how: str, share: float
) -> None:
    url, server = served
    break_off(url, tmp_path / "cache", share, how)
    assert scan_cache(tmp_path / "cache").shards == [], "nothing stands under a final name"
    before = server.sent_bytes
    folder, _, rest = split(url, tmp_path / "cache")
    assert same_files(folder, split_model(plan_split(model, THREE), tmp_path / "here")[0])
    ahead = tensors_module.AHEAD * STEP
    assert before + rest * model.stat().st_size < model.stat().st_size * 1.1 + ahead + STEP + 2 * 65536
    assert rest < 1.1 - share * 0.7
    assert [path.name for path in (tmp_path / "cache" / "shards").iterdir()] == [folder.name]


def test_a_model_that_changed_since_it_was_begun_is_said_and_nothing_is_mixed(
    served: tuple[str, Served], tmp_path: Path
) -> None:
    url, server = served
    break_off(url, tmp_path, 0.5, "kill")
    server.etags["/tiny.gguf"] = '"newer"'
    with pytest.raises(
        GgufError, match=r'changed since it was begun to be cut: then .*now .*"newer".*: delete .*\.unfinished-'
    ):
        split(url, tmp_path)
    (begun,) = (tmp_path / "shards").glob(".unfinished-????????????")
    for file in begun.iterdir():
        file.unlink()
    assert split(url, tmp_path)[2] > 0.9


def test_a_model_that_changes_while_it_is_cut_is_said(served: tuple[str, Served], tmp_path: Path) -> None:
    url, server = served

    def on_progress(done: int, total: int) -> None:
        if done > total / 2:
            server.etags["/tiny.gguf"] = '"newer"'

    with opened(url) as header, pytest.raises(GgufError, match="changed while it was read"):
        split_model(plan_model(header, THREE), tmp_path, on_progress)


def test_connections_that_break_cost_what_was_under_way(served: tuple[str, Served], tmp_path: Path) -> None:
    url, server = served
    with opened(url) as header:
        server.cuts = deque((5000, 0, 20_000, 1))
        server.statuses = deque((503, 502))
        folder, manifest = split_model(plan_model(header, THREE), tmp_path)
    for shard in scan_cache(tmp_path).shards:
        check_shard(shard.path, manifest, shard.shard_id, HashCache(tmp_path))
    assert len(list(folder.glob("shard-*.gguf"))) == 3


def test_all_parts_of_a_model_are_cut_from_their_addresses(model: Path, tmp_path: Path) -> None:
    parts = parts_of(model, tmp_path, 3)
    here, _ = split_model(plan_split(parts[0], THREE, "m"), tmp_path / "here")
    with range_server({f"/{part.name}": part for part in parts}) as (url, _):
        with opened(f"{url}/{parts[2].name}") as header:
            there, _ = split_model(plan_model(header, THREE, "m"), tmp_path / "there")
        assert same_files(here, there)
        with opened(f"{url}/{parts[0].name}") as header:
            _, manifest, _ = cut_parts(plan_model(header, THREE, "m"), (1,), tmp_path / "part")
    assert cut_parts(plan_split(parts[0], THREE, "m"), (0,), tmp_path / "p0")[1].model_id == manifest.model_id


def test_each_machine_cuts_its_own_shard_and_reads_no_more(
    served: tuple[str, Served], model: Path, tmp_path: Path
) -> None:
    url, _ = served
    alone, manifest, _ = cut_parts(plan_split(model, THREE), (0, 1, 2), tmp_path / "alone")
    for index in range(3):
        with opened(url) as header:
            folder, part, _ = cut_parts(plan_model(header, THREE), (index,), tmp_path / str(index))
            traffic = traffic_of(header)
        assert part.model_id == manifest.model_id
        assert (folder / f"shard-{index}.gguf").read_bytes() == (alone / f"shard-{index}.gguf").read_bytes()
        assert traffic is not None
        assert traffic.asked_bytes < manifest.content.shards[index].bytes + 65536 + 200_000, "header and samples"


def test_parts_that_were_broken_off_leave_whole_shards_that_are_of_use(
    served: tuple[str, Served], model: Path, tmp_path: Path
) -> None:
    url, _ = served
    break_off(url, tmp_path / "cache", 0.8, "kill", only="0,1,2")
    scan = scan_cache(tmp_path / "cache")
    assert scan.refused == []
    assert [shard.shard_id for shard in scan.shards] == [0, 1]
    for shard in scan.shards:
        assert shard.manifest is not None
        check_shard(shard.path, shard.manifest, shard.shard_id, HashCache(tmp_path / "cache"))
    with opened(url) as header:
        folder, _, _ = cut_parts(plan_model(header, THREE), (0, 1, 2), tmp_path / "cache")
        traffic = traffic_of(header)
    assert traffic is not None
    assert traffic.asked_bytes < traffic.file_bytes / 2
    assert same_files(folder, cut_parts(plan_split(model, THREE), (0, 1, 2), tmp_path / "here")[0])
    assert [path.name for path in (tmp_path / "cache" / "shards").iterdir()] == [folder.name]


def test_two_at_a_time_do_not_write_into_each_other(served: tuple[str, Served], tmp_path: Path) -> None:
    tries: list[int] = []

    def on_progress(done: int, _total: int) -> None:
        tries.append(done)
        if len(tries) == 1:
            with pytest.raises(UsageError, match="another process is making these shards"):
                split(served[0], tmp_path)

    with opened(served[0]) as header:
        split_model(plan_model(header, THREE), tmp_path, on_progress)


def test_room_is_needed_for_the_shards_alone_and_what_is_there_counts(
    served: tuple[str, Served], tmp_path: Path
) -> None:
    url, _ = served
    break_off(url, tmp_path, 0.5, "kill")
    (begun,) = (tmp_path / "shards").glob(".unfinished-????????????")
    assert json.loads((begun / "of.json").read_text())[0][0] == url
    there = sum(path.stat().st_size for path in begun.glob("*.gguf"))
    with opened(url) as header, pytest.MonkeyPatch.context() as patch:
        plan = plan_model(header, THREE)
        usage = SimpleNamespace(free=plan.nbytes - there + (64 << 20) - 1)
        patch.setattr("shutil.disk_usage", lambda _path: usage)
        with pytest.raises(NoRoomError):
            split_model(plan, tmp_path)
        usage.free += 1
        split_model(plan, tmp_path)
