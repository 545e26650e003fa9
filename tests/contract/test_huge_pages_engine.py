"""Weights that are copied into huge pages give the numbers of mapped ones, and where there are none to be had they stay mapped."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from shardnet.inference.engine.host import EngineProcess
from shardnet.inference.engine.huge_pages import environment_for, gets_huge_pages
from shardnet.inference.engine.memory import need_of
from shardnet.inference.engine.settings import InferenceSettings
from shardnet.inference.engine.shard_cost import cost_of
from shardnet.inference.worker.loading import IN_HUGE_PAGES, PROCESS_BYTES
from tests.support.engine_world import OPTIONS, PROMPT, Route, SplitModel, Stage, load_request, plain_logits, split
from tests.support.quantised_models import quantise
from tests.support.random_models import tiny_llama

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="huge pages are Linux's")

N_TOKENS = 4
REFUSED = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SplitModel:
    """One shard, with types that llama.cpp lays out anew and types that it does not."""
    folder = tmp_path_factory.mktemp("huge")
    whole = tiny_llama(folder / "f32.gguf", n_layers=4, n_embd=256, quantisation="F32", tied=False)
    return split(quantise(whole, folder / "small.gguf", "Q4_K_M"), 1, folder / "cache")


def scarce(path: Path) -> int:
    """Returns: a limit within which the shard fits once."""
    need = need_of(cost_of(path), OPTIONS)
    return PROCESS_BYTES + need.total + need.weights // 2


def has_mapped(engine: EngineProcess, path: Path) -> bool:
    return str(path.resolve()) in Path(f"/proc/{engine.pid}/maps").read_text(encoding="utf-8")


@pytest.mark.parametrize("case", ["default", "off", "refused", "scarce"])
async def test_copied_and_mapped_weights_give_the_same_bits(model: SplitModel, case: str) -> None:
    limit_bytes = scarce(model.shards[0]) if case == "scarce" else 0
    settings = InferenceSettings(threads=1, huge_pages=case != "off", memory_limit_bytes=limit_bytes)
    gives_them = gets_huge_pages(environment_for({}))
    if case == "refused" and gets_huge_pages(REFUSED):
        pytest.skip("this kernel gives huge pages to everybody")
    engine = EngineProcess(settings, environment=REFUSED if case == "refused" else {})
    await engine.start()
    try:
        stage = Stage(engine, model, (0, 1))
        loaded = await engine.load(load_request(model, 0))
        is_copied = case == "default" and gives_them
        assert has_mapped(engine, model.shards[0]) is not is_copied
        assert loaded.answer.why == (IN_HUGE_PAGES if is_copied else "")
        tokens, logits = await Route([stage]).generate(PROMPT, N_TOKENS)
    finally:
        await engine.close()
    expected = plain_logits(model.whole, PROMPT, N_TOKENS)
    assert tokens == expected[0]
    assert np.array_equal(logits, expected[1])


async def test_a_first_shard_takes_as_much_memory_copied_as_mapped(tmp_path: Path) -> None:
    """Its embeddings are no head, though llama.cpp would take them for one and lay them out anew."""
    whole = tiny_llama(tmp_path / "tied.gguf", n_layers=2, n_embd=256, n_vocab=4096, quantisation="Q4_0", tied=True)
    halves = split(whole, 2, tmp_path / "cache")
    taken: dict[str, int] = {}
    ways = {"copied": (True, True), "read": (False, False), "mapped": (False, True)}
    for way, (copies, maps) in ways.items():
        settings = InferenceSettings(threads=1, huge_pages=copies, use_mmap=maps)
        engines = [EngineProcess(settings, environment={}) for _ in range(2)]
        try:
            for engine in engines:
                await engine.start()
            stages = [Stage(engine, halves, (index, index + 1)) for index, engine in enumerate(engines)]
            first, _last = [await engine.load(load_request(halves, index)) for index, engine in enumerate(engines)]
            taken[way] = first.answer.memory_bytes
            tokens, logits = await Route(stages).generate(PROMPT, N_TOKENS)
        finally:
            for engine in engines:
                await engine.close()
        expected = plain_logits(halves.whole, PROMPT, N_TOKENS)
        assert tokens == expected[0]
        assert np.array_equal(logits, expected[1])
    for way in ("copied", "read"):
        assert taken[way] == pytest.approx(taken["mapped"], abs=100_000)  # llama.cpp tells hundredths of a MiB
