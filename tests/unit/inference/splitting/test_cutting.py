"""A split writes complete shards, the same bytes each time, whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections import namedtuple
from itertools import pairwise
from pathlib import Path

import pytest

from shardnet.errors import FamilyRefused, GgufError, NoRoomError, ShardnetError, UsageError
from shardnet.inference.gguf import writer
from shardnet.inference.gguf.header import GgufHeader, read_gguf_header
from shardnet.inference.splitting import cutting
from shardnet.inference.splitting import plan as plan_module
from shardnet.inference.splitting.cuts import ranges
from shardnet.inference.splitting.cutting import CutRequest, find_existing, plan_split, split_model
from shardnet.inference.splitting.manifest_file import load_manifest, save_manifest
from shardnet.manifest import BLANK_MODEL_ID, Manifest, ParityCertificate
from tests.support.gguf_parts import parts_of
from tests.support.random_models import build_random_model, tiny_llama

PROOF = ParityCertificate(
    llama_cpp="0", prompt_tokens=1, decode_tokens=1, boundaries=(), max_abs_logit_diff=0.0, tokens_equal=True
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "Tiny Model.gguf", n_layers=6)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def three(model: Path, cache: Path) -> tuple[Path, Manifest]:
    return split_model(plan_split(model, CutRequest(n_shards=3)), cache)


def everything(cache: Path) -> list[str]:
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*"))


def headers(folder: Path) -> list[GgufHeader]:
    return [read_gguf_header(folder / shard.file) for shard in load_manifest(folder).content.shards]


def data_of(header: GgufHeader, name: str) -> bytes:
    tensor = next(t for t in header.tensors if t.name == name)
    return tensor.path.read_bytes()[tensor.offset : tensor.offset + tensor.nbytes]


def test_the_same_input_gives_the_same_bytes_and_model_id(model: Path, cache: Path, tmp_path: Path) -> None:
    first, manifest = three(model, cache)
    again, manifest_again = three(model, tmp_path / "other")
    assert manifest_again == manifest
    for shard in manifest.content.shards:
        assert (first / shard.file).read_bytes() == (again / shard.file).read_bytes()


def test_the_manifest_proves_every_byte_of_every_file(model: Path, cache: Path) -> None:
    folder, manifest = three(model, cache)
    assert folder == cache / "shards" / f"Tiny-Model-{manifest.model_id[:12]}"
    assert load_manifest(folder) == manifest
    for shard, file in zip(manifest.content.shards, manifest.files, strict=True):
        content = (folder / shard.file).read_bytes()
        assert len(content) == shard.bytes
        assert hashlib.sha256(content).hexdigest() == file.sha256
        assert content.count(manifest.model_id.encode()) == 1
        blank = content.replace(manifest.model_id.encode(), BLANK_MODEL_ID.encode())
        assert hashlib.sha256(blank).hexdigest() == shard.content_sha256
    tokenizer = manifest.content.tokenizer
    assert hashlib.sha256((folder / tokenizer.file).read_bytes()).hexdigest() == tokenizer.sha256


def test_shards_hold_their_own_layers_renumbered_and_say_what_they_are(model: Path, cache: Path) -> None:
    folder, manifest = three(model, cache)
    source = read_gguf_header(model)
    for index, (header, shard) in enumerate(zip(headers(folder), manifest.content.shards, strict=True)):
        part = shard.layers
        assert header.n_layers == len(part)
        told = [
            header.get(f"shardnet.{key}") for key in ("model_id", "shard_id", "n_shards", "layer_first", "layer_end")
        ]
        assert told == [manifest.model_id, index, 3, part.first, part.end]
        assert (header.get("shardnet.n_layers"), header.get("shardnet.name")) == (6, "Tiny-Model")
        assert list(header.fields)[:2] == ["general.architecture", "shardnet.model_id"]
        for layer in range(len(part)):
            name = "attn_q.weight"
            assert data_of(header, f"blk.{layer}.{name}") == data_of(source, f"blk.{part.first + layer}.{name}")
        assert data_of(header, "output_norm.weight") == data_of(source, "output_norm.weight")
    assert sum(shard.kv_bytes_per_token for shard in manifest.content.shards) == manifest.kv_bytes_per_token == 768


def test_the_manifest_tells_what_a_step_reads(model: Path, cache: Path) -> None:
    _, whole = split_model(plan_split(model, CutRequest(n_shards=1), "one"), cache)
    _, cut = split_model(plan_split(model, CutRequest(n_shards=3), "three"), cache)
    reads = [file.step_bytes or 0 for file in cut.files]
    assert sum(reads) == pytest.approx(whole.files[0].step_bytes, rel=0.01), "however it is cut, the same is read"
    assert all(0 < read < shard.bytes for read, shard in zip(reads, cut.content.shards, strict=True))


def test_only_the_ends_carry_the_vocabulary(model: Path, cache: Path) -> None:
    folder, _ = three(model, cache)
    first, middle, last = headers(folder)
    for end in (first, last):
        assert end.fields["tokenizer.ggml.tokens"].count == 288
        assert data_of(end, "token_embd.weight") == data_of(read_gguf_header(model), "token_embd.weight")
    assert [key for key in middle.fields if key.startswith("tokenizer.")] == ["tokenizer.ggml.model"]
    assert (middle.get("tokenizer.ggml.model"), middle.get("llama.vocab_size")) == ("no_vocab", 1)
    assert data_of(middle, "token_embd.weight") == bytes(4 * 64)
    tokenizer = read_gguf_header(folder / "tokenizer.gguf")
    assert tokenizer.tensors == ()
    assert tokenizer.get("tokenizer.chat_template") == first.get("tokenizer.chat_template")
    assert tokenizer.get("llama.embedding_length") == 64


def test_one_shard_is_the_whole_model_with_keys_of_its_own(model: Path, cache: Path) -> None:
    folder, _ = split_model(plan_split(model, CutRequest(n_shards=1)), cache)
    (shard,), source = headers(folder), read_gguf_header(model)
    assert [(t.name, t.shape, t.ggml_type) for t in shard.tensors] == [
        (t.name, t.shape, t.ggml_type) for t in source.tensors
    ]
    assert {key for key in shard.fields if not key.startswith("shardnet.")} == set(source.fields)


def test_lists_with_one_entry_a_layer_are_cut_to_the_range_and_others_are_not(tmp_path: Path, cache: Path) -> None:
    extra = {"llama.attention.head_count_kv": [2, 2, 2, 2, 2, 1], "llama.rope.dimension_sections": [1, 2, 3, 4, 5, 6]}
    model = tiny_llama(tmp_path / "m.gguf", n_layers=6, extra={**extra, "general.tags": list("abcdef")})
    folder, manifest = split_model(plan_split(model, CutRequest(cuts=(2, 5))), cache)
    found = headers(folder)
    assert [header.get("llama.attention.head_count_kv") for header in found] == [[2, 2], [2, 2, 2], [1]]
    assert all(header.get("llama.rope.dimension_sections") == [1, 2, 3, 4, 5, 6] for header in found)
    assert all(len(header.get("general.tags")) == 6 for header in found)
    assert [shard.kv_bytes_per_token for shard in manifest.content.shards] == [256, 384, 64]


def test_an_untied_head_is_stored_once_under_the_embeddings_name(tmp_path: Path, cache: Path) -> None:
    model = tiny_llama(tmp_path / "m.gguf", n_layers=6, tied=False)
    folder, _ = three(model, cache)
    first, middle, last = headers(folder)
    names = [
        {tensor.name for tensor in header.tensors} & {"token_embd.weight", "output.weight"}
        for header in (first, middle, last)
    ]
    assert names == [{"token_embd.weight"}] * 3
    assert data_of(last, "token_embd.weight") == data_of(read_gguf_header(model), "output.weight")


def test_where_a_head_is_demanded_small_zeros_stand_in(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "HEAD_FROM_EMBEDDING", frozenset())
    model = tiny_llama(tmp_path / "m.gguf", n_layers=6, n_embd=128, tied=False)
    folder, _ = three(model, cache)
    first, middle, last = headers(folder)
    assert data_of(last, "output.weight") == data_of(read_gguf_header(model), "output.weight")
    for header, name in ((first, "output.weight"), (last, "token_embd.weight")):
        assert not any(data_of(header, name))
        assert next(t for t in header.tensors if t.name == name).type_name == "Q1_0"
    assert {t.name: t.shape for t in middle.tensors if t.name == "output.weight"} == {"output.weight": (128, 1)}


def test_a_model_in_several_files_gives_the_shards_of_the_same_model_in_one(tmp_path: Path, cache: Path) -> None:
    whole = tiny_llama(tmp_path / "big.gguf", n_layers=6)
    folder, manifest = three(whole, cache)
    parts = parts_of(whole, tmp_path, 2)
    other, from_parts = split_model(plan_split(parts[1], CutRequest(n_shards=3)), tmp_path / "other")
    assert from_parts.name == manifest.name == "big"
    for ours, theirs in zip(headers(folder), headers(other), strict=True):
        assert [(t.name, data_of(ours, t.name)) for t in ours.tensors] == [
            (t.name, data_of(theirs, t.name)) for t in theirs.tensors
        ]
        assert "split.count" not in theirs.fields


# -- wishes that cannot be -----------------------------------------------------------------------------------------------------------------


def test_impossible_wishes_are_refused_before_anything_is_written(model: Path, cache: Path) -> None:
    with pytest.raises(UsageError, match="7 shards are not possible"):
        plan_split(model, CutRequest(n_shards=7))
    with pytest.raises(UsageError, match="cut 6 is outside"):
        plan_split(model, CutRequest(cuts=(6,)))
    with pytest.raises(UsageError, match="no legal cuts keep every shard under"):
        plan_split(model, CutRequest(max_shard_bytes=1000))
    with pytest.raises(UsageError, match="cannot be a model name"):
        plan_split(model, CutRequest(n_shards=2), "../up")
    folder, _ = three(model, cache)
    with pytest.raises(UsageError, match="is a shard already"):
        plan_split(folder / "shard-0.gguf", CutRequest(n_shards=2))


def test_a_family_without_a_cut_is_refused_by_name_unless_it_may_stay_whole(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "one.gguf", n_layers=1)
    for request in (CutRequest(n_shards=2), CutRequest(cuts=(1,)), CutRequest(max_shard_bytes=1000)):
        with pytest.raises(FamilyRefused, match="llama"):
            plan_split(model, request)
    assert len(plan_split(model, CutRequest(max_shard_bytes=1 << 30)).layers) == 1
    assert len(plan_split(model, CutRequest(n_shards=1)).layers) == 1


def test_a_size_is_kept_by_every_shard(model: Path) -> None:
    largest = max(file.nbytes for file in plan_split(model, CutRequest(n_shards=3)).shards)
    plan = plan_split(model, CutRequest(max_shard_bytes=largest))
    assert all(file.nbytes <= largest for file in plan.shards)


def test_a_size_is_kept_by_every_shard_whatever_stands_in_it_beside_layers(tmp_path: Path) -> None:
    """A family whose first and last shard hold stand-ins for the other's end."""
    model = build_random_model(tmp_path / "m.gguf", "gptneox")
    whole = plan_split(model, CutRequest(n_shards=1)).shards[0].nbytes
    found = set()
    for share in range(30, 100):
        most = whole * share // 100
        try:
            plan = plan_split(model, CutRequest(max_shard_bytes=most))
        except UsageError:
            continue
        assert max(file.nbytes for file in plan.shards) <= most
        found.add(len(plan.shards))
    assert len(found) > 1


