"""Shards of converted checkpoints give the logits of transformers, their tokenizers its tokens (written by `tests/bench/golden_checkpoints.py`)."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardnet.inference.gguf.header import GgufHeader
from shardnet.inference.llama.model import LlamaModel
from shardnet.inference.opening import open_model
from shardnet.inference.splitting.cutting import CutRequest, split_model
from shardnet.inference.splitting.manifest_file import load_manifest
from shardnet.inference.splitting.plan import plan_model
from tests.support.pre_tokenizers import PLAIN_TEXTS, TEXTS, TOKENIZERS
from tests.support.shard_chains import chained_logits, keys_and_values_in_f32, token_ids
from tests.support.whole_checkpoints import FAMILIES, GOLDEN_IDS, GOLDEN_ROWS, GOLDEN_TOKENS, write_model

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[3] / "golden" / "checkpoints.json").read_text())

MOST = 1e-4
"""Of the range of all logits. Measured is 1e-6, with Gemma's GELU, which llama.cpp takes from a table in F16, more."""
MOST_OF_GEMMA = 1e-3


def shards_of(folder: Path, checkpoint: Path) -> Path:
    return split_model(plan_model(open_model(checkpoint), CutRequest(n_shards=2)), folder)[0]


def difference(family: str, shards: Path) -> float:
    """Returns: the largest difference of a logit, over the range of all of them."""
    with keys_and_values_in_f32():
        found = chained_logits(shards, GOLDEN_TOKENS)[np.ix_(GOLDEN_ROWS, GOLDEN_IDS)]
    wanted = np.array(GOLDEN["logits"][family])
    return float(np.abs(found - wanted).max() / np.ptp(wanted))


@pytest.mark.parametrize("family", FAMILIES)
def test_two_shards_of_a_checkpoint_give_the_logits_of_transformers(family: str, tmp_path: Path) -> None:
    shards = shards_of(tmp_path / "cache", write_model(tmp_path / "m", family))
    assert len(load_manifest(shards).content.shards) == 2
    assert difference(family, shards) < (MOST_OF_GEMMA if family == "gemma3_text" else MOST)


@pytest.mark.parametrize("family", FAMILIES)
def test_many_files_and_a_config_of_version_4_are_the_same_model(family: str, tmp_path: Path) -> None:
    one = write_model(tmp_path / "one" / "m", family)
    many = write_model(tmp_path / "many" / "m", family, n_files=3, version=4)
    ids = [load_manifest(shards_of(folder.parent, folder)).model_id for folder in (one, many)]
    assert ids[0] == ids[1]


def ids_of(header: GgufHeader, cache: Path, texts: Sequence[str]) -> list[list[int]]:
    folder = split_model(plan_model(header, CutRequest(n_shards=1)), cache)[0]
    with LlamaModel(folder / "tokenizer.gguf", vocab_only=True) as model:
        return [token_ids(model, text) for text in texts]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_llama_cpp_gets_the_tokens_of_the_tokenizers_library(name: str, tmp_path: Path) -> None:
    header = open_model(write_model(tmp_path / "m", tokenizer=TOKENIZERS[name]))
    assert header.get("tokenizer.ggml.pre") == name
    assert ids_of(header, tmp_path / "cache", TEXTS) == GOLDEN["tokens"][name]


def test_llama_cpp_gets_the_tokens_of_sentencepiece_out_of_a_tokenizer_model(tmp_path: Path) -> None:
    golden = GOLDEN["sentencepiece"]
    folder = write_model(tmp_path / "m", vocab_size=golden["n_pieces"])
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b64decode(golden["model"]))
    header = open_model(folder)
    assert header.get("tokenizer.ggml.model") == "llama"
    # llama.cpp puts <s> there on its own, SentencePiece does not.
    assert [ids[1:] for ids in ids_of(header, tmp_path / "cache", PLAIN_TEXTS)] == golden["ids"]
