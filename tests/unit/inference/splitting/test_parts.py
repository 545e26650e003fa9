"""`--only`: each machine cuts its own shards; together they are what one machine would have cut alone."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from shardnet.errors import GgufError, UsageError
from shardnet.inference.gguf.header import read_gguf_header
from shardnet.inference.gguf.layout import read_model
from shardnet.inference.opening import open_model
from shardnet.inference.splitting.cuts import parse_ids
from shardnet.inference.splitting.cutting import CutRequest, plan_split
from shardnet.inference.splitting.manifest_file import HashCache, check_shard, load_manifest, scan_cache
from shardnet.inference.splitting.parts import cut_parts
from shardnet.inference.splitting.plan import SplitPlan, plan_model
from shardnet.inference.splitting.sampling import weights_sha256
from tests.support.gguf_parts import parts_of
from tests.support.random_models import tiny_llama
from tests.support.whole_checkpoints import write_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "tiny.gguf", n_layers=6)


def plan(model: Path) -> SplitPlan:
    return plan_split(model, CutRequest(n_shards=3))


def test_two_machines_cut_what_one_would_have_cut(model: Path, tmp_path: Path) -> None:
    alone, manifest, was_there = cut_parts(plan(model), (0, 1, 2), tmp_path / "alone")
    assert not was_there
    (tmp_path / "b").mkdir()
    copy = Path(shutil.copy(model, tmp_path / "b" / "tiny.gguf"))
    for source, only, cache in ((model, (0, 2), "one"), (copy, (1,), "other")):
        folder, part, _ = cut_parts(plan(source), only, tmp_path / cache)
        assert part.model_id == manifest.model_id
        assert folder.name == alone.name
        assert part.content == manifest.content
        assert part.cut_here == only
        here = {f"shard-{index}.gguf" for index in only}
        assert {path.name for path in folder.iterdir()} == here | {"manifest.json", "tokenizer.gguf"}
        for name in here | {"tokenizer.gguf"}:
            assert (folder / name).read_bytes() == (alone / name).read_bytes()


def test_a_shard_cut_by_itself_is_whole_and_its_manifest_proves_it(model: Path, tmp_path: Path) -> None:
    folder, manifest, _ = cut_parts(plan(model), (1,), tmp_path)
    scan = scan_cache(tmp_path)
    assert scan.refused == []
    (shard,) = scan.shards
    check_shard(shard.path, manifest, 1, HashCache(tmp_path))
    data = shard.path.read_bytes()
    assert hashlib.sha256(data).hexdigest() == manifest.sha256_of(1)
    header = read_gguf_header(shard.path)
    assert header.get("shardnet.model_id") == manifest.model_id
    blank = data[: header.tensors[0].offset].replace(manifest.model_id.encode(), b"0" * 64)
    assert hashlib.sha256(blank).hexdigest() == manifest.content.shards[1].header_sha256
    assert load_manifest(folder) == manifest


def test_shards_cut_one_after_another_come_to_one_manifest(model: Path, tmp_path: Path) -> None:
    cut_parts(plan(model), (2,), tmp_path)
    folder, manifest, _ = cut_parts(plan(model), (0,), tmp_path)
    assert manifest.cut_here == (0, 2)
    stamp = (folder / "shard-2.gguf").stat().st_mtime_ns
    assert cut_parts(plan(model), (0, 2), tmp_path)[2], "nothing is cut twice"
    assert (folder / "shard-2.gguf").stat().st_mtime_ns == stamp
    assert [path.name for path in (tmp_path / "shards").iterdir()] == [folder.name], "no work is left"


def test_a_shard_that_was_handed_on_and_deleted_is_not_asked_for_again(model: Path, tmp_path: Path) -> None:
    folder, _, _ = cut_parts(plan(model), (0,), tmp_path)
    (folder / "shard-0.gguf").unlink()
    _, manifest, _ = cut_parts(plan(model), (1,), tmp_path)
    assert manifest.cut_here == (0, 1)
    assert not (folder / "shard-0.gguf").exists()


def test_other_weights_under_the_same_header_are_another_model(tmp_path: Path) -> None:
    ids = set()
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        path = tiny_llama(folder / "tiny.gguf", n_layers=6, seed=seed)
        ids.add(cut_parts(plan(path), (0,), tmp_path / f"cache{seed}")[1].model_id)
    assert len(ids) == 2


def test_each_tensor_is_sampled_at_its_beginning_its_middle_and_its_end(model: Path) -> None:
    header = read_model(model)
    before = weights_sha256(header)
    tensor = max(header.tensors, key=lambda one: one.nbytes)
    assert tensor.nbytes > 3 * 1024
    data = bytearray(model.read_bytes())
    for at in (0, tensor.nbytes // 2, tensor.nbytes - 1):
        changed = bytearray(data)
        changed[tensor.offset + at] ^= 1
        model.write_bytes(changed)
        assert weights_sha256(header) != before, at
    model.write_bytes(data)
    assert weights_sha256(header) == before


def test_weights_that_differ_between_the_samples_are_found_when_a_shard_is_cut_again(
    model: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    folder, _, _ = cut_parts(plan(model), (0, 1, 2), cache)
    tensor = next(one for one in read_model(model).tensors if one.name == "blk.0.ffn_up.weight")
    assert tensor.nbytes > 5 * 1024
    data = bytearray(model.read_bytes())
    data[tensor.offset + 2000] ^= 1
    model.write_bytes(data)
    (folder / "shard-0.gguf").unlink()
    with pytest.raises(GgufError, match="the weights differ, though header and samples agree"):
        cut_parts(plan(model), (0,), cache)
    assert not (folder / "shard-0.gguf").exists()


def test_a_model_in_several_files_is_cut_in_parts_like_one_in_one(model: Path, tmp_path: Path) -> None:
    parts = parts_of(model, tmp_path, 3)
    folder, manifest, _ = cut_parts(plan(parts[1]), (1,), tmp_path / "cache")
    assert (folder / "shard-1.gguf").stat().st_size == manifest.content.shards[1].bytes


def test_what_is_converted_on_the_way_is_not_cut_in_parts(tmp_path: Path) -> None:
    header = open_model(write_model(tmp_path / "m"))
    with pytest.raises(UsageError, match="cannot be cut in parts: leave --only out"):
        cut_parts(plan_model(header, CutRequest(n_shards=1)), (0,), tmp_path / "cache")


def test_ids_are_read_in_any_order_and_each_counts_once() -> None:
    assert parse_ids(["2,0", "0"], 3) == (0, 2)
    assert parse_ids(["all"], 3) == (0, 1, 2)
    for wrong in ("3", "-1", "x", "", "1,"):
        with pytest.raises(UsageError, match=r"there is no shard '.*': cut like this, the model has shards 0 to 2"):
            parse_ids([wrong], 3)
