"""Running shards against the unsplit model: the arithmetic part of `verify`, in a process of its own, whose end is not ours.

Three passes, with one model in memory at a time: the unsplit model as it is gives logits and greedy tokens; the unsplit model once more, with
its layers watched, gives the hidden state at each cut; then each shard in turn runs over what its predecessor gave. All passes make the same batches
(chunks of the prompt, then single tokens), since llama.cpp's own numbers depend on them. Between passes the numbers lie in files: memory stays that
of the largest model.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from shardnet.errors import EngineError, NoRoomError
from shardnet.files import FULL
from shardnet.inference.llama.batch import single_sequence_rows
from shardnet.inference.llama.capture import LayerProbe
from shardnet.inference.llama.model import LLAMA_CPP_VERSION, LlamaContext, LlamaModel
from shardnet.log import human_bytes
from shardnet.manifest import BoundaryReport, ParityCertificate

N_BATCH = 512
"""Rows of a prompt chunk, as the engine uses by default."""
DIFFERENT_BEYOND_MEASURE = float(np.finfo(np.float32).max)
"""Stands for NaN and infinity, which JSON cannot carry."""

_STORY = (
    "The lighthouse keeper counted the waves every evening, for he believed that the seventh one after sunset brought news from the far shore. "
    "On the night of the great storm he counted six, and then the sea fell silent; nothing moved but the beam above his head. "
)
PROMPTS = (
    "The capital of France is",
    "def quicksort(values):\n    if len(values) < 2:\n        return values\n    pivot = values[0]\n",
    "Übersetze ins Englische: „Der Fluss fließt schneller, als man denkt.“ — 日本語も少し。 1 + 2 × 3 = ?",
    _STORY * 10,
)
"""Short and long, words, code and other scripts. The last is cut to `LONG_PROMPT` tokens: more than one chunk, and more than most sliding windows."""
LONG_PROMPT = N_BATCH + 48

OnProgress = Callable[[float], None]
OnPhase = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class StageFile:
    """One shard to run: its file and the end of its layer range."""

    path: Path
    end: int


@dataclass(frozen=True, slots=True)
class _Step:
    """One batch of one sequence. `row` is its first row in the files of hidden states; tokens are int32 (n,)."""

    sequence: int
    position: int
    row: int
    tokens: NDArray[np.int32]


class _Progress:
    """Counts layers times steps over all passes."""

    def __init__(self, total: int, report: OnProgress) -> None:
        self._total, self._report, self._done = max(total, 1), report, 0

    def add(self, units: int) -> None:
        self._done += units
        self._report(min(self._done / self._total, 1.0))


def run_parity(
    source: Path,
    stages: Sequence[StageFile],
    scratch: Path,
    *,
    prompts: Sequence[Sequence[int]] | None = None,
    decode_tokens: int = 32,
    threads: int = 0,
    on_progress: OnProgress = lambda _share: None,
    on_phase: OnPhase = lambda _phase: None,
) -> ParityCertificate:
    """Compare a chain of shards with the unsplit model.

    Args:
        stages: the shards in order.
        scratch: an empty folder for hidden states and logits.
        prompts: token ids; the built-in ones, in the model's own vocabulary, if None.
        decode_tokens: greedy tokens after each prompt; all stages are fed the unsplit model's.

    Raises: NoRoomError if `scratch` is too small; EngineError if llama.cpp refuses a model or a step.
    """
    on_phase("source")
    with LlamaModel(source) as model:
        texts = _tokenized(model) if prompts is None else [list(prompt) for prompt in prompts]
        n_steps = sum(-(-len(prompt) // N_BATCH) + decode_tokens for prompt in texts)
        progress = _Progress(n_steps * model.n_layer * (3 if len(stages) > 1 else 2), on_progress)
        n_rows = sum(len(prompt) + decode_tokens for prompt in texts)
        n_ctx = max(len(prompt) for prompt in texts) + decode_tokens + 1
        _check_room(scratch, 4 * (n_steps * model.n_vocab + 2 * (len(stages) - 1) * n_rows * model.n_embd))
        logits = _array(scratch / "logits", n_steps, model.n_vocab)
        with LlamaContext(model, n_ctx=n_ctx, n_batch=N_BATCH, threads=threads) as context:
            steps = _reference(context, texts, decode_tokens, logits, partial(progress.add, model.n_layer))
        wanted: dict[int, NDArray[np.float32]] = {}
        if len(stages) > 1:
            on_phase("watched source")
            cuts = [stage.end - 1 for stage in stages[:-1]]
            wanted = {layer: _array(scratch / f"layer-{layer}", n_rows, model.n_embd) for layer in cuts}
            probe = LayerProbe(set(cuts), model.architecture)
            with LlamaContext(model, n_ctx=n_ctx, n_batch=N_BATCH, threads=threads, probe=probe) as context:
                _watch(context, probe, steps, wanted, partial(progress.add, model.n_layer))
    boundaries: list[BoundaryReport] = []
    hidden: NDArray[np.float32] | None = None
    logit_diff, tokens_equal = 0.0, True
    for index, stage in enumerate(stages):
        on_phase(f"shard {index}")
        is_last = index == len(stages) - 1
        with (
            LlamaModel(stage.path) as model,
            LlamaContext(model, n_ctx=n_ctx, n_batch=N_BATCH, threads=threads, capture=not is_last) as context,
        ):
            on_step = partial(progress.add, model.n_layer)
            if is_last:
                logit_diff, tokens_equal = _last_stage(context, steps, hidden, logits, on_step)
                break
            given = _array(scratch / f"shard-{index}", n_rows, model.n_embd)
            worst = _stage(context, steps, hidden, given, wanted[stage.end - 1], on_step)
            boundaries.append(BoundaryReport(shard_id=index, layer_end=stage.end, max_abs_diff=worst))
            hidden = given
    on_progress(1.0)
    return ParityCertificate(
        llama_cpp=LLAMA_CPP_VERSION,
        cpu=processor_name(),
        prompt_tokens=sum(len(prompt) for prompt in texts),
        decode_tokens=decode_tokens * len(texts),
        boundaries=tuple(boundaries),
        max_abs_logit_diff=logit_diff,
        tokens_equal=tokens_equal,
    )


def max_abs_diff(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Returns: the largest absolute difference; `DIFFERENT_BEYOND_MEASURE` if either side holds a NaN or an infinity."""
    with np.errstate(invalid="ignore", over="ignore"):
        worst = float(np.abs(ours - theirs).max(initial=0.0))
    return worst if np.isfinite(worst) else DIFFERENT_BEYOND_MEASURE


