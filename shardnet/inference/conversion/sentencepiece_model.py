"""tokenizer.model: the pieces of a SentencePiece vocabulary, and whether a text begins with a space.

The file is a protobuf message; of its fields three matter, and are read here. SentencePiece's own parser would be a dependency in C++ for a file
that may come from anywhere.

Source: sentencepiece, src/sentencepiece_model.proto (ModelProto, NormalizerSpec, TrainerSpec); protobuf's encoding guide.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from shardnet.errors import CheckpointError
from shardnet.inference.conversion.tokens import Kind, Vocabulary, check_row, empty_vocabulary
from shardnet.inference.gguf.cursor import opened

TOKENIZER_MODEL = "tokenizer.model"
MAX_MODEL_BYTES = 64 << 20

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # fields of ModelProto
_PIECE, _SCORE, _TYPE = 1, 2, 3  # fields of SentencePiece
_MODEL_TYPE, _BPE, _UNIGRAM = 3, 2, 1  # field of TrainerSpec, and its values
_DUMMY_PREFIX = 3  # field of NormalizerSpec
_LONGEST_VARINT = 10

Value = int | bytes


def read_sentencepiece_model(path: Path, n_rows: int) -> Vocabulary:
    """Returns: pieces, kinds and scores, padded to the embedding's rows.

    Raises: UsageError if the file cannot be read; CheckpointError if it is no SentencePiece model, or one of words or characters.
    """
    with opened(path) as (descriptor, size):
        if size > MAX_MODEL_BYTES:
            raise CheckpointError(f"{path} has {size} bytes, more than the {MAX_MODEL_BYTES} that are taken")
        data = os.pread(descriptor, size, 0)
    try:
        return _vocabulary(data, n_rows, str(path))
    except (IndexError, UnicodeDecodeError, struct.error, TypeError) as error:
        raise CheckpointError(f"{path} is no SentencePiece model, or damaged: fetch it again") from error


def _vocabulary(data: bytes, n_rows: int, where: str) -> Vocabulary:
    vocabulary = empty_vocabulary("llama", "default", n_rows)
    vocabulary.adds_space = True  # the default of the message
    n_pieces = 0
    for field, value in _fields(data):
        if field == _PIECES:
            check_row(n_pieces, n_rows, where)
            text, score, kind = _piece(value)
            vocabulary.tokens[n_pieces], vocabulary.scores[n_pieces], vocabulary.kinds[n_pieces] = text, score, kind
            n_pieces += 1
        elif field == _NORMALIZER:
            vocabulary.adds_space = bool(dict(_fields(value)).get(_DUMMY_PREFIX, 1))
        elif field == _TRAINER:
            kind_of_model = dict(_fields(value)).get(_MODEL_TYPE, _UNIGRAM)
            if kind_of_model != _BPE:
                raise CheckpointError(
                    f"{where} is a SentencePiece model that merges no pairs (model_type {kind_of_model!r}), which is not taken"
                )
    if not n_pieces:
        raise CheckpointError(f"{where} is no SentencePiece model: it has no pieces")
    return vocabulary


def _piece(data: Value) -> tuple[str, float, Kind]:
    text, score, kind = b"", 0.0, Kind.NORMAL
    for field, value in _fields(data):
        if field == _PIECE and isinstance(value, bytes):
            text = value
        elif field == _SCORE and isinstance(value, bytes):
            (score,) = struct.unpack("<f", value)
        elif field == _TYPE:
            kind = next((known for known in Kind if known == value), Kind.NORMAL)
    return text.decode(), score, kind


def _fields(data: Value) -> Iterator[tuple[int, Value]]:
    """Yield (number, value) of each field of a message; numbers of fixed size stay bytes. Raises: IndexError, TypeError if it is none."""
    if not isinstance(data, bytes):
        raise TypeError("a number where a message is due")
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            length, at = _varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise IndexError(f"a field of the wire type {kind}")
        if at + length > len(data):
            raise IndexError("a field ends beyond the message")
        yield tag >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Returns: (number, offset of what follows it). Raises: IndexError if it does not end."""
    number = 0
    for place in range(_LONGEST_VARINT):
        byte = data[at + place]
        number |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return number, at + place + 1
    raise IndexError("a number without an end")
