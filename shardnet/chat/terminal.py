"""The terminal: lines with history and editing in, Markdown out while it comes. Nothing that a model says steers it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text

from shardnet import errors
from shardnet.chat.conversation import Reply
from shardnet.chat.markdown_parts import finished

QUOTES = '"""'
MAX_HISTORY = 1_000
REASONING_LINES = 6
"""So many of the last lines of a model's reasoning are shown while it thinks."""


def printable(text: str) -> str:
    """Returns: a text in which every character that could steer a terminal is spelled out; line ends and tabs stay."""
    return errors.printable(text, keep="\n\t")


class Lines:
    """What is typed, with the history of earlier times and the keys of readline where Python has it. A context manager."""

    def __init__(self, history: Path) -> None:
        self._path = history
        try:
            import readline
        except ImportError:  # a Python built without it: lines without history
            self._readline = None
        else:
            self._readline = readline

    def __enter__(self) -> Self:
        if self._readline is not None:
            self._readline.set_history_length(MAX_HISTORY)
            with suppress(OSError):  # the first time, or a folder that cannot be read
                self._readline.read_history_file(self._path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._readline is not None:
            with suppress(OSError):  # a read-only home: this time's lines are not remembered
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._path.touch(mode=0o600)
                self._readline.write_history_file(self._path)

    def read(self, prompt: str, prefill: str = "") -> str:
        """Returns: one line, or several that were joined by a backslash or stood in triple quotes. Raises: EOFError, KeyboardInterrupt."""
        text = self._line(prompt, prefill)
        if text.strip().startswith(QUOTES):
            parts = [text.strip().removeprefix(QUOTES)]
            while not parts[-1].rstrip().endswith(QUOTES):
                parts.append(self._line("... "))
            parts[-1] = parts[-1].rstrip().removesuffix(QUOTES)
            return "\n".join(parts).strip("\n")
        while text.endswith("\\"):
            text = text[:-1] + "\n" + self._line("... ")
        return text

    def _line(self, prompt: str, prefill: str = "") -> str:
        if self._readline is None or not prefill:
            return input(prompt)
        readline = self._readline
        readline.set_startup_hook(lambda: readline.insert_text(prefill.replace("\n", " ")))
        try:
            return input(prompt)
        finally:
            readline.set_startup_hook(None)


class Screen:
    """Where answers are shown: Markdown on a terminal, the text as it comes elsewhere or with `is_plain`."""

    def __init__(self, *, is_plain: bool = False) -> None:
        self._out = Console(highlight=False, soft_wrap=is_plain)
        self._is_plain = is_plain or not self._out.is_terminal

    def say(self, text: str) -> None:
        """Show a line of ours."""
        self._out.print(Text(printable(text), style="dim"), soft_wrap=True)

    def complain(self, text: str) -> None:
        """Show what went wrong."""
        self._out.print(Text(printable(text), style="bold red"), soft_wrap=True)

    @contextmanager
    def answering(self, reply: Reply) -> Iterator[Callable[[], None]]:
        """Yield a function to call each time that more of the reply is there."""
        if self._is_plain:
            shown = 0

            def write() -> None:
                nonlocal shown
                text = reply.content[shown:]
                shown = len(reply.content)
                sys.stdout.write(printable(text) if self._out.is_terminal else text)
                sys.stdout.flush()

            yield write
            sys.stdout.write("\n" if reply.content else "")
            return
        printed = 0
        with Live(Text("…", style="dim"), console=self._out, transient=True, vertical_overflow="ellipsis") as live:

            def show() -> None:
                nonlocal printed
                if end := finished(reply.content[printed:]):
                    self._out.print(Markdown(printable(reply.content[printed : printed + end])))
                    printed += end
                live.update(_unfinished(reply, printed))

            try:
                yield show
            finally:
                live.update(Text(""))
        if rest := reply.content[printed:].strip("\n"):
            self._out.print(Markdown(printable(rest)))
        if reply.reasoning:
            self.say(f"(thought for {len(reply.reasoning.split())} words; /thoughts shows them)")
        for call in reply.calls:
            self.say(f"⚙ {call['function']['name']}({call['function']['arguments']})")


def _unfinished(reply: Reply, printed: int) -> RenderableType:
    """Returns: what of a reply may still change."""
    if not reply.content and not reply.calls:
        last = "\n".join(reply.reasoning.splitlines()[-REASONING_LINES:])
        return Text(printable(last) or "…", style="dim italic")
    calls = [
        Text(printable(f"⚙ {one['function']['name']}({one['function']['arguments']}"), "dim") for one in reply.calls
    ]
    return Group(Markdown(printable(reply.content[printed:])), *calls)
