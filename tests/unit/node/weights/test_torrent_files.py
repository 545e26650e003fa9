"""Torrents beside the shards: hashed once, promised by the manifest, wrapped for any swarm."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from shardnet.cli import app
from shardnet.errors import ManifestError
from shardnet.inference.splitting.cutting import CutRequest, plan_split, split_model
from shardnet.inference.splitting.manifest_file import load_manifest
from shardnet.manifest import Manifest
from shardnet.node.weights import torrent_files
from shardnet.swarm.home import Home
from shardnet.swarm.identity import ensure_swarm
from shardnet.swarm.signing import signature_is_valid
from shardnet.torrent.metainfo import check_torrent, for_swarm, make_torrent
from tests.support.random_models import tiny_llama
from tests.support.torrent_world import Authority

Model = tuple[Path, Manifest]


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return split_model(plan_split(tiny_llama(tmp_path / "tiny.gguf"), CutRequest(n_shards=2)), tmp_path / "cache")


def test_a_torrent_for_another_swarm_is_what_hashing_the_file_would_give(model: Model) -> None:
    path = model[0] / "shard-0.gguf"
    pems = (None, Authority("one").pem, Authority("two").pem)
    made = [make_torrent(path, name=path.name, root_cert_pem=pem) for pem in pems]
    for torrent in made:
        assert [for_swarm(torrent, pem) for pem in pems] == made


def test_promised_torrents_change_nothing_but_the_manifests_promise(model: Model) -> None:
    folder, manifest = model
    promised = torrent_files.promise_torrents(folder, manifest)
    assert promised.model_id == manifest.model_id
    assert all(file.info_hash for file in promised.files)
    assert torrent_files.promise_torrents(folder, promised) is promised
    assert promised.model_copy(update={"files": manifest.files}) == manifest


def test_seeding_after_the_promise_hashes_nothing(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, manifest = model
    promised = torrent_files.promise_torrents(folder, manifest)

    def never(*_arguments: object, **_options: object) -> bytes:
        raise AssertionError("hashed again")

    monkeypatch.setattr(torrent_files, "make_torrent", never)
    pem = Authority().pem
    torrent = torrent_files.read_or_make(folder / "shard-1.gguf", promised, 1, pem)
    facts = check_torrent(
        torrent,
        expect_bytes=promised.content.shards[1].bytes,
        root_cert_pem=pem,
        expect_open_info_hash=promised.files[1].info_hash,
    )
    assert facts.name == "shard-1.gguf"


def test_a_torrent_of_other_bytes_is_refused_before_anything_is_fetched(model: Model, tmp_path: Path) -> None:
    folder, manifest = model
    promised = torrent_files.promise_torrents(folder, manifest)
    data = bytearray((folder / "shard-0.gguf").read_bytes())
    data[-60] ^= 1
    liar = tmp_path / "shard-0.gguf"
    liar.write_bytes(data)
    lie = make_torrent(liar, name="shard-0.gguf", root_cert_pem=None)
    with pytest.raises(ManifestError, match="info-hash that the manifest promises"):
        check_torrent(
            lie, expect_bytes=len(data), root_cert_pem=None, expect_open_info_hash=promised.files[0].info_hash
        )


def test_split_promises_torrents_and_signs_the_promise(home: Path, tmp_path: Path) -> None:
    swarm = ensure_swarm(Home(home))
    source = tiny_llama(tmp_path / "tiny.gguf")
    arguments = ["split", str(source), "--shards", "2", "--no-verify", "--out", str(tmp_path / "cache")]
    for _ in range(2):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        (folder,) = (tmp_path / "cache" / "shards").iterdir()
        manifest = load_manifest(folder)
        assert all(file.info_hash for file in manifest.files)
        assert signature_is_valid(manifest, swarm.ca)
