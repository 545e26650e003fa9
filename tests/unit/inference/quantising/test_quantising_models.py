"""`shardnet split --quantize`: what may be quantised to what, what the result is called and known by, and what is told of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from shardnet.cli import app
from shardnet.cli.losses import loss_lines
from shardnet.errors import GgufError, ManifestError, ShardnetError, UsageError
from shardnet.inference.gguf.header import Buffer, GgufHeader, GgufTensor
from shardnet.inference.gguf.layout import quantisation_of, read_model
from shardnet.inference.opening import open_model
from shardnet.inference.quantising.losses import Sums
from shardnet.inference.quantising.mixtures import KINDS
from shardnet.inference.quantising.model import quantise, quantised_name
from shardnet.inference.quantising.rows import QuantisedData
from shardnet.inference.splitting.cutting import CutRequest, split_model
from shardnet.inference.splitting.plan import plan_model
from shardnet.manifest import LONGEST_NAME
from tests.support.random_models import tiny_llama
from tests.support.range_server import range_server
from tests.support.whole_checkpoints import write_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "tiny-F16.gguf", n_layers=2)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, ShardnetError):
        raise result.exception
    assert result.exception is None, result.output
    return result.stdout


def test_a_type_that_does_not_exist_is_answered_with_those_that_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        run("split", tmp_path / "is not even looked for", "--quantize", "q4_k_xl")
    assert "'q4_k_xl'" in str(caught.value)
    assert all(kind in str(caught.value) for kind in KINDS)


def test_what_says_how_to_quantise_needs_a_type(model: Path, tmp_path: Path) -> None:
    for flags in (["--imatrix", "x"], ["--allow-requantize"], ["--perplexity", str(model)]):
        with pytest.raises(UsageError, match="with --quantize"):
            run("split", model, "--out", tmp_path, *flags)


def test_weights_that_are_quantised_already_are_refused_unless_it_is_meant(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "m.gguf", n_layers=2, quantisation="Q4_0")
    with pytest.raises(UsageError, match=r"quantised already \(Q4_0 in 15 tensors\).*--allow-requantize"):
        open_model(model, quantize="q8_0")
    made = open_model(model, quantize="q8_0", allow_requantize=True)
    assert quantisation_of(made) == "Q8_0"


def test_what_keeps_its_type_is_copied_and_needs_no_leave(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "m.gguf", n_layers=2, quantisation="Q8_0")
    assert not open_model(model, quantize="q8_0").is_made


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_weights_that_are_not_finite_are_refused_by_name(model: Path, bad: float) -> None:
    header = read_model(model)
    broken = next(one for one in header.tensors if one.name == "blk.1.ffn_up.weight")
    with model.open("r+b") as file:
        file.seek(broken.offset + 10)
        file.write(np.float16(bad).tobytes())
    tensors = {one.name: one for one in quantise(header, "q4_0").tensors}
    with pytest.raises(GgufError, match=r"'blk\.1\.ffn_up\.weight' has weights that are infinite or not a number"):
        consume(tensors[broken.name])
    consume(tensors["blk.0.ffn_up.weight"])


def test_weights_that_half_precision_cannot_hold_are_refused(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "m.gguf", n_layers=1, quantisation="F32")
    header = read_model(model)
    broken = next(one for one in header.tensors if one.name == "blk.0.ffn_up.weight")
    with model.open("r+b") as file:
        file.seek(broken.offset)
        file.write(np.float32(1e6).tobytes())
    made = next(one for one in quantise(header, "f16").tensors if one.name == broken.name)
    with pytest.raises(GgufError, match=r"'blk\.0\.ffn_up\.weight' are too large for F16"):
        consume(made)


def test_a_file_that_becomes_shorter_meanwhile_is_an_error(model: Path) -> None:
    made = quantise(read_model(model), "q8_0")
    with model.open("r+b") as file:
        file.truncate(model.stat().st_size // 2)
    with pytest.raises(GgufError, match="ended while tensor"):
        consume(next(tensor for tensor in made.tensors if tensor.name == "blk.1.ffn_up.weight"))


@dataclass(frozen=True)
class Torn:
    """Bytes of a tensor in pieces that fit no row."""

    data: bytes
    size: int

    def pieces(self, tensor: GgufTensor) -> Iterator[Buffer]:
        for start in range(0, len(self.data), self.size):
            yield self.data[start : start + self.size]


def consume(tensor: GgufTensor) -> bytes:
    return b"" if tensor.data is None else b"".join(tensor.data.pieces(tensor))


def torn(header: GgufHeader, size: int, cut: int = 0) -> GgufHeader:
    """Returns: the same model as if it were made on the way, each tensor without its last `cut` bytes."""
    data = header.path.read_bytes()
    tensors = (
        replace(one, data=Torn(data[one.offset : one.offset + one.nbytes - cut], size)) for one in header.tensors
    )
    return replace(header, tensors=tuple(tensors))


def test_weights_that_are_made_on_the_way_come_in_pieces_of_any_size(model: Path) -> None:
    header = read_model(model)
    expected = [consume(tensor) for tensor in quantise(header, "q5_1").tensors if len(tensor.shape) > 1]
    for size in (1000, 1 << 20):
        made = quantise(torn(header, size), "q5_1").tensors
        assert [consume(tensor) for tensor in made if len(tensor.shape) > 1] == expected
    short = next(
        one for one in quantise(torn(header, 1000, cut=2), "q5_1").tensors if one.name == "blk.0.attn_q.weight"
    )
    with pytest.raises(GgufError, match=r"ended while tensor .* was made"):
        consume(short)


def test_the_same_input_and_type_is_the_same_model_and_another_type_another(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    made = {}
    for kind in ("q8_0", "Q8_0", "q4_0"):
        plan = plan_model(open_model(model, quantize=kind), CutRequest(n_shards=2))
        folder, manifest = split_model(plan, cache)
        assert json.loads((folder / ".source.json").read_text())["recipe"] == f"quantised to {kind.lower()}"
        made[kind] = manifest.model_id
    assert made["q8_0"] == made["Q8_0"] != made["q4_0"]
    assert len(list((cache / "shards").iterdir())) == 2


@pytest.mark.parametrize(
    ("name", "kind", "called"),
    [
        ("Llama-3-8B-BF16", "q4_k_m", "Llama-3-8B-Q4_K_M"),
        ("smollm.Q4_1", "q8_0", "smollm-Q8_0"),
        ("Tiny-1.5B", "q5_k", "Tiny-1.5B-Q5_K_M"),
        ("f16", "q4_0", "f16-Q4_0"),
    ],
)
def test_a_quantised_model_is_called_by_what_it_is(name: str, kind: str, called: str) -> None:
    assert quantised_name(name, kind) == called


def test_the_longest_name_leaves_room_for_what_it_was_quantised_to() -> None:
    called = quantised_name("m" * LONGEST_NAME, "q4_k_m")
    assert (len(called), called[-8:]) == (LONGEST_NAME, "m-Q4_K_M")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each tensor was quantised."""
    count: Counter[str] = Counter()
    pieces = QuantisedData.pieces

    def counted(self: QuantisedData, tensor: GgufTensor) -> Iterator[Buffer]:
        count[tensor.name] += 1
        return pieces(self, tensor)

    monkeypatch.setattr(QuantisedData, "pieces", counted)
    return count


