"""The models cache as the daemon touches it: real files, no network."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from shardnet.errors import ShardCorrupt, ShardError, ShardNotFound
from shardnet.inference.gguf.writer import OnBytes, file_sha256
from shardnet.inference.splitting import manifest_file
from shardnet.inference.splitting.cutting import CutRequest, plan_split, split_model
from shardnet.inference.splitting.manifest_file import HashCache, load_manifest
from shardnet.log import sentence
from shardnet.manifest import Manifest
from shardnet.messages import MAX_FILE_PIECE, MAX_REFUSED, MAX_REFUSED_CHARS
from shardnet.node.weights.store import ModelStore
from shardnet.torrent.disk import stamp
from tests.support.random_models import tiny_llama


@pytest.fixture
def cache(tmp_path: Path) -> tuple[Path, Path, Manifest]:
    """Returns: the cache, the model's folder, its manifest."""
    folder, manifest = split_model(
        plan_split(tiny_llama(tmp_path / "tiny.gguf"), CutRequest(n_shards=2)), tmp_path / "cache"
    )
    return tmp_path / "cache", folder, manifest


async def test_a_scan_finds_models_and_shards_and_leaves_bad_files_out(cache: tuple[Path, Path, Manifest]) -> None:
    root, folder, manifest = cache
    (folder / "shard-1.gguf").write_bytes(b"no GGUF")
    found = await ModelStore(root).scan()
    assert [model.manifest.model_id for model in found.models] == [manifest.model_id]
    assert [shard.key for shard in found.shards] == [(manifest.model_id, 0)]


async def test_a_linked_cache_and_a_linked_models_folder_are_found_and_their_shards_proved(
    cache: tuple[Path, Path, Manifest], tmp_path: Path
) -> None:
    root, folder, manifest = cache
    folder.rename(tmp_path / "the model")
    folder.symlink_to(tmp_path / "the model")
    (tmp_path / "link").symlink_to(root)
    store = ModelStore(tmp_path / "link")
    found = await store.scan()
    assert [shard.key for shard in found.shards] == [(manifest.model_id, 0), (manifest.model_id, 1)]
    assert store.refused == ()
    for shard in found.shards:
        await store.verify(shard.path, manifest, shard.key[1], lambda _done: None)


@pytest.mark.parametrize("name", ["shard-1.gguf", "tokenizer.gguf", "manifest.json"])
async def test_a_linked_file_is_refused_and_the_reason_kept_for_the_coordinator(
    cache: tuple[Path, Path, Manifest], tmp_path: Path, name: str
) -> None:
    root, folder, _ = cache
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    store = ModelStore(root)
    await store.scan()
    (reason,) = store.refused
    assert f"{name} is a link" in reason
    (folder / name).unlink()
    (tmp_path / name).rename(folder / name)
    await store.scan()
    assert store.refused == ()


async def test_no_more_reasons_are_kept_than_a_hello_takes(tmp_path: Path) -> None:
    folder = tmp_path / "shards" / ("deep " * 40) / ("folder " * 30)
    folder.mkdir(parents=True)
    for number in range(30):
        (folder / f"{number:02}.gguf").write_bytes(b"no GGUF")
    (folder / "no text \udce9.gguf").write_bytes(b"no GGUF")
    store = ModelStore(tmp_path)
    await store.scan()
    assert len(store.refused) == MAX_REFUSED
    assert all(len(one) <= MAX_REFUSED_CHARS for one in store.refused)
    assert store.refused[-1] == "and 16 more: this node's log names them"


async def test_a_file_is_hashed_once_and_again_only_when_it_changed(
    cache: tuple[Path, Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, folder, manifest = cache
    path = folder / "shard-0.gguf"
    hashed: list[Path] = []

    def count(file: Path, on_bytes: OnBytes) -> str:
        hashed.append(file)
        return file_sha256(file, on_bytes)

    monkeypatch.setattr(manifest_file, "file_sha256", count)
    for _ in range(2):  # two lives of a node
        store = ModelStore(root)
        await store.scan()
        await store.verify(path, manifest, 0, lambda _done: None)
        await store.verify(path, manifest, 0, lambda _done: None)
    assert len(hashed) == 1
    data = bytearray(path.read_bytes())
    data[-50] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardCorrupt, match="damaged"):
        await store.verify(path, manifest, 0, lambda _done: None)
    await store.quarantine(path)
    assert sorted(file.name for file in folder.glob("shard-0*")) == ["shard-0.gguf.corrupt"]
    with pytest.raises(ShardNotFound):
        await store.verify(path, manifest, 0, lambda _done: None)
    assert [shard.key[1] for shard in (await ModelStore(root).scan()).shards] == [1]


async def test_a_file_is_read_in_pieces(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.gguf"
    file.write_bytes(bytes(range(256)) * 5000)
    store = ModelStore(tmp_path)
    total, first = await store.read_piece(file, 0)
    _, second = await store.read_piece(file, len(first))
    assert (total, len(first)) == (1_280_000, MAX_FILE_PIECE)
    assert first + second == file.read_bytes()
    assert await store.read_piece(file, 9_999_999) == (total, b"")
    with pytest.raises(ShardError, match="cannot be read"):
        await store.read_piece(tmp_path / "none", 0)


async def test_a_manifest_is_kept_whole(cache: tuple[Path, Path, Manifest], tmp_path: Path) -> None:
    _, _, manifest = cache
    await ModelStore(tmp_path).keep_manifest(tmp_path / "new", manifest)
    assert load_manifest(tmp_path / "new") == manifest
    (tmp_path / "file").write_text("")
    with pytest.raises(ShardError, match="cannot write"):
        await ModelStore(tmp_path).keep_manifest(tmp_path / "file" / "x", manifest)


async def test_a_hash_that_was_computed_of_other_bytes_is_not_remembered(tmp_path: Path) -> None:
    store, path = ModelStore(tmp_path), tmp_path / "file"
    await store.scan()
    path.write_bytes(b"as it was proved")
    proved = stamp(path)
    path.write_bytes(b"as it is now")
    for seen in (proved, None):
        await store.note_proved(path, "a" * 64, seen)
        assert HashCache(tmp_path).known(path) is None
    await store.note_proved(path, "a" * 64, stamp(path))
    assert HashCache(tmp_path).known(path) == "a" * 64


async def test_a_cache_without_shards_is_told_with_its_whole_path_and_how_to_name_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with capture_logs() as logs:
        await ModelStore(Path("models_cache")).scan()
    (line,) = [line for line in logs if line["event"] == "no_shards_here"]
    assert f"{tmp_path}/models_cache: --models-cache FOLDER" in sentence(line)


async def test_a_hash_that_nobody_waits_for_any_more_ends(
    cache: tuple[Path, Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of a large file: a process ends no sooner than its threads."""
    root, folder, manifest = cache
    begun, ended = threading.Event(), threading.Event()

    def endless(_path: Path, on_bytes: OnBytes = lambda _count: None) -> str:
        try:
            while True:
                on_bytes(1)
                begun.set()
        finally:
            ended.set()

    monkeypatch.setattr(manifest_file, "file_sha256", endless)
    store = ModelStore(root)
    await store.scan()
    verifying = asyncio.create_task(store.verify(folder / "shard-0.gguf", manifest, 0, lambda _done: None))
    assert await asyncio.to_thread(begun.wait, 10)
    verifying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await verifying
    assert await asyncio.to_thread(ended.wait, 10)
