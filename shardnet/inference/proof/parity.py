"""Running shards against the unsplit model: the arithmetic part of `verify`, in a process of its own, whose end is not ours.

One model is in memory at a time: the unsplit model gives logits, greedy tokens and the hidden state at each cut; then each shard in turn runs over
what its predecessor gave. All make the same batches (`steps`), since llama.cpp's own numbers depend on them. Between passes the numbers lie in files.

*Full*: the unsplit model runs twice, as it is for the logits, then with its layers watched for the hidden states. *Quick*, and where its weights do
not fit into memory: once, for both. Such weights are computed with as they lie in the mapped file, by all sides, and read ahead layer by layer.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardnet.errors import EngineError
from shardnet.inference.gguf.layout import read_model
from shardnet.inference.llama.capture import LayerProbe, LayerWatch
from shardnet.inference.llama.model import LLAMA_CPP_VERSION, LlamaContext, LlamaModel
from shardnet.inference.llama.read_ahead import ReadAhead
from shardnet.inference.llama.stages import stages_of
from shardnet.inference.llama.thread_choice import ThreadChoice
from shardnet.inference.proof.numbers import array_in, check_room, max_abs_diff
from shardnet.inference.proof.steps import (
    LONG_PROMPT,
    N_BATCH,
    Method,
    Step,
    all_at_once,
    equalized,
    one_by_one,
    rows_of_steps,
    tokenized,
)
from shardnet.manifest import BoundaryReport, ParityCertificate

ROWS_PER_STEP = 16
"""Rows whose arithmetic takes as long as what a batch costs whatever its size: for progress only."""

OnProgress = Callable[[float], None]
OnPhase = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class StageFile:
    """One shard to run: its file and the end of its layer range."""

    path: Path
    end: int


@dataclass(frozen=True, slots=True)
class HowToRun:
    """What all sides of a comparison have in common.

    Attributes:
        method: how the batches are made.
        decode_tokens: greedy tokens after each prompt; all stages are fed the unsplit model's.
        weights_budget: bytes of weights that may be in memory; None if the unsplit model fits, as llama.cpp lays it out.
        threads: to compute with; 0 for all; a choice: as many as it says.
        longest_prompt: tokens that the built-in prompts are cut to.
        rows_per_step: as `ROWS_PER_STEP`, more where weights are read for each step.
    """

    method: Method = "full"
    decode_tokens: int = 32
    weights_budget: int | None = None
    threads: int | ThreadChoice = 0
    longest_prompt: int = LONG_PROMPT
    rows_per_step: int = ROWS_PER_STEP

    @property
    def watches(self) -> bool:
        """True if each layer is watched while it computes, on all sides."""
        return self.method == "quick" or self.weights_budget is not None


class _Progress:
    """Counts layers times rows over all passes."""

    def __init__(self, total: int, report: OnProgress) -> None:
        self._total, self._report, self._done = max(total, 1), report, 0

    def add(self, units: int) -> None:
        self._done += units
        self._report(min(self._done / self._total, 1.0))


def run_parity(
    source: Path,
    stages: Sequence[StageFile],
    scratch: Path,
    how: HowToRun,
    *,
    prompts: Sequence[Sequence[int]] | None = None,
    on_progress: OnProgress = lambda _share: None,
    on_phase: OnPhase = lambda _phase: None,
) -> ParityCertificate:
    """Compare a chain of shards with the unsplit model.

    Args:
        stages: the shards in order.
        scratch: an empty folder for hidden states and logits.
        prompts: token ids; the built-in ones, in the model's own vocabulary, if None.

    Raises: NoRoomError if `scratch` is too small; EngineError if llama.cpp refuses a model or a step.
    """
    on_phase("source")
    cuts = [stage.end - 1 for stage in stages[:-1]]
    with _opened(source, how) as model:
        texts = tokenized(model, how.longest_prompt) if prompts is None else [list(prompt) for prompt in prompts]
        if how.method == "quick" and model.is_recurrent:
            texts = equalized(texts)
        rows = rows_of_steps(how.method, [len(text) for text in texts], how.decode_tokens)
        n_outputs = len(rows) if how.method == "full" else len(rows) * len(texts)
        check_room(scratch, 4 * (n_outputs * model.n_vocab + 2 * len(cuts) * sum(rows) * model.n_embd))
        logits = array_in(scratch / "logits", n_outputs, model.n_vocab)
        wanted = {layer: array_in(scratch / f"layer-{layer}", sum(rows), model.n_embd) for layer in cuts}
        is_twice = bool(cuts) and not how.watches
        cost = model.n_layer * sum(count + how.rows_per_step for count in rows)
        runner = _Runner(how, texts, rows, _Progress(cost * (3 if is_twice else 2), on_progress))
        with runner.context(model, cuts=[] if is_twice else cuts, has_head=True) as context:
            steps = list(_reference(runner, context, logits, {} if is_twice else wanted))
        if is_twice:
            on_phase("watched source")
            with runner.context(model, cuts=cuts, has_head=True) as context:
                for step in steps:
                    runner.decode(context, step)
                    runner.keep(step, wanted)
    boundaries: list[BoundaryReport] = []
    hidden: NDArray[np.float32] | None = None
    logit_diff, tokens_equal = 0.0, True
    for index, stage in enumerate(stages):
        on_phase(f"shard {index}")
        is_last = index == len(stages) - 1
        with _opened(stage.path, how) as model, runner.context(model, capture=not is_last, has_head=is_last) as context:
            if is_last:
                logit_diff, tokens_equal = _last_stage(runner, context, steps, hidden, logits)
                break
            given = array_in(scratch / f"shard-{index}", sum(rows), model.n_embd)
            worst = _stage(runner, context, steps, hidden, given, wanted[stage.end - 1])
            boundaries.append(BoundaryReport(shard_id=index, layer_end=stage.end, max_abs_diff=worst))
            hidden = given
    on_progress(1.0)
    return ParityCertificate(
        llama_cpp=LLAMA_CPP_VERSION,
        cpu=processor_name(),
        prompt_tokens=sum(len(text) for text in texts),
        decode_tokens=how.decode_tokens * len(texts),
        boundaries=tuple(boundaries),
        max_abs_logit_diff=logit_diff,
        tokens_equal=tokens_equal,
        repacked=how.weights_budget is None,
    )


def processor_name() -> str:
    """Returns: the machine's processor as the operating system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _opened(path: Path, how: HowToRun) -> LlamaModel:
    return LlamaModel(path, repack=how.weights_budget is None)


