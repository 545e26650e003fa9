"""`--shard`: what a user writes, and which shards that means."""

from __future__ import annotations

import pytest

from shardnet.errors import UsageError
from shardnet.ids import ShardKey
from shardnet.node.shards.assignment import Assignment, Binding, parse_binding
from tests.support.node_world import make_manifest

MANIFEST = make_manifest()
MODEL = MANIFEST.model_id


@pytest.mark.parametrize(
    ("text", "binding"),
    [
        ("0", Binding(None, 0)),
        ("SmolLM2:3", Binding("SmolLM2", 3)),
        ("a:b:3", Binding("a:b", 3)),
        (f"{MODEL}:1", Binding(MODEL, 1)),
    ],
)
def test_a_binding_names_a_shard_and_maybe_its_model(text: str, binding: Binding) -> None:
    assert parse_binding(text) == binding
    assert str(binding) == text


@pytest.mark.parametrize("text", ["", "x", "x:", ":1", "x:-1", "1.5", "99999999", "x:²"])
def test_what_names_no_shard_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="names no shard"):
        parse_binding(text)


def test_a_bare_id_means_that_shard_of_every_known_model() -> None:
    other = make_manifest("other", 2)
    keys, unknown = Assignment((parse_binding("1"),)).resolve({MODEL: MANIFEST, other.model_id: other}, ())
    assert set(keys) == {(MODEL, 1), (other.model_id, 1)}
    assert unknown == ()


def test_models_go_by_name_id_or_the_beginning_of_the_id() -> None:
    for model in ("m", MODEL, MODEL[:12]):
        keys, _ = Assignment((Binding(model, 2),)).resolve({MODEL: MANIFEST}, ())
        assert keys == ((MODEL, 2),)


def test_a_full_model_id_is_assigned_before_the_model_is_known() -> None:
    assert Assignment((Binding(MODEL, 0),)).resolve({}, ()) == (((MODEL, 0),), ())
    assert Assignment((Binding("m", 0),)).resolve({}, ()) == ((), (Binding("m", 0),))


def test_a_file_without_a_manifest_is_assigned_by_its_id() -> None:
    key = ShardKey((MODEL, 0))
    assert Assignment((Binding(None, 0),)).resolve({}, [key]) == ((key,), ())


def test_no_binding_admits_every_shard() -> None:
    assert Assignment().admits(MODEL, 5, None)
    assert Assignment().accepts_any


def test_of_two_models_with_one_name_a_binding_means_the_one_that_the_name_means_unless_it_says_the_others_id() -> None:
    old = make_manifest("m", 2).model_copy(update={"made_s": 1})
    new = MANIFEST.model_copy(update={"made_s": 2})
    known = {old.model_id: old, new.model_id: new}
    for text in ("0", "m:0"):
        assert Assignment((parse_binding(text),)).resolve(known, ()) == (((new.model_id, 0),), ())
    by_id = Assignment((parse_binding(f"{old.model_id}:0"),))
    assert by_id.resolve(known, ()) == (((old.model_id, 0),), ())
    assert Assignment((parse_binding("0"),)).admits(old.model_id, 0, "m"), "the coordinator may still ask for it"
