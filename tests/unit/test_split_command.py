"""What `shardnet split` and `verify` say of a model that was cut from an address, and what is written down of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shardnet.cli import app
from shardnet.errors import UsageError
from shardnet.inference.splitting.manifest_file import load_manifest, save_manifest
from shardnet.manifest import NoProof, ParityCertificate
from tests.support.random_models import tiny_llama
from tests.support.range_server import range_server


@pytest.fixture(autouse=True)
def no_swarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDNET_HOME", str(tmp_path / "home"))


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    if done.exception is not None:
        raise done.exception
    return done.stdout


def test_a_split_from_an_address_tells_what_it_asked_for_and_that_it_is_not_proved(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "tiny.gguf")
    with range_server({"/tiny.gguf": model}) as (url, served):
        facts = json.loads(run("inspect", f"{url}/tiny.gguf", "--json"))
        assert facts.pop("paths") == [f"{url}/tiny.gguf"]
        here = json.loads(run("inspect", str(model), "--json"))
        assert here.pop("paths") == [str(model)]
        assert facts == here
        served.sent_bytes = 0
        told = run("split", f"{url}/tiny.gguf?secret=1", "--out", str(tmp_path / "cache"))
        assert f"of a model of {model.stat().st_size / 1000:.1f} kB: 1.1" in told
        assert "not proved: it was cut from an address, and the unsplit model was not there to run beside it" in told
        again = json.loads(run("split", f"{url}/tiny.gguf?secret=2", "--out", str(tmp_path / "cache"), "--json"))
        assert again["was_there"] is True
        assert again["file_bytes"] == model.stat().st_size
        assert 0 < again["asked_bytes"] <= served.sent_bytes - model.stat().st_size
    folder = Path(again["folder"])
    assert load_manifest(folder).certificate == NoProof(reason=load_manifest(folder).unproved)
    assert not any(b"secret" in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert "parity was never proved (it was cut from an address" in run("verify", str(folder))


def test_shards_cut_apart_are_shown_as_such_and_verified_as_far_as_they_are_here(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "tiny.gguf")
    told = run("split", str(model), "--shards", "3", "--only", "2,0", "--out", str(tmp_path / "cache"))
    assert "shard-0.gguf" in told
    assert "(not cut here)" in told
    assert "not proved: its shards were cut apart" in told
    (folder,) = (tmp_path / "cache" / "shards").iterdir()
    assert "2 of 3 shards (the others were cut elsewhere) and the tokenizer match their hashes" in run(
        "verify", str(folder)
    )
    with pytest.raises(UsageError, match=r"shard-1\.gguf is missing, and a chain needs all its shards"):
        run("verify", str(folder), "--source", str(model))
    with pytest.raises(UsageError, match="there is no shard '3'"):
        run("split", str(model), "--shards", "3", "--only", "3", "--out", str(tmp_path / "cache"))


def test_a_proof_that_was_made_later_stays(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "tiny.gguf")
    arguments = ("split", str(model), "--shards", "2", "--no-verify", "--out", str(tmp_path / "cache"))
    run(*arguments, "--only", "0")
    (folder,) = (tmp_path / "cache" / "shards").iterdir()
    proof = ParityCertificate(
        llama_cpp="1", prompt_tokens=1, decode_tokens=1, boundaries=(), max_abs_logit_diff=0, tokens_equal=True
    )
    save_manifest(folder, load_manifest(folder).model_copy(update={"certificate": proof}))
    run(*arguments, "--only", "1")
    manifest = load_manifest(folder)
    assert manifest.certificate == proof
    assert manifest.cut_here == (0, 1)
    assert all(file.info_hash for file in manifest.files), "their torrents are promised"
