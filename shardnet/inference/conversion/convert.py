"""`convert`: a checkpoint as a GGUF that is nowhere yet.

Knows the order of things: the family decides, then keys, vocabulary and tensors follow. Nothing but headers and tokenizer files is read;
weights are read when a tensor's bytes are asked for.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import gguf

from shardnet.errors import CheckpointError
from shardnet.inference.checkpoints.sharded import ShardedSafeTensors
from shardnet.inference.conversion.families import family_of
from shardnet.inference.conversion.keys import put_keys, read_sizes
from shardnet.inference.conversion.metadata import collected_fields, new_writer
from shardnet.inference.conversion.tensors import convert_tensors
from shardnet.inference.conversion.vocabulary import put_vocabulary, vocabulary_files
from shardnet.inference.conversion.weights import read_weights
from shardnet.inference.gguf.header import GgufHeader, GgufTensor, padded
from shardnet.inference.gguf.writer import GGUF_VERSION

RECIPE = "convert 1"
"""Another number where the same checkpoint would become other bytes: what an earlier version made is then made again."""

_FILE_TYPES = {0: gguf.LlamaFileType.ALL_F32, 1: gguf.LlamaFileType.MOSTLY_F16, 30: gguf.LlamaFileType.MOSTLY_BF16}


def convert(checkpoint: ShardedSafeTensors) -> GgufHeader:
    """Returns: the GGUF that a checkpoint is, its tensors in the checkpoint's own types (norms and vectors in F32, FP8 in BF16).

    Raises: CheckpointError if it has no config.json, is of a family that is not taken, or asks for what llama.cpp does not compute;
        UsageError if a file cannot be read.
    """
    files, config = checkpoint.files, checkpoint.config
    if config is None:
        raise CheckpointError(f"{files.folder} has no config.json: without it nothing can be known of the model")
    family = family_of(config)
    sizes = read_sizes(config, family)
    writer: Any = new_writer(family.architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    tables = put_keys(writer, config, family, sizes)
    weights = read_weights(checkpoint, config)
    tensors = convert_tensors(weights, config, family, sizes, tables, files.folder)
    writer.add_file_type(_FILE_TYPES[_commonest_type(tensors)])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    put_vocabulary(writer, files.folder, sizes.n_vocab)
    fields = collected_fields(writer, files.folder)
    nbytes = sum(padded(tensor.nbytes) for tensor in tensors) + sum(field.end for field in fields.values())
    paths = (*files.paths, config.path, *vocabulary_files(files.folder))
    return GgufHeader(files.folder.resolve(), GGUF_VERSION, fields, tensors, nbytes, paths, recipe=RECIPE)


def _commonest_type(tensors: tuple[GgufTensor, ...]) -> int:
    """Returns: the ggml type in which most bytes stand."""
    count: Counter[int] = Counter()
    for tensor in tensors:
        count[tensor.ggml_type] += tensor.nbytes
    return max(count, key=lambda kind: (count[kind], kind))
