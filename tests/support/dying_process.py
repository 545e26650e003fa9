"""A process of shardnet that a signal ends while it loads a certain file.

`python dying_process.py MODULE [ARGUMENTS]` in place of `python -m MODULE`. Everything in it is real but for one thing: a model beside which `mortal`
has laid a note is not loaded. The process says its last words on stderr and sends itself the signal that the note names. The files stay valid, and
llama.cpp is asked for nothing that it does not support.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

from shardnet.inference.llama import model

LAST_WORDS = "fatal error: ended while it loaded"


def command(module: str) -> tuple[str, ...]:
    """Returns: what to start in place of `python -m MODULE`."""
    return sys.executable, __file__, module


def mortal(path: Path, number: signal.Signals) -> None:
    """From now on, loading `path` ends the process that does it, if this module stands in for it."""
    _note(path).write_text(str(int(number)), encoding="utf-8")


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.ends-with")


class _Mortal(model.LlamaModel):
    def __init__(self, path: Path, **options: Any) -> None:
        note = _note(path)
        if note.exists():
            sys.stderr.write(f"{LAST_WORDS} {path.name}\n")
            sys.stderr.flush()
            os.kill(os.getpid(), int(note.read_text(encoding="utf-8")))
        super().__init__(path, **options)


if __name__ == "__main__":
    model.LlamaModel = _Mortal  # type: ignore[misc]  # before the modules that take it from there
    sys.argv = sys.argv[1:]
    sys.path.pop(0)
    runpy.run_module(sys.argv[0], run_name="__main__")
