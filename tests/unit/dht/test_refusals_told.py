"""What is left out in ordinary operation alarms nobody; every line says what it means."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from structlog.testing import capture_logs

import shardnet.dht
from shardnet.dht.refusals import MEANINGS, Refusals
from shardnet.errors import RemoteProtocolError
from shardnet.log import sentence


def told(what: str, reason: str) -> dict[str, object]:
    with capture_logs() as logs:
        Refusals().note(what, RemoteProtocolError("it is so", reason=reason), "10.0.0.7")
    (line,) = logs
    return dict(line)


@pytest.mark.parametrize("kind", ["record_expired", "datagram_misdirected", "datagram_replayed", "datagram_unasked"])
def test_what_a_healthy_swarm_leaves_out_is_for_those_who_ask_for_every_detail(kind: str) -> None:
    assert told(*kind.split("_", 1))["log_level"] == "debug"


def test_another_swarm_at_the_address_is_said_without_alarm_and_with_what_to_do() -> None:
    line = told("datagram", "unsealed")
    assert line["log_level"] == "info"
    said = sentence(line)
    assert said.startswith("[DHT] Left out a datagram from 10.0.0.7: it is so; another swarm")
    assert "nothing is to be done, unless" in said


def test_a_forged_record_stays_a_warning() -> None:
    assert told("record", "signature")["log_level"] == "warning"


def test_every_kind_with_a_meaning_is_one_that_the_dht_refuses() -> None:
    folder = Path(shardnet.dht.__path__[0])
    reasons = {found for path in folder.glob("*.py") for found in re.findall(r'reason="(\w+)"', path.read_text())}
    assert {kind.partition("_")[2] for kind in MEANINGS} <= reasons
