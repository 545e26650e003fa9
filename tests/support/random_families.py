"""Metadata of small random models, family by family, in the keys that llama.cpp's converters write. Used by `random_models.build_random_model`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

Value = str | bool | int | float | list[int] | list[bool] | list[float] | list[str]
Keys = dict[str, Value]

N_EMBD, N_HEADS, N_KV_HEADS, N_FF, N_CTX = 64, 4, 2, 96, 1024
HEAD = N_EMBD // N_HEADS
WINDOW = 16
"""Tokens of a sliding window: shorter than any prompt of the tests."""

MOE: Keys = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 48}
GATED: Keys = {"expert_gating_func": 2, "expert_weights_norm": True, "expert_weights_scale": 1.5}
SHARED: Keys = {"expert_shared_count": 1, "expert_shared_feed_forward_length": 48}
SWA: Keys = {"attention.sliding_window": WINDOW}
SSM: Keys = {
    "ssm.conv_kernel": 4, "ssm.inner_size": 2 * N_EMBD, "ssm.state_size": 16, "ssm.time_step_rank": 4, "ssm.group_count": 1,
}  # fmt: skip
DELTA_NET: Keys = {
    "ssm.conv_kernel": 4, "ssm.inner_size": 64, "ssm.state_size": 32, "ssm.time_step_rank": 2, "ssm.group_count": 2,
    "attention.key_length": 32, "attention.value_length": 32, "rope.dimension_count": 16,
}  # fmt: skip
MROPE: Keys = {"rope.dimension_sections": [2, 3, 3, 0]}
MLA: Keys = {
    "attention.head_count_kv": 1, "attention.q_lora_rank": 32, "attention.kv_lora_rank": 32,
    "attention.key_length": 48, "attention.value_length": 32, "attention.key_length_mla": 32, "attention.value_length_mla": 16,
    "rope.dimension_count": 16, "leading_dense_block_count": 2,
}  # fmt: skip
SCALES: Keys = {"embedding_scale": 12.0, "residual_scale": 0.22, "attention.scale": 0.0625, "logit_scale": 8.0}
TIED = ("output.weight",)


def by_layer(n_layers: int, *pattern: int) -> list[int]:
    """Returns: `pattern` repeated over the layers."""
    return [pattern[layer % len(pattern)] for layer in range(n_layers)]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make one small random model.

    Attributes:
        architecture: as in `general.architecture`.
        n_layers: more than one period of layers.
        keys: metadata on top of the common keys, as `{architecture}.{key}`.
        per_layer: more of it, from the number of layers.
        leave_out: optional tensors that real models of this family do not have.
        spm: a SentencePiece vocabulary instead of BPE.
        mtp: the last layer is one for multi-token prediction.
    """

    architecture: str
    n_layers: int = 6
    keys: Keys = field(default_factory=dict)
    per_layer: Callable[[int], Keys] = lambda n: {}
    leave_out: tuple[str, ...] = ()
    spm: bool = False
    mtp: bool = False


def common_keys(n_layers: int, n_vocab: int) -> Keys:
    """Returns: what every family has."""
    return {
        "vocab_size": n_vocab,
        "context_length": N_CTX,
        "embedding_length": N_EMBD,
        "block_count": n_layers,
        "feed_forward_length": N_FF,
        "attention.head_count": N_HEADS,
        "attention.head_count_kv": N_KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-5,
        "rope.dimension_count": HEAD,
        "rope.freq_base": 10000.0,
    }


def _r(
    architecture: str,
    n_layers: int = 6,
    /,
    *,
    per_layer: Callable[[int], Keys] = lambda n: {},
    leave_out: tuple[str, ...] = (),
    spm: bool = False,
    mtp: bool = False,
    **groups: Keys,
) -> Recipe:
    keys: Keys = {}
    for group in groups.values():
        keys |= group
    return Recipe(architecture, n_layers, keys, per_layer, leave_out, spm, mtp)


