"""One function opens every kind of model, and what it gives can be split, proved and verified like a GGUF."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shardnet import preparing
from shardnet.cli import app
from shardnet.errors import CheckpointError, ManifestError, UsageError
from shardnet.inference.gguf.layout import read_model
from shardnet.inference.opening import open_model
from shardnet.inference.splitting.cutting import CutRequest, find_existing, split_model
from shardnet.inference.splitting.manifest_file import load_manifest
from shardnet.inference.splitting.plan import plan_model
from shardnet.manifest import ParityCertificate
from tests.support.random_models import tiny_llama
from tests.support.whole_checkpoints import write_model


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_model(tmp_path / "Tiny 1.5B", n_files=2)


def test_a_gguf_is_a_file_already_and_a_checkpoint_is_made_on_the_way(tmp_path: Path, checkpoint: Path) -> None:
    assert not open_model(tiny_llama(tmp_path / "tiny.gguf")).is_made
    assert open_model(checkpoint).is_made


def test_a_checkpoint_is_opened_by_its_folder_its_index_and_a_part_of_it(checkpoint: Path) -> None:
    by_folder, by_index, by_part = (
        open_model(path)
        for path in (
            checkpoint,
            checkpoint / "model.safetensors.index.json",
            checkpoint / "model-00002-of-00002.safetensors",
        )
    )
    assert by_folder.fields == by_index.fields == by_part.fields
    assert by_folder.paths == by_index.paths == by_part.paths


def test_shards_and_nothing_are_no_model(tmp_path: Path, checkpoint: Path) -> None:
    folder, _ = split_model(plan_model(open_model(checkpoint), CutRequest(n_shards=2)), tmp_path / "cache")
    for path in (folder, tmp_path / "cache"):
        with pytest.raises(UsageError, match="holds shards already"):
            open_model(path)
    with pytest.raises(UsageError):
        open_model(tmp_path / "nothing")


def test_a_checkpoint_is_named_by_its_folder_and_not_cut_twice_while_nothing_changes(
    tmp_path: Path, checkpoint: Path
) -> None:
    plan = plan_model(open_model(checkpoint), CutRequest(n_shards=2))
    folder, manifest = split_model(plan, tmp_path / "cache")
    assert manifest.name == "Tiny-1.5B"
    assert find_existing(plan_model(open_model(checkpoint), CutRequest(n_shards=2)), tmp_path / "cache") is not None
    (checkpoint / "chat_template.jinja").write_text("{{ other }}")
    assert find_existing(plan_model(open_model(checkpoint), CutRequest(n_shards=2)), tmp_path / "cache") is None
    assert folder.is_dir()


def test_one_file_and_many_and_both_versions_of_config_json_give_the_same_shards(tmp_path: Path) -> None:
    ids = {
        split_model(
            plan_model(
                open_model(write_model(tmp_path / f"{n_files}-{version}" / "m", n_files=n_files, version=version)),
                CutRequest(n_shards=2),
            ),
            tmp_path / f"{n_files}-{version}",
        )[1].model_id
        for n_files, version in ((1, 5), (3, 5), (1, 4))
    }
    assert len(ids) == 1


def test_the_command_line_splits_a_checkpoint_and_proves_it(tmp_path: Path, checkpoint: Path, home: Path) -> None:
    cache = tmp_path / "cache"
    done = CliRunner().invoke(app, ["split", str(checkpoint), "--out", str(cache), "--no-verify", "--json"])
    assert done.exit_code == 0, done.output
    (folder,) = (cache / "shards").glob("Tiny-*")
    arguments = ["--source", str(checkpoint), "--tokens", "2", "--threads", "1", "--json"]
    verified = CliRunner().invoke(app, ["verify", str(folder), *arguments])
    assert verified.exit_code == 0, verified.output
    certificate = load_manifest(folder).certificate
    assert certificate is not None
    assert certificate.is_exact
    assert [path.name for path in (cache / "shards").iterdir()] == [folder.name]


def test_a_split_proves_a_checkpoint_against_a_file_that_is_gone_afterwards(
    tmp_path: Path, checkpoint: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources: list[Path] = []

    def proved(_folder: Path, source: Path, **_more: object) -> ParityCertificate:
        assert read_model(source).architecture == "llama"
        sources.append(source)
        return ParityCertificate(
            llama_cpp="0", prompt_tokens=1, decode_tokens=1, boundaries=(), max_abs_logit_diff=0.0, tokens_equal=True
        )

    monkeypatch.setattr(preparing, "verify_split", proved)
    plan = plan_model(open_model(checkpoint), CutRequest(n_shards=2))
    for _ in range(2):  # what is proved is not proved again
        prepared = preparing.prepare(plan, tmp_path / "cache", home, prove=True, bar=lambda _title: nullcontext(ignore))
        assert prepared.manifest.certificate is not None
    assert len(sources) == 1
    assert not sources[0].exists()


def ignore(_done: int, _all: int) -> None:
    """A progress bar that nobody sees."""


def test_verify_refuses_a_checkpoint_that_the_shards_were_not_cut_from(tmp_path: Path, checkpoint: Path) -> None:
    folder, _ = split_model(plan_model(open_model(checkpoint), CutRequest(n_shards=2)), tmp_path / "cache")
    other = write_model(tmp_path / "other", num_hidden_layers=3)
    error = CliRunner().invoke(app, ["verify", str(folder), "--source", str(other)]).exception
    assert isinstance(error, ManifestError)
    assert "is not the model that Tiny-1.5B was cut from" in str(error)
    assert "--quantize" not in str(error)


def test_verify_asks_how_a_model_was_quantised_that_differs_in_nothing_else(tmp_path: Path, checkpoint: Path) -> None:
    plan = plan_model(open_model(checkpoint, quantize="q8_0"), CutRequest(n_shards=2))
    folder, _ = split_model(plan, tmp_path / "cache")
    error = CliRunner().invoke(app, ["verify", str(folder), "--source", str(checkpoint)]).exception
    assert isinstance(error, ManifestError)
    assert str(error).endswith("if it was quantised on the way, say how with --quantize")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "zamba9"}, "the family 'zamba9', which is not converted"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu', and llama.cpp computes llama models with 'silu' only"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0, which is no whole number from 1 to"),
        ({"num_attention_heads": 8, "head_dim": 8}, r"has the shape \[32, 32\], where config.json asks for \[32, 64\]"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps = 'small', which is no number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps = nan, which is no number"),
        ({"rms_norm_eps": -1}, "rms_norm_eps = -1, which is no number"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps = 1000.*, which is no number"),
        ({"text_config": 3}, "says text_config = '3', which is no object with keys"),
        ({"eos_token_id": -1}, "config.json or the tokenizer files in .* are damaged .invalid value"),
    ],
)
def test_what_is_not_taken_is_one_clear_sentence(tmp_path: Path, changes: dict[str, object], sentence: str) -> None:
    folder = write_model(tmp_path / "m")
    content = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=sentence):
        open_model(folder)


def test_a_folder_whose_name_is_no_utf_8_is_opened(tmp_path: Path) -> None:
    folder = write_model(tmp_path / os.fsdecode(b"m\xff"))
    assert open_model(folder).get("general.name") == "m\ufffd"


def test_a_checkpoint_without_config_json_is_not_guessed_at(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        open_model(checkpoint)
