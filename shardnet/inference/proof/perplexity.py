"""Perplexity of a model on a text, as llama.cpp's `llama-perplexity` counts it, in a process of its own, whose end is not ours.

The text is cut into chunks of `CHUNK` tokens, each begins anew (with the vocabulary's first token where that is asked for), and the second half of
each is scored: every token there has at least half a chunk before it. The process is `python -m shardnet.inference.proof.perplexity MODEL TEXT`; it
answers in JSON lines. Refuses to know what the figure is compared with.

Source: llama.cpp, tools/perplexity/perplexity.cpp, `perplexity`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import exp, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shardnet.children import python_module
from shardnet.errors import EngineError, ShardnetError, UsageError, error_from_wire
from shardnet.inference.llama.batch import single_sequence_rows
from shardnet.inference.proof.verify import CHILD_ENVIRONMENT, OnProgress, read_last_words, why_it_ended
from shardnet.scratch import words_file

if TYPE_CHECKING:
    from shardnet.inference.llama.model import LlamaContext

CHUNK = 512
LEAST_BYTES, MOST_BYTES = 128, 1 << 30
"""Of a text. Few vocabularies make more than one token of a byte, and fewer contexts are shorter than this."""
COMMAND: Sequence[str] = python_module("shardnet.inference.proof.perplexity")


@dataclass(frozen=True, slots=True)
class Perplexity:
    """`value` plus or minus `deviation` (one standard error), over `n_tokens` scored tokens."""

    value: float
    deviation: float
    n_tokens: int

    @classmethod
    def of(cls, losses: NDArray[np.float64]) -> Perplexity:
        """Args: losses: minus the natural logarithm of each token's probability, two or more."""
        value = exp(float(losses.mean()))
        return cls(value, value * sqrt(float(losses.var()) / (losses.size - 1)), losses.size)


def check_text(text: Path) -> None:
    """Raises: UsageError if there is no such file, it is no text, or surely too short a one."""
    try:
        nbytes = text.stat().st_size
        if nbytes > MOST_BYTES:
            raise UsageError(f"{text} has more than {MOST_BYTES >> 30} GiB: take a shorter text")
        text.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read the text {text}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{text} is no text in UTF-8") from error
    if nbytes < LEAST_BYTES:  # said before the model is quantised; whether it has tokens enough is known afterwards
        raise UsageError(f"{text} has {nbytes} bytes, too few to measure perplexity on: take a longer text")


def measure_perplexity(model: Path, text: Path, on_progress: OnProgress = lambda _share: None) -> Perplexity:
    """Run a whole model over a text.

    Args:
        model: a GGUF that llama.cpp opens.

    Raises: UsageError if the text has not enough tokens for one chunk; EngineError if llama.cpp does not run the model.
    """
    result, failure = None, None
    with (
        words_file() as words,
        subprocess.Popen(
            [*COMMAND, str(model.absolute()), str(text.absolute())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=words,
            env=CHILD_ENVIRONMENT | os.environ,
        ) as child,
    ):
        try:
            assert child.stdout is not None
            for line in child.stdout:
                message = json.loads(line)
                if "progress" in message:
                    on_progress(float(message["progress"]))
                result, failure = message.get("result", result), message.get("error", failure)
            code = child.wait()
        finally:
            child.kill()
        said = read_last_words(words)
    if failure is not None:
        raise error_from_wire(failure["code"], failure["message"], failure["facts"])
    if result is None:
        raise EngineError(f"llama.cpp does not run {model}: {why_it_ended(said, code)}")
    return Perplexity(**result)


# -- the child process ---------------------------------------------------------------------------------------------------------------------


def _child_main(model: Path, text: Path) -> None:
    try:
        result = _run(model, text.read_text(encoding="utf-8"))
    except ShardnetError as error:
        _say(error={"code": error.code, "message": error.message, "facts": error.facts})
    else:
        _say(result=asdict(result))


def _say(**message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _run(path: Path, text: str) -> Perplexity:
    import llama_cpp

    from shardnet.inference.llama.census import learnt_share
    from shardnet.inference.llama.model import LlamaContext, LlamaModel

    with LlamaModel(path) as model:
        chunk = min(CHUNK, model.n_ctx_train)
        tokens = _tokens(model.vocab, text)
        if len(tokens) < chunk:
            raise UsageError(
                f"the text has {len(tokens)} tokens, and perplexity takes at least {chunk}: take a longer one"
            )
        first = llama_cpp.llama_vocab_bos(model.vocab) if llama_cpp.llama_vocab_get_add_bos(model.vocab) else None
        threads = learnt_share()
        losses = []
        starts = range(0, len(tokens) - chunk + 1, chunk)
        with LlamaContext(model, n_ctx=chunk, n_batch=chunk, threads=threads) as context:
            for number, start in enumerate(starts):
                losses.append(_chunk_losses(context, tokens[start : start + chunk], first))
                _say(progress=(number + 1) / len(starts))
    return Perplexity.of(np.concatenate(losses))


def _tokens(vocab: Any, text: str) -> NDArray[np.int32]:
    import llama_cpp

    data = text.encode()
    buffer = (llama_cpp.llama_token * (len(data) + 16))()
    count = llama_cpp.llama_tokenize(vocab, data, len(data), buffer, len(buffer), True, False)
    if count < 0:
        raise EngineError(f"the tokenizer made {-count} tokens of {len(data)} bytes")
    return np.frombuffer(buffer, dtype=np.int32)[:count]


def _chunk_losses(context: LlamaContext, tokens: NDArray[np.int32], first: int | None) -> NDArray[np.float64]:
    """Returns: float64, minus log probability of each token behind the middle of the chunk."""
    count = len(tokens)
    scored = range(count // 2, count - 1)
    fed = tokens.copy()
    if first is not None:
        fed[0] = first
    context.truncate(0, 0)
    context.decode(single_sequence_rows(0, count, tokens=fed, outputs=scored))
    losses = np.empty(len(scored))
    for at, row in enumerate(scored):
        logits = context.logits(row).astype(np.float64)
        logits -= logits.max()
        losses[at] = np.log(np.exp(logits).sum()) - logits[tokens[row + 1]]
    return losses


if __name__ == "__main__":
    _child_main(Path(sys.argv[1]), Path(sys.argv[2]))
