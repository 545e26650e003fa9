"""What we quantise on the way is what `llama_model_quantize` makes of the whole model, to the byte; and so are the shards cut of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shardnet.inference.gguf.element_types import GGML_TYPES
from shardnet.inference.gguf.header import GgufField, GgufHeader, GgufTensor, GgufValue, read_gguf_header
from shardnet.inference.gguf.layout import read_model
from shardnet.inference.gguf.writer import OutTensor, write_gguf
from shardnet.inference.quantising.importance import ImportanceMatrix
from shardnet.inference.quantising.mixtures import choose_types
from shardnet.inference.quantising.model import losses_of, quantise
from shardnet.inference.splitting.cutting import CutRequest, split_model
from shardnet.inference.splitting.plan import plan_model
from tests.support.quantised_models import llama_quantise
from tests.support.random_models import build_random_model, tiny_llama

SHOWN = ("q8_0", "q4_0", "q4_k_m", "q5_k_m", "q6_k")
CASES = [(kind, tied) for kind in SHOWN for tied in (True, False)]
CASES += [(kind, True) for kind in ("q4_1", "q5_1", "q2_k", "q3_k_m", "q4_k_s", "f16")]


def write(header: GgufHeader, path: Path) -> Path:
    fields: dict[str, GgufValue | GgufField] = {**header.fields}
    write_gguf(
        path,
        fields,
        [OutTensor(one.name, one.shape, one.ggml_type, one.nbytes, one) for one in header.tensors],
        mark="",
        on_bytes=lambda _count: None,
    )
    return path


def columns_of(header: GgufHeader) -> dict[str, NDArray[np.float32]]:
    """Returns: an importance matrix of this model: random, and nothing of the embedding, as llama-imatrix leaves it."""
    generator = np.random.default_rng(5)
    return {
        tensor.name: generator.random(n_columns(tensor), dtype=np.float32) + np.float32(0.01)
        for tensor in header.tensors
        if len(tensor.shape) > 1 and tensor.name != "token_embd.weight"
    }


def n_columns(tensor: GgufTensor) -> int:
    return tensor.shape[0] * (tensor.shape[2] if len(tensor.shape) > 2 else 1)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Tied or not -> a llama whose rows divide by 256; of eight layers the first and the last get more bits, and every third."""
    folder = tmp_path_factory.mktemp("wide")
    return {
        tied: tiny_llama(folder / f"{tied}.gguf", n_embd=256, n_layers=8, n_kv_heads=1, tied=tied, quantisation="BF16")
        for tied in (True, False)
    }


@pytest.fixture(scope="module")
def wide(both: dict[bool, Path]) -> Path:
    return both[False]


@pytest.mark.parametrize(("kind", "tied"), CASES)
def test_a_whole_model_is_quantised_byte_for_byte_as_llama_cpp_does(
    both: dict[bool, Path], kind: str, tied: bool, tmp_path: Path
) -> None:
    theirs = llama_quantise(both[tied], tmp_path / "theirs.gguf", kind.upper())
    ours = write(quantise(read_model(both[tied]), kind), tmp_path / "ours.gguf")
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize(
    ("kind", "n_embd", "n_layers"), [("q4_0", 64, 8), ("iq4_nl", 32, 8), ("q4_k_m", 256, 2), ("q6_k", 256, 1)]
)
def test_an_importance_matrix_leads_to_the_bytes_that_llama_cpp_makes_with_it(
    kind: str, n_embd: int, n_layers: int, tmp_path: Path
) -> None:
    source = tiny_llama(tmp_path / "model.gguf", n_embd=n_embd, n_layers=n_layers, tied=False, quantisation="F16")
    header = read_model(source)
    columns = columns_of(header)
    theirs = llama_quantise(source, tmp_path / "theirs.gguf", kind.upper(), columns)
    ours = write(quantise(header, kind, ImportanceMatrix(source, "", columns)), tmp_path / "ours.gguf")
    assert ours.read_bytes() == theirs.read_bytes()
    without = write(quantise(header, kind), tmp_path / "without.gguf")
    assert ours.read_bytes() != without.read_bytes()