class _Runner:
    """Runs the steps of a proof on one model after another, tells how far it is, and reads weights ahead where they do not fit."""

    def __init__(self, how: HowToRun, prompts: Sequence[list[int]], rows: Sequence[int], progress: _Progress) -> None:
        self.how, self.prompts = how, prompts
        self._n_steps, self._most_rows = len(rows), max(rows)
        self._progress = progress
        self._probe: LayerProbe | None = None
        self._ahead: ReadAhead | None = None
        self._layers_done, self._step_cost = 0, 0

    @contextmanager
    def context(
        self, model: LlamaModel, *, has_head: bool, capture: bool = False, cuts: Sequence[int] = ()
    ) -> Iterator[LlamaContext]:
        """Yield a context for the steps.

        Args:
            has_head: it gives logits.
            capture: it gives the output of its last layer, as a shard with a successor does.
            cuts: layers whose output `keep` takes.
        """
        is_quick = self.how.method == "quick"
        longest = max(len(prompt) for prompt in self.prompts) + self.how.decode_tokens + 1
        watch = LayerWatch(model.n_layer, self._on_layer, model.architecture) if self.how.watches else None
        self._probe = LayerProbe(set(cuts), model.architecture, watch) if cuts else None
        with ExitStack() as stack:
            context = stack.enter_context(
                LlamaContext(
                    model,
                    n_ctx=longest,
                    n_seq=len(self.prompts) if is_quick else 1,
                    n_batch=self._most_rows if is_quick else N_BATCH,
                    threads=self.how.threads,
                    capture=capture,
                    probe=self._probe,
                    watch=watch,
                    unified=is_quick,
                )
            )
            self._ahead = None
            if self.how.weights_budget is not None:
                places = stages_of(read_model(model.path), has_head=has_head)
                if sum(place.nbytes for stage in places for place in stage) > self.how.weights_budget:
                    self._ahead = stack.enter_context(ReadAhead(places, self.how.weights_budget, self._n_steps))
            yield context

    def decode(self, context: LlamaContext, step: Step, hidden: NDArray[np.float32] | None = None) -> None:
        """Run one step, on tokens or on the rows that a predecessor gave."""
        if step.starts:
            for slot in range(context.n_seq):
                context.truncate(slot, 0)
        self._layers_done, self._step_cost = 0, step.n_rows + self.how.rows_per_step
        if self._ahead is not None:
            self._ahead.begin_pass()
        context.decode(step.rows(hidden))
        if self._ahead is not None:
            self._ahead.pass_done()
        self._progress.add((context.model.n_layer - self._layers_done) * self._step_cost)

    def keep(self, step: Step, wanted: dict[int, NDArray[np.float32]]) -> None:
        """Take over what the layers before each cut gave for a step."""
        assert self._probe is not None or not wanted
        for layer, rows in wanted.items():
            parts = self._probe.outputs[layer] if self._probe else []
            found = np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)
            parts.clear()
            if found.size != step.n_rows * rows.shape[1]:
                raise EngineError(
                    f"this family does not offer the output of layer {layer} under the name shardnet knows, so that it cannot be split"
                )
            rows[step.row : step.row + step.n_rows] = found.reshape(step.n_rows, -1)

    def _on_layer(self, layer: int) -> None:
        if self._ahead is not None:
            self._ahead.stage_done(layer)
        if layer >= self._layers_done:  # llama.cpp may compute a batch in parts: only the first is counted
            self._progress.add((layer + 1 - self._layers_done) * self._step_cost)
            self._layers_done = layer + 1


