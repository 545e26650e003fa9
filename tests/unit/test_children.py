"""What lies in the folder in which somebody starts shardnet is never run by its child processes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import shardnet
from shardnet.children import python_module
from shardnet.coordinator.structure import checking
from shardnet.inference.engine import spawning
from shardnet.inference.proof import perplexity, verify

COMMANDS = [
    checking.COMMAND,
    spawning.COMMAND,
    verify.COMMAND,
    perplexity.COMMAND,
]
LURE = """
from pathlib import Path
Path(__file__).with_suffix(".ran").touch()
raise SystemExit
"""


def test_modules_in_the_current_folder_are_not_imported_by_a_child(tmp_path: Path) -> None:
    lures = [tmp_path / "json.py", tmp_path / "numpy.py", tmp_path / "llama_cpp" / "__init__.py"]
    for lure in lures:
        lure.parent.mkdir(exist_ok=True)
        lure.write_text(LURE)
    subprocess.run(COMMANDS[0], cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)
    assert not [lure for lure in lures if lure.with_suffix(".ran").exists()]
    subprocess.run([sys.executable, "-m", "json"], cwd=tmp_path, check=True)
    assert lures[0].with_suffix(".ran").exists(), "the lure works where Python is asked as before"


def test_modules_in_the_current_folder_are_not_imported_by_python_m_shardnet(tmp_path: Path) -> None:
    for name in ("json", "typer", "typing", "structlog"):
        (tmp_path / f"{name}.py").write_text(LURE)
    command = [sys.executable, "-m", "shardnet", "--version"]
    asked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert asked.stdout.startswith("shardnet "), asked.stderr
    assert not list(tmp_path.glob("*.ran"))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[-1])
def test_every_child_is_started_so(command: tuple[str, ...]) -> None:
    assert command == python_module(command[-1])


def test_no_file_of_ours_starts_python_in_another_way() -> None:
    for path in Path(shardnet.__file__).parent.rglob("*.py"):
        if path.name != "children.py":
            assert not re.search(r"sys\.executable", path.read_text(encoding="utf-8")), (
                f"{path} starts Python by itself: use python_module"
            )
