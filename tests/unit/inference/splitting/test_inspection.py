"""`shardnet inspect` and the wrong inputs of `shardnet split`, as a person meets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from shardnet.cli import app
from shardnet.errors import GgufError, ShardnetError, UsageError
from shardnet.inference.splitting.cutting import CutRequest, plan_split, split_model
from shardnet.inference.splitting.manifest_file import load_manifest, save_manifest
from tests.support.gguf_parts import parts_of
from tests.support.random_models import tiny_llama

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "tiny.gguf", n_layers=4)


@pytest.fixture
def cache(model: Path, tmp_path: Path) -> Path:
    split_model(plan_split(model, CutRequest(n_shards=2)), tmp_path / "cache")
    return tmp_path / "cache"


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, ShardnetError):
        raise result.exception  # __main__ prints it and exits with its code
    assert result.exception is None, result.output
    return result


def facts_of(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(run("inspect", path, "--json").stdout)
    return facts


def test_a_models_layers_bytes_cache_and_cut_points_are_told(model: Path) -> None:
    told = run("inspect", model).stdout
    assert "Mapped 38 tensors to 4 layers" in told
    assert "layers 0-3" in told
    assert "KV cache       512 B a token (f16)" in told
    assert "Cut points     1-3" in told
    facts = facts_of(model)
    assert (facts["kind"], facts["architecture"], facts["quantisation"]) == ("model", "llama", "F16")
    assert (facts["n_layers"], facts["n_tensors"], facts["legal_cuts"]) == (4, 38, [1, 2, 3])
    assert sum(facts["layer_bytes"]) + facts["global_bytes"] == sum(facts["type_bytes"].values())
    assert facts["kv_bytes_per_token"] == sum(facts["kv_bytes_per_layer"]) == 512


def test_a_shard_tells_which_layers_of_which_model_it_is(cache: Path) -> None:
    folder = next((cache / "shards").iterdir())
    manifest = load_manifest(folder)
    told = run("inspect", folder / "shard-1.gguf").stdout
    assert f"1 of 2 of tiny, model {manifest.model_id[:12]}: layers [2, 4) of 4" in told
    facts = facts_of(folder / "shard-1.gguf")
    assert facts["kind"] == "shard"
    assert facts["shard"] == {
        "model_id": manifest.model_id, "name": "tiny", "shard_id": 1, "n_shards": 2, "layer_first": 2, "layer_end": 4, "n_layers": 4,
    }  # fmt: skip
    assert "legal_cuts" not in facts


def test_a_cache_its_shards_folder_and_one_models_folder_tell_the_same(cache: Path) -> None:
    folder = next((cache / "shards").iterdir())
    found = [facts_of(path)["models"] for path in (cache, cache / "shards", folder)]
    assert found[0] == found[1] == found[2]
    (told,) = found[0]
    assert [shard["path"] for shard in told["shards"]] == [str(folder / f"shard-{index}.gguf") for index in (0, 1)]
    assert (told["is_proved"], told["is_signed"]) == (False, False)
    assert "not proved, not signed" in run("inspect", cache).stdout


@pytest.mark.parametrize(
    "linked", [".", "shards", "shards/*"], ids=["the cache", "its shards folder", "a model's folder"]
)
def test_a_link_to_a_folder_tells_what_the_folder_does(cache: Path, tmp_path: Path, linked: str) -> None:
    (folder,) = cache.glob(linked) if linked != "." else (cache,)
    link = tmp_path / "elsewhere" / folder.name
    link.parent.mkdir()
    link.symlink_to(folder)
    (told,), (meant,) = facts_of(link)["models"], facts_of(folder)["models"]
    assert (told["model_id"], len(told["shards"])) == (meant["model_id"], 2)
    assert all(
        Path(shard["path"]).samefile(same["path"]) for shard, same in zip(told["shards"], meant["shards"], strict=True)
    )
    assert facts_of(link)["refused"] == []


@pytest.mark.parametrize("name", ["shard-0.gguf", "tokenizer.gguf", "manifest.json"])
def test_a_linked_file_of_a_model_is_refused_in_words_and_the_rest_is_told(
    cache: Path, tmp_path: Path, name: str
) -> None:
    folder = next((cache / "shards").iterdir())
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    for path in (cache, folder):
        (refused,) = facts_of(path)["refused"]
        assert refused["path"].endswith(name)
        assert "is a link" in refused["reason"]
        assert f"{name} is a link" in run("inspect", path).stdout


def test_what_is_missing_loose_or_refused_in_a_cache_is_told(cache: Path) -> None:
    folder = next((cache / "shards").iterdir())
    (folder / "shard-0.gguf").rename(cache / "shards" / "loose.gguf")
    (folder / "shard-1.gguf").write_bytes(b"no GGUF at all, but more than 24 bytes")
    told = run("inspect", cache).stdout
    assert "not here" in told
    assert "refused:" in told
    facts = facts_of(cache)
    assert [shard["path"] for shard in facts["models"][0]["shards"]] == [str(cache / "shards" / "loose.gguf"), None]
    assert "is not a GGUF" in facts["refused"][0]["reason"]
    (folder / "manifest.json").unlink()
    assert "without a manifest" in run("inspect", cache).stdout


def test_an_empty_cache_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "empty" / "shards").mkdir(parents=True)
    assert "shardnet split MODEL.gguf" in run("inspect", tmp_path / "empty").stdout
    with pytest.raises(UsageError, match="is no models cache"):
        run("inspect", tmp_path / "empty" / "..")


def test_a_model_in_several_files_is_one_model(model: Path, tmp_path: Path) -> None:
    parts = parts_of(model, tmp_path, 2)
    assert f"{parts[0]} (+ 1 more parts)" in run("inspect", parts[1]).stdout
    assert facts_of(parts[1])["n_tensors"] == 38


def test_a_family_that_is_refused_is_inspected_all_the_same(tmp_path: Path) -> None:
    content = tiny_llama(tmp_path / "llama.gguf", n_layers=2).read_bytes()
    (tmp_path / "bert.gguf").write_bytes(content.replace(b"llama", b"rnd1\0").replace(b"rnd1\0", b"klaue"))
    told = run("inspect", tmp_path / "bert.gguf").stdout
    assert "Cut points     none: klaue" in told


def test_a_file_without_layers_is_no_language_model(tmp_path: Path, cache: Path) -> None:
    folder = next((cache / "shards").iterdir())
    content = (folder / "tokenizer.gguf").read_bytes().replace(b"llama.block_count", b"llama.block_caunt")
    (tmp_path / "vocabulary.gguf").write_bytes(content)
    with pytest.raises(GgufError, match="holds no layers"):
        run("inspect", tmp_path / "vocabulary.gguf")


def test_wrong_paths_and_files_have_their_exit_codes(tmp_path: Path, model: Path) -> None:
    (tmp_path / "text.gguf").write_text("this is no model, however long it goes on")
    with pytest.raises(UsageError) as missing:
        run("inspect", tmp_path / "missing.gguf")
    with pytest.raises(GgufError) as text:
        run("split", tmp_path / "text.gguf", "--out", tmp_path / "out")
    assert (missing.value.exit_code, text.value.exit_code) == (2, 3)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--shards", "2", "--cuts", "1"], "--shards and --cuts exclude each other"),
        (["--balance", "memory", "--cuts", "1"], "--balance is about a number of shards: --cuts says where to cut"),
        (["--balance", "speed", "--max-shard-bytes", "1MB"], "--balance is about a number of shards: --max-shard"),
        (["--cuts", "one"], "'one' is no list of layers"),
        (["--cuts", "9"], "outside the model's layers"),
        (["--max-shard-bytes", "lots"], "is no size"),
        (["--shards", "5"], "5 shards are not possible"),
        (["--cuts", ""], "'' is no list of layers"),
        (["--max-shard-bytes", ""], "is no size"),
        (["--only", "9" * 5000], "there is no shard '99999999999999999999'"),
        (["--out", __file__], r"cannot write to .*: Not a directory; name another folder"),
    ],
)
def test_flags_that_make_no_sense_are_wrong_usage(model: Path, tmp_path: Path, flags: list[str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        run("split", model, "--out", tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["split", "inspect"])
@pytest.mark.parametrize(
    ("source", "sentence"), [("", "no model is named"), ("ftp://h/m.gguf", "ftp:// is neither http:// nor https://")]
)
def test_what_nobody_can_mean_is_no_model(command: str, source: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        run(command, source)


def test_a_split_is_told_and_a_repeated_one_says_so(model: Path, tmp_path: Path) -> None:
    command = ("split", model, "--shards", 2, "--out", tmp_path / "out", "--no-verify")
    told = run(*command).stdout
    assert "shard 1   layers [2, 4)" in told
    assert "not proved (--verify none)" in told
    assert "there already, nothing was written" in run(*command).stdout
    facts = json.loads(run(*command, "--json").stdout)
    assert facts["was_there"] is True
    assert load_manifest(Path(facts["folder"])).model_id == facts["model_id"]


def test_a_second_split_with_the_same_name_says_which_one_the_name_means(model: Path, tmp_path: Path) -> None:
    def split(shards: int) -> dict[str, Any]:
        command = ("split", model, "--shards", shards, "--out", tmp_path / "out", "--no-verify")
        facts: dict[str, Any] = json.loads(run(*command, "--json").stdout)
        return facts

    first = split(2)
    assert first["name_means"] == first["model_id"]
    second = split(3)
    folder = Path(first["folder"])
    manifest = load_manifest(folder)
    assert manifest.made_s is not None
    save_manifest(folder, manifest.model_copy(update={"made_s": manifest.made_s - 60}))
    assert split(2)["name_means"] == split(3)["name_means"] == second["model_id"]
    told = run("split", model, "--shards", 2, "--out", tmp_path / "out", "--no-verify").stdout
    assert (
        f"2 models here are called tiny: the name means model {second['model_id'][:12]}, the newest one, as none is proved"
        in told
    )
