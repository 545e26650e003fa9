"""What transformers makes of the tests' small checkpoints: python -m tests.bench.golden_checkpoints > tests/golden/checkpoints.json

Runs in an environment of its own (`pip install torch==2.13.0 transformers==5.24.0 sentencepiece==0.2.3`), without shardnet, in the repository's
folder. The checkpoints are those of `tests/support/whole_checkpoints.py`, run in float32; the tokenizers those of `tests/support/pre_tokenizers.py`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from base64 import b64encode
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
import torch
import transformers

from tests.support.pre_tokenizers import PLAIN_TEXTS, TEXTS, TOKENIZERS
from tests.support.whole_checkpoints import FAMILIES, GOLDEN_IDS, GOLDEN_ROWS, GOLDEN_TOKENS, write_model

N_PIECES = 360


def logits_of(family: str) -> list[list[float]]:
    """Returns: logits of some rows and some tokens, to seven digits."""
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), family)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
    with torch.no_grad():
        rows = model.eval()(torch.tensor([GOLDEN_TOKENS])).logits[0]
    return [[float(f"{rows[row, token]:.7g}") for token in GOLDEN_IDS] for row in GOLDEN_ROWS]


def ids_of(content: dict[str, Any]) -> list[list[int]]:
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
    return [tokenizer.encode(text).ids for text in TEXTS]


def sentencepiece_model() -> dict[str, Any]:
    """Returns: a small tokenizer.model as Llama 2 has it: pairs, bytes for what is unknown, nothing normalised."""
    with tempfile.TemporaryDirectory() as folder:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS * 20),
            model_prefix=f"{folder}/m",
            model_type="bpe",
            vocab_size=N_PIECES,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            num_threads=1,
            minloglevel=2,
        )
        data = Path(folder, "m.model").read_bytes()
    processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    ids = [processor.encode(text) for text in PLAIN_TEXTS]
    return {"model": b64encode(data).decode(), "n_pieces": processor.vocab_size(), "ids": ids}


def main() -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    golden = {
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "logits": {family: logits_of(family) for family in FAMILIES},
        "sentencepiece": sentencepiece_model(),
        "tokens": {name: ids_of(content) for name, content in TOKENIZERS.items()},
    }
    lines = json.dumps(golden, indent=1).replace("\n    ", "").replace("\n   ]", "]")
    sys.stdout.write(lines + "\n")


if __name__ == "__main__":
    main()
