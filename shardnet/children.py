"""How a child process of ours finds its code: where this process found it, and never in the folder that somebody happens to stand in.

`python -m` puts the current folder in front of all others: a `json.py` or a `llama_cpp/` there would run in place of the real one. With `-P` it does
not.
"""

from __future__ import annotations

import sys


def python_module(name: str) -> tuple[str, ...]:
    """Returns: the command that runs a module as this process's interpreter does. Source: `python --help`, -P (3.11)."""
    return (sys.executable, "-P", "-m", name)
