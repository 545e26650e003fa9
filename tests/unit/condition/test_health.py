"""`shardnet health`: the daemons that run in a home, and what is wrong with one that hangs, begins, or is of no use."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shardnet.cli.health import health
from shardnet.condition.record import FILE, STALE_S, State, Told, write_record
from shardnet.errors import UnreachableError
from shardnet.swarm.home import Home
from shardnet.swarm.identity import Identity, claim_identity


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, State], Identity]:
    """Takes an identity as a daemon does, and says how it is."""
    monkeypatch.setenv("SHARDNET_HOME", str(tmp_path))
    held: list[Identity] = []  # as long as the test lasts

    def begin(name: str, state: State) -> Identity:
        identity = claim_identity(Home(tmp_path), name, "node")
        write_record(identity.folder, Told(role="node", state=state, sentence=f"is {state}", pid=1))
        held.append(identity)
        return identity

    return begin


def asked(*, name: str | None = None, ready: bool = False, as_json: bool = False) -> None:
    health(name=name, ready=ready, as_json=as_json)


def test_daemons_that_are_up_are_well_whether_of_use_or_not(
    daemon: Callable[[str, State], Identity], capsys: pytest.CaptureFixture[str]
) -> None:
    daemon("a", "ready"), daemon("b", "waiting")
    capsys.readouterr()
    asked()
    assert capsys.readouterr().out == "a (node): ready, is ready\nb (node): waiting, is waiting\n"
    asked(as_json=True, name="b")
    assert json.loads(capsys.readouterr().out)[0]["state"] == "waiting"
    asked(ready=True, name="a")
    with pytest.raises(UnreachableError, match="'b' is waiting: is waiting"):
        asked(ready=True)


def test_one_that_has_not_come_up_is_not_well(daemon: Callable[[str, State], Identity]) -> None:
    daemon("a", "starting")
    with pytest.raises(UnreachableError, match="'a' is starting"):
        asked()


def test_one_that_hangs_is_told_by_its_silence(daemon: Callable[[str, State], Identity]) -> None:
    silent_since_s = time.time() - STALE_S - 10
    os.utime(daemon("a", "ready").folder / FILE, (silent_since_s, silent_since_s))
    with pytest.raises(UnreachableError, match="'a' hangs: it has said nothing for 4"):
        asked()


def test_one_that_ended_is_not_there_whatever_its_file_says(daemon: Callable[[str, State], Identity]) -> None:
    daemon("a", "ready").release()
    with pytest.raises(UnreachableError, match="no daemon runs in"):
        asked()
    daemon("b", "ready")
    with pytest.raises(UnreachableError, match="no daemon called 'x' runs"):
        asked(name="x")


def test_a_damaged_file_is_no_traceback(daemon: Callable[[str, State], Identity]) -> None:
    (daemon("a", "ready").folder / FILE).write_text("{")
    with pytest.raises(UnreachableError, match="'a' cannot be told how it is"):
        asked()
