"""The pages of docs/: they make a site without a warning, every command in them is one that there is, and the protocol's table is the protocol."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from shardnet.cli import app
from shardnet.messages import AnyMessage
from shardnet.steps import NextStep, TaskResult

ROOT = Path(__file__).parents[2]
PAGES = sorted((*ROOT.glob("docs/**/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"))
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(shardnet [^`\n]*)`")
PATH = re.compile(r"[\w.-]+(/[\w.-]*)+|[\w-]+[\w.-]*\.(gguf|raw|toml)")
"""In this folder or below it."""


def written_in_blocks(page: Path) -> list[str]:
    """Returns: the commands of shardnet in a page's shell blocks, continuation lines joined."""
    lines = [
        line.split(" #")[0].strip()
        for block in BLOCK.findall(page.read_text(encoding="utf-8"))
        for line in block.replace("\\\n", " ").splitlines()
    ]
    found = [line.removeprefix(".venv/bin/").removesuffix("&").strip() for line in lines]
    return [line for line in found if line.startswith("shardnet ")]


def parse(line: str) -> None:
    """Have the command line parsed as it is, and nothing run. Raises: what the command line says of one that is wrong."""
    words = shlex.split(re.split(r" [|<>]+ ", line)[0])[1:]
    command: Any = typer.main.get_command(app)
    name = "shardnet"
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        name, *words = words
        command = command.commands[name]
    # What stands before any command (--show-completion) would be done at once.
    command.make_context(name, words, resilient_parsing=name == "shardnet")


COMMANDS = sorted({(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in written_in_blocks(page)})


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=str)
def test_a_command_of_a_page_is_one_that_there_is(
    page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where a path that a command needs may be made
    for word in shlex.split(line)[2:]:
        if PATH.fullmatch(word):
            (tmp_path / word).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / word).touch() if "." in word.rpartition("/")[2] else (tmp_path / word).mkdir(exist_ok=True)
    parse(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_command_that_a_sentence_names_is_there(page: Path) -> None:
    commands: Any = typer.main.get_command(app)
    for told in INLINE.findall(page.read_text(encoding="utf-8")):
        group = commands
        for word in told.split()[1:3]:
            if not hasattr(group, "commands") or not re.fullmatch("[a-z]+", word):
                break
            assert word in group.commands, f"{page.name}: `{told}`"
            group = group.commands[word]


def test_the_pages_make_a_site_without_a_warning_that_asks_nothing_of_other_hosts(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-n", "-W", "--keep-going", "-b", "html", ROOT / "docs", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    asked = re.compile(r"""(?:src=|<link[^>]* href=|url\()["']?https?:""")
    assert not [page for page in tmp_path.glob("**/*.html") if asked.search(page.read_text(encoding="utf-8"))]


def test_the_table_of_messages_is_the_protocol() -> None:
    compact = {NextStep: "NEXT_STEP", TaskResult: "TASK_RESULT"}
    there = {compact.get(kind) or kind.model_fields["type"].default for kind in get_args(AnyMessage)}
    told = re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "docs/protocol.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(told) == sorted(there)


def test_each_message_that_the_troubleshooting_page_explains_is_one_that_we_say() -> None:
    said = "".join(
        " ".join(re.findall(r'"((?:[^"\\]|\\.)*)"', path.read_text(encoding="utf-8")))
        for path in sorted(ROOT.glob("shardnet/**/*.py"))
    )
    rows = re.findall(r"^\| (`[^|]*`) \|", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    parts = [part.strip(" ,;") for row in rows for part in row.strip("`").split("…") if part.strip(" ,;")]
    assert len(parts) > 20
    assert not [part for part in parts if part not in said]