def test_a_model_that_no_manifest_could_describe_is_refused(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "m.gguf", extra={"llama.context_length": 0})
    with pytest.raises(GgufError, match=r"no usable llama.context_length"):
        plan_split(model, CutRequest(n_shards=2))


# -- repeated, interrupted, out of room ----------------------------------------------------------------------------------------------------


def test_a_repeated_split_writes_nothing_and_keeps_its_proof(model: Path, cache: Path) -> None:
    folder, manifest = three(model, cache)
    proved = manifest.model_copy(update={"certificate": PROOF})
    save_manifest(folder, proved)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert three(model, cache) == (folder, proved)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_source_that_was_touched_is_split_again_and_the_proof_is_kept(model: Path, cache: Path) -> None:
    folder, manifest = three(model, cache)
    promised = tuple([file.model_copy(update={"info_hash": "ab" * 32}) for file in manifest.files])
    proved = manifest.model_copy(update={"certificate": PROOF, "files": promised})
    save_manifest(folder, proved)
    os.utime(model, (1, 1))
    plan = plan_split(model, CutRequest(n_shards=3))
    assert find_existing(plan, cache) is None
    assert split_model(plan, cache) == (folder, proved)
    assert find_existing(plan, cache) == (folder, proved)
    assert len(list((cache / "shards").iterdir())) == 1


