"""All checks together: bounded, and never a traceback."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shardnet.cli import app
from shardnet.doctor import examination
from shardnet.doctor.examination import examine
from shardnet.doctor.findings import MOST_OF_A_KIND, Finding, few, summary, worst
from shardnet.doctor.subject import Subject, subject_of
from shardnet.errors import DeadlineExceeded, SettingsError
from shardnet.swarm.home import Home
from shardnet.swarm.identity import ensure_swarm


@pytest.fixture
def subject(home: Path, tmp_path: Path) -> Subject:
    return subject_of(None, tmp_path / "cache", "http://127.0.0.1:1")


def test_a_check_that_hangs_fails_or_breaks_is_told_and_holds_up_no_other(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hangs(_subject: Subject) -> list[Finding]:
        time.sleep(0.6)
        return []

    def raises(error: Exception) -> examination.Check:
        def check(_subject: Subject) -> list[Finding]:
            raise error

        return check

    checks: dict[str, examination.Check] = {
        "hangs": hangs,
        "refuses": raises(SettingsError("the key file is damaged")),
        "disk": raises(OSError(5, "Input/output error")),
        "slow": raises(DeadlineExceeded("too slow")),
        "breaks": raises(ZeroDivisionError("division by zero")),
        "well": lambda _subject: [Finding("well", "ok", "it is well")],
    }
    monkeypatch.setattr(examination, "CHECKS", checks)
    told = {one.check: one for one in examine(subject, limit_s=0.1)}
    assert [told[name].level for name in checks] == ["warning", "fault", "fault", "warning", "warning", "ok"]
    assert told["breaks"].what == "it could not be looked at: ZeroDivisionError: division by zero"
    assert "within 0.1 s" in told["hangs"].what


def test_a_machine_without_swarm_and_coordinator_is_looked_at_and_what_must_be_mended_is_the_exit_code(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(examination.CHECKS, "llama.cpp", lambda _subject: [])  # a process of its own, tried elsewhere
    arguments = ["doctor", "--json", "--api", "http://127.0.0.1:1", "--models-cache", str(tmp_path / "cache")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)["findings"]
    assert {one["check"] for one in found} >= {"home", "ports", "clock", "coordinator", "packages", "disk"}
    ensure_swarm(Home(home)).home.swarm_key.chmod(0o644)
    mended = CliRunner().invoke(app, arguments)
    assert mended.exit_code == 7
    assert json.loads(mended.output)["worst"] == "fault"
    read = CliRunner().invoke(app, [one for one in arguments if one != "--json"])
    assert "✗ home: others can read the key file" in read.output
    assert "1 fault" in read.output


def test_the_kind_of_a_settings_file_is_seen_by_its_sections(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[listen]\napi = '127.0.0.1:9999'\n")
    subject = subject_of(file, None, None)
    assert subject.of_coordinator
    assert subject.coordinator.listen.api == "127.0.0.1:9999"
    file.write_text("[node]\nlisten = '127.0.0.1:9998'\n")
    assert subject_of(file, None, None).of_node
    file.write_text("[node]\nlistne = 1\n")
    with pytest.raises(SettingsError, match="listne"):
        subject_of(file, None, None)


def test_a_control_character_in_somebodys_file_name_steers_no_terminal() -> None:
    assert "\x1b" not in Finding("models cache", "warning", "a\x1b[2Jb is damaged").line()


def test_many_findings_of_a_kind_are_counted_and_the_worst_come_first() -> None:
    many = [Finding("c", "note", str(number)) for number in range(20)] + [Finding("c", "fault", "x")]
    shown = few(many)
    assert [one.level for one in shown] == ["fault"] + ["note"] * (MOST_OF_A_KIND + 1)
    assert shown[-1].what == "and 12 more of this kind"
    assert worst(many) == "fault"
    assert summary(many) == "1 fault."
    assert summary([Finding("c", "warning", "x")] * 2) == "2 warnings. Nothing has to be mended."
    assert summary([]) == "All is well."
