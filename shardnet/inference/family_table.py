"""Which model families can be cut without changing a bit, and what each needs. Data only; `families.py` turns it into rules.

A family enters `PROVED` when `tests/bench/family_table.py` has shown its chain of shards identical to the unsplit model (docs/families.md). Everything here was
read in llama.cpp's `src/models/*.cpp` of the version that llama-cpp-python 0.3.36 carries, then tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

WithoutWindow = Literal["drop", "widen", "cut"]
"""What to do for a range without any windowed layer, since llama.cpp aborts on a windowed cache that no layer uses:
`drop` leaves the window's keys out; `widen` marks all layers windowed with a window longer than any context; `cut` forbids such a range."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Layers that see only a sliding window. The pattern follows the layer's index unless the file lists it layer by layer.

    Attributes:
        period: layers from one full layer to the next, where the file does not say.
        full_first: the full layer is the first of its period, not the last.
        optional: without a `sliding_window` key the model has no windows at all.
    """

    period: int
    without: WithoutWindow
    full_first: bool = False
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Hybrid:
    """Recurrent layers between attention layers; llama.cpp wants both in one file.

    Attributes:
        interval: default of `full_attention_interval`: every n-th layer is attention; 0 where `head_count_kv` is 0 for recurrent layers.
        ffn_layers: layers that are neither (no heads, but a feed-forward width) exist.
    """

    interval: int = 0
    ffn_layers: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """What must be done so that a range of layers gives the numbers it gives within the whole model.

    Attributes:
        windows: sliding windows.
        hybrid: recurrent layers.
        period: layers are numbered in code (every n-th without rope, ...): cuts must be multiples of this.
        period_key: a metadata key with another such number.
        unscaled: `embedding_scale` multiplies whatever comes in: 1.0 in all shards but the first.
        zeroed: tensors added to whatever comes in: zeros in all shards but the first.
        sizes_by_count: layer counts that llama.cpp takes for a certain model and treats differently; a shard must not have as many.
        refused_counts: whole models with so many layers are treated differently, and their shards would not be.
    """

    windows: Windows | None = None
    hybrid: Hybrid | None = None
    period: int = 1
    period_key: str = ""
    unscaled: bool = False
    zeroed: tuple[str, ...] = ()
    sizes_by_count: frozenset[int] = frozenset()
    refused_counts: tuple[int, ...] = ()


PLAIN = Family()
SCALED = Family(unscaled=True)

PROVED: dict[str, Family] = {
    "llama": PLAIN,
    "qwen2": PLAIN,
}

ENCODER = "it is an encoder, which reads a whole text at once and has no next token to hand from stage to stage"
DIFFUSION = "it is a diffusion model, which rewrites all tokens at once"

REFUSED: dict[str, str] = dict.fromkeys(
    (
        "bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert", "gemma-embedding",
        "t5encoder", "llama-embed",
    ),
    ENCODER,
) | dict.fromkeys(("dream", "llada", "llada-moe", "rnd1"), DIFFUSION)  # fmt: skip
