"""Every message keeps its shape on the wire: a change that old nodes would not understand needs a new protocol version."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from shardnet.errors import Busy, PeerRefused, SequenceGap, ShardnetError
from shardnet.messages import MESSAGES, PROTOCOL_VERSION, Address, AnyMessage, ErrorInfo, Hello, Sampling
from shardnet.wire import FrameDecoder, encode
from tests.support.golden_messages import SAMPLES, payloads

GOLDEN = Path(__file__).parent.parent / "golden" / f"frames_v{PROTOCOL_VERSION}.json"


def frame_of(message: AnyMessage) -> bytes:
    return b"".join(encode(MESSAGES, message, payloads(message)))


def test_there_is_a_sample_of_every_message() -> None:
    union = get_args(AnyMessage)
    assert {type(sample) for sample in SAMPLES} == set(union)


@pytest.mark.parametrize("message", SAMPLES, ids=lambda message: message.type)
def test_frame_is_the_golden_one_and_reads_back_as_the_same_message(message: AnyMessage) -> None:
    if os.environ.get("UPDATE_GOLDEN"):
        known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        known[message.type] = frame_of(message).hex()
        GOLDEN.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    golden = bytes.fromhex(json.loads(GOLDEN.read_text())[message.type])
    assert frame_of(message) == golden, (
        "the wire format changed: raise PROTOCOL_VERSION, or set UPDATE_GOLDEN=1 before a release"
    )
    (frame,) = FrameDecoder(MESSAGES).feed(golden)
    assert frame.message == message
    assert [bytes(part) for part in frame.payloads] == payloads(message)


@pytest.mark.parametrize(
    "change",
    [
        {"unheard_of": 1},
        {"protocol": "1"},
        {"protocol": 0},
        {"node_id": "../../etc/passwd"},
        {"node_id": "A1" * 20},
        {"role": "king"},
        {"listen": {"host": "a b", "port": 1}},
        {"listen": {"host": "127.0.0.1", "port": 0}},
        {"refused": ["a reason"] * 17},
        {"refused": ["a long reason " * 50]},
    ],
    ids=str,
)
def test_hello_with_anything_wrong_in_it_is_refused(change: dict[str, object]) -> None:
    good = json.loads(MESSAGES.adapter.dump_json(SAMPLES[0]))
    MESSAGES.adapter.validate_json(json.dumps(good))
    with pytest.raises(ValidationError):
        MESSAGES.adapter.validate_json(json.dumps(good | change))


def test_messages_cannot_be_changed_after_they_were_made() -> None:
    hello = SAMPLES[0]
    assert isinstance(hello, Hello)
    with pytest.raises(ValidationError):
        hello.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_sampling_refuses_a_temperature_that_is_no_number(value: float) -> None:
    with pytest.raises(ValidationError):
        Sampling(temperature=value)


@pytest.mark.parametrize(
    "error", [SequenceGap("gap", have=4), Busy("later", retry_after_s=1.5), PeerRefused("no"), ShardnetError("bug")]
)
def test_errors_cross_the_wire_with_class_sentence_and_facts(error: ShardnetError) -> None:
    back = ErrorInfo.model_validate_json(ErrorInfo.of(error).model_dump_json()).to_error()
    assert (type(back), str(back), back.facts) == (type(error), str(error), error.facts)


def test_ipv6_addresses_are_shown_in_brackets() -> None:
    assert str(Address(host="::1", port=7070)) == "[::1]:7070"
