"""Which model families can be cut without changing a bit, and what each needs. Data only; `families.py` turns it into rules.

A family enters `PROVED` when `tests/bench/family_table.py` has shown its chain of shards identical to the unsplit model (docs/families.md).
Everything here was read in llama.cpp's `src/models/*.cpp` of the version that llama-cpp-python 0.3.36 carries, then tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

WithoutWindow = Literal["drop", "widen", "cut"]
"""A windowed cache needs at least one windowed layer. What to do for a range without any:
`drop` leaves the window's keys out; `widen` marks all layers windowed with a window longer than any context; `cut` forbids such a range."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Layers that see only a sliding window. The pattern follows the layer's index unless the file lists it layer by layer.

    Attributes:
        period: layers from one full layer to the next, where the file does not say.
        full_first: the full layer is the first of its period, not the last.
        needs_full: a range without any full layer is no good either.
        optional: without a `sliding_window` key the model has no windows at all.
    """

    period: int
    without: WithoutWindow
    full_first: bool = False
    needs_full: bool = False
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
BY_HEADS = Family(hybrid=Hybrid())

PROVED: dict[str, Family] = {
    **dict.fromkeys(
        (
            "llama", "qwen", "qwen2", "qwen3", "mistral3", "arcee", "apertus", "bitnet", "chatglm", "codeshell", "cogvlm", "deci",
            "exaone", "ernie4_5", "falcon", "gptneox", "hunyuan-dense", "internlm2", "jais", "jais2", "maincoder", "nemotron", "olmo", "openelm",
            "orion", "pangu-embedded", "paddleocr", "phi2", "phi3", "plamo", "refact", "seed_oss", "stablelm", "starcoder2", "xverse",
            "glm4", "qwen2vl", "qwen3vl", "qwen3vlmoe", "hunyuan_vl",
            "qwen2moe", "qwen3moe", "phimoe", "dbrx", "olmoe", "arctic", "deepseek", "dots1", "bailingmoe", "bailingmoe2", "hunyuan-moe",
            "grovemoe", "minimax-m2", "glm4moe", "mistral4",
            # Their raw input goes in behind the embedding's own step: capture.INPUT_NODES.
            "bloom", "gemma",
            # Every layer is recurrent, or every layer has both.
            "mamba", "mamba2", "falcon-h1",
        ),
        PLAIN,
    ),
    "command-r": Family(refused_counts=tuple(range(64, 513))),
    "gpt2": Family(zeroed=("position_embd.weight",)),
    "starcoder": Family(zeroed=("position_embd.weight",)),
    "mpt": Family(zeroed=("position_embd.weight",)),
    "granite": SCALED,
    "granitemoe": SCALED,
    "minicpm": SCALED,
    "grok": SCALED,
    "smollm3": Family(period=4),
    "llama4": Family(windows=Windows(4, "cut"), period=4, period_key="interleave_moe_layer_step"),
    "smallthinker": Family(windows=Windows(4, "cut", full_first=True, optional=True), period=4, sizes_by_count=frozenset({4})),
    "ernie4_5-moe": Family(period_key="interleave_moe_layer_step"),
    "deepseek2": Family(sizes_by_count=frozenset({26, 27})),
    "gemma2": Family(windows=Windows(2, "widen"), refused_counts=(46,)),
    "gemma4": Family(windows=Windows(0, "cut", needs_full=True)),
    "gemma3": Family(windows=Windows(6, "drop", optional=True), refused_counts=(62,)),
    "gpt-oss": Family(windows=Windows(2, "widen")),
    "cohere2": Family(windows=Windows(4, "cut")),
    "olmo2": Family(windows=Windows(4, "drop", optional=True)),
    "exaone4": Family(refused_counts=(64,), sizes_by_count=frozenset({64})),
    "exaone-moe": Family(windows=Windows(4, "cut")),
    "afmoe": Family(windows=Windows(4, "drop", optional=True), period=4),
    "laguna": Family(windows=Windows(4, "drop", full_first=True, optional=True)),
    "mellum": Family(windows=Windows(4, "drop", optional=True)),
    "plamo3": Family(windows=Windows(8, "drop", optional=True)),
    "mimo2": Family(windows=Windows(0, "widen")),
    "granite_swa": Family(windows=Windows(0, "widen"), unscaled=True),
    "spark2_5": Family(windows=Windows(0, "widen")),
    "muse-glimmer": Family(windows=Windows(4, "cut")),
    "maple": Family(windows=Windows(0, "cut")),
    "cohere2moe": Family(windows=Windows(4, "cut", full_first=True)),
    "qwen3next": Family(hybrid=Hybrid(interval=4)),
    "qwen35": Family(hybrid=Hybrid(interval=4)),
    "qwen35moe": Family(hybrid=Hybrid(interval=4)),
    "jamba": BY_HEADS,
    "lfm2": BY_HEADS,
    "lfm2moe": BY_HEADS,
    "kimi-linear": BY_HEADS,
    "granitehybrid": Family(hybrid=Hybrid(), unscaled=True),
    "nemotron_h": Family(hybrid=Hybrid(ffn_layers=True)),
    "nemotron_h_moe": Family(hybrid=Hybrid(ffn_layers=True)),
}  # fmt: skip

ENCODER = "it is an encoder, which reads a whole text at once and has no next token to hand from stage to stage"
BY_COUNT = "llama.cpp derives its arithmetic from the number of layers in the file, which a shard changes"
FIRST_LAYER = "its later layers read a result of the first one, which is not part of the hidden state"
PER_LAYER = "its layers read the tokens themselves, and a later stage has only hidden states"
EMBEDDING_AGAIN = "every layer reads the embedding of the tokens again, and a later stage has only hidden states"
ENCODER_DECODER = "its layers read the output of an encoder besides the hidden state"
DIFFUSION = "it is a diffusion model, which rewrites all tokens at once"

REFUSED: dict[str, str] = dict.fromkeys(
    (
        "bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert", "gemma-embedding",
        "t5encoder", "llama-embed",
    ),
    ENCODER,
) | dict.fromkeys(("dream", "llada", "llada-moe", "rnd1"), DIFFUSION) | dict.fromkeys(
    ("minicpm3", "minimax-01", "baichuan"), BY_COUNT,
) | dict.fromkeys(("rwkv7", "arwkv7"), FIRST_LAYER) | {"t5": ENCODER_DECODER, "gemma3n": PER_LAYER, "talkie": EMBEDDING_AGAIN}  # fmt: skip
