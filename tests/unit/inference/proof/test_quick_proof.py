"""Proofs in a few passes over the file, on small random models: by name, and where the unsplit model does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from shardnet.cli import app
from shardnet.inference.gguf.header import read_gguf_header
from shardnet.inference.gguf.layout import read_model
from shardnet.inference.llama.stages import stages_of
from shardnet.inference.proof import estimate
from shardnet.inference.proof.parity import HowToRun, StageFile, run_parity
from shardnet.inference.proof.planning import ProofPlan
from shardnet.inference.proof.steps import Method
from shardnet.inference.proof.verify import fault_of, verify_split
from shardnet.inference.proof.weights import disk_rate
from shardnet.inference.splitting import families
from shardnet.inference.splitting.manifest_file import load_manifest
from shardnet.limits.memory import Room
from shardnet.manifest import Manifest, ParityCertificate
from shardnet.preparing import _is_proved
from tests.support.family_proofs import cuts_to_try, some_prompts
from tests.support.gguf_parts import parts_of
from tests.support.quantised_models import quantise
from tests.support.random_models import build_random_model, tiny_llama
from tests.unit.inference.proof.test_verify import flip_weight, split


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model fits."""
    monkeypatch.setattr(estimate, "main_memory", lambda: Room(1 << 30, 100 << 20))


def compare(path: Path, cache: Path, manifest: Manifest, folder: Path, how: HowToRun) -> ParityCertificate:
    """What the child of `verify_split` does, in this process."""
    scratch = folder / f"scratch-{how.weights_budget}"
    scratch.mkdir()
    stages = [StageFile(cache / shard.file, shard.layers.end) for shard in manifest.content.shards]
    return run_parity(path, stages, scratch, how, prompts=some_prompts())


def prove(path: Path, cuts: tuple[int, ...], folder: Path, how: HowToRun) -> ParityCertificate:
    """Split and compare."""
    cache, manifest = split(path, folder / "cache", *cuts)
    return compare(path, cache, manifest, folder, how)


@pytest.mark.parametrize(
    "family", ["llama", "qwen3moe", "gemma2", "gpt-oss", "glm4", "deepseek2", "qwen3next", "mamba2", "glm4moe-mtp"]
)
def test_all_prompts_at_once_are_exact_too(family: str, tmp_path: Path) -> None:
    path = build_random_model(tmp_path / "model.gguf", family)
    cuts = cuts_to_try(families.rules_for(read_gguf_header(path)))[0]
    assert prove(path, cuts, tmp_path, HowToRun("quick", 2, threads=1)).is_exact


@pytest.mark.usefixtures("little_memory")
def test_a_model_that_does_not_fit_is_proved_quickly_and_its_certificate_says_why(tmp_path: Path) -> None:
    whole = tiny_llama(tmp_path / "f32.gguf", n_layers=4, n_embd=256, quantisation="F32", tied=False)
    path = quantise(whole, tmp_path / "small.gguf", "Q4_K_M")
    folder, manifest = split(path, tmp_path / "cache", 1, 2)
    told: list[ProofPlan] = []
    shares: list[float] = []
    certificate = verify_split(
        folder, path, threads=1, prompts=some_prompts(), on_plan=told.append, on_progress=shares.append
    )
    assert certificate.is_exact, fault_of(manifest.content, certificate)
    assert certificate.method == "quick"
    assert certificate.decode_tokens == 2 * told[0].decode_tokens
    assert "all prompts in one batch" in certificate.why
    assert "not repacked" in certificate.why
    assert told[0].readings <= 8
    assert load_manifest(folder).certificate == certificate
    assert shares == sorted(shares)
    assert len(shares) > 4 * 3 * 2  # told of each layer, not only of each step
    assert shares[-1] == 1.0


