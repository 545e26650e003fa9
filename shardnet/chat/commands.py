"""What a line that begins with a slash asks for. Pure: a line in, a command out."""

from __future__ import annotations

import difflib
import json
import textwrap
from dataclasses import dataclass
from typing import Any

from shardnet.errors import UsageError


@dataclass(frozen=True, slots=True)
class Command:
    """One of `HELP`'s names, and what stands behind it."""

    name: str
    argument: str = ""


HELP = {
    "help": ("", "this list"),
    "model": ("[NAME]", "ask another model; alone: which ones there are"),
    "system": ("[TEXT]", "the system message; alone: show it; -: none"),
    "tools": ("[FILE]", "tools for the model out of a JSON file; alone: show them; -: none"),
    "set": (
        "[NAME VALUE]",
        "temperature, top_p, max_tokens, seed, ...: a field of the API; alone: show them; VALUE -: as the server has it",
    ),
    "retry": ("", "answer again"),
    "edit": ("", "take back what you said last, and change it"),
    "undo": ("", "take back what you said last"),
    "thoughts": ("", "what the model thought before its last answer"),
    "new": ("", "forget what was said; model, system message and tools stay"),
    "save": ("FILE", "keep the conversation: FILE.json to load again, FILE.md to read"),
    "load": ("FILE", "go on with a conversation"),
    "status": ("", "which nodes there are, and what they hold"),
    "quit": ("", "leave; so does Ctrl-D"),
}
ALIASES = {
    "exit": "quit",
    "bye": "quit",
    "q": "quit",
    "?": "help",
    "h": "help",
    "clear": "new",
    "reset": "new",
    "models": "model",
    "regenerate": "retry",
}
NEED_FILE = ("save", "load")
WITHOUT_ARGUMENT = ("help", "retry", "edit", "undo", "thoughts", "new", "status", "quit")


def parse(line: str) -> Command | None:
    """Returns: what a line asks for; None where it is something to say. A line that shall begin with a slash is written with two.

    Raises: UsageError for a command that there is not, with the one that may be meant.
    """
    if not line.startswith("/") or line.startswith("//"):
        return None
    word, _, argument = line[1:].strip().partition(" ")
    name, argument = ALIASES.get(word.lower(), word.lower()), argument.strip()
    if name not in HELP:
        near = difflib.get_close_matches(name, HELP, 1)
        meant = f", is /{near[0]} meant?" if near else ""
        raise UsageError(f"there is no /{word}{meant or ': /help lists what there is'}")
    if name in NEED_FILE and not argument:
        raise UsageError(f"/{name} wants a file: /{name} talk.json")
    if name in WITHOUT_ARGUMENT and argument:
        raise UsageError(f"/{name} takes nothing behind it")
    return Command(name, argument)


def said(line: str) -> str:
    """Returns: what is said by a line that is no command."""
    return line[1:] if line.startswith("//") else line


def help_lines(columns: int) -> list[str]:
    """Returns: every command, in lines of at most so many characters."""
    heads = {name: f"/{name} {argument}".rstrip() for name, (argument, _) in HELP.items()}
    width = max(map(len, heads.values()))
    shown = []
    for name, (_, text) in HELP.items():
        shown += textwrap.wrap(
            text, columns, initial_indent=f"{heads[name]:<{width}}  ", subsequent_indent=" " * (width + 2)
        )
    shown.append("")
    for text in (
        'A line that ends with \\ goes on in the next one; """ begins and ends a text of several lines.',
        "Ctrl-C breaks an answer off; what came of it stays.",
    ):
        shown += textwrap.wrap(text, columns)
    return shown


def option(argument: str) -> tuple[str, Any]:
    """Returns: name and value of `/set NAME VALUE`; None as the value takes it back. Raises: UsageError."""
    name, _, text = argument.replace("=", " ", 1).partition(" ")
    text = text.strip()
    if not name.isidentifier() or not text:
        raise UsageError("write /set NAME VALUE, as in /set temperature 0.2")
    if name in ("messages", "model", "stream", "tools", "n"):
        raise UsageError(f"{name} is not set so: /help lists what there is")
    if text == "-":
        return name, None
    try:
        return name, json.loads(text)
    except ValueError:
        return name, text
