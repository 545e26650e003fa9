"""The console entry point: what people see of an error."""

from __future__ import annotations

import errno

import pytest

from shardnet import __main__ as entry
from shardnet import cli, standard_streams
from shardnet.errors import RefusedError


@pytest.mark.parametrize(
    ("sentence", "told"),
    [
        ("tensor '\x1b[2Jhello\n\u202e' is bad", r"shardnet: tensor '\x1b[2Jhello\n\u202e' is bad"),
        ("ein Modell für 日本 is bad", "shardnet: ein Modell für 日本 is bad"),
    ],
)
def test_nothing_in_a_file_steers_the_terminal(
    sentence: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert error_told(sentence, monkeypatch, capsys) == f"{told}\n"


def test_a_name_without_end_is_shortened_in_the_middle(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = error_told(f"tensor {'a' * 1_000_000}: fetch it again", monkeypatch, capsys)
    assert len(told) < entry.LONGEST_SENTENCE + 100
    assert told.startswith("shardnet: tensor aaa")
    assert told.endswith("a: fetch it again\n")


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (OSError(errno.EMFILE, "Too many open files"), 2, "Too many open files: raise the limit (ulimit -n"),
        (PermissionError(errno.EACCES, "Permission denied", "/home/x/y"), 2, "/home/x/y: Permission denied"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x"),
            6,
            "a disk is full, that of standard output perhaps: /x",
        ),
    ],
    ids=str,
)
def test_what_the_system_refuses_is_one_sentence_in_a_daemons_task_too(
    error: OSError, code: int, told: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ExceptionGroup("tasks", [error])

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(standard_streams, "give_up_output", lambda: None)
    with pytest.raises(SystemExit) as leaving:
        entry.main()
    assert leaving.value.code == code
    assert capfd.readouterr().err.startswith(f"shardnet: {told}")


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(OSError, match="Invalid argument"):
        entry.main()


def error_told(sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Returns: what stands on standard error."""

    def fail() -> None:
        raise RefusedError(sentence)

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as leaving:
        entry.main()
    assert leaving.value.code == RefusedError.exit_code
    return capsys.readouterr().err