RECIPES: dict[str, Recipe] = {
    # -- the plain ones
    "llama": _r("llama", leave_out=(*TIED, "*.bias")),
    "llama-untied": _r("llama", spm=True, leave_out=("*.bias", "rope_freqs*")),
    "mixtral": _r("llama", moe={"expert_count": 4, "expert_used_count": 2}, leave_out=("*.bias", "rope_freqs*", "*ffn_gate.*", "*shexp*")),
    "qwen2": _r("qwen2", leave_out=TIED),
    "qwen3": _r("qwen3"),
    "qwen": _r("qwen", a={"feed_forward_length": 2 * N_FF, "attention.head_count_kv": N_HEADS}),
    "mistral3": _r("mistral3"),
    "arcee": _r("arcee"),
    "apertus": _r("apertus", a={"=xielu.alpha_n": 1.0, "=xielu.alpha_p": 1.0, "=xielu.beta": 1.0, "=xielu.eps": 1e-7}),
    "baichuan": _r("baichuan", 6),
    "bitnet": _r("bitnet"),
    "chatglm": _r("chatglm"),
    "codeshell": _r("codeshell"),
    "cogvlm": _r("cogvlm"),
    "command-r": _r("command-r", a={"logit_scale": 0.0625}, leave_out=("*_q_norm*", "*_k_norm*")),
    "deci": _r("deci", a={"feed_forward_length": [96] * 6, "attention.head_count": [4] * 6, "attention.head_count_kv": [2, 1, 2, 4, 1, 2]}),
    "exaone": _r("exaone"),
    "ernie4_5": _r("ernie4_5"),
    "falcon": _r("falcon", a={"attention.head_count_kv": 1}),
    "gptneox": _r("gptneox", a={"use_parallel_residual": True, "attention.head_count_kv": N_HEADS}),
    "gptneox-serial": _r("gptneox", a={"use_parallel_residual": False, "attention.head_count_kv": N_HEADS}),
    "hunyuan-dense": _r("hunyuan-dense"),
    "internlm2": _r("internlm2"),
    "jais": _r("jais", a={"attention.max_alibi_bias": 8.0, "attention.head_count_kv": N_HEADS}),
    "jais2": _r("jais2"),
    "maincoder": _r("maincoder"),
    "minicpm3": _r("minicpm3", a={"attention.q_lora_rank": 32, "attention.kv_lora_rank": 32, "attention.head_count_kv": N_HEADS,
                                  "attention.key_length": 24, "attention.value_length": 16, "rope.dimension_count": 8}),
    "mpt": _r("mpt", a={"attention.max_alibi_bias": 8.0, "attention.clamp_kqv": 4.0, "attention.head_count_kv": N_HEADS},
              leave_out=("position_embd*", "*.bias", "*norm*q*", "*attn_q_norm*", "*attn_k_norm*", "*ffn_act*")),
    "nemotron": _r("nemotron"),
    "olmo": _r("olmo", a={"attention.clamp_kqv": 4.0}),
    "openelm": _r("openelm", a={"feed_forward_length": [64, 64, 96, 96, 128, 128], "attention.head_count": [4, 4, 6, 6, 8, 8],
                                "attention.head_count_kv": [2, 2, 2, 2, 4, 4], "attention.key_length": 16, "attention.value_length": 16}),
    "orion": _r("orion"),
    "pangu-embedded": _r("pangu-embedded"),
    "paddleocr": _r("paddleocr", mrope=MROPE),
    "phi2": _r("phi2", a={"attention.head_count_kv": N_HEADS}),
    "phi3": _r("phi3", spm=True, a={"rope.scaling.original_context_length": 256, "rope.scaling.attn_factor": 1.19}, swa=SWA),
    "plamo": _r("plamo"),
    "refact": _r("refact", a={"attention.head_count_kv": 1}),
    "seed_oss": _r("seed_oss"),
    "smollm3": _r("smollm3", 12),
    "stablelm": _r("stablelm", a={"use_parallel_residual": True}),
    "starcoder2": _r("starcoder2"),
    "xverse": _r("xverse"),
    # -- something on the way in
    "gpt2": _r("gpt2", a={"attention.head_count_kv": N_HEADS}),
    "starcoder": _r("starcoder", a={"attention.head_count_kv": 1}),
    "bloom": _r("bloom", a={"attention.head_count_kv": N_HEADS}),
    "gemma": _r("gemma", spm=True, a={"attention.key_length": 32, "attention.value_length": 32}),
    "granite": _r("granite", scales=SCALES,
                  leave_out=("rope_f*", "*.bias")),
    "minicpm": _r("minicpm", a={"embedding_scale": 12.0, "residual_scale": 0.57, "logit_scale": 0.25}, leave_out=("rope_f*", "*.bias")),
    "minicpm-old": _r("minicpm", leave_out=("rope_f*", "*.bias")),
    "grok": _r("grok", moe=MOE, a={"embedding_scale": 78.38, "logit_scale": 0.577}, leave_out=("*ffn_up.*", "*ffn_gate.*", "*ffn_down.*")),
    # -- M-RoPE
    "glm4": _r("glm4"),
    "glm4-mrope": _r("glm4", mrope=MROPE),
    "qwen2vl": _r("qwen2vl", mrope=MROPE),
    "qwen3vl": _r("qwen3vl", mrope=MROPE, a={"n_deepstack_layers": 2}),
    "qwen3vlmoe": _r("qwen3vlmoe", mrope=MROPE, moe=MOE, a={"n_deepstack_layers": 2}),
    "hunyuan_vl": _r("hunyuan_vl", mrope=MROPE),
    # -- experts
    "qwen2moe": _r("qwen2moe", moe=MOE, a={"expert_shared_feed_forward_length": 96}),
    "qwen3moe": _r("qwen3moe", moe=MOE),
    "phimoe": _r("phimoe", moe={"expert_count": 4, "expert_used_count": 2}),
    "dbrx": _r("dbrx", moe={"expert_count": 4, "expert_used_count": 2, "attention.clamp_kqv": 8.0}),
    "olmoe": _r("olmoe", a={"attention.head_count_kv": N_HEADS}, moe={"expert_count": 4, "expert_used_count": 2}),
    "arctic": _r("arctic", moe={"expert_count": 4, "expert_used_count": 2}),
    "granitemoe": _r("granitemoe", moe={"expert_count": 4, "expert_used_count": 2},
                     scales=SCALES,
                     leave_out=("rope_f*", "*.bias", "*shexp*")),
    "deepseek": _r("deepseek", moe=MOE, a={"expert_shared_count": 1, "leading_dense_block_count": 2, "expert_weights_scale": 1.0}),
    "deepseek2": _r("deepseek2", 6, mla=MLA, moe=MOE, gated=GATED, a={"expert_shared_count": 1}),
    "deepseek2-lite": _r("deepseek2", 27, mla={key: value for key, value in MLA.items() if key != "attention.q_lora_rank"}, moe=MOE,
                         a={"expert_shared_count": 1, "leading_dense_block_count": 1}),
    "dots1": _r("dots1", moe=MOE, gated=GATED, a={"attention.head_count_kv": N_HEADS, "expert_shared_count": 1, "leading_dense_block_count": 2}),
    "bailingmoe": _r("bailingmoe", moe=MOE, a={"expert_shared_count": 1, "expert_weights_scale": 1.0, "expert_weights_norm": True,
                                              "leading_dense_block_count": 0}),
    "bailingmoe2": _r("bailingmoe2", moe=MOE, gated=GATED, shared=SHARED, a={"leading_dense_block_count": 2}),
    "ernie4_5-moe": _r("ernie4_5-moe", 8, moe=MOE, a={"expert_shared_feed_forward_length": 48, "interleave_moe_layer_step": 1,
                                                     "leading_dense_block_count": 2}),
    "ernie4_5-moe-step2": _r("ernie4_5-moe", 8, moe=MOE, a={"expert_shared_feed_forward_length": 48, "interleave_moe_layer_step": 2,
                                                           "leading_dense_block_count": 1}),
    "hunyuan-moe": _r("hunyuan-moe", moe=MOE, a={"expert_shared_feed_forward_length": 48}),
    "grovemoe": _r("grovemoe", moe=MOE, a={"expert_chunk_feed_forward_length": 32, "expert_group_scale": 0.05, "experts_per_group": 2}),
    "minimax-m2": _r("minimax-m2", moe=MOE, a={"expert_gating_func": 2}),
    "glm4moe": _r("glm4moe", 6, moe=MOE, gated=GATED, a={"expert_shared_count": 1, "leading_dense_block_count": 2}),
    "glm4moe-mtp": _r("glm4moe", 7, mtp=True, moe=MOE, gated=GATED, a={"expert_shared_count": 1, "leading_dense_block_count": 2,
                                                            "nextn_predict_layers": 1}),
    "mistral4": _r("mistral4", 6, mla=MLA, moe=MOE, gated=GATED, a={"expert_shared_count": 1}),
    "llama4": _r("llama4", 8, moe={**MOE, "expert_used_count": 1}, a={"interleave_moe_layer_step": 2}, swa=SWA),
    "smallthinker": _r("smallthinker", 16, moe=MOE, swa=SWA, a={"expert_gating_func": 2}),
    "smallthinker-rope": _r("smallthinker", 6, moe=MOE, a={"expert_gating_func": 1}),
    # -- windows
    "gemma2": _r("gemma2", 6, spm=True, swa=SWA, a={"attention.key_length": 32, "attention.value_length": 32,
                                                   "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}),
    "gemma3": _r("gemma3", 14, spm=True, swa=SWA, a={"attention.key_length": 32, "attention.value_length": 32, "rope.freq_base": 1e6,
                                                    "rope.freq_base_swa": 10000.0, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0}),
    "gpt-oss": _r("gpt-oss", 6, moe=MOE, swa=SWA, a={"rope.freq_base": 150000.0, "rope.scaling.type": "yarn", "rope.scaling.factor": 32.0,
                                                    "rope.scaling.original_context_length": 128}),
    "cohere2": _r("cohere2", 12, swa=SWA, a={"logit_scale": 0.25}),
    "olmo2": _r("olmo2"),
    "olmo3": _r("olmo2", 9, swa=SWA, a={"rope.scaling.type": "yarn", "rope.scaling.factor": 8.0, "rope.scaling.original_context_length": 128}),
    "exaone4": _r("exaone4", leave_out=TIED),
    "exaone4-32b": _r("exaone4", 64, swa=SWA),
    "exaone-moe": _r("exaone-moe", 8, moe=MOE, gated=GATED, swa=SWA, shared=SHARED, a={"leading_dense_block_count": 1}),
    "afmoe": _r("afmoe", 8, moe=MOE, gated=GATED, swa=SWA, a={"expert_shared_count": 1, "leading_dense_block_count": 2}),
    "laguna": _r("laguna", 9, moe=MOE, gated=GATED, swa=SWA, shared=SHARED, a={"leading_dense_block_count": 1, "rope.freq_base": 500000.0,
                                                                              "rope.freq_base_swa": 10000.0}),
    "mellum": _r("mellum", 9, moe=MOE, swa=SWA),
    "plamo3": _r("plamo3", 17, swa=SWA, a={"rope.freq_base_swa": 10000.0, "attention.key_length": 16, "attention.value_length": 16}),
    "mimo2": _r("mimo2", 9, moe=MOE, gated=GATED, swa=SWA, a={"rope.freq_base_swa": 5000.0},
                per_layer=lambda n: {"attention.sliding_window_pattern": by_layer(n, 0, 1, 1, 1)}),
    "step35": _r("step35", 9, moe=MOE, gated=GATED, swa=SWA, shared=SHARED, a={"rope.freq_base_swa": 5000.0, "leading_dense_block_count": 2},
                 per_layer=lambda n: {"attention.sliding_window_pattern": by_layer(n, 0, 1, 1, 1)}),
    "granite_swa": _r("granite_swa", 9, swa=SWA, scales=SCALES,
                      per_layer=lambda n: {"attention.sliding_window_pattern": by_layer(n, 0, 1, 1, 1)}, leave_out=("rope_f*", "*.bias")),
    "spark2_5": _r("spark2_5", 9, swa=SWA, per_layer=lambda n: {"attention.sliding_window_pattern": by_layer(n, 0, 1, 1, 1)}),
    "muse-glimmer": _r("muse-glimmer", 9, swa=SWA, a={"logit_scale": 0.5}),
    "maple": _r("maple", 8, moe=MOE, swa=SWA, per_layer=lambda n: {"attention.sliding_window_pattern": by_layer(n, 1, 1, 1, 0),
                                                                  "swiglu_clamp_exp": [7.0] * n}),
    "cohere2moe": _r("cohere2moe", 9, moe=MOE, gated=GATED, shared=SHARED, swa=SWA, a={"logit_scale": 0.25, "leading_dense_block_count": 1},
                     per_layer=lambda n: {"attention.sliding_window_pattern": by_layer(n, 0, 1, 1, 1)}),
    "gemma4": _r("gemma4", 9, spm=True, swa=SWA, a={"attention.key_length": 32, "attention.value_length": 32, "attention.key_length_swa": 16,
                 "attention.value_length_swa": 16, "rope.dimension_count": 32, "rope.dimension_count_swa": 16, "rope.freq_base": 1e6,
                 "rope.freq_base_swa": 10000.0, "embedding_length_per_layer_input": 0, "attention.shared_kv_layers": 0,
                 "final_logit_softcapping": 30.0},
                 per_layer=lambda n: {"attention.sliding_window_pattern": [layer % 3 != 2 for layer in range(n)]}),
    # -- recurrent layers
    "qwen3next": _r("qwen3next", 8, moe=MOE, delta=DELTA_NET, shared={"expert_shared_feed_forward_length": 48}),
    "qwen35": _r("qwen35", 8, delta=DELTA_NET, mrope=MROPE),
    "qwen35moe": _r("qwen35moe", 8, moe=MOE, delta=DELTA_NET, mrope=MROPE, shared={"expert_shared_feed_forward_length": 48}),
    "mamba": _r("mamba", 4, ssm=SSM, a={"attention.head_count": 0, "attention.head_count_kv": 0, "feed_forward_length": 0}),
    "mamba2": _r("mamba2", 4, ssm=SSM, a={"attention.head_count": 0, "attention.head_count_kv": 0, "feed_forward_length": 0}),
    "jamba": _r("jamba", 8, ssm=SSM, per_layer=lambda n: {"attention.head_count_kv": by_layer(n, 0, 0, 2, 0)},
                leave_out=("*_exps*", "*ffn_gate_inp*")),
    "falcon-h1": _r("falcon-h1", 4, ssm={**SSM, "ssm.state_size": 32, "ssm.time_step_rank": 8}),
    "granitehybrid": _r("granitehybrid", 8, ssm=SSM, scales=SCALES,
                        per_layer=lambda n: {"attention.head_count_kv": by_layer(n, 0, 0, 2, 0)}, leave_out=("rope_f*",)),
    "nemotron_h": _r("nemotron_h", 8, ssm=SSM, per_layer=lambda n: {"attention.head_count_kv": by_layer(n, 0, 0, 2, 0),
                                                                   "feed_forward_length": by_layer(n, 0, 96, 0, 96)}),
    "nemotron_h_moe": _r(
        "nemotron_h_moe", 8, ssm=SSM, moe=MOE, gated=GATED, shared=SHARED,
        per_layer=lambda n: {"attention.head_count_kv": by_layer(n, 0, 0, 2, 0), "feed_forward_length": by_layer(n, 0, 96, 0, 96)},
    ),
    "lfm2": _r("lfm2", 8, a={"shortconv.l_cache": 3}, per_layer=lambda n: {"attention.head_count_kv": by_layer(n, 0, 0, 2, 0)}),
    "lfm2moe": _r("lfm2moe", 8, moe=MOE, a={"shortconv.l_cache": 3, "leading_dense_block_count": 2, "expert_gating_func": 2},
                  per_layer=lambda n: {"attention.head_count_kv": by_layer(n, 0, 0, 2, 0)}),
    "kimi-linear": _r("kimi-linear", 8, mla=MLA, moe=MOE, gated=GATED, a={"expert_shared_count": 1, "ssm.conv_kernel": 4, "kda.head_dim": 16},
                      per_layer=lambda n: {"attention.head_count_kv": by_layer(n, 0, 0, 0, 1)}),
    "minimax-01": _r("minimax-01", 16, moe={"expert_count": 4, "expert_used_count": 2}, a={"residual_scale": 3.55}),
    "rwkv6": _r("rwkv6", 4, a={"wkv.head_size": 16, "time_mix_extra_dim": 16, "time_decay_extra_dim": 16, "attention.head_count": 0}),
    "rwkv7": _r("rwkv7", 4, a={"wkv.head_size": 16, "attention.decay_lora_rank": 16, "attention.iclr_lora_rank": 16,
                               "attention.value_residual_mix_lora_rank": 16, "attention.gate_lora_rank": 16, "attention.head_count": 0}),
    # -- encoders
    "bert": _r("bert", 4, a={"=tokenizer.ggml.token_type_count": 2, "attention.head_count_kv": 4, "attention.causal": False, "pooling_type": 1}),
}  # fmt: skip
