"""How much memory a shard takes: pages that are touched, which are fewer than llama.cpp reserves. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from shardnet.errors import NoRoomError
from shardnet.limits.memory import Room
from shardnet.log import human_bytes
from shardnet.messages import ShardOptions

KV_CELLS_MULTIPLE = 256
"""llama.cpp rounds each sequence's context up to this."""
GPU_HEADROOM_BYTES = 512 << 20
"""Left free on a GPU: the driver's own needs, and a desktop."""
COMPUTE_WIDTHS = 8
"""Hidden states alive at once in a layer's graph. Measured: 6 for Llama; a few more for families with gates."""
COMPUTE_FF_WIDTHS = 3
SPARE_DIVISOR = 16
"""For streamed shards this part of what is free is left alone."""
READ_ROWS = 32
"""Rows of a prompt whose logits llama.cpp holds at the same time, where they are read."""
CHUNK_ROWS = 128
"""Of a prompt, computed at once: larger chunks are taken only where they were seen to be quicker (`placement.chunks.USUAL`)."""
SCORE_BYTES = 6
"""Without flash attention each row has a score for each cell and head: float32, and once more in float16 to be multiplied with the values."""
MASK_BYTES = 4
"""Of each row and cell, float32."""
TOKEN_BYTES = 512
"""A token of the vocabulary, with its merges, as llama.cpp keeps it."""


@dataclass(frozen=True, slots=True)
class ShardCost:
    """What a shard's header says about its size.

    Attributes:
        layer_bytes: weights of each layer.
        other_bytes: weights outside of layers: embeddings, head.
        kv_bytes_per_token: f16 KV cache of all its layers.
        state_bytes_per_sequence: recurrent state of all its layers.
        n_vocab: rows of the head, 0 without one.
        n_head: attention heads of a layer.
        is_last: it gives logits, not hidden states.
        head_bytes: of `other_bytes`, what goes where the head goes.
        expert_bytes: of `layer_bytes`, experts; empty without any.
    """

    layer_bytes: tuple[int, ...]
    other_bytes: int
    kv_bytes_per_token: int
    n_embd: int
    n_ff: int
    n_vocab: int
    n_head: int = 0
    is_last: bool = True
    state_bytes_per_sequence: int = 0
    head_bytes: int = 0
    expert_bytes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a loaded shard takes, by kind."""

    weights: int
    kv: int
    compute: int

    @property
    def total(self) -> int:
        """Returns: the sum."""
        return self.weights + self.kv + self.compute


def need_of(cost: ShardCost, options: ShardOptions) -> Need:
    """Returns: what the shard takes with these options, compute buffers estimated from above."""
    cells = cells_of(options.n_ctx)
    per_row = 4 * (COMPUTE_WIDTHS * cost.n_embd + COMPUTE_FF_WIDTHS * cost.n_ff + cost.n_embd)  # + the captured rows
    return Need(
        weights=sum(cost.layer_bytes) + cost.other_bytes,
        kv=cells * options.n_seq * cost.kv_bytes_per_token + options.n_seq * cost.state_bytes_per_sequence,
        compute=options.n_batch * per_row
        + attention_bytes(options, cost.n_head)
        + vocabulary_bytes(options, cost.n_vocab, is_last=cost.is_last),
    )


def cells_of(n_ctx: int) -> int:
    """Returns: cells that llama.cpp gives a sequence."""
    return -(-n_ctx // KV_CELLS_MULTIPLE) * KV_CELLS_MULTIPLE


def attention_bytes(options: ShardOptions, n_head: int) -> int:
    """Returns: what the scores of a chunk of a prompt take at the end of the longest context."""
    return min(options.n_batch, CHUNK_ROWS) * cells_of(options.n_ctx) * (SCORE_BYTES * n_head + MASK_BYTES)


def vocabulary_bytes(options: ShardOptions, n_vocab: int, *, is_last: bool) -> int:
    """Returns: what a shard with a vocabulary, the first or the last, takes for it: the texts of its tokens, and logits.

    A first shard has no use for logits, but llama.cpp makes room for those of each row whose hidden state is wanted.
    """
    reading = 2 * max(options.n_seq, min(READ_ROWS, options.n_batch))  # in the graph, and for us
    return n_vocab * (TOKEN_BYTES + 4 * (reading if is_last else min(options.n_batch, CHUNK_ROWS)))


def bytes_beside_gpus(cost: ShardCost, options: ShardOptions) -> int:
    """Returns: of `Need.compute`, what no GPU takes and what is not needed beside one.

    That is the texts of tokens, which stay in main memory; and the scores: with a GPU llama.cpp has flash attention everywhere.
    """
    return attention_bytes(options, cost.n_head) + cost.n_vocab * TOKEN_BYTES


def refuse_if_too_large(what: str, needed_bytes: int, room: Room, *, used_bytes: int, limit_bytes: int) -> None:
    """Compare what a load needs with what there is.

    Args:
        room: main memory that the engine can have.
        used_bytes: what the engine's other shards take, counted towards `limit_bytes`, the user's cap (0: none).

    Raises: NoRoomError, as `no_room` makes it.
    """
    if needed_bytes > room.free_bytes or (limit_bytes and needed_bytes > limit_bytes - used_bytes):
        raise no_room(what, needed_bytes, room, used_bytes=used_bytes, limit_bytes=limit_bytes)


def no_room(what: str, needed_bytes: int, room: Room, *, used_bytes: int, limit_bytes: int) -> NoRoomError:
    """Returns: the refusal, with `needed_bytes`, `free_bytes`, and which `limit` leaves so little ("" if that is the machine)."""
    free, limit = room.free_bytes, str(room.bound or "")
    if limit_bytes and limit_bytes - used_bytes < free:
        free, limit = max(0, limit_bytes - used_bytes), f"{human_bytes(limit_bytes)} by inference.memory_limit_bytes"
    why = f"free within the limit of {limit}" if limit else "free"
    return NoRoomError(
        f"{what} needs {human_bytes(needed_bytes)} of memory, and {human_bytes(free)} are {why}: "
        "unload other shards, or load it with a smaller n_ctx or n_seq",
        needed_bytes=needed_bytes,
        free_bytes=free,
        limit=limit,
    )
