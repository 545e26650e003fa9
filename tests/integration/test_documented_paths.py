"""The pages that a newcomer follows, followed to the letter: in terminals, with a real model, on machines that are network namespaces."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.documented_paths import Reader, steps_of
from tests.support.namespaces import lan

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

DOCS = Path(__file__).parents[2] / "docs"
VENV = Path(sys.prefix)


@contextmanager
def reader_on(folder: Path, names: tuple[str, ...]) -> Iterator[Reader]:
    """Yield somebody at these machines, which know one another by name, with a clone of shardnet on each."""
    with lan() as net:
        machines = {name: net.add(number + 2) for number, name in enumerate(names)}
        hosts = folder / "hosts"
        known = [f"{machine.address} {name}" for name, machine in machines.items()]
        hosts.write_text("\n".join(("127.0.0.1 localhost", "::1 localhost", *known, "")))
        named = f'mount --bind {hosts} /etc/hosts && hostname "$1" && shift && exec "$@"'
        prefixes, folders = {}, {}
        for name, machine in machines.items():
            prefixes[name] = (*machine.prefix, "unshare", "-mu", "bash", "-c", named, "bash", name or "here")
            folders[name] = folder / (name or "here")
            folders[name].mkdir()
            (folders[name] / ".venv").symlink_to(VENV)
        reader = Reader(prefixes, folders, f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}")
        try:
            yield reader
        finally:
            reader.close()


@pytest.mark.usefixtures("smollm2")
def test_one_machine_in_five_minutes(tmp_path: Path) -> None:
    steps = [step for step in steps_of(DOCS / "one-machine.md") if step.section != "Install"]
    assert len(steps) == 9
    with reader_on(tmp_path, ("",)) as reader:
        answers = [one.printed for one in reader.follow(steps) if "generate" in one.step.commands]
        assert len(answers[0].split()) > 5
        assert reader.leave() == [130] * 4  # each by Ctrl-C, drained


@pytest.mark.usefixtures("smollm2")
def test_three_machines_in_ten_minutes(tmp_path: Path) -> None:
    steps = steps_of(DOCS / "three-machines.md")
    assert {step.machine for step in steps} == {"alpha", "beta", "gamma"}
    with reader_on(tmp_path, ("alpha", "beta", "gamma")) as reader:
        (status,) = [one.printed for one in reader.follow(steps) if one.step.commands == "shardnet status"]
        assert "through the coordinator" not in status
        assert (tmp_path / "gamma/models_cache/shards").exists(), "nothing was fetched"
        assert reader.leave() == [130] * 4  # each by Ctrl-C, drained
