"""`split_model`, `load_manifest`, `verify`: what the commands do, for programs."""

from __future__ import annotations

from pathlib import Path

import pytest

import shardnet
from shardnet.errors import ManifestError, ParityError, RefusedError, UsageError
from shardnet.inference.splitting.manifest_file import save_manifest
from tests.support.random_models import tiny_llama
from tests.support.whole_checkpoints import write_model


@pytest.fixture
def model(tmp_path: Path, home: Path) -> Path:
    return tiny_llama(tmp_path / "tiny.gguf")


def test_a_model_is_split_and_proved_and_its_manifest_says_so(model: Path, tmp_path: Path) -> None:
    said: list[tuple[str, float]] = []

    def note(what: str, share: float) -> None:
        said.append((what, share))

    made = shardnet.split_model(model, shards=3, out=tmp_path / "cache", name="tiny", verify=False, on_progress=note)
    assert (made.manifest.name, made.manifest.n_shards, made.was_there) == ("tiny", 3, False)
    assert shardnet.load_manifest(made.folder) == shardnet.load_manifest(made.folder / "manifest.json") == made.manifest
    certificate = shardnet.verify(made.folder, model, decode_tokens=4, threads=1, on_progress=note)
    assert certificate is not None
    assert certificate.is_exact
    assert {what for what, _ in said} == {"Splitting tiny", "Hashing", "Proving the shards"}
    assert all(0 <= share <= 1 for _, share in said)
    again = shardnet.split_model(str(model), shards=3, out=str(tmp_path / "cache"), name="tiny")
    assert again.was_there
    assert again.manifest.certificate == certificate, "what is proved is not proved again"


def test_a_checkpoint_is_split_like_a_gguf(tmp_path: Path, home: Path) -> None:
    folder = write_model(tmp_path / "checkpoint")
    made = shardnet.split_model(folder, shards=2, out=tmp_path / "cache", verify=False)
    assert made.manifest.content.architecture == "llama"
    assert shardnet.verify(made.folder) is None


def test_weights_are_quantised_on_the_way_and_the_name_says_so(tmp_path: Path, home: Path) -> None:
    folder = write_model(tmp_path / "checkpoint")
    plain = shardnet.split_model(folder, out=tmp_path / "cache", verify=False)
    made = shardnet.split_model(folder, quantize="q8_0", out=tmp_path / "cache", verify=False)
    assert made.manifest.content.quantisation == "Q8_0"
    assert made.manifest.name != plain.manifest.name
    assert made.manifest.total_bytes < plain.manifest.total_bytes
    with pytest.raises(UsageError, match="q9_9"):
        shardnet.split_model(folder, quantize="q9_9", out=tmp_path / "cache", verify=False)


def test_ways_to_cut_that_exclude_each_other_are_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="shards and cuts exclude each other"):
        shardnet.split_model(model, shards=2, cuts=[3], out=tmp_path)
    with pytest.raises(UsageError, match="0 shards are not possible"):
        shardnet.split_model(model, shards=0, out=tmp_path)
    with pytest.raises(UsageError, match="balance is about a number of shards: cuts says where to cut by itself"):
        shardnet.split_model(model, cuts=[3], balance="memory", out=tmp_path)
    with pytest.raises(UsageError, match="balance is speed or memory, not 'size'"):
        shardnet.split_model(model, balance="size", out=tmp_path)  # type: ignore[arg-type]
    assert shardnet.split_model(model, max_shard_bytes="1MB", out=tmp_path, verify=False).manifest.n_shards == 1
    assert shardnet.split_model(model, cuts=[1, 4], out=tmp_path, verify=False).manifest.n_shards == 3


def test_damaged_missing_and_foreign_are_errors_of_ours(model: Path, tmp_path: Path) -> None:
    made = shardnet.split_model(model, shards=2, out=tmp_path / "cache", verify=False)
    with pytest.raises(ManifestError):
        shardnet.verify(made.folder, tiny_llama(tmp_path / "other.gguf", n_layers=5))
    (made.folder / "shard-1.gguf").write_bytes(b"GGUF")
    with pytest.raises(RefusedError, match=r"shard-1\.gguf"):
        shardnet.verify(made.folder)
    with pytest.raises(UsageError):
        shardnet.load_manifest(tmp_path / "nothing")


def test_shards_that_are_known_to_differ_are_a_parity_error(model: Path, tmp_path: Path) -> None:
    made = shardnet.split_model(model, shards=2, out=tmp_path / "cache", verify=False)
    certificate = shardnet.verify(made.folder, model, decode_tokens=4, threads=1)
    assert certificate is not None
    different = certificate.model_copy(update={"max_abs_logit_diff": 0.5})
    save_manifest(made.folder, made.manifest.model_copy(update={"certificate": different, "signature": None}))
    with pytest.raises(ParityError, match="shard 1"):
        shardnet.verify(made.folder)
    with pytest.raises(ParityError):
        shardnet.ShardRunner(made.folder)
