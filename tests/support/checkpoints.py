"""Small checkpoints as transformers writes them: SafeTensors by the package itself, an index, a config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Arrays = dict[str, NDArray[Any]]

WIDTH, VOCABULARY = 8, 16
FILES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")

CONFIG_5: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0},
}
"""As version 5 of transformers writes it."""

CONFIG_4: dict[str, Any] = {
    key: value for key, value in CONFIG_5.items() if key not in {"dtype", "rope_parameters"}
} | {
    "torch_dtype": "bfloat16",
    "rope_theta": 5e5,
    "rope_scaling": {"type": "linear", "factor": 2.0},
}
"""The same model as version 4 writes it."""


def llama_tensors(n_layers: int = 3, *, has_head: bool = True) -> Arrays:
    """Returns: tensors with the names of a llama, numbered through so that no two rows are alike."""
    shapes = {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,)}
    for layer in range(n_layers):
        shapes[f"model.layers.{layer}.self_attn.q_proj.weight"] = (WIDTH, WIDTH)
        shapes[f"model.layers.{layer}.input_layernorm.weight"] = (WIDTH,)
    if has_head:
        shapes["lm_head.weight"] = (VOCABULARY, WIDTH)
    return {
        name: (np.arange(np.prod(shape)) + number).reshape(shape).astype(ml_dtypes.bfloat16)
        for number, (name, shape) in enumerate(shapes.items())
    }


def write_config(folder: Path, config: dict[str, Any] = CONFIG_5, **changes: Any) -> None:
    """Write config.json; a change to None leaves the key out."""
    content = {key: value for key, value in (config | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(content))


def write_single(folder: Path, arrays: Arrays | None = None, **changes: Any) -> Path:
    """Write a checkpoint of one file and its config.json. Returns: the folder."""
    folder.mkdir(exist_ok=True)
    save_file(llama_tensors() if arrays is None else arrays, folder / "model.safetensors", {"format": "pt"})
    write_config(folder, **changes)
    return folder


def write_sharded(folder: Path, arrays: Arrays | None = None, **changes: Any) -> Path:
    """Write a checkpoint of two files, index and config.json. Returns: the folder."""
    folder.mkdir(exist_ok=True)
    arrays = llama_tensors() if arrays is None else arrays
    places = {name: FILES[2 * number // len(arrays)] for number, name in enumerate(arrays)}
    for file in FILES:
        save_file({name: arrays[name] for name in arrays if places[name] == file}, folder / file, {"format": "pt"})
    write_index(folder, places, sum(array.nbytes for array in arrays.values()))
    write_config(folder, **changes)
    return folder


def write_index(folder: Path, places: dict[str, str], total_size: Any, **metadata: Any) -> None:
    """Write model.safetensors.index.json."""
    content = {"metadata": {"total_size": total_size} | metadata, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def read_index(folder: Path) -> dict[str, str]:
    """Returns: tensor name -> file name."""
    content = json.loads((folder / "model.safetensors.index.json").read_text())
    return dict(content["weight_map"])