@pytest.mark.parametrize(
    ("shard", "tensor"), [(0, "blk.0.ffn_down.weight"), (1, "blk.1.attn_output.weight"), (2, "output_norm.weight")]
)
def test_the_shard_at_fault_is_named_by_a_quick_proof(shard: int, tensor: str, tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model.gguf", quantisation="F32")
    folder, manifest = split(path, tmp_path / "cache", 2, 4)
    flip_weight(folder / f"shard-{shard}.gguf", tensor)
    certificate = compare(path, folder, manifest, tmp_path, HowToRun("quick", 2, weights_budget=0, threads=1))
    assert f"shard {shard} (layers [{2 * shard}, {2 * shard + 2})) is at fault" in fault_of(
        manifest.content, certificate
    )


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("method", ["full", "quick"])
def test_any_budget_gives_the_same_certificate(method: Method, share: float, tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model.gguf", quantisation="F32")
    budget = int(share * path.stat().st_size)
    found = prove(path, (3,), tmp_path, HowToRun(method, 3, weights_budget=budget, threads=1))
    assert found.is_exact
    assert not found.repacked  # F32 has no such layout: nothing else differs
    assert found.model_copy(update={"repacked": True}) == prove(path, (3,), tmp_path, HowToRun(method, 3, threads=1))


def test_a_model_in_several_files_is_read_ahead_out_of_all_of_them(tmp_path: Path) -> None:
    first, *_others = parts_of(tiny_llama(tmp_path / "whole.gguf", quantisation="F32"), tmp_path, 3)
    stages = stages_of(read_model(first), has_head=True)
    assert len({extent.path for stage in stages for extent in stage}) == 3
    assert prove(first, (3,), tmp_path, HowToRun("quick", 2, weights_budget=300_000, threads=1)).is_exact


def test_the_stages_are_every_weight_that_a_pass_reads(tmp_path: Path) -> None:
    for is_tied in (True, False):
        path = tiny_llama(tmp_path / "model.gguf", n_layers=3, tied=is_tied)
        header = read_gguf_header(path)
        stages = stages_of(header, has_head=True)
        table = next(tensor.nbytes for tensor in header.tensors if tensor.name == "token_embd.weight")
        everything = sum(tensor.nbytes for tensor in header.tensors)
        assert len(stages) == 4
        assert sum(extent.nbytes for stage in stages for extent in stage) == everything - (0 if is_tied else table)
        assert len(stages_of(header, has_head=False)) == 3


def test_the_disks_rate_is_measured_on_any_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "small").write_bytes(bytes(100))
    assert disk_rate(tmp_path / "empty") == 0
    assert disk_rate(tmp_path / "small") > 0


# -- the commands --------------------------------------------------------------------------------------------------------------------------


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.mark.usefixtures("home", "little_memory")
def test_split_says_what_the_proof_will_read_and_verify_what_it_was(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model.gguf", n_layers=2)
    done = run("split", path, "--out", tmp_path / "cache", "--shards", "2")
    assert done.exit_code == 0, done.output
    assert "Proving the shards: quick proof, " in done.stderr
    assert "times the model) at " in done.stderr
    assert "identical to the unsplit model" in done.stdout
    assert "(quick (a full proof would read the model " in done.stdout
    folder = next((tmp_path / "cache" / "shards").iterdir())
    assert "all prompts in one batch" in run("verify", folder).stdout
    full = run("verify", folder, "--source", path, "--method", "full", "--tokens", "1", "--threads", "1", "--json")
    certificate = json.loads(full.stdout)["certificate"]
    assert "method" not in certificate
    assert (certificate["decode_tokens"], certificate["why"].split(",")[-1]) == (4, " not repacked")


def test_a_quick_proof_is_not_done_again_unless_a_full_one_is_asked_for(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model.gguf", n_layers=2)
    quick = prove(path, (1,), tmp_path, HowToRun("quick", 1, threads=1)).model_copy(update={"method": "quick"})
    _folder, manifest = split(path, tmp_path / "again", 1)
    proved = manifest.model_copy(update={"certificate": quick})
    assert _is_proved(proved, None)
    assert _is_proved(proved, "quick")
    assert not _is_proved(proved, "full")
    assert not _is_proved(manifest, None)


@pytest.mark.usefixtures("home")
def test_verify_none_is_no_verify_and_contradicts_the_others(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model.gguf", n_layers=2)
    for flags in (("--verify", "none"), ("--no-verify",), ("--verify", "none", "--no-verify")):
        done = run("split", path, "--out", tmp_path / "cache", *flags)
        assert "not proved (--verify none)" in done.stdout
    done = run("split", path, "--out", tmp_path / "cache", "--no-verify", "--verify", "quick")
    assert "--no-verify and --verify quick exclude each other" in str(done.exception)