def processor_name() -> str:
    """Returns: the machine's processor as the operating system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _check_room(scratch: Path, needed: int) -> None:
    free = shutil.disk_usage(scratch).free
    if needed > free:
        raise _no_room(scratch, needed, free)


def _no_room(scratch: Path, needed: int, free: int) -> NoRoomError:
    return NoRoomError(
        f"comparing this model takes {human_bytes(needed)} in {scratch.parent}, which has {human_bytes(free)}; "
        "set TMPDIR to a larger disk",
        needed_bytes=needed,
        free_bytes=free,
    )


def _array(path: Path, rows: int, width: int) -> NDArray[np.float32]:
    """Raises: NoRoomError if others filled the disk meanwhile: a mapped file without its blocks would be a SIGBUS later."""
    nbytes = 4 * rows * width
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, nbytes)
    except OSError as error:
        if error.errno in FULL:
            raise _no_room(path.parent, nbytes, shutil.disk_usage(path.parent).free) from error
        raise
    return np.memmap(path, dtype=np.float32, mode="r+", shape=(rows, width))


def _tokenized(model: LlamaModel) -> list[list[int]]:
    """Returns: the built-in prompts in the model's vocabulary; random tokens where it cannot encode text."""
    room = min(LONG_PROMPT, max(model.n_ctx_train - 64, 16))
    if llama_cpp.llama_vocab_type(model.vocab) == llama_cpp.LLAMA_VOCAB_TYPE_NONE:
        generator = np.random.default_rng(1)
        return [generator.integers(0, model.n_vocab, min(size, room)).tolist() for size in (7, 40, LONG_PROMPT)]
    prompts = []
    for text in PROMPTS:
        data = text.encode()
        buffer = (llama_cpp.llama_token * (len(data) + 16))()
        count = llama_cpp.llama_tokenize(model.vocab, data, len(data), buffer, len(buffer), True, False)
        if count < 0:
            raise EngineError(f"the tokenizer of {model.path} made {-count} tokens of {len(data)} bytes")
        prompts.append(list(buffer[: min(count, room)]))
    return [prompt for prompt in prompts if prompt]