def _reference(
    runner: _Runner, context: LlamaContext, logits: NDArray[np.float32], wanted: dict[int, NDArray[np.float32]]
) -> Iterator[Step]:
    """Run the unsplit model; fill `logits` float32 (outputs, n_vocab) and `wanted`. Yields every batch that was made."""
    make = all_at_once if runner.how.method == "quick" else one_by_one
    for step in make(runner.prompts, runner.how.decode_tokens, lambda output: int(logits[output].argmax())):
        runner.decode(context, step)
        for number, row in enumerate(np.flatnonzero(step.outputs).tolist()):
            logits[step.output + number] = context.logits(row)
        runner.keep(step, wanted)
        yield step


def _stage(
    runner: _Runner,
    context: LlamaContext,
    steps: Sequence[Step],
    hidden: NDArray[np.float32] | None,
    given: NDArray[np.float32],
    wanted: NDArray[np.float32],
) -> float:
    """Run one shard that has a successor; fill `given`. Returns: its largest difference from `wanted`."""
    worst = 0.0
    for step in steps:
        rows = slice(step.row, step.row + step.n_rows)
        runner.decode(context, step, hidden)
        given[rows] = context.hidden(step.n_rows)
        worst = max(worst, max_abs_diff(given[rows], wanted[rows]))
    return worst


def _last_stage(
    runner: _Runner,
    context: LlamaContext,
    steps: Sequence[Step],
    hidden: NDArray[np.float32] | None,
    logits: NDArray[np.float32],
) -> tuple[float, bool]:
    """Run the shard with the head. Returns: the largest difference of any logit, and whether every greedy token is the same."""
    worst, tokens_equal = 0.0, True
    for step in steps:
        runner.decode(context, step, hidden)
        for number, row in enumerate(np.flatnonzero(step.outputs).tolist()):
            found, expected = context.logits(row), logits[step.output + number]
            worst = max(worst, max_abs_diff(found, expected))
            tokens_equal = tokens_equal and int(found.argmax()) == int(expected.argmax())
    return worst, tokens_equal
