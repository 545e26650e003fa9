"""A number of shards makes even what a step costs, or what is stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardnet.inference.gguf.layout import read_model
from shardnet.inference.splitting.content import shard_file
from shardnet.inference.splitting.cuts import ranges
from shardnet.inference.splitting.plan import Balance, CutRequest, plan_split, shared_step_bytes, step_weights
from tests.support.random_models import tiny_llama


def lengths(model: Path, balance: Balance = "speed", n_shards: int = 2) -> list[int]:
    return [len(part) for part in plan_split(model, CutRequest(n_shards=n_shards, balance=balance)).layers]


@pytest.fixture(params=[True, False], ids=["tied", "with a head of its own"])
def wordy(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model whose head costs as much as four of its twelve layers."""
    n_embd, layer = 64, 64 * 64 * 3 + 64 * 128 * 3
    return tiny_llama(tmp_path / "m.gguf", n_layers=12, n_vocab=4 * layer // n_embd, tied=request.param)


def test_the_last_shard_has_fewer_layers_since_it_computes_the_head(wordy: Path) -> None:
    assert lengths(wordy) == [8, 4]
    assert lengths(wordy, n_shards=4) == [3, 4, 4, 1]


def test_nothing_said_means_speed(wordy: Path) -> None:
    assert plan_split(wordy, CutRequest()) == plan_split(wordy, CutRequest(n_shards=2, balance="speed"))


def test_memory_makes_files_equally_large(wordy: Path) -> None:
    largest = {
        balance: max(file.nbytes for file in plan_split(wordy, CutRequest(n_shards=2, balance=balance)).shards)
        for balance in ("speed", "memory")
    }
    assert lengths(wordy, "memory") == [6, 6]
    assert largest["memory"] < largest["speed"], "the embedding table is in the first one, which has more layers"


def test_the_embedding_table_costs_nothing_and_the_head_what_its_rows_do(wordy: Path) -> None:
    weights = step_weights(read_model(wordy))
    assert weights.first == 0
    assert weights.last == pytest.approx(4 * weights.layers[0], rel=0.05)


def test_a_weight_costs_its_bytes_and_one_more(tmp_path: Path) -> None:
    half, quarter = (
        step_weights(read_model(tiny_llama(tmp_path / f"{kind}.gguf", quantisation=kind))).last
        for kind in ("F16", "Q8_0")
    )
    assert quarter / half == pytest.approx((34 / 32 + 1) / (2 + 1), rel=0.02)


def test_shards_that_are_equally_quick_are_told_to_read_equally_much(wordy: Path) -> None:
    plan = plan_split(wordy, CutRequest(n_shards=2))
    first, last = (shard_file(plan, index, None).step_bytes or 0 for index in range(2))
    assert first == pytest.approx(last, rel=0.01)


def test_what_a_step_reads_is_shared_out_by_what_shards_cost(tmp_path: Path) -> None:
    header = read_model(tiny_llama(tmp_path / "m.gguf"))
    whole, one_by_one = (
        shared_step_bytes(header, ranges(cuts, header.n_layers)) for cuts in ((), range(1, header.n_layers))
    )
    assert sum(one_by_one) == pytest.approx(whole[0], abs=header.n_layers)
    cost = step_weights(header)
    assert one_by_one[-1] / one_by_one[0] == pytest.approx((cost.layers[0] + cost.last) / cost.layers[0], rel=0.01)
