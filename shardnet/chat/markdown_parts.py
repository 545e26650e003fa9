"""Where an answer that still comes may be cut: what stands before is finished and can be printed for good. Pure."""

from __future__ import annotations

FENCES = ("```", "~~~")


def finished(text: str) -> int:
    """Returns: how many characters of Markdown nothing that follows can change: up to the last empty line outside of a code block."""
    cut = at = 0
    fence = ""
    for line in text.splitlines(keepends=True):
        at += len(line)
        bare = line.strip()
        if not line.endswith("\n"):
            break  # it may go on
        if fence:
            if bare.startswith(fence) and not bare.strip(fence[0]):
                fence = ""
        elif bare.startswith(FENCES):
            fence = bare[: len(bare) - len(bare.lstrip(bare[0]))]
        elif not bare:
            cut = at
    return cut