def test_a_models_folder_may_be_a_link_to_another_place(model: Path, cache: Path, tmp_path: Path) -> None:
    folder, manifest = three(model, cache)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    elsewhere = folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(elsewhere)
    (elsewhere / "shard-1.gguf").unlink()
    assert three(model, cache) == (folder, manifest)
    assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == whole


@pytest.mark.parametrize("damage", ["missing shard", "short shard", "no manifest", "bad manifest", "bad note"])
def test_a_split_mends_a_damaged_result(model: Path, cache: Path, damage: str) -> None:
    folder, manifest = three(model, cache)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    match damage:
        case "missing shard":
            (folder / "shard-1.gguf").unlink()
        case "short shard":
            os.truncate(folder / "shard-1.gguf", 100)
        case "no manifest":
            (folder / "manifest.json").unlink()
        case "bad manifest":
            (folder / "manifest.json").write_text("{}")
        case _:
            (folder / ".source.json").write_text("[")
    assert three(model, cache) == (folder, manifest)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_other_cuts_and_other_names_live_side_by_side(model: Path, cache: Path) -> None:
    three(model, cache)
    split_model(plan_split(model, CutRequest(n_shards=2)), cache)
    split_model(plan_split(model, CutRequest(n_shards=3), "other:7b"), cache)
    assert len(list((cache / "shards").glob("*/manifest.json"))) == 3


