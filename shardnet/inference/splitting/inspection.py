"""What `shardnet inspect` tells of a GGUF, a shard or a models cache: facts only, ready for JSON."""

from __future__ import annotations

import os
from itertools import groupby
from pathlib import Path
from typing import Any

from shardnet.errors import GgufError, RefusedError, UsageError
from shardnet.inference.gguf.header import GgufHeader
from shardnet.inference.gguf.layout import layer_of, layout_of, quantisation_of, read_model, vocabulary_size
from shardnet.inference.splitting import families
from shardnet.inference.splitting.cuts import describe_points
from shardnet.inference.splitting.manifest_file import MANIFEST, SHARDS, CacheScan, FoundShard, scan_cache, scan_folder
from shardnet.manifest import Manifest

Facts = dict[str, Any]

SHARD_KEYS = ("model_id", "name", "shard_id", "n_shards", "layer_first", "layer_end", "n_layers")


def inspect_path(path: Path) -> Facts:
    """Returns: facts of a GGUF (`kind` "model"), a shard of shardnet ("shard") or a folder of shards ("cache").
    A folder of an unsplit model's files is that model.

    Raises: UsageError if there is nothing at `path`, or several unsplit models; GgufError if the file is not a whole GGUF.
    """
    if path.is_dir() and (facts := _folder(path)) is not None:
        return facts
    return inspect_header(read_model(path))


def inspect_header(header: GgufHeader) -> Facts:
    """Returns: facts of a GGUF, here or elsewhere (`kind` "model") or of a shard ("shard"). Raises: GgufError if it is no language model."""
    facts: Facts = {
        "kind": "model",
        "paths": [str(part) for part in header.paths] or [origin.place for origin in header.origins],
        "bytes": header.file_bytes,
        "gguf_version": header.version,
        "architecture": header.architecture,
        "quantisation": quantisation_of(header),
        "n_tensors": len(header.tensors),
    }
    if "shardnet.model_id" in header.fields:
        facts["kind"] = "shard"
        facts["shard"] = {key: header.get(f"shardnet.{key}") for key in SHARD_KEYS}
    if header.arch("block_count") is None:
        raise GgufError(
            f"{header.path} holds no layers ({header.architecture}, {len(header.tensors)} tensors): it is an adapter, a projector "
            "or a vocabulary, not a language model"
        )
    layout = layout_of(header)
    n_layers = families.layer_count(header)
    in_layers = sum(layer_of(tensor.name) is not None for tensor in header.tensors)
    facts |= {
        "n_layers": n_layers,
        "n_extra_layers": header.n_layers - n_layers,
        "n_global_tensors": len(header.tensors) - in_layers,
        "n_params": layout.n_params,
        "n_embd": header.arch("embedding_length"),
        "n_ctx_train": header.arch("context_length"),
        "n_vocab": vocabulary_size(header),
        "layer_bytes": list(layout.layer_bytes),
        "global_bytes": layout.global_bytes,
        "type_bytes": layout.type_bytes,
        "kv_bytes_per_layer": list(layout.kv_bytes_per_layer),
        "kv_bytes_per_token": layout.kv_bytes_per_token,
    }
    if facts["kind"] == "model":
        facts |= _cut_points(header)
    return facts


def _cut_points(header: GgufHeader) -> Facts:
    try:
        rules = families.rules_for(header)
    except RefusedError as error:
        return {"legal_cuts": [], "no_cuts_because": str(error)}
    return {"legal_cuts": list(rules.legal_cuts), "no_cuts_because": rules.reason}


def is_cache(path: Path) -> bool:
    """Returns: whether a folder was written by shardnet, whatever else may lie in it."""
    return (path / SHARDS).is_dir() or (path / MANIFEST).is_file() or (path.name == SHARDS and path.is_dir())


def _folder(path: Path) -> Facts | None:
    """A models cache, its `shards` folder, or the folder of one split model; None if its GGUFs are no shards."""
    if (path / SHARDS).is_dir():
        scan = scan_cache(path)
    elif os.path.lexists(path / MANIFEST) or any(path.glob("*.gguf")):
        scan = CacheScan(path)
        scan_folder(path, scan)
        if not scan.shards and not os.path.lexists(path / MANIFEST):
            return None
    elif path.name == SHARDS:
        scan = scan_cache(path.parent)
    else:
        raise UsageError(
            f"{path} is no models cache and no model: it has neither a folder {SHARDS} nor a {MANIFEST} nor a GGUF nor SafeTensors; "
            "name a model's file, or the folder that `shardnet split` wrote to"
        )
    loose = [shard for shard in scan.shards if shard.model_id not in scan.manifests]
    return {
        "kind": "cache",
        "path": str(path),
        "models": [
            _model(folder, manifest, [s for s in scan.shards if s.model_id == manifest.model_id])
            for folder, manifest in scan.manifests.values()
        ],
        "loose_shards": [_shard(shard) | {"model_id": shard.model_id} for shard in loose],
        "refused": [{"path": str(file), "reason": reason} for file, reason in scan.refused],
    }


def _model(folder: Path, manifest: Manifest, found: list[FoundShard]) -> Facts:
    content = manifest.content
    here = {shard.shard_id: shard for shard in found}
    return {
        "folder": str(folder),
        "model_id": manifest.model_id,
        "name": manifest.name,
        "architecture": content.architecture,
        "quantisation": content.quantisation,
        "n_layers": content.n_layers,
        "n_params": content.n_params,
        "kv_bytes_per_token": manifest.kv_bytes_per_token,
        "is_proved": manifest.certificate is not None and manifest.certificate.is_exact,
        "is_signed": manifest.signature is not None,
        "shards": [
            {
                "shard_id": shard.shard_id,
                "layer_first": shard.layers.first,
                "layer_end": shard.layers.end,
                "bytes": shard.bytes,
                "kv_bytes_per_token": shard.kv_bytes_per_token,
                "path": str(here[shard.shard_id].path) if shard.shard_id in here else None,
            }
            for shard in content.shards
        ],
    }


def _shard(shard: FoundShard) -> Facts:
    return {
        "shard_id": shard.shard_id,
        "layer_first": shard.layers.first,
        "layer_end": shard.layers.end,
        "bytes": shard.nbytes,
        "path": str(shard.path),
    }


def layer_runs(facts: Facts) -> list[tuple[int, int, int, int | None]]:
    """Returns: (first, end, bytes, KV bytes per token) for each run of alike layers of a model or shard; a checkpoint's KV is None."""
    kv_bytes = facts.get("kv_bytes_per_layer", [None] * len(facts["layer_bytes"]))
    layers = enumerate(zip(facts["layer_bytes"], kv_bytes, strict=True))
    runs = [(sizes, [index for index, _ in group]) for sizes, group in groupby(layers, key=lambda item: item[1])]
    return [(indices[0], indices[-1] + 1, nbytes, kv) for (nbytes, kv), indices in runs]


def cut_sentence(facts: Facts) -> str:
    """Returns: the legal cut points in short, or why there are none."""
    cuts: list[int] = facts["legal_cuts"]
    return describe_points(cuts) if cuts else f"none: {facts['no_cuts_because']}"