def test_the_command_line_quantises_a_checkpoint_proves_it_and_tells_what_was_lost(
    tmp_path: Path, home: Path, made: Counter[str]
) -> None:
    source, text = write_model(tmp_path / "Tiny", n_files=2), tmp_path / "text.txt"
    text.write_text("The lighthouse keeper counted the waves every evening. " * 12)
    command = ["split", source, "--quantize", "q4_0", "--out", tmp_path / "cache"]
    told: dict[str, Any] = json.loads(run(*command, "--perplexity", text, "--no-verify", "--json"))
    assert set(made.values()) == {1}, "the shards are cut out of the file that was written for llama.cpp"
    assert (told["name"], told["content"]["quantisation"]) == ("Tiny-Q4_0", "Q4_0")
    lost, perplexity = told["quantised"], told["perplexity"]
    assert {one["name"] for one in lost["tensors"]} >= {"token_embd.weight", "output.weight", "blk.3.ffn_down.weight"}
    assert 0.98 < lost["cosine"] < 1
    assert lost["ratio"] == lost["bytes_before"] / lost["bytes_after"] > 4
    assert perplexity["before"]["n_tokens"] == perplexity["after"]["n_tokens"] > 100
    assert perplexity["before"]["value"] != perplexity["after"]["value"]
    again = run(*command, "--no-verify")
    assert "there already, nothing was written" in again
    worst = min(lost["tensors"], key=lambda one: one["cosine"])
    assert f"lost most: {worst['name']}" in again
    folder = Path(told["folder"])
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "no whole model is left behind"
    with pytest.raises(ManifestError, match=r"it is llama F32 .*the manifest says llama Q4_0"):
        run("verify", folder, "--source", source)
    assert "identical" in run("verify", folder, "--source", source, "--quantize", "q4_0", "--tokens", "2")


def test_a_model_at_an_address_becomes_the_same_shards(model: Path, tmp_path: Path, home: Path) -> None:
    here = json.loads(run("split", model, "--quantize", "q5_0", "--no-verify", "--out", tmp_path / "here", "--json"))
    with range_server({"/tiny-F16.gguf": model}) as (url, _served):
        source = f"{url}/tiny-F16.gguf"
        there = json.loads(run("split", source, "--quantize", "q5_0", "--out", tmp_path / "there", "--json"))
    assert there["model_id"] == here["model_id"]
    assert there["quantised"] == here["quantised"]
    assert (there["name"], there["file_bytes"]) == ("tiny-Q5_0", model.stat().st_size)


def test_single_shards_are_not_cut_of_what_is_quantised_on_the_way(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(UsageError, match="quantised on the way, and cannot be cut in parts"):
        run("split", model, "--quantize", "q5_0", "--only", "all", "--out", cache)
    assert not [path for path in cache.rglob("*") if path.is_file() and path.suffix == ".gguf"]


def test_a_model_made_of_quantised_weights_says_so() -> None:
    tensor = {"name": "a", "from": "Q4_1", "to": "Q4_K", "cosine": 0.9, "rmse": 0.1, "importance": False}
    facts = {
        "bytes_before": 10,
        "bytes_after": 5,
        "ratio": 2.0,
        "cosine": 0.9,
        "rmse": 0.1,
        "unmeasured": 2,
        "tensors": [tensor],
    }
    assert any("quantised already (Q4_1)" in line for line in loss_lines(facts, None))
    assert any("2 more tensors were written before" in line for line in loss_lines(facts, None))
    facts |= {"tensors": [tensor | {"from": "BF16"}], "unmeasured": 0}
    assert not any("already" in line for line in loss_lines(facts, None))
    facts["tensors"] = [tensor | {"importance": True}, tensor]
    assert any("knew 1 of these" in line for line in loss_lines(facts, None))


def test_zeros_lose_nothing_and_what_becomes_zeros_loses_all() -> None:
    assert (Sums(4, 0, 0, 0).cosine, Sums(4, 0, 0, 0).rmse) == (1, 0)
    assert Sums(4, 8.0, 8.0, 8.0).cosine == 0
    assert Sums(4, 8.0, 0.0, 0.0).cosine == 1
