"""Which kind of proof is run, what it reads and how long it takes."""

from __future__ import annotations

from shardnet.inference.engine.memory import ShardCost
from shardnet.inference.proof.planning import Machine, ProofPlan, Weights, plan_proof
from shardnet.inference.proof.steps import Method

GB = 1_000_000_000
N_LAYERS = 80
SOURCE = Weights(stages=(GB // 2,) * N_LAYERS + (GB,), total=42 * GB, active=70 * GB, n_head=64)
"""Weights of a 70B model at 4 bits, with its table of embeddings."""
COST = ShardCost(
    layer_bytes=(GB // 2,) * N_LAYERS,
    other_bytes=2 * GB,
    kv_bytes_per_token=327_680,
    n_embd=8192,
    n_ff=28_672,
    n_vocab=128_256,
)


def shards(count: int) -> list[Weights]:
    each = N_LAYERS // count
    parts = [Weights(stages=(GB // 2,) * each, total=each * GB // 2, active=70 * GB // count) for _ in range(count - 1)]
    return [*parts, Weights(stages=(GB // 2,) * each + (GB,), total=each * GB // 2 + GB, active=70 * GB // count)]


def plan(
    free_bytes: int,
    *,
    n_shards: int = 8,
    bytes_per_s: float = GB,
    threads: int = 8,
    method: Method | None = None,
    decode_tokens: int | None = None,
) -> ProofPlan:
    machine = Machine(free_bytes, bytes_per_s, threads)
    return plan_proof(SOURCE, shards(n_shards), COST, machine, method=method, decode_tokens=decode_tokens)


def test_a_model_that_fits_is_proved_in_full_and_read_twice() -> None:
    found = plan(64 * GB)
    assert (found.method, found.decode_tokens, found.weights_budget, found.why) == ("full", 32, None, "")
    assert 1.9 < found.readings < 2.0
    assert str(found).startswith("full proof, 83.0 GB to read (2.0 times the model) at 1.0 GB/s, about ")


def test_a_model_that_does_not_fit_is_proved_quickly_in_a_few_readings() -> None:
    found = plan(8 * GB)
    assert found.method == "quick"
    assert found.weights_budget is not None
    assert 6 * GB < found.weights_budget < 8 * GB
    assert 4 < found.readings <= 8
    assert found.full_readings > 100
    assert "a full proof would read the model 114 times" in found.why
    assert f"{found.decode_tokens} tokens after each; weights of 42.0 GB in 7." in found.why


def test_the_less_memory_the_fewer_decode_steps_and_never_none() -> None:
    tokens = [plan(free, n_shards=2, method="quick").decode_tokens for free in (40 * GB, 20 * GB, 8 * GB, GB // 4)]
    assert tokens == sorted(tokens, reverse=True)
    assert tokens[0] == 4
    assert tokens[-1] == 2
    assert plan(GB // 4, n_shards=2).readings <= 8


def test_what_was_asked_for_is_done() -> None:
    assert plan(8 * GB, method="full").method == "full"
    assert plan(8 * GB, method="full").weights_budget is not None
    asked = plan(64 * GB, method="quick")
    assert (asked.method, asked.weights_budget) == ("quick", None)
    assert asked.why == "quick (asked for): all prompts in one batch, 4 tokens after each"
    assert plan(8 * GB, method="quick", decode_tokens=9).decode_tokens == 9


def test_a_full_proof_of_few_tokens_stays_full_where_it_reads_the_file_seldom() -> None:
    """One token after each of four prompts, and nearly all of the model fits."""
    found = plan(41 * GB, decode_tokens=1)
    assert found.method == "full"
    assert found.weights_budget is not None
    assert found.readings <= 20
    assert "not repacked" in found.why


def test_the_time_is_the_disks_where_it_is_slow_and_the_processors_where_they_are() -> None:
    slow_disk = plan(8 * GB, bytes_per_s=GB / 20)
    assert 0.8 < slow_disk.seconds / (slow_disk.read_bytes / (GB / 20)) < 1.5
    slow_processor = plan(8 * GB, threads=1)
    assert slow_processor.seconds > 2.5 * plan(8 * GB, threads=8).seconds
    assert slow_disk.rows_per_step > plan(8 * GB).rows_per_step


def test_what_bounds_the_memory_is_said_where_it_counts_and_kept_out_of_the_certificate() -> None:
    limit = "8.0 GB by memory.max of cgroup /box"
    found = plan_proof(SOURCE, shards(8), COST, Machine(8 * GB, GB, 8, limit))
    assert str(found).endswith(f"; this process may have {limit}")
    assert "cgroup" not in found.why
    assert "cgroup" not in str(plan_proof(SOURCE, shards(8), COST, Machine(64 * GB, GB, 8, limit)))


def test_an_unknown_disk_is_no_error() -> None:
    assert "/s" not in str(plan(8 * GB, bytes_per_s=0))
