"""What a person sees, and what a program sees: the same facts."""

from __future__ import annotations

import io
import json
import re
import string
from pathlib import Path

import pytest

from shardnet import log


def lines(form: log.LogFormat, **fact: object) -> str:
    stream = io.StringIO()
    log.configure(form=form, stream=stream)
    log.get("test").info(fact.pop("event"), **fact)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("fact", "sentence"),
    [
        ({"event": "shard_loaded_before_join", "shard_id": 0}, "[SHARD] ✓✓✓ SHARD 0 LOADED BEFORE JOINING NETWORK ✓✓✓"),
        (
            {"event": "shard_path", "path": "models_cache/shards/shard-0.gguf"},
            "[SHARD]   Path: models_cache/shards/shard-0.gguf",
        ),
        ({"event": "shard_available"}, "[SHARD]   Shard will be available for inference immediately"),
        ({"event": "shard_not_found_locally", "shard_id": 0}, "[SHARD] ⚠️  ASSIGNED SHARD 0 NOT FOUND LOCALLY ⚠️"),
        ({"event": "load_shard_local", "shard_id": 0}, "[LOAD_SHARD] ✓ Loaded shard 0 from local directory"),
        ({"event": "inference_loaded_shard", "shard_id": 0, "path": "p"}, "[INFERENCE] Loaded shard 0 from: p"),
        ({"event": "dht_announced", "shard_id": 0}, "[DHT] ✓✓✓ ANNOUNCED SHARD 0 TO DHT ✓✓✓"),
    ],
)
def test_milestones_read_as_the_seed_documents_say(fact: dict[str, object], sentence: str) -> None:
    assert sentence in lines("pretty", **fact)


def test_piped_output_is_one_json_object_a_line_with_the_same_facts() -> None:
    fact = json.loads(lines("json", event="shard_loaded_before_join", shard_id=3))
    assert fact["event"] == "shard_loaded_before_join"
    assert fact["shard_id"] == 3
    assert fact["level"] == "info"


def test_a_log_that_goes_into_a_file_is_written_for_people_with_the_date() -> None:
    """Whoever wrote `shardnet node > node.log` looked in vain for the lines that the documents promise; programs ask for JSON."""
    written = lines("auto", event="dht_announced", shard_id=0)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \[DHT\] ✓✓✓ ANNOUNCED SHARD 0 TO DHT ✓✓✓\n", written)


@pytest.mark.parametrize("form", ["pretty", "json"])
def test_prompts_and_secrets_never_reach_the_log(form: log.LogFormat) -> None:
    text = lines(form, event="request", prompt="tell me", api_key="k-123", secret="s-456", tokens=[1, 2])
    assert not any(word in text for word in ("tell me", "k-123", "s-456", "[1, 2]"))


def test_a_milestone_with_a_missing_fact_is_still_a_line() -> None:
    assert "[SHARD] shard_path" in lines("pretty", event="shard_path")


def test_every_milestone_names_its_facts() -> None:
    for name, (tag, sentence) in log.MILESTONES.items():
        assert tag.isupper(), name
        for _, field, _, _ in string.Formatter().parse(sentence):
            assert field is None or field.isidentifier(), name


def test_sizes_are_written_in_decimal_units() -> None:
    assert [log.human_bytes(n) for n in (999, 98_362_432, 1_500_000_000_000)] == ["999 B", "98.4 MB", "1.50 TB"]


@pytest.mark.parametrize(("number", "text"), [(0, "0 peers"), (1, "1 peer"), (2, "2 peers")])
def test_what_is_counted_is_written_as_people_write_it(number: int, text: str) -> None:
    assert log.counted(number, "peer") == text
    assert log.sentence({"event": "dht_joined", "peers": number}) == f"[DHT] ✓ Joined with {text}"


def test_no_sentence_counts_without_minding_one() -> None:
    """`1 peers`, `1 tasks`, `1 shards` were read by everybody who began with one of each."""
    nouns = "peers|tasks|shards|nodes|models|requests|tokens|stages|others|bytes"
    assert [words for _, words in log.MILESTONES.values() if re.search(rf"\}} ({nouns})\b(?!/)", words)] == []
    root = Path(log.__file__).parent
    twins = [path.name for path in root.rglob("*.py") if re.search(r"""\{['"]s['"] if """, path.read_text())]
    assert twins == []
