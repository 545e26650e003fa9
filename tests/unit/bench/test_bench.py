"""Benchmark rows, charts and command-line wishes: what can be said without running a node."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shardnet.bench import plot
from shardnet.bench.concurrent import batching, together_per_s
from shardnet.bench.driver import DrivenRun
from shardnet.bench.rows import Row, describe, predicted, spread
from shardnet.bench.world import cut, prompt_of, use_cores
from shardnet.cli import app
from shardnet.errors import ShardnetError, UsageError
from shardnet.inference.splitting.plan import CutRequest, plan_split
from shardnet.steps import StageTiming
from tests.support.random_models import tiny_llama

DECODE: Row = {
    "bench": "decode", "net": "20ms", "model": "m", "stages": 2, "tokens_per_s": 25.0, "tokens_per_s_min": 24.0, "tokens_per_s_max": 26.0,
    "ms_per_token": 40.0, "predicted_ms_per_token": 42.0, "predicted_over_measured": 1.05, "plain_tokens_per_s": 90.0, "ratio": 0.28,
}  # fmt: skip
STREAMS: Row = {
    "bench": "streams", "net": "loopback", "model": "m", "stages": 2, "streams": 8, "tokens_per_s": 120.0, "tokens_per_s_min": 110.0,
    "tokens_per_s_max": 130.0, "predicted_tokens_per_s": 118.0, "predicted_over_measured": 0.98, "plain_tokens_per_s": 125.0, "ratio": 0.96,
}  # fmt: skip
PREFILL: Row = {
    "bench": "prefill", "net": "loopback", "model": "m", "stages": 2, "prompt_tokens": 2000, "first_token_s": 9.0, "first_token_s_min": 8.5,
    "first_token_s_max": 9.5, "predicted_first_token_s": 9.2, "predicted_over_measured": 1.02, "plain_first_token_s": 8.8, "ratio": 0.98,
}  # fmt: skip


def test_a_figure_has_its_spread_and_its_prediction() -> None:
    assert spread("x", [3.0, 1.0, 2.0]) == {"x": 2.0, "x_min": 1.0, "x_max": 3.0}
    assert predicted("x", 2.2, 2.0) == {"predicted_x": 2.2, "predicted_over_measured": 1.1}


def test_rows_are_told_in_words() -> None:
    assert "predicted 42.00, +5 %" in describe(DECODE)
    assert "8 streams" in describe(STREAMS)
    assert "prompt of 2000" in describe(PREFILL)


def test_the_same_seed_gives_the_same_prompt() -> None:
    assert prompt_of(3, 20) == prompt_of(3, 20) != prompt_of(4, 20)


def test_streams_count_while_all_of_them_decode() -> None:
    step = (StageTiming(0.0, 200_000.0, batch_tokens=2), StageTiming(0.0, 500_000.0))
    timings: list[tuple[StageTiming, ...]] = [step] * 10
    early = DrivenRun(first_token_s=1.0, step_s=[1.0] * 9, at_s=10.0, timings=timings)  # tokens at 1, 2, ... 10
    late = DrivenRun(first_token_s=4.5, step_s=[1.0] * 9, at_s=13.5, timings=timings)  # tokens at 4.5, 5.5, ... 13.5
    assert together_per_s([early, late]) == pytest.approx((6 + 5) / 5.5), "from 4.5 to 10"
    facts = batching([early, late])
    assert facts["stage_busy"] == [0.2, 1.0], "of 5.5 seconds, 11 steps of half a batch of 0.2 s, and of 0.5 s"
    assert facts["batch_sizes"] == {"1": 0.5, "2": 0.5}
    assert facts["batch_rows"] == 1.33


def test_pipelines_are_cut_as_split_cuts_them(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "m.gguf", n_layers=6)
    (pipeline,) = cut(model, tmp_path, [2])
    assert [shard.layers for shard in pipeline.manifest.content.shards] == list(
        plan_split(model, CutRequest(n_shards=2)).layers
    )
    assert pipeline.route == [("node-0", 0, 1), ("node-1", 1, 2)]


# -- charts --------------------------------------------------------------------------------------------------------------------------


def test_without_matplotlib_the_extra_is_named_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UsageError, match=r"shardnet\[plot\]"):
        plot.check_target(tmp_path / "x.svg")


@pytest.mark.parametrize("name", ["x.pdf", "x", "no/such/folder/x.svg"])
def test_a_chart_that_could_not_be_written_is_refused_before_anything_is_measured(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="--plot"):
        plot.check_target(tmp_path / name)


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_charts_are_drawn_from_rows(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps(row) for row in (DECODE, DECODE | {"stages": 4}, STREAMS, PREFILL)))
    target = tmp_path / f"chart{suffix}"
    result = CliRunner().invoke(app, ["bench", "--rows", str(rows), "--plot", str(target)])
    assert result.exit_code == 0, result.output
    assert target.stat().st_size > 5000


# -- wishes that cannot be ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--stages", "0,2"], "--stages takes numbers from 1 to 16"),
        (["--stages", "two"], "no list of numbers"),
        (["--net", "fast"], "the networks are loopback"),
        (["--streams", "100"], "--streams takes numbers from 1 to 64"),
        (["--streams", "2", "--prefill", "100"], "two benchmarks"),
        (["--rows", "x.jsonl"], "give --plot too"),
    ],
)
def test_impossible_wishes_are_told_in_a_sentence(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert isinstance(result.exception, ShardnetError)
    assert says in str(result.exception)


def test_more_cores_than_there_are_is_a_sentence() -> None:
    with pytest.raises(UsageError, match="may use"):
        use_cores(10_000)
