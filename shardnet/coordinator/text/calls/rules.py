"""Rules of a grammar in Lark's syntax (llguidance's dialect). Marks that are control tokens are written as such (`<[7]>`), all else as text. Pure.

Source: llguidance's docs/syntax.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

ANYTHING = "/(?s:.*)/"


class Rules:
    """Collects the rules of one grammar.

    Args:
        control: control tokens by their texts.
    """

    def __init__(self, control: Mapping[str, int]) -> None:
        self._control = control
        self._lines: list[str] = []
        self._pattern = re.compile("|".join(re.escape(one) for one in sorted(control, key=len, reverse=True)) or "(?!)")

    def add(self, name: str, body: str, attributes: str = "") -> str:
        """Returns: the name of a new rule."""
        self._lines.append(f"{name}{attributes}: {body}")
        return name

    def text(self, text: str) -> str:
        """Returns: a text as the vocabulary has it; empty for none."""
        made, at = [], 0
        for found in self._pattern.finditer(text):
            made += [_quoted(text[at : found.start()]), f"<[{self._control[found[0]]}]>"]
            at = found.end()
        return " ".join(one for one in [*made, _quoted(text[at:])] if one)

    def up_to(self, name: str, end: str, body: str = ANYTHING) -> str:
        """Returns: the name of a new rule: anything, up to the first `end`, and that."""
        if self._pattern.search(end):
            return self.add(name, f"{body} {self.text(end)}")
        return self.add(name, body, f"[suffix={json.dumps(end, ensure_ascii=False)}]")

    def is_control(self, text: str) -> bool:
        """True if the text begins with a control token."""
        return self._pattern.match(text) is not None

    def written(self) -> str:
        """Returns: the grammar, without its first line."""
        return "\n".join(self._lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""
