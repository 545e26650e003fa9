"""What llama.cpp makes of converted checkpoints, beside transformers: python -m tests.bench.checkpoint_parity FOLDER [--only NAME]

FOLDER is what `make_checkpoints.py` has written. Each checkpoint is converted and cut in two, the chain of its shards runs the same tokens, and its
tokenizer the same texts. Prints one row of docs/checkpoints.md each: the largest difference of a logit over the range of all logits, with KV in F32
as transformers has it and in F16 as nodes have it, and the texts that become the same tokens. Ends with 1 if a float32 checkpoint with KV in F32
differs by more than `MOST`, or a text.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from shardnet.errors import ShardnetError
from shardnet.inference.llama.model import LlamaModel
from shardnet.inference.opening import open_model
from shardnet.inference.splitting.cutting import CutRequest, split_model
from shardnet.inference.splitting.plan import plan_model
from tests.support.shard_chains import chained_logits, keys_and_values_in_f32, token_ids

MOST = 1e-3


def row(folder: Path, name: str) -> tuple[str, bool]:
    """Returns: a table row, and whether it is as it should be."""
    known = np.load(folder / f"{name}.npz")
    texts, ids = json.loads(str(known["texts"]))
    with tempfile.TemporaryDirectory() as cache:
        header = open_model(folder / name)
        split, manifest = split_model(plan_model(header, CutRequest(n_shards=2)), Path(cache))
        tokens = known["tokens"].tolist()
        as_run = chained_logits(split, tokens)
        with keys_and_values_in_f32():
            found = chained_logits(split, tokens)
        with LlamaModel(split / manifest.content.tokenizer.file, vocab_only=True) as model:
            same = [token_ids(model, text) == due for text, due in zip(texts, ids, strict=True)]
    wanted = known["logits"]
    difference, difference_as_run = (
        float(np.abs(logits - wanted).max() / (wanted.max() - wanted.min())) for logits in (found, as_run)
    )
    kind = manifest.content.quantisation
    good = all(same) and (difference < MOST or kind != "F32")
    return (
        f"| {name} | {len(header.paths)} | {kind} | {difference:.1e} | {difference_as_run:.1e} | {sum(same)}/{len(same)} |",
        good,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="names that begin with this")
    arguments = parser.parse_args()
    exact = True
    print("| checkpoint | files | weights | KV in F32 | KV in F16 | texts alike |\n|---|---|---|---|---|---|")
    for path in sorted(arguments.folder.glob(f"{arguments.only}*.npz")):
        try:
            line, good = row(arguments.folder, path.stem)
        except ShardnetError as error:
            line, good = f"| {path.stem} | | | {error} | | |", False
        exact = exact and good
        print(line, flush=True)
    return 0 if exact else 1


if __name__ == "__main__":
    sys.exit(main())
