"""`shardnet logs`: the lines of all daemons of the swarm, in one stream."""

from __future__ import annotations

import json
import re
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardnet.cli.options import Api

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta")
LEVEL_COLOURS = {"warning": "yellow", "error": "red", "critical": "red"}
LINES = 100


def logs(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    node: Annotated[
        list[str] | None,
        typer.Option(help="Only this daemon, by name or by the beginning of its id; may be given several times."),
    ] = None,
    level: Annotated[str, typer.Option(metavar="LEVEL", help="debug, info, warning or error, and above.")] = "debug",
    since: Annotated[str | None, typer.Option(metavar="TIME", help="Only lines of the last 90s, 10m, 2h, 1d.")] = None,
    grep: Annotated[str | None, typer.Option(metavar="REGEX", help="Only lines in which this is found.")] = None,
    lines: Annotated[
        int | None,
        typer.Option("--lines", "-n", min=0, help="The newest so many. [default: 100; all with --since or --grep]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line, for programs.")] = False,
    api: Api = None,
) -> None:
    """Show the log lines of all daemons in one stream, by time.

    Prompts and answers are in no log.
    """
    from shardnet.coordinator.api.client import ApiClient, find_api

    pattern = _pattern(grep)
    params: dict[str, Any] = {"level": level, "node": node or [], "follow": follow}
    if since is not None:
        params["since_s"] = seconds(since)
    if lines is not None or (since is None and grep is None):
        params["lines"] = LINES if lines is None else lines
    shown = _as_json if as_json else Painter(is_terminal=sys.stdout.isatty()).line
    try:
        with ApiClient(find_api(api)) as client:
            show(client.follow("/logs", params), pattern, shown)
    except KeyboardInterrupt:
        if not follow:
            raise


def show(
    entries: Iterable[dict[str, Any]], pattern: re.Pattern[str] | None, shown: Callable[[dict[str, Any]], str]
) -> None:
    """Print lines as they come. Notes on the logs themselves are always told."""
    for entry in entries:
        if pattern is None or entry["note"] or pattern.search(entry["text"]):
            typer.echo(shown(entry))
            sys.stdout.flush()


def _pattern(grep: str | None) -> re.Pattern[str] | None:
    """Raises: UsageError for what is no regular expression."""
    from shardnet.errors import UsageError

    if grep is None:
        return None
    try:
        return re.compile(grep)
    except re.error as error:
        raise UsageError(f"--grep {grep!r} is no regular expression: {error}") from None


def seconds(text: str) -> float:
    """Returns: 600 of `10m`. Raises: UsageError."""
    from shardnet.errors import UsageError

    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smhd]?)", text.strip())
    if found is None:
        raise UsageError(f"--since {text!r} is no time: write 90s, 10m, 2h or 1d")
    return float(found[1]) * UNITS_S[found[2] or "s"]


def _as_json(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False)


class Painter:
    """Words lines for people. On a terminal each daemon has a colour of its own, as long as there are enough."""

    def __init__(self, *, is_terminal: bool) -> None:
        self._is_terminal = is_terminal
        self._colours: dict[str, str] = {}
        self._width = 0

    def line(self, entry: dict[str, Any]) -> str:
        """Returns: `12:00:01 node-0       [TASK] ...`; nothing in it steers the terminal."""
        from shardnet.errors import printable

        name, text = printable(entry["node"]), printable(entry["text"], keep="\n")
        self._width = max(self._width, len(name))
        when = _clock(entry["at_s"])
        if entry["note"]:
            text = f"-- {text}"
        if self._is_terminal:
            colour = self._colours.setdefault(entry["node_id"], COLOURS[len(self._colours) % len(COLOURS)])
            painted = typer.style(f"{name:<{self._width}}", fg=colour)
            text = (
                typer.style(text, fg=LEVEL_COLOURS.get(entry["level"]))
                if not entry["note"]
                else typer.style(text, dim=True)
            )
            return f"{when} {painted} {text}"
        return f"{when} {name:<{self._width}} {text}"


def _clock(at_s: float) -> str:
    """Returns: the time of day here, with the date where that is another one."""
    then, now = time.localtime(at_s), time.localtime()
    return time.strftime("%H:%M:%S" if then[:3] == now[:3] else "%Y-%m-%d %H:%M:%S", then)
