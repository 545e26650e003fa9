"""The tables of docs/parameters.md, as rows that a test can go through."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs/parameters.md"
COLUMNS = {"chats": "/v1/chat/completions", "completions": "/v1/completions"}
COLUMNS |= {"responses": "/v1/responses", "input_tokens": "/v1/responses/input_tokens"}
COLUMNS |= {"messages": "/v1/messages", "count_tokens": "/v1/messages/count_tokens"}
OUTCOMES = ("honoured", "refused", "ignored")
_CELL = re.compile(r"`(?P<value>.*?)`(?: with `(?P<more>\{.*\})`)?")


@dataclass(frozen=True, slots=True)
class Row:
    """What one value of a field does at one endpoint.

    Attributes:
        more: further fields of the request.
        test: `file::function`, or empty.
    """

    endpoint: str
    field: str
    value: Any
    more: dict[str, Any]
    outcome: str
    test: str

    def __str__(self) -> str:
        return f"{self.endpoint} {self.field} = {json.dumps(self.value)[:60]}: {self.outcome}"


def rows() -> list[Row]:
    """Returns: all rows of the page, one for each endpoint that a line tells of."""
    found: list[Row] = []
    header: list[str] = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            header = []
            continue
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if not header:
            header = cells
        elif not set(line) <= set("|- "):
            found += _rows_of(dict(zip(header, cells, strict=True)))
    return found


def _rows_of(line: dict[str, str]) -> list[Row]:
    cell = _CELL.fullmatch(line["value"])
    assert cell is not None, line
    value, more = json.loads(cell["value"]), json.loads(cell["more"] or "{}")
    told = {path: line[column] for column, path in COLUMNS.items() if column in line}
    if not told:
        told = {line["endpoint"].strip("`"): line["outcome"]}
    field, test = line["field"].strip("`"), line["shown by"].strip("`")
    return [Row(endpoint, field, value, more, outcome, test) for endpoint, outcome in told.items()]