def _reference(
    context: LlamaContext,
    prompts: Sequence[list[int]],
    decode_tokens: int,
    logits: NDArray[np.float32],
    on_step: Callable[[], None],
) -> list[_Step]:
    """Run the unsplit model; fill `logits` float32 (steps, n_vocab). Returns: every batch that was made."""
    steps: list[_Step] = []
    row = 0
    for sequence, prompt in enumerate(prompts):
        context.truncate(0, 0)
        batches = [prompt[at : at + N_BATCH] for at in range(0, len(prompt), N_BATCH)]
        position = 0
        for number in range(len(batches) + decode_tokens):
            tokens = batches[number] if number < len(batches) else [int(logits[len(steps) - 1].argmax())]
            step = _Step(sequence, position, row, np.asarray(tokens, dtype=np.int32))
            count = len(tokens)
            context.decode(single_sequence_rows(position, count, tokens=step.tokens, outputs=[count - 1]))
            logits[len(steps)] = context.logits(count - 1)
            steps.append(step)
            position, row = position + count, row + count
            on_step()
    return steps


def _watch(
    context: LlamaContext,
    probe: LayerProbe,
    steps: Sequence[_Step],
    wanted: dict[int, NDArray[np.float32]],
    on_step: Callable[[], None],
) -> None:
    """Run the unsplit model over the same batches and keep the outputs of the layers before each cut."""
    for step in steps:
        _begin(context, step)
        count = len(step.tokens)
        context.decode(single_sequence_rows(step.position, count, tokens=step.tokens, outputs=[count - 1]))
        for layer, rows in wanted.items():
            parts = probe.outputs[layer]
            found = np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)
            parts.clear()
            if found.size != count * rows.shape[1]:
                raise EngineError(
                    f"this family does not offer the output of layer {layer} under the name shardnet knows, so that it cannot be split"
                )
            rows[step.row : step.row + count] = found.reshape(count, -1)
        on_step()


def _stage(
    context: LlamaContext,
    steps: Sequence[_Step],
    hidden: NDArray[np.float32] | None,
    given: NDArray[np.float32],
    wanted: NDArray[np.float32],
    on_step: Callable[[], None],
) -> float:
    """Run one shard that has a successor; fill `given`. Returns: its largest difference from `wanted`."""
    worst = 0.0
    for step in steps:
        _begin(context, step)
        rows = slice(step.row, step.row + len(step.tokens))
        _decode(context, step, hidden)
        given[rows] = context.hidden(len(step.tokens))
        worst = max(worst, max_abs_diff(given[rows], wanted[rows]))
        on_step()
    return worst


def _last_stage(
    context: LlamaContext,
    steps: Sequence[_Step],
    hidden: NDArray[np.float32] | None,
    logits: NDArray[np.float32],
    on_step: Callable[[], None],
) -> tuple[float, bool]:
    """Run the shard with the head. Returns: the largest difference of any logit, and whether every greedy token is the same."""
    worst, tokens_equal = 0.0, True
    for number, step in enumerate(steps):
        _begin(context, step)
        _decode(context, step, hidden)
        found = context.logits(len(step.tokens) - 1)
        worst = max(worst, max_abs_diff(found, logits[number]))
        tokens_equal = tokens_equal and int(found.argmax()) == int(logits[number].argmax())
        on_step()
    return worst, tokens_equal


def _begin(context: LlamaContext, step: _Step) -> None:
    if step.position == 0:
        context.truncate(0, 0)


def _decode(context: LlamaContext, step: _Step, hidden: NDArray[np.float32] | None) -> None:
    count = len(step.tokens)
    context.decode(
        single_sequence_rows(
            step.position,
            count,
            tokens=step.tokens if hidden is None else None,
            hidden=None if hidden is None else hidden[step.row : step.row + count],
            outputs=[count - 1],
        )
    )
