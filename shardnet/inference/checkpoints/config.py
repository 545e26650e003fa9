"""The few facts of config.json that can be held against the weights, wherever the version of transformers that wrote it put them.

Version 4 writes `torch_dtype`, `rope_theta` and `rope_scaling` (with `type`, later `rope_type`); version 5 `dtype` and `rope_parameters`,
and nothing at the top level. Models with pictures or sound keep the language model's facts in an object of their own. Refuses to know what a
family computes.

Source: transformers 5.24.0, configuration_utils.py and modeling_rope_utils.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from shardnet.errors import CheckpointError
from shardnet.inference.checkpoints.json_files import is_count, read_json_object

CONFIG = "config.json"
MAX_CONFIG_BYTES = 16 << 20

ROPE_TYPES = frozenset({"default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional"})
ROPE_ALIASES = {"su": "longrope", "mrope": "default"}
"""Names that older configs use."""

EVERY_LAYER = ""
"""The key of rope parameters that hold for every layer."""

_TEXT_CONFIGS = ("text_config", "llm_config", "language_config")
_OTHER_MODALITIES = (("vision_config", "image"), ("visual", "image"), ("audio_config", "audio"))

Rope = dict[str, Any]


@dataclass(frozen=True)
class CheckpointConfig:
    """config.json: `content` as it stands, `text` the part that speaks of the language model (often the same)."""

    path: Path
    content: dict[str, Any]

    @cached_property
    def text(self) -> dict[str, Any]:
        """Returns: the language model's keys over those of the whole, since some keys (tied embeddings, dtype) may stand in either.

        Raises: CheckpointError if they are in something that has no keys.
        """
        outer = self.content.get("thinker_config")
        content = self.content | outer if isinstance(outer, dict) else self.content
        key = next((key for key in _TEXT_CONFIGS if content.get(key)), None)
        inner = {} if key is None else content[key]
        if not isinstance(inner, dict):
            raise CheckpointError(f"{self.path} says {key} = {str(inner)[:40]!r}, which is no object with keys")
        return content | inner

    def count(self, *names: str) -> int | None:
        """Returns: the first of these keys that is there; None if none is. Raises: CheckpointError if it is no whole number above zero."""
        for name in names:
            value = self.text.get(name)
            if value is not None:
                if not is_count(value) or not value:
                    raise CheckpointError(f"{self.path} says {name} = {value!r}, which is no number above zero")
                return int(value)
        return None

    @property
    def model_type(self) -> str:
        """Returns: the family as transformers calls it, or "unknown"."""
        return str(self.content.get("model_type") or "unknown")

    @property
    def n_layers(self) -> int | None:
        return self.count("num_hidden_layers", "n_layer", "num_layers", "n_layers")

    @property
    def n_embd(self) -> int | None:
        """Returns: width of the hidden state."""
        return self.count("hidden_size", "n_embd", "d_model")

    @property
    def n_vocab(self) -> int | None:
        """Returns: rows of the embedding."""
        return self.count("padded_vocab_size", "vocab_size")

    @property
    def n_ctx_train(self) -> int | None:
        return self.count("max_position_embeddings", "n_positions", "max_sequence_length")

    @property
    def n_experts(self) -> int | None:
        """Returns: routed experts per layer; None for a dense model."""
        names = ("num_experts", "num_local_experts", "n_routed_experts")
        return self.count(*(name for name in names if self.text.get(name)))

    @property
    def n_predicting_layers(self) -> int:
        """Returns: layers for multi-token prediction that may follow the real ones."""
        value = self.text.get("num_nextn_predict_layers")
        return value if is_count(value) and isinstance(value, int) else 0

    @property
    def is_tied(self) -> bool | None:
        """Returns: whether embedding and head are one tensor; None if the file does not say.

        Raises: CheckpointError for what is neither true nor false.
        """
        value = self.text.get("tie_word_embeddings")
        if value is not None and not isinstance(value, bool):
            raise CheckpointError(
                f"{self.path} says tie_word_embeddings = {str(value)[:40]!r}, which is neither true nor false"
            )
        return value

    @property
    def dtype(self) -> str | None:
        """Returns: what the weights are said to be in: "bfloat16"."""
        value = self.text.get("dtype") or self.text.get("torch_dtype")
        return str(value).removeprefix("torch.") if value else None

    @property
    def quantised_by(self) -> str | None:
        """Returns: the method by which the weights were quantised already: "fp8", "gptq"; None if they were not."""
        value = self.text.get("quantization_config")
        return str(value.get("quant_method", "unknown")) if isinstance(value, dict) else None

    @property
    def modalities(self) -> tuple[str, ...]:
        """Returns: what besides text the model takes: "image", "audio"."""
        outer = self.content.get("thinker_config")
        content = self.content | outer if isinstance(outer, dict) else self.content
        return tuple(dict.fromkeys(kind for key, kind in _OTHER_MODALITIES if isinstance(content.get(key), dict)))

    @cached_property
    def rope(self) -> dict[str, Rope]:
        """Returns: rope parameters as version 5 writes them (`rope_type`, `rope_theta`, factors), by kind of layer or under EVERY_LAYER.

        Raises: CheckpointError for a rope type that is not known, by name.
        """
        given = self.text.get("rope_parameters")
        if isinstance(given, dict) and given and all(isinstance(value, dict) for value in given.values()):
            found = {str(kind): dict(value) for kind, value in given.items()}
        elif isinstance(given, dict):
            found = {EVERY_LAYER: dict(given)}
        else:
            found = self._rope_of_version_4()
        for parameters in found.values():
            parameters.setdefault("rope_theta", self.text.get("rope_theta"))
            parameters["rope_type"] = self._rope_type(parameters)
            parameters.pop("type", None)
        return found

    def _rope_of_version_4(self) -> dict[str, Rope]:
        scaling = self.text.get("rope_scaling")
        parameters = dict(scaling) if isinstance(scaling, dict) else {}
        local = self.text.get("rope_local_base_freq")  # Gemma 3: windows have a base of their own and no scaling
        if local is None:
            return {EVERY_LAYER: parameters}
        return {"full_attention": parameters, "sliding_attention": {"rope_theta": local}}

    def _rope_type(self, parameters: Rope) -> str:
        name = parameters.get("rope_type") or parameters.get("type") or "default"
        known = ROPE_ALIASES.get(name, name) if isinstance(name, str) else None
        if known is None or known not in ROPE_TYPES:
            raise CheckpointError(
                f"{self.path} asks for the rope type {name!r}, which is not known (known are {', '.join(sorted(ROPE_TYPES))}): "
                "the model would answer nonsense without it"
            )
        return known


def read_config(folder: Path) -> CheckpointConfig | None:
    """Returns: the config.json of a checkpoint's folder; None if there is none. Raises: CheckpointError, UsageError if it cannot be used."""
    path = folder / CONFIG
    return CheckpointConfig(path, read_json_object(path, MAX_CONFIG_BYTES)) if path.exists() else None
