"""Standard streams that are closed, full, gone, or of an encoding without our letters: no traceback, and the exit code that was meant."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
from structlog import get_logger

from shardnet import log

ENTRY = [sys.executable, "-P", "-m", "shardnet"]


def shell(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs `script`, in which `"$@"` is the command."""
    return subprocess.run(
        ["sh", "-c", script, "sh", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=variables or None,
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_of_ours_becomes_a_standard_stream_that_was_closed(closed: str, tmp_path: Path) -> None:
    found = tmp_path / "found"
    script = (
        "from shardnet import standard_streams; standard_streams.prepare(); import os, sys; print('x'); print('y', file=sys.stderr); "
        "standard_streams.flush(); file = open(sys.argv[1], 'w'); file.write(str(file.fileno()))"
    )
    ended = shell(f'exec "$@" {closed}', sys.executable, "-c", script, str(found))
    assert (ended.returncode, "Traceback" in ended.stderr) == (0, False)
    assert int(found.read_text()) > 2


@pytest.mark.parametrize(
    ("redirected", "words", "code", "said"),
    [
        (">/dev/full", "--version", 6, "shardnet: a disk is full, that of standard output perhaps"),
        (">&-", "--version", 0, ""),
        ("2>/dev/full", "inspect /nowhere", 2, ""),
        ("2>&-", "inspect /nowhere", 2, ""),
    ],
)
def test_a_command_that_can_write_nothing_ends_with_its_own_code(
    redirected: str, words: str, code: int, said: str
) -> None:
    ended = shell(f'"$@" {redirected}', *ENTRY, *words.split())
    assert (ended.returncode, ended.stdout) == (code, "")
    assert ended.stderr.startswith(said)
    assert ended.stderr.count("\n") == bool(said)


def test_an_encoding_without_our_letters_gets_escapes(tmp_path: Path) -> None:
    made = shell('"$@"', *ENTRY, "swarm", "init", PYTHONIOENCODING="latin-1", SHARDNET_HOME=str(tmp_path))
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout.startswith("\\u2713 Made swarm")


def test_a_log_that_nobody_takes_ends_no_daemon() -> None:
    full = Path("/dev/full").open("w")  # noqa: SIM115 (closing it fails)
    log.configure(form="json", stream=full)
    try:
        get_logger().warning("something", part="test")
    finally:
        log.configure()
        with contextlib.suppress(OSError):
            full.close()
