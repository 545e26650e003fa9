"""Fixtures that every kind of test shares."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import structlog
from hypothesis import HealthCheck, settings

from shardnet.inference.splitting.cutting import CutRequest, plan_split, split_model
from shardnet.local.model import find_demo_model

SplitSmolLM2 = Callable[[int], tuple[Path, Path]]
"""`(number of shards)` -> the models cache that has them, and their folder in it."""

# A shell that starts the tests in the background has Ctrl-C ignored, which every process of ours would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example may take is not held against it: a busy machine holds up any of them.
settings.register_profile("shardnet", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shardnet")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct Q4_1, 98 MB, out of the wheel that `make test` installs. The package itself is never imported."""
    return find_demo_model()


@pytest.fixture(scope="session")
def split_smollm2(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> SplitSmolLM2:
    """SmolLM2 in so many shards, called `smollm2`, cut when it is first asked for. Not to be written to."""

    @functools.cache
    def split(n_shards: int) -> tuple[Path, Path]:
        cache = tmp_path_factory.mktemp(f"smollm2-{n_shards}")
        folder, _ = split_model(plan_split(smollm2, CutRequest(n_shards=n_shards), "smollm2"), cache)
        return cache, folder

    return split


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
    left = [child for child in left if not _is_of(child, before)]
    names = [f"{child.pid} {' '.join(child.cmdline())[:120]}" for child in left]
    for child in left:
        child.kill()
    assert not left, f"processes left behind: {names}"


def _is_of(child: psutil.Process, before: set[int]) -> bool:
    """True if a process that was there before the test has it: a browser that a file's tests share, say, which ends with them."""
    try:
        return any(parent.pid in before for parent in child.parents())
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A command that a test runs in this process sets up logging on the stream it was given, which is closed when the test ends."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session", autouse=True)
def _ignore_the_users_environment() -> Iterator[None]:
    """Settings of the person who runs the tests must not change them."""
    with pytest.MonkeyPatch.context() as environment:
        for name in list(os.environ):
            if name.startswith("SHARDNET_"):
                environment.delenv(name)
        yield
