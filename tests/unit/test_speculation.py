"""Speculation: look-up of repeated runs, what pays and what does not, and the same answer as without, whatever the model."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from shardnet.coordinator.pipeline import Generation, GenerationSpec, Need
from shardnet.coordinator.planning import Route
from shardnet.coordinator.settings import SpeculationSettings
from shardnet.coordinator.speculation import FIRST_PROBE, ModelSpeculation, NgramIndex, Speculator
from shardnet.errors import EngineCrashed, SequenceGap, ShardnetError
from shardnet.messages import CommandFailed, ErrorInfo, ExecuteTask, Sampling, ShardOptions, StageRef
from shardnet.steps import TaskResult
from tests.coordinator_world import node_id

END = 0
Script = Callable[[Sequence[int]], int]


def fresh(max_draft: int = 6, *, plain_s: float | None = 0.02, row_s: float | None = 0.001) -> ModelSpeculation:
    return ModelSpeculation(max_draft, 2, 4, plain_s=plain_s, row_s=row_s)


class ScriptedEngine:
    """Answers steps as the engine does: the position rule, and rows sampled while they agree."""

    def __init__(self, script: Script, *, rewindable: bool = True) -> None:
        self.script = script
        self.rewindable = rewindable
        self.sequences: dict[str, list[int]] = {}
        self.rows: list[int] = []

    def answer(self, task: ExecuteTask, tokens: Sequence[int]) -> TaskResult:
        kv = self.sequences.setdefault(task.sequence_id, [])
        if task.position > len(kv):
            raise SequenceGap("gap", have=len(kv))
        if task.position < len(kv) and not self.rewindable:
            del self.sequences[task.sequence_id]
            raise SequenceGap("cannot be rewound", have=0)
        assert task.position + len(tokens) <= task.options.n_ctx
        assert len(tokens) == task.n_tokens <= task.options.n_batch
        kv[task.position :] = tokens
        self.rows.append(len(tokens))
        sampled: list[int] = []
        if task.sample_from is not None:
            for row in range(task.sample_from, len(tokens)):
                sampled.append(self.script(kv[: task.position + row + 1]))
                if row + 1 < len(tokens) and sampled[-1] != tokens[row + 1]:
                    break
        return TaskResult(
            command_id=task.command_id,
            sequence_id=task.sequence_id,
            position=task.position + len(tokens) if task.sample_from is None else task.position + task.sample_from + 1,
            tokens=tuple(sampled),
        )


def run(
    engine: ScriptedEngine,
    prompt: Sequence[int],
    model: ModelSpeculation | None,
    *,
    max_tokens: int = 40,
    ignore_eos: bool = False,
    crash_at: int = -1,
) -> tuple[list[int], str | None]:
    route = Route(
        "ab" * 32,
        (StageRef(node_id=node_id(1), address=None, first_shard=0, end_shard=1),),
        ShardOptions(n_ctx=64, n_seq=2, n_batch=5),
    )
    spec = GenerationSpec("ab" * 32, prompt, Sampling(), max_tokens, lambda token: token == END, ignore_eos=ignore_eos)
    machine = Generation(spec, speculator=None if model is None else Speculator(model))
    machine.start(route, 0.0)
    clock, step, answer = 0.0, 0, []
    while not machine.is_done:
        for send in machine.take_sends():
            if not isinstance(send.message, ExecuteTask) or machine.is_done:
                continue
            clock, step = clock + 0.02, step + 1
            assert send.payload is not None
            try:
                if step == crash_at:
                    engine.sequences.clear()
                    raise EngineCrashed("it fell")
                machine.on_result(engine.answer(send.message, array("i", send.payload).tolist()), clock)
            except ShardnetError as error:
                machine.on_failed(CommandFailed(command_id=send.message.command_id, error=ErrorInfo.of(error)), clock)
            answer += [one.token for one in machine.take_emitted()]
        if machine.need is Need.PAUSE:
            machine.resume(clock)
    assert machine.error is None
    return answer, machine.finish_reason


def periodic(period: int) -> Script:
    return lambda tokens: 1 + (len(tokens) % period)


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=30),
    st.dictionaries(st.tuples(st.integers(0, 5), st.integers(0, 5)), st.integers(0, 5), max_size=36),
    st.integers(1, 40),
    st.booleans(),
    st.booleans(),
    st.integers(-1, 12),
)
def test_the_answer_with_speculation_is_the_one_without(
    prompt: list[int],
    table: dict[tuple[int, int], int],
    max_tokens: int,
    ignore_eos: bool,
    rewindable: bool,
    crash_at: int,
) -> None:
    def script(tokens: Sequence[int]) -> int:
        return table.get((tokens[-2] if len(tokens) > 1 else 0, tokens[-1]), 1 + len(tokens) % 3)

    plain = run(ScriptedEngine(script), prompt, None, max_tokens=max_tokens, ignore_eos=ignore_eos)
    for model in (fresh(), fresh(plain_s=None, row_s=None)):
        engine = ScriptedEngine(script, rewindable=rewindable)
        found = run(engine, prompt, model, max_tokens=max_tokens, ignore_eos=ignore_eos, crash_at=crash_at)
        assert found == plain


def test_a_text_that_repeats_itself_takes_far_fewer_steps() -> None:
    engine = ScriptedEngine(periodic(5))
    model = fresh()
    answer, reason = run(engine, [1, 2, 3, 4, 5, 1, 2, 3], model, max_tokens=40)
    assert (len(answer), reason) == (40, "length")
    assert len(engine.rows) <= 14
    assert model.accepted >= 28


def test_a_model_that_cannot_be_taken_back_is_never_asked_again() -> None:
    model = fresh()
    prompt = [1, 2, 9, 1, 2]
    engine = ScriptedEngine(lambda tokens: 1 + len(tokens) % 2, rewindable=False)
    engine.script = lambda tokens: 3 if len(tokens) == 6 else 1 + len(tokens) % 2
    run(engine, prompt, model)
    assert not model.rewindable
    proposed = model.proposed
    run(engine, prompt, model)
    assert model.proposed == proposed


def test_the_latest_place_of_the_longest_end_is_continued() -> None:
    index = NgramIndex(2, 3)
    tokens = [1, 2, 3, 7, 9, 2, 3, 8, 1, 2, 3]
    assert index.catch_up(tokens)
    assert index.find(tokens, 3) == [7, 9, 2]
    tokens += [5, 2, 3]
    assert index.catch_up(tokens)
    assert index.find(tokens, 2) == [5, 2]
    assert index.find([4, 4], 2) == []


def test_a_place_near_the_end_goes_on_in_circles() -> None:
    index = NgramIndex(2, 4)
    tokens = [1, 2, 3, 1, 2]
    index.catch_up(tokens)
    assert index.find(tokens, 7) == [3, 1, 2, 3, 1, 2, 3]


def test_a_long_prompt_is_taken_in_piece_by_piece() -> None:
    index = NgramIndex(2, 4)
    assert [index.catch_up([1, 2] * 50, 40) for _ in range(3)] == [False, False, True]


def test_more_is_proposed_where_rows_are_cheap_and_guesses_are_good() -> None:
    cheap, dear = fresh(plain_s=0.02, row_s=0.0005), fresh(plain_s=0.02, row_s=0.02)
    assert cheap.best_draft(0.9) == 6
    assert 1 <= cheap.best_draft(0.3) <= 4
    assert dear.best_draft(0.9) == 0
    assert cheap.best_draft(0.0) == 0


def test_wrong_guesses_turn_it_off_and_probes_grow_rarer() -> None:
    model = fresh(row_s=0.01)
    speculator = Speculator(model)
    tokens, proposals = [1, 2] * 8, []
    for step in range(400):
        draft = speculator.propose(tokens, 6)
        if draft:
            proposals.append(step)
        speculator.answered(len(draft), 1, 0.02 + 0.01 * len(draft))
    probes = proposals[-4:]
    assert len(proposals) < 20
    assert probes[-1] - probes[-2] >= 2 * FIRST_PROBE


def test_nothing_is_proposed_beside_other_streams() -> None:
    model = fresh()
    model.streams = 2
    assert Speculator(model).propose([1, 2] * 8, 6) == []


def test_settings_make_the_shared_state() -> None:
    model = SpeculationSettings(max_draft=3, min_ngram=1, max_ngram=2).to_model()
    assert (model.max_draft, model.min_ngram, model.max_ngram, model.max_streams) == (3, 1, 2, 1)
