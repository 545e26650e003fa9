"""Chains of shards against the unsplit model, on small random models of the families that matter most."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from shardnet.cli import app
from shardnet.errors import FamilyRefused, ManifestError, NoRoomError, ShardnetError, UsageError
from shardnet.inference.gguf.header import read_gguf_header
from shardnet.inference.llama.batch import single_sequence_rows
from shardnet.inference.llama.model import LlamaContext, LlamaModel
from shardnet.inference.proof import verify as verifying
from shardnet.inference.proof.numbers import DIFFERENT_BEYOND_MEASURE, max_abs_diff
from shardnet.inference.proof.parity import HowToRun, StageFile, run_parity
from shardnet.inference.proof.verify import fault_of, verify_split
from shardnet.inference.splitting import families
from shardnet.inference.splitting.cutting import CutRequest, plan_split, split_model
from shardnet.inference.splitting.manifest_file import load_manifest
from shardnet.manifest import Manifest, ParityCertificate
from tests.support import dying_process
from tests.support.family_proofs import cuts_to_try, prove_cut, some_prompts
from tests.support.quantised_models import quantise
from tests.support.random_models import build_random_model, tiny_llama


def split(path: Path, cache: Path, *cuts: int) -> tuple[Path, Manifest]:
    return split_model(plan_split(path, CutRequest(cuts=cuts), "model"), cache)


def verify(folder: Path, source: Path, save: bool = True) -> ParityCertificate:
    return verify_split(folder, source, prompts=some_prompts(), decode_tokens=6, threads=1, save=save)


def flip_weight(path: Path, tensor: str) -> None:
    """Change one float32 weight of a shard."""
    found = next(entry for entry in read_gguf_header(path).tensors if entry.name == tensor)
    with path.open("r+b") as file:
        file.seek(found.offset)
        value = np.frombuffer(file.read(4), dtype=np.float32)[0]
        file.seek(found.offset)
        file.write(np.float32(value + 1).tobytes())


@pytest.mark.parametrize(
    "family",
    [
        "llama", "mixtral", "mistral3", "qwen2", "qwen3", "qwen2moe", "qwen3moe", "gemma2", "gemma3", "gpt-oss", "phi3", "glm4", "granite", "olmo3",
        "deepseek2", "qwen3next", "gpt2", "glm4moe-mtp",
    ],
)  # fmt: skip
def test_the_chain_of_all_legal_cuts_gives_the_unsplit_models_numbers(family: str, tmp_path: Path) -> None:
    path = build_random_model(tmp_path / "model.gguf", family)
    cuts = cuts_to_try(families.rules_for(read_gguf_header(path)))[0]
    proof = prove_cut(family, path, cuts, tmp_path / "cache")
    assert proof.is_exact, proof.refusal or proof.fault
    assert len(proof.cuts) >= 1


@pytest.mark.parametrize("quantisation", ["Q4_0", "Q8_0", "Q4_K_M", "IQ4_XS"])
def test_quantised_models_are_as_exact(quantisation: str, tmp_path: Path) -> None:
    whole = tiny_llama(tmp_path / "f32.gguf", n_layers=2, n_embd=256, quantisation="F32", tied=False)
    path = quantise(whole, tmp_path / "small.gguf", quantisation)
    proof = prove_cut("llama", path, (1,), tmp_path / "cache")
    assert proof.is_exact, proof.refusal or proof.fault


def test_the_callback_in_python_puts_in_and_takes_out_what_the_native_one_does(tmp_path: Path) -> None:
    """Gemma 2 needs both ways: its stage in the middle gets its input behind the scaling."""
    path = build_random_model(tmp_path / "model.gguf", "gemma2")
    folder, _manifest = split(path, tmp_path / "cache", 2, 4)
    given = np.random.default_rng(1).standard_normal((7, 64)).astype(np.float32)
    found = []
    with LlamaModel(folder / "shard-1.gguf") as model:
        for native in (True, False):
            with LlamaContext(model, n_ctx=64, threads=1, capture=True, native_capture=native) as context:
                context.decode(single_sequence_rows(0, 7, hidden=given))
                found.append(context.hidden(7).copy())
    assert np.array_equal(found[0], found[1])


def test_an_exact_certificate_is_written_into_the_manifest(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model.gguf")
    folder, manifest = split(path, tmp_path / "cache", 2, 4)
    shares: list[float] = []
    certificate = verify_split(
        folder, path, prompts=some_prompts(), decode_tokens=6, threads=1, on_progress=shares.append
    )
    assert certificate.is_exact
    assert certificate.prompt_tokens == 102
    assert certificate.decode_tokens == 12
    assert [b.layer_end for b in certificate.boundaries] == [2, 4]
    assert fault_of(manifest.content, certificate) == ""
    assert load_manifest(folder).certificate == certificate
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_the_built_in_prompts_are_longer_than_one_chunk(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model.gguf", n_layers=2, n_ctx=2048)
    folder, _manifest = split(path, tmp_path / "cache", 1)
    certificate = verify_split(folder, path, decode_tokens=4, threads=1)
    assert certificate.is_exact
    assert certificate.prompt_tokens > 560
    assert certificate.decode_tokens == 16


@pytest.mark.parametrize(
    ("shard", "tensor"), [(0, "blk.0.ffn_down.weight"), (1, "blk.1.attn_output.weight"), (2, "output_norm.weight")]
)
def test_the_shard_at_fault_is_named(shard: int, tensor: str, tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model.gguf", quantisation="F32")
    folder, manifest = split(path, tmp_path / "cache", 2, 4)
    flip_weight(folder / f"shard-{shard}.gguf", tensor)
    certificate = verify(folder, path)
    assert not certificate.is_exact
    assert f"shard {shard} (layers [{2 * shard}, {2 * shard + 2})) is at fault" in fault_of(
        manifest.content, certificate
    )
    assert all(boundary.max_abs_diff == 0 for boundary in certificate.boundaries[:shard])
    assert load_manifest(folder).certificate == certificate


def dies_loading(monkeypatch: pytest.MonkeyPatch, path: Path, number: signal.Signals) -> None:
    monkeypatch.setattr(verifying, "COMMAND", dying_process.command("shardnet.inference.proof.verify"))
    dying_process.mortal(path, number)


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV])
def test_a_verifying_process_that_ends_is_a_refusal_that_names_family_and_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    path = tiny_llama(tmp_path / "model.gguf", n_layers=2)
    folder, _manifest = split(path, tmp_path / "cache", 1)
    dies_loading(monkeypatch, folder / "shard-1.gguf", number)
    with pytest.raises(
        FamilyRefused,
        match=rf"llama cannot be cut like this: shard 1 \(layers \[1, 2\)\) does not run.*{dying_process.LAST_WORDS} shard-1",
    ):
        verify(folder, path)


def test_a_verifying_process_that_ends_over_the_unsplit_model_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_llama(tmp_path / "model.gguf", n_layers=2)
    folder, _manifest = split(path, tmp_path / "cache", 1)
    dies_loading(monkeypatch, path, signal.SIGSEGV)
    with pytest.raises(FamilyRefused, match=rf"does not run the unsplit model.*{dying_process.LAST_WORDS} model"):
        verify(folder, path)


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        ("loading\nGGML_ASSERT(a == b) failed\n#0 main", -6, "GGML_ASSERT(a == b) failed"),
        ("loading", -9, "SIGKILL"),
        ("one\n  the last line \n\n", 1, "the last line"),
        ("", 3, "exit code 3"),
    ],
)
def test_the_reason_is_the_librarys_own_or_the_last_line_or_how_it_ended(words: str, code: int, reason: str) -> None:
    assert verifying.why_it_ended(words, code) == reason


def test_an_interrupt_leaves_no_process(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model.gguf")
    folder, _manifest = split(path, tmp_path / "cache", 3)

    def interrupt(_share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify_split(folder, path, prompts=some_prompts(), threads=1, on_progress=interrupt)
    assert load_manifest(folder).certificate is None


def test_a_scratch_disk_that_others_fill_meanwhile_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mapped file's missing blocks were a SIGBUS, and that was taken for a family that llama.cpp does not run."""

    def full(_descriptor: int, _offset: int, _length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tiny_llama(tmp_path / "model.gguf", n_layers=2)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(NoRoomError, match="set TMPDIR to a larger disk"):
        run_parity(path, [StageFile(path, 2)], tmp_path, HowToRun(decode_tokens=2, threads=1), prompts=some_prompts())


def test_another_model_is_refused_before_anything_runs(tmp_path: Path) -> None:
    folder, _manifest = split(tiny_llama(tmp_path / "model.gguf"), tmp_path / "cache", 3)
    other = tiny_llama(tmp_path / "other.gguf", n_layers=8)
    with pytest.raises(ManifestError, match="is not the model that model was cut from: it is llama F16 with 8 layers"):
        verify(folder, other)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model.gguf")
    folder, _manifest = split(path, tmp_path / "cache", 3)
    (folder / "shard-1.gguf").unlink()
    with pytest.raises(UsageError, match=r"shard-1\.gguf is missing"):
        verify(folder, path)


def test_not_a_number_is_never_exact() -> None:
    one = np.ones(3, dtype=np.float32)
    broken = np.array([1, np.nan, 1], dtype=np.float32)
    assert max_abs_diff(one, one) == 0
    assert max_abs_diff(one, broken) == DIFFERENT_BEYOND_MEASURE
    assert max_abs_diff(broken, broken) == DIFFERENT_BEYOND_MEASURE


# -- the command ---------------------------------------------------------------------------------------------------------------------------


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["verify", *map(str, arguments)])


