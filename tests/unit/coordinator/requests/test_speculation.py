"""Speculation: look-up of repeated runs, what pays and what does not, and the same answer as without, whatever the model."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from shardnet.coordinator.placement.planning import Route
from shardnet.coordinator.requests.generation_spec import GenerationSpec
from shardnet.coordinator.requests.ngrams import INDEX_AT_ONCE, MOST_PLACES, NgramIndex
from shardnet.coordinator.requests.pipeline import Generation
from shardnet.coordinator.requests.settings import SpeculationSettings
from shardnet.coordinator.requests.speculation import FIRST_PROBE, ModelSpeculation, Speculator
from shardnet.messages import Sampling, ShardOptions, StageRef
from shardnet.steps import StageTiming
from tests.support.coordinator_world import node_id
from tests.support.timed_pipeline import Script, TimedPipeline

END = 0


def fresh(
    max_draft: int = 6, *, run_s: float = 0.026, start_s: float = 0.036, row_s: float = 0.003
) -> ModelSpeculation:
    return ModelSpeculation(max_draft, 2, 4, run_s=run_s, start_s=start_s, row_s=row_s)


def run(
    pipeline: TimedPipeline,
    prompt: Sequence[int],
    model: ModelSpeculation | None,
    *,
    max_tokens: int = 40,
    ignore_eos: bool = False,
) -> tuple[list[int], str | None]:
    stages = tuple(
        StageRef(node_id=node_id(index), address=None, first_shard=index, end_shard=index + 1)
        for index in range(pipeline.stages)
    )
    route = Route("ab" * 32, stages, ShardOptions(n_ctx=400, n_seq=2, n_batch=5))
    spec = GenerationSpec("ab" * 32, prompt, Sampling(), max_tokens, lambda token: token == END, ignore_eos=ignore_eos)
    machine = Generation(spec, speculator=None if model is None else Speculator(model))
    machine.start(route, 0.0)
    answer = pipeline.run(machine)
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
    st.booleans(),
    st.integers(-1, 30),
    st.integers(1, 3),
    st.sampled_from((0.0, 0.001, 0.02)),
)
def test_the_answer_with_speculation_is_the_one_without(
    prompt: list[int],
    table: dict[tuple[int, int], int],
    max_tokens: int,
    ignore_eos: bool,
    makes_runs: bool,
    rewindable: bool,
    crash_at: int,
    stages: int,
    one_way_s: float,
) -> None:
    def script(tokens: Sequence[int]) -> int:
        return table.get((tokens[-2] if len(tokens) > 1 else 0, tokens[-1]), 1 + len(tokens) % 3)

    plain = run(TimedPipeline(script), prompt, None, max_tokens=max_tokens, ignore_eos=ignore_eos)
    for model in (fresh(), ModelSpeculation(6, 2, 4)):
        pipeline = TimedPipeline(
            script,
            stages=stages,
            one_way_s=one_way_s,
            makes_runs=makes_runs,
            rewindable=rewindable,
            crash_at=crash_at,
        )
        assert run(pipeline, prompt, model, max_tokens=max_tokens, ignore_eos=ignore_eos) == plain


def seconds(script: Script, model: ModelSpeculation | None, one_way_s: float = 0.01) -> float:
    pipeline = TimedPipeline(script, one_way_s=one_way_s)
    run(pipeline, [1, 2, 3, 4, 5, 1, 2, 3], model, max_tokens=120)
    return pipeline.now_s


def test_a_text_that_repeats_itself_costs_what_the_slowest_stage_takes_not_what_links_take() -> None:
    model = ModelSpeculation(15, 2, 8)
    plain_s = seconds(periodic(5), None)
    assert plain_s > 119 * 0.026
    assert seconds(periodic(5), model) < plain_s / 3
    assert seconds(periodic(5), model) < plain_s / 5  # what the first one learnt is known
    assert model.row_s is not None
    assert 0.003 <= model.row_s < 0.006


def test_without_slow_links_it_fills_the_stages_that_would_stand_idle() -> None:
    model = ModelSpeculation(15, 2, 8)
    plain_s = seconds(periodic(5), None, 0.0002)
    assert seconds(periodic(5), model, 0.0002) < plain_s / 1.5


def edited(text: Sequence[int], changes: dict[int, list[int]]) -> list[int]:
    """Returns: the text, with other tokens in place of these."""
    return [token for one in text for token in changes.get(one, [one])]


def decode_s(prompt: list[int], answer: list[int], model: ModelSpeculation | None, one_way_s: float) -> float:
    """Returns: how long this answer takes behind its first token."""
    pipeline = TimedPipeline(lambda tokens: answer[len(tokens) - len(prompt)], one_way_s=one_way_s, stage_s=0.03)
    found, _ = run(pipeline, prompt, model, max_tokens=len(answer))
    assert found == answer
    return pipeline.now_s - len(prompt) * 0.06


def test_an_edit_that_changes_every_eighth_token_costs_little_more_than_a_copy() -> None:
    text = [1000 + place if place % 8 else 1 + place % 3 for place in range(120)]
    answer = edited(text, {1: [11], 2: [12, 13], 3: [14, 3]})
    for one_way_s, least in ((0.0005, 1.6), (0.01, 2.0)):
        model = ModelSpeculation(15, 2, 8)
        plain_s = decode_s(text, answer, None, one_way_s)
        decode_s(text, answer, model, one_way_s)
        assert plain_s > least * decode_s(text, answer, model, one_way_s)


def test_no_row_waits_before_the_stages_while_proposals_may_be_wrong() -> None:
    model = fresh(15, run_s=0.061, start_s=0.09, row_s=0.03)
    assert model.depth(0.9) == 2, "what it took behind wrong ones is all that is known"
    for _ in range(40):
        model.flew(0.0615)
        model.computed((StageTiming(0, 30_000), StageTiming(0, 28_000)))
    assert model.depth(0.9) == 1
    assert model.depth(0.999) == 2


def test_stages_go_on_by_themselves_unless_something_was_proposed_just_before() -> None:
    model = fresh()
    model.flew(0.028)
    model.computed((StageTiming(0, 6_000),))
    speculator = Speculator(model)
    assert speculator.lets_run, "nothing was proposed yet"
    assert speculator.propose([1, 2] * 8, 6)
    assert not speculator.lets_run
    for _ in range(model.steps_alone):
        speculator.propose([5], 6)
    assert speculator.lets_run
    speculator.propose([1, 2] * 8, 6)
    model.streams = 2
    assert speculator.lets_run, "other streams fill the stages"


def test_a_text_that_misleads_costs_next_to_nothing() -> None:
    def misleading(tokens: Sequence[int]) -> int:
        return 1 + (7 * len(tokens) * len(tokens) // 3) % 3  # short runs come again and again, and seldom go on alike

    model = ModelSpeculation(15, 2, 8)
    plain_s = seconds(misleading, None)
    seconds(misleading, model)
    assert seconds(misleading, model) < 1.05 * plain_s


def test_a_model_that_cannot_be_taken_back_is_never_asked_again() -> None:
    model = fresh()
    prompt = [1, 2, 9, 1, 2]
    run(TimedPipeline(lambda tokens: 3 if len(tokens) == 6 else 1 + len(tokens) % 2, rewindable=False), prompt, model)
    assert not model.rewindable
    proposed = model.proposed
    run(TimedPipeline(periodic(2), rewindable=False), prompt, model)
    assert model.proposed == proposed


def test_the_latest_place_of_the_longest_end_is_continued() -> None:
    index = NgramIndex(2, 3)
    tokens = [1, 2, 3, 7, 9, 2, 3, 8, 1, 2, 3]
    assert index.catch_up(tokens)
    assert index.find(tokens, 3) == (3, [7, 9, 2])
    tokens += [5, 2, 3]
    assert index.catch_up(tokens)
    assert index.find(tokens, 2) == (2, [5, 2])
    assert index.find([4, 4], 2) == (0, [])


def test_a_place_near_the_end_goes_on_in_circles() -> None:
    index = NgramIndex(2, 4)
    tokens = [1, 2, 3, 1, 2]
    index.catch_up(tokens)
    assert index.find(tokens, 7) == (2, [3, 1, 2, 3, 1, 2, 3])


def test_a_long_prompt_is_taken_in_piece_by_piece() -> None:
    index = NgramIndex(2, 4)
    assert [index.catch_up([1, 2] * 50, 40) for _ in range(3)] == [False, False, True]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 3), st.integers(0, 4))
def test_what_is_found_is_the_longest_end_that_stood_there_before_at_its_latest_place(
    tokens: list[int], least: int, more: int
) -> None:
    index, most = NgramIndex(least, least + more), least + more
    while not index.catch_up(tokens, 7):
        pass
    expected: tuple[int, list[int]] = (0, [])
    for size in range(min(most, len(tokens) - 1), least - 1, -1):
        places = [end for end in range(size, len(tokens)) if tokens[end - size : end] == tokens[-size:]]
        if places:
            expected = (size, tokens[places[-1] : places[-1] + 1])
            break
    found = index.find(tokens, 1)
    assert found == expected or len(tokens) > MOST_PLACES  # of more places than that only the latest are looked at


def test_a_long_context_takes_a_dozen_bytes_a_token() -> None:
    tokens, index = [(place * place) % 99_991 for place in range(40_000)], NgramIndex(2, 8)
    tracemalloc.start()
    while not index.catch_up(tokens):
        pass
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 24 * len(tokens)


def test_more_is_under_way_where_guesses_are_good_and_links_are_slow() -> None:
    slow, quick = fresh(20), fresh(20, run_s=0.0065, start_s=0.007)
    assert (slow.depth(0.95), quick.depth(0.95)) == (11, 2)
    assert slow.depth(0.5) == 3
    assert slow.depth(0.05) == 1
    assert slow.pays(0.5)
    assert not slow.pays(0.2)
    assert not fresh(start_s=1.0).pays(0.9)
    assert fresh(20, start_s=0.1).pays(1.0)


def test_wrong_guesses_turn_it_off_and_probes_grow_rarer() -> None:
    speculator = Speculator(fresh())
    tokens, proposals = [1, 2] * 8, []
    for step in range(400):
        if speculator.propose(tokens, 6):
            proposals.append(step)
            speculator.judged(is_right=False)
    probes = proposals[-4:]
    assert len(proposals) < 20
    assert probes[-1] - probes[-2] >= 2 * FIRST_PROBE


def test_nothing_is_proposed_beside_other_streams_and_nothing_looked_up() -> None:
    model = fresh()
    model.streams = 2
    speculator = Speculator(model)
    tokens = [1, 2] * INDEX_AT_ONCE
    assert speculator.propose(tokens, 6) == []
    model.streams = 1
    assert speculator.propose(tokens, 6) == [], "only the first piece is known yet"
    assert speculator.propose(tokens, 6)


def test_no_more_is_looked_up_and_proposed_than_may_be_under_way() -> None:
    tokens = [1, 2] * 8
    far = 1 << 40  # all that is missing of the answer; looked up as a whole it would find no room in memory
    assert len(Speculator(fresh(3)).propose(tokens, far)) == 3
    probe = ModelSpeculation(1, 2, 4, run_s=0.026)
    assert len(Speculator(probe).propose(tokens, far)) == 1


def test_settings_make_the_shared_state() -> None:
    model = SpeculationSettings(max_draft=3, min_ngram=1, max_ngram=2).to_model()
    assert (model.max_draft, model.min_ngram, model.max_ngram, model.max_streams) == (3, 1, 2, 1)


def test_answers_that_came_together_at_first_are_no_measure_for_ever() -> None:
    model = ModelSpeculation(6, 2, 4)
    for seconds_between in (0.0, 0.01, 0.01):
        model.followed(seconds_between)
    assert model.row_s == 0.01
