"""Chat templates: the model's own Jinja, in a sandbox, with a time limit, and with user text that cannot forge control tokens.

A template comes with the model, whose manifest is trusted; still it gets no attribute it should not see, no endless loop and no huge string.
Text of users that spells a control token (`<|im_end|>`) is put aside under a mark before rendering, and tokenized as plain text afterwards.
"""

from __future__ import annotations

import asyncio
import ctypes
import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shardnet.errors import DeadlineExceeded, UsageError

MAX_PRODUCT = 1 << 20
"""Longest sequence that `*` may make in a template."""

Part = tuple[str, bool]
"""`(text, may hold control tokens)`"""


class _TimeIsUp(BaseException):
    """Raised inside the rendering thread."""


class _Refused(Exception):
    """A template called `raise_exception`: the conversation is not one it takes."""


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Numbers may be multiplied; strings and lists only up to a bound."""
        if operator == "**":
            raise jinja2.exceptions.SecurityError("powers are not allowed in chat templates")
        for one, other in ((left, right), (right, left)):
            if (
                isinstance(one, str | bytes | list | tuple)
                and isinstance(other, int)
                and len(one) * other > MAX_PRODUCT
            ):
                raise jinja2.exceptions.SecurityError("a chat template multiplied a text beyond all measure")
        return super().call_binop(context, operator, left, right)


def _raise_exception(message: str) -> None:
    raise _Refused(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


class ChatTemplate:
    """One model's template, compiled.

    Args:
        special: matches the text of any control token.

    Raises: UsageError if the template is no Jinja.
    """

    def __init__(
        self, source: str, *, model: str, bos: str = "", eos: str = "", special: re.Pattern[str] | None = None
    ) -> None:
        self._model = model
        self._special = special
        environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        environment.globals |= {"bos_token": bos, "eos_token": eos}
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise UsageError(f"the chat template of {model} cannot be used: {error}; use /v1/completions") from error

    async def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        variables: Mapping[str, Any] | None = None,
        timeout_s: float = 2.0,
    ) -> list[Part]:
        """Render a conversation, up to where the model's answer begins.

        Returns: the text in parts, to be tokenized with and without control tokens.
        Raises: UsageError with the template's reason if it refuses the conversation; DeadlineExceeded if it takes too long.
        """
        aside = _Aside(self._special)
        context = {
            "add_generation_prompt": True,
            **(variables or {}),
            "messages": [aside.put(dict(one)) for one in messages],
        }
        rendering = _Rendering(self._template, context)
        task = asyncio.create_task(asyncio.to_thread(rendering.run))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # also when nobody waits any more
        try:
            async with asyncio.timeout(timeout_s):
                text = await asyncio.shield(task)
        except TimeoutError:
            rendering.interrupt()
            raise DeadlineExceeded(
                f"the chat template of {self._model} did not finish within {timeout_s:g} s; use /v1/completions"
            ) from None
        except _Refused as error:
            raise UsageError(f"the chat template of {self._model} refuses this conversation: {error}") from error
        except jinja2.TemplateError as error:
            raise UsageError(f"the chat template of {self._model} failed: {error}") from error
        except (TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            raise UsageError(f"the chat template of {self._model} cannot take these messages: {error}") from error
        finally:
            if not task.done():
                rendering.interrupt()
        return aside.split(text)


class _Rendering:
    """One rendering in a thread that can be stopped, as long as it runs Python."""

    def __init__(self, template: jinja2.Template, context: Mapping[str, Any]) -> None:
        self._template = template
        self._context = context
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._stopped = False

    def run(self) -> str:
        """Returns: the text."""
        with self._lock:
            if self._stopped:
                return ""
            self._thread = threading.get_ident()
        try:
            return self._template.render(self._context)
        except _TimeIsUp:
            return ""
        finally:
            try:
                with self._lock:
                    self._thread = None
            except _TimeIsUp:  # it came in the last moment
                self._thread = None

    def interrupt(self) -> None:
        """Stop it soon."""
        with self._lock:
            self._stopped = True
            if self._thread is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), ctypes.py_object(_TimeIsUp))


class _Aside:
    """Texts that spell control tokens, and the marks that stand for them while the template is rendered."""

    def __init__(self, special: re.Pattern[str] | None) -> None:
        self._special = special
        self._nonce = secrets.token_hex(8)
        self._texts: list[str] = []

    def put(self, value: Any) -> Any:
        """Returns: the value with marks in the place of control tokens, however deep they lie."""
        if isinstance(value, str):
            return self._special.sub(self._mark, value) if self._special else value
        if isinstance(value, Mapping):
            return {key: self.put(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.put(one) for one in value]
        return value

    def _mark(self, found: re.Match[str]) -> str:
        self._texts.append(found[0])
        return f"\ue000{self._nonce}:{len(self._texts) - 1}\ue001"

    def split(self, text: str) -> list[Part]:
        """Returns: the rendered text in parts."""
        parts: list[Part] = []
        for index, one in enumerate(re.split(f"\ue000{self._nonce}:([0-9]+)\ue001", text)):
            parts.append((self._texts[int(one)], False) if index % 2 else (one, True))
        return [part for part in parts if part[0]]
