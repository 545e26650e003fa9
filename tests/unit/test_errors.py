"""The error tree is a contract: codes travel, exit codes are relied on by scripts."""

from __future__ import annotations

import pytest

from shardnet import errors
from shardnet.errors import ShardnetError, error_from_wire
from shardnet.messages import ErrorInfo


def every_error() -> list[type[ShardnetError]]:
    found, waiting = [], [ShardnetError]
    while waiting:
        kind = waiting.pop()
        found.append(kind)
        waiting += kind.__subclasses__()
    return found


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [kind.code for kind in every_error()]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("kind", every_error())
def test_an_error_crosses_the_wire_unchanged(kind: type[ShardnetError]) -> None:
    sent = kind("layers [10, 20) are on no node", missing_bytes=7, node="n1")
    received = ErrorInfo.model_validate_json(ErrorInfo.of(sent).model_dump_json()).to_error()
    assert type(received) is kind
    assert str(received) == str(sent)
    assert received.facts == sent.facts


def test_an_unknown_code_becomes_the_base_error_and_keeps_its_sentence() -> None:
    error = error_from_wire("FROM_THE_FUTURE", "something new")
    assert type(error) is ShardnetError
    assert str(error) == "something new"


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.UsageError, 2),
        (errors.SettingsError, 2),
        (errors.GgufError, 3),
        (errors.FamilyRefused, 3),
        (errors.ManifestError, 3),
        (errors.ParityError, 4),
        (errors.PeerRefused, 5),
        (errors.PeerLost, 5),
        (errors.NoRoomError, 6),
        (errors.EngineCrashed, 1),
    ],
)
def test_exit_codes_are_those_of_the_documentation(kind: type[ShardnetError], code: int) -> None:
    assert kind.exit_code == code
