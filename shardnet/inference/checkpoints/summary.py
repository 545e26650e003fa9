"""What `shardnet inspect` tells of a checkpoint: facts only, ready for JSON, all of them from headers and config.json."""

from __future__ import annotations

from collections import Counter
from typing import Any

from shardnet.inference.checkpoints.config import CheckpointConfig
from shardnet.inference.checkpoints.consistency import Tensors, find_embedding, find_head, layer_number, layer_prefix
from shardnet.inference.checkpoints.files import CheckpointFiles

Facts = dict[str, Any]


def modality_of(files: CheckpointFiles, config: CheckpointConfig | None) -> str:
    """Returns: "text", "text+image", "text+audio", ...; what the index's metadata say counts first; "unknown" without either."""
    said = files.metadata.get("modality")
    if isinstance(said, str) and said:
        return said
    return "unknown" if config is None else "+".join(("text", *config.modalities))


def summarise(files: CheckpointFiles, tensors: Tensors, config: CheckpointConfig | None) -> Facts:
    """Returns: size, files, layers, dtypes, modality, parameters. Bytes are those of tensors; a tied head counts once, as it is stored."""
    prefix = layer_prefix(tensors)
    layer_bytes: Counter[int] = Counter()
    type_bytes: Counter[str] = Counter()
    n_global, global_bytes = 0, 0
    for name, tensor in tensors.items():
        type_bytes[tensor.dtype] += tensor.nbytes
        layer = layer_number(name, prefix)
        if layer is None:
            n_global += 1
            global_bytes += tensor.nbytes
        else:
            layer_bytes[layer] += tensor.nbytes
    facts: Facts = {
        "kind": "checkpoint",
        "paths": [str(path) for path in files.paths],
        "index": str(files.index) if files.index else None,
        "ignored": list(files.ignored),
        "bytes": sum(type_bytes.values()),
        "modality": modality_of(files, config),
        "n_tensors": len(tensors),
        "n_global_tensors": n_global,
        "n_params": sum(tensor.n_elements for tensor in tensors.values()),
        "n_layers": len(layer_bytes),
        "layer_bytes": [nbytes for _, nbytes in sorted(layer_bytes.items())],
        "global_bytes": global_bytes,
        "type_bytes": dict(type_bytes.most_common()),
        "has_embedding": find_embedding(tensors) is not None,
        "has_head": find_head(tensors) is not None,
        "config": None,
    }
    if config is not None:
        facts["config"] = {
            "architecture": config.model_type,
            "dtype": config.dtype,
            "quantised_by": config.quantised_by,
            "n_layers": config.n_layers,
            "n_predicting_layers": config.n_predicting_layers,
            "n_embd": config.n_embd,
            "n_ctx_train": config.n_ctx_train,
            "n_vocab": config.n_vocab,
            "n_experts": config.n_experts,
            "is_tied": config.is_tied,
            "rope_types": sorted({rope["rope_type"] for rope in config.rope.values()}),
        }
    return facts
