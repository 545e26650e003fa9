"""What a proof of these files on this machine will cost: headers, free memory and the disk's speed, put into `planning`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shardnet.inference.engine.shard_cost import cost_of_header
from shardnet.inference.gguf.header import GgufHeader, read_gguf_header
from shardnet.inference.gguf.layout import step_bytes
from shardnet.inference.llama.devices import main_memory, usable_threads
from shardnet.inference.llama.stages import stages_of
from shardnet.inference.proof.planning import Machine, ProofPlan, Weights, plan_proof
from shardnet.inference.proof.steps import Method
from shardnet.inference.proof.weights import disk_rate


def plan_for(
    header: GgufHeader,
    shards: Sequence[Path],
    lengths: Sequence[int] | None,
    *,
    method: Method | None = None,
    decode_tokens: int | None = None,
    threads: int = 0,
) -> ProofPlan:
    """Choose how to prove a split. Arguments as `plan_proof`; `header` is the unsplit model's, `lengths` None for the built-in prompts."""
    room = main_memory()
    machine = Machine(room.free_bytes, disk_rate(header.path), threads or usable_threads(), limit=str(room.bound or ""))
    sizes = [weights_of(read_gguf_header(path), has_head=path == shards[-1]) for path in shards]
    return plan_proof(
        weights_of(header, has_head=True),
        sizes,
        cost_of_header(header),
        machine,
        lengths,
        is_windowed=is_windowed(header),
        method=method,
        decode_tokens=decode_tokens,
    )


def is_windowed(header: GgufHeader) -> bool:
    """True if some layers attend to the last so many tokens only."""
    window = header.arch("attention.sliding_window", 0)
    return bool(max(window, default=0) if isinstance(window, list) else window)


def weights_of(header: GgufHeader, *, has_head: bool) -> Weights:
    """Returns: the sizes of a model, or of a shard."""
    stages = stages_of(header, has_head=has_head)
    n_head = header.arch("attention.head_count", 1)
    return Weights(
        stages=tuple(sum(extent.nbytes for extent in stage) for stage in stages),
        total=sum(tensor.nbytes for tensor in header.tensors),
        active=step_bytes(header, ((tensor.name, tensor.n_elements) for tensor in header.tensors), has_head=has_head),
        n_head=max(n_head) if isinstance(n_head, list) else int(n_head),
    )
