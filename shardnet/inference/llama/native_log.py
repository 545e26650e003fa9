"""What llama.cpp says in its log and nowhere else: why it refused something, and how large its buffers are.

One log for the process, as in llama.cpp: whoever asks for something begins with `forget`, and looks at what was said afterwards.
"""

from __future__ import annotations

import ctypes
import re
from collections import deque
from typing import Any

import llama_cpp

GGML_LOG_LEVEL_ERROR = 4
BUFFER_LINE = re.compile(rb"([A-Za-z0-9_]+) +(model|KV|RS|compute|output) buffer size *= *([0-9.]+) MiB")

_last_errors: deque[str] = deque(maxlen=8)
_buffers: dict[str, int] = {}


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(level: int, text: bytes, _user_data: Any) -> None:
    if level == GGML_LOG_LEVEL_ERROR:
        _last_errors.append(text.decode(errors="replace").strip())
    elif b"buffer size" in text and (found := BUFFER_LINE.search(text)):
        key = f"{found[1].decode()} {found[2].decode()}"
        _buffers[key] = _buffers.get(key, 0) + round(float(found[3]) * (1 << 20))


def listen() -> None:
    """Take the log, which llama.cpp writes to stderr by default. Harmless when repeated."""
    llama_cpp.llama_log_set(_on_log, ctypes.c_void_p(0))


def forget() -> None:
    """What was said so far is about something else."""
    _last_errors.clear()
    _buffers.clear()


def why(default: str) -> str:
    """Returns: the first error since the last call, `default` if there was none."""
    reasons = [text for text in _last_errors if text]
    _last_errors.clear()
    return reasons[0] if reasons else default


def take_buffers() -> dict[str, int]:
    """Returns: bytes of the buffers made since the last call, by device and kind: `{"CPU KV": 1234, ...}`."""
    taken = dict(_buffers)
    _buffers.clear()
    return taken