def exit_code(result: Result) -> int:
    return result.exception.exit_code if isinstance(result.exception, ShardnetError) else result.exit_code


@pytest.mark.usefixtures("home")
def test_the_command_proves_stores_and_later_recalls(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model.gguf", n_layers=2)
    folder, _manifest = split(path, tmp_path / "cache", 1)
    unproved = run(folder)
    assert "parity was never proved" in unproved.stdout
    proved = run(folder, "--source", path, "--tokens", "2", "--threads", "1", "--json")
    facts = json.loads(proved.stdout)
    assert proved.exit_code == 0
    assert facts["exact"] is True
    assert facts["saved"] is True
    recalled = run(folder / "manifest.json")
    assert recalled.exit_code == 0
    assert "parity was not run again; the stored certificate says: identical" in recalled.stdout


@pytest.mark.usefixtures("home")
def test_the_command_tells_a_flipped_byte_and_other_numbers_apart(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model.gguf", n_layers=2, quantisation="F32")
    other = tiny_llama(tmp_path / "other.gguf", n_layers=2, quantisation="F32", seed=2)
    folder, _manifest = split(path, tmp_path / "cache", 1)
    differs = run(folder, "--source", other, "--tokens", "2", "--threads", "1")
    assert exit_code(differs) == 4
    assert "shard 0 (layers [0, 1)) is at fault" in str(differs.exception)
    flip_weight(folder / "shard-1.gguf", "blk.0.ffn_up.weight")
    damaged = run(folder)
    assert exit_code(damaged) == 3
    assert "shard-1.gguf is damaged" in str(damaged.exception)


@pytest.mark.usefixtures("home")
def test_a_proof_is_not_lost_to_another_model_of_the_same_shape(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model.gguf", n_layers=2)
    sibling = tiny_llama(tmp_path / "sibling.gguf", n_layers=2, seed=2)
    folder, _manifest = split(path, tmp_path / "cache", 1)
    assert run(folder, "--source", path, "--tokens", "2", "--threads", "1").exit_code == 0
    before = (folder / "manifest.json").read_bytes()
    differs = run(folder, "--source", sibling, "--tokens", "2", "--threads", "1")
    assert exit_code(differs) == 4
    assert "most likely --source is not the model" in differs.stdout
    assert (folder / "manifest.json").read_bytes() == before


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("name", ["shard-0.gguf", "tokenizer.gguf", "manifest.json"])
def test_the_command_follows_a_linked_folder_and_refuses_a_linked_file_as_nodes_do(tmp_path: Path, name: str) -> None:
    folder, _manifest = split(tiny_llama(tmp_path / "model.gguf"), tmp_path / "cache", 1)
    (tmp_path / "link").symlink_to(folder)
    assert exit_code(run(tmp_path / "link")) == 0
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    refused = run(tmp_path / "link")
    assert exit_code(refused) == 3
    assert f"{name} is a link" in str(refused.exception)
