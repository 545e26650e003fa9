"""Fixtures that every kind of test shares."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import structlog

from shardnet.demo.model import find_demo_model

# A shell that starts the tests in the background has Ctrl-C ignored, which every process of ours would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct Q4_1, 98 MB, out of the wheel that `make test` installs. The package itself is never imported."""
    return find_demo_model()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of its own for every test, also for the processes it starts."""
    folder = tmp_path / "home"
    monkeypatch.setenv("SHARDNET_HOME", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _no_process_left() -> Iterator[None]:
    """A test that leaves a child process behind fails, and the process is ended."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    left = [child for child in left if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    names = [f"{child.pid} {' '.join(child.cmdline())[:120]}" for child in left]
    for child in left:
        child.kill()
    assert not left, f"processes left behind: {names}"


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A command that a test runs in this process sets up logging on the stream it was given, which is closed when the test ends."""
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _ignore_the_users_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the person who runs the tests must not change them."""
    for name in list(os.environ):
        if name.startswith("SHARDNET_"):
            monkeypatch.delenv(name)
