"""Do index, headers and config.json tell of the same model? Each disagreement is one sentence with both numbers, before a weight is read.

Knows how checkpoints name layers, embeddings, heads and experts, and no more of a family. What it does not recognise it does not judge.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from shardnet.errors import CheckpointError
from shardnet.inference.checkpoints.config import CheckpointConfig
from shardnet.inference.checkpoints.files import CheckpointFiles
from shardnet.inference.checkpoints.header import SafeTensorsHeader, StoredTensor

Tensors = dict[str, StoredTensor]

_LAYER = re.compile(r"^((?:\w+\.)*?(?:layers|layer|h|blocks|block)\.)(\d{1,6})\.")
_NOT_LANGUAGE = re.compile(r"vision|visual|image|audio|speech|projector|resampler|encoder|mtp|talker|code2wav")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|embed_in|tok_embeddings)\.weight$")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output)\.weight$")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_FUSED_EXPERTS = re.compile(r"\.experts\.gate_up_proj$")


def gather_tensors(files: CheckpointFiles, headers: Iterable[SafeTensorsHeader]) -> Tensors:
    """Returns: name -> tensor over all files.

    Raises: CheckpointError if a tensor stands in two files, or index and files disagree about which tensors there are, where, or their bytes.
    """
    tensors: Tensors = {}
    for tensor in (tensor for header in headers for tensor in header.tensors):
        other = tensors.setdefault(tensor.name, tensor)
        if other is not tensor:
            raise CheckpointError(
                f"tensor {tensor.name!r} stands in two files, {other.path.name} and {tensor.path.name} in {files.folder}: fetch the checkpoint again"
            )
    if files.index is None:
        return tensors
    for name, file in files.tensor_files.items():
        found = tensors.get(name)
        if found is None or found.path.name != file:
            where = "no file holds it" if found is None else f"{found.path.name} holds it"
            raise CheckpointError(f"{files.index} places tensor {name!r} in {file}, where it is not ({where})")
    unnamed = next((tensor for name, tensor in tensors.items() if name not in files.tensor_files), None)
    if unnamed is not None:
        raise CheckpointError(f"{unnamed.path} holds tensor {unnamed.name!r}, which {files.index} does not name")
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    if files.total_bytes not in (None, nbytes):
        raise CheckpointError(
            f"{files.index} says that the tensors have {files.total_bytes} bytes, and they have {nbytes}: index and files are not of one checkpoint"
        )
    return tensors


def layer_prefix(names: Iterable[str]) -> str | None:
    """Returns: what the names of the language model's layers begin with ("model.layers."); None if there are none.

    Towers for pictures and sound have layers too; of what remains, the longest list of tensors is the model.
    """
    matches = (_LAYER.match(name) for name in names)
    counts = Counter(match[1] for match in matches if match and not _NOT_LANGUAGE.search(match[1]))
    return max(counts, key=lambda prefix: (counts[prefix], prefix)) if counts else None


def layer_number(name: str, prefix: str | None) -> int | None:
    """Returns: the layer of the language model that a tensor belongs to; None for one that belongs to none."""
    match = _LAYER.match(name)
    return int(match[2]) if match and match[1] == prefix else None


def find_embedding(tensors: Tensors) -> StoredTensor | None:
    """Returns: the token embedding, shape (vocabulary, width)."""
    return _first(tensors, _EMBEDDING)


def find_head(tensors: Tensors) -> StoredTensor | None:
    """Returns: the output projection, if it has a tensor of its own."""
    return _first(tensors, _HEAD)


def check_config(config: CheckpointConfig, tensors: Tensors) -> None:
    """Hold config.json against the tensors.

    Raises: CheckpointError if they disagree about layers, width, vocabulary or experts, if an untied head is missing, or if the rope type or
    what is tied is not known.
    """
    _ = config.rope, config.is_tied  # raise
    if config.text.get("is_encoder_decoder"):
        return
    prefix = layer_prefix(tensors)
    found = sorted({number for name in tensors if (number := layer_number(name, prefix)) is not None})
    _check_layers(config, found)
    embedding = find_embedding(tensors)
    if embedding is not None and len(embedding.shape) == 2:
        _check_equal(config, "a vocabulary of", config.n_vocab, embedding.shape[0], embedding.name)
        # Some small models embed into fewer dimensions than they compute in.
        width = config.count("word_embed_proj_dim", "embedding_size") or config.n_embd
        _check_equal(config, "a width of", width, embedding.shape[1], embedding.name)
    if embedding is not None and config.is_tied is False and find_head(tensors) is None:
        raise CheckpointError(
            f"{config.path} says that the head is not the embedding (tie_word_embeddings = false), and no tensor is a head (lm_head.weight): "
            "the checkpoint is incomplete, or no language model"
        )
    _check_experts(config, tensors, prefix)


def _check_layers(config: CheckpointConfig, found: list[int]) -> None:
    said = config.n_layers
    if said is None or not found:
        return
    if len(found) not in {said, said + config.n_predicting_layers}:
        raise CheckpointError(
            f"{config.path} says {said} layers, and the tensors have {len(found)}: config and weights are not of one model",
            said=said,
            found=len(found),
        )
    if found[-1] != len(found) - 1:
        absent = next(due for due, number in enumerate(found) if due != number)
        raise CheckpointError(f"layer {absent} has no tensors, and layer {found[-1]} has: the checkpoint is incomplete")


def _check_experts(config: CheckpointConfig, tensors: Tensors, prefix: str | None) -> None:
    said = config.n_experts
    if said is None:
        return
    numbers: dict[int, set[int]] = {}
    for name, tensor in tensors.items():
        layer = layer_number(name, prefix)
        if layer is None:
            continue
        if match := _EXPERT.search(name):
            numbers.setdefault(layer, set()).add(int(match[1]))
        elif _FUSED_EXPERTS.search(name):
            _check_equal(config, "experts:", said, tensor.n_rows, name)
    for layer, experts in numbers.items():
        _check_equal(config, "experts:", said, len(experts), f"layer {layer}")


def _check_equal(config: CheckpointConfig, what: str, said: int | None, found: int, where: str) -> None:
    if said not in (None, found):
        raise CheckpointError(
            f"{config.path} says {what} {said}, and {where} has {found}: config and weights are not of one model",
            said=said,
            found=found,
        )


def _first(tensors: Tensors, pattern: re.Pattern[str]) -> StoredTensor | None:
    names = [
        name for name in tensors if pattern.search(name) and not _NOT_LANGUAGE.search(name) and not _LAYER.match(name)
    ]
    return tensors[min(names, key=lambda name: (len(name), name))] if names else None