@pytest.mark.parametrize("with_importance", [False, True])
@pytest.mark.parametrize("family", ["qwen3moe", "deepseek2", "falcon", "phi3", "gemma3"])
def test_experts_fused_and_narrow_rows_get_the_bytes_that_llama_cpp_makes(
    family: str, with_importance: bool, tmp_path: Path
) -> None:
    source = build_random_model(tmp_path / "model.gguf", family)
    header = read_model(source)
    columns = columns_of(header) if with_importance else None
    theirs = llama_quantise(source, tmp_path / "theirs.gguf", "Q4_K_M", columns)
    importance = None if columns is None else ImportanceMatrix(source, "", columns)
    ours = write(quantise(header, "q4_k_m", importance), tmp_path / "ours.gguf")
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize(("n_layers", "n_experts"), [(80, 0), (17, 8)])
def test_seventy_b_and_eight_experts_have_rules_of_their_own(n_layers: int, n_experts: int, tmp_path: Path) -> None:
    if n_experts:
        extra: dict[str, str | int | bool | float | list[int]] = {"expert_count": n_experts}
        source = build_random_model(tmp_path / "model.gguf", "qwen3moe", n_layers=n_layers, extra={**extra})
    else:
        source = tiny_llama(tmp_path / "model.gguf", n_embd=32, n_layers=n_layers, n_heads=4, tied=False)
    header = read_model(source)
    for kind in ("q2_k", "q3_k_m", "q4_k_m", "q4_k_s"):
        theirs = read_gguf_header(llama_quantise(source, tmp_path / "theirs.gguf", kind.upper()))
        chosen = choose_types(header, kind, has_importance=False)
        assert {name: GGML_TYPES[number].name for name, number in chosen.items()} == {
            tensor.name: tensor.type_name for tensor in theirs.tensors
        }


@pytest.mark.parametrize("quantisation", ["Q8_0", "Q4_0"])
def test_a_quantised_model_is_quantised_again_as_llama_cpp_does(quantisation: str, tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "model.gguf", n_embd=256, n_layers=4, tied=False, quantisation=quantisation)
    theirs = llama_quantise(source, tmp_path / "theirs.gguf", "Q4_0")
    ours = write(quantise(read_model(source), "q4_0", allow_requantize=True), tmp_path / "ours.gguf")
    assert ours.read_bytes() == theirs.read_bytes()


def test_shards_are_those_that_are_cut_of_what_llama_cpp_quantises(wide: Path, tmp_path: Path) -> None:
    theirs = llama_quantise(wide, tmp_path / "theirs.gguf", "Q4_K_M")
    plan = plan_model(quantise(read_model(wide), "q4_k_m"), CutRequest(n_shards=3), "name")
    ours_in, ours = split_model(plan, tmp_path / "ours")
    theirs_in, cut = split_model(plan_model(read_model(theirs), CutRequest(n_shards=3), "name"), tmp_path / "cut")
    assert ours.model_id == cut.model_id
    for shard in cut.content.shards:
        assert (ours_in / shard.file).read_bytes() == (theirs_in / shard.file).read_bytes()


def test_the_number_of_threads_and_the_order_of_tensors_change_no_byte(wide: Path, tmp_path: Path) -> None:
    header = read_model(wide)
    made = [write(quantise(header, "q4_1", threads=n), tmp_path / f"{n}.gguf").read_bytes() for n in (1, 2, 5)]
    assert made[0] == made[1] == made[2]
    shuffled = replace(header, tensors=header.tensors[::-1])
    assert write(quantise(shuffled, "q4_1"), tmp_path / "shuffled.gguf").read_bytes() == made[0]


def test_losses_are_those_of_the_weights_before_and_after(wide: Path, tmp_path: Path) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    made = quantise(read_model(wide), "q4_0")
    assert losses_of(made.tensors) is None, "nothing has been written yet"
    after = write(made, tmp_path / "after.gguf")
    report = losses_of(made.tensors)
    assert report is not None
    pairs = {
        old.name: (dequantize(old.data, old.tensor_type), dequantize(new.data, new.tensor_type))
        for old, new in zip(
            sorted(GGUFReader(wide).tensors, key=lambda one: one.name),
            sorted(GGUFReader(after).tensors, key=lambda one: one.name),
            strict=True,
        )
    }
    squares = 0.0
    for loss in report.tensors:
        x, y = (side.astype(np.float64).reshape(-1) for side in pairs[loss.name])
        assert loss.sums.cosine == pytest.approx(x @ y / np.sqrt((x @ x) * (y @ y)), abs=1e-6)
        assert loss.sums.rmse == pytest.approx(np.sqrt(np.mean((x - y) ** 2)), rel=1e-4)
        squares += float(np.sum((x - y) ** 2))
    assert report.overall.rmse == pytest.approx(np.sqrt(squares / report.overall.n_weights), rel=1e-4)
    assert report.ratio == pytest.approx(report.bytes_before / report.bytes_after)
    assert report.bytes_after == sum(tensor.nbytes for tensor in read_gguf_header(after).tensors)