def test_disk_room_is_checked_before_the_first_byte(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**9, 10**9 - 5000, 5000))
    with pytest.raises(NoRoomError, match=r"the shards take .* has 5.0 kB free") as caught:
        three(model, cache)
    assert caught.value.exit_code == 6
    assert caught.value.facts["free_bytes"] == 5000
    assert everything(cache) == ["shards"]


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_disk_that_fills_up_meanwhile_leaves_nothing_behind(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    pieces = writer.Sources.pieces
    count = 0

    def failing(self: writer.Sources, tensor: writer.OutTensor, skip: int = 0):  # type: ignore[no-untyped-def]
        nonlocal count
        count += 1
        if count > after * 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        yield from pieces(self, tensor, skip)

    monkeypatch.setattr(writer.Sources, "pieces", failing)
    with pytest.raises(NoRoomError, match="filled up"):
        three(model, cache)
    assert everything(cache) == ["shards"]


@pytest.mark.parametrize(("number", "code"), [(errno.EACCES, 2), (errno.EROFS, 2), (errno.EIO, 1)])
def test_a_folder_that_may_not_be_written_to_is_wrong_usage(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    def refuse(*_arguments: object, **_more: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(cutting, "write_gguf", refuse)
    with pytest.raises(ShardnetError, match=r"cannot write the shards to .*: no; nothing was left behind") as refusal:
        three(model, cache)
    assert refusal.value.exit_code == code
    assert everything(cache) == ["shards"]


def test_ctrl_c_leaves_nothing_behind(model: Path, cache: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        split_model(plan_split(model, CutRequest(n_shards=3)), cache, interrupt)
    assert everything(cache) == ["shards"]


def test_a_source_that_shrinks_meanwhile_is_an_error_that_leaves_nothing_behind(model: Path, cache: Path) -> None:
    plan = plan_split(model, CutRequest(n_shards=3))
    os.truncate(model, model.stat().st_size // 2)
    with pytest.raises(GgufError, match="changed meanwhile"):
        split_model(plan, cache)
    assert everything(cache) == ["shards"]


def test_leavings_of_a_dead_split_are_removed_and_a_running_ones_are_not(model: Path, cache: Path) -> None:
    base = cache / "shards"
    for name in (".partial-1-dead", ".partial-2-alive"):
        (base / name).mkdir(parents=True)
        (base / name / "shard-0.gguf").write_bytes(b"half")
        (base / f"{name}.lock").touch()
    with (base / ".partial-2-alive.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        three(model, cache)
    left = sorted(path.name for path in base.iterdir() if path.name.startswith("."))
    assert left == [".partial-2-alive", ".partial-2-alive.lock"]


def test_a_cache_that_cannot_be_written_is_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write to"):
        three(model, tmp_path / "file")


def test_progress_only_grows_and_reaches_the_end(model: Path, cache: Path) -> None:
    seen: list[tuple[int, int]] = []
    plan = plan_split(model, CutRequest(n_shards=3))
    split_model(plan, cache, lambda done, total: seen.append((done, total)))
    assert all(before[0] <= after[0] for before, after in pairwise(seen))
    assert seen[-1][0] > 0.9 * seen[-1][1]


def test_the_plan_knows_every_files_size(model: Path, cache: Path) -> None:
    plan = plan_split(model, CutRequest(n_shards=3))
    folder, _ = split_model(plan, cache)
    for file in (*plan.shards, plan.tokenizer):
        assert (folder / file.name).stat().st_size == file.nbytes
    assert plan.layers == ranges((plan.layers[0].end, plan.layers[1].end), 6)
    assert json.loads((folder / ".source.json").read_text())["name"] == plan.name


def test_a_note_of_something_else_is_passed_over(model: Path, cache: Path) -> None:
    folder, manifest = three(model, cache)
    shutil.copytree(folder, folder.with_name("copy"))
    (folder.with_name("copy") / "manifest.json").unlink()
    assert three(model, cache) == (folder, manifest)


def test_every_error_of_a_split_is_one_sentence(model: Path) -> None:
    with pytest.raises(ShardnetError) as caught:
        plan_split(model, CutRequest(n_shards=99))
    assert "\n" not in str(caught.value)
