"""Jinja as chat templates use it: the dialect of the transformers library, in a sandbox, with the authors of every character kept.

A template comes with the model, whose manifest is trusted; still it gets no attribute it should not see and makes no huge string.
The compiler writes every string of the template's source as one by `TEMPLATE`; joining, filters and `format` keep the authors (see `provenance`).
Refuses to know messages and models.

Source: what transformers 5.24.0 gives its templates (`chat_template_utils`): `tojson` as plain JSON, `raise_exception`, `strftime_now`,
`{% generation %}`, loop controls, trimmed blocks. Beside that a list may be changed by the template that made it, since Kimi-K2's needs it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from types import BuiltinMethodType, MethodType
from typing import Any

import jinja2
import markupsafe
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace

from shardnet.coordinator.text.provenance import (
    TEMPLATE,
    Traced,
    TracedMarkup,
    authors_of,
    concat,
    sole_author,
    written_by,
)

MAX_PRODUCT = 1 << 20
"""Longest sequence that `*` may make in a template."""
MAX_INDENT = 64
"""Widest indent of `tojson`."""
_LIST_CHANGES = frozenset({"append", "extend", "insert", "pop"})


class RefusedByTemplate(Exception):
    """A template called `raise_exception`: the conversation is not one it takes."""


class _Generation(Extension):
    """`{% generation %}` marks for training what the assistant wrote. It changes nothing in the text; what is set inside stays inside."""

    tags = {"generation"}  # noqa: RUF012 - so it is in the base class

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Compiler(CodeGenerator):
    """Writes the strings of a template as names of traced ones, which the end of the module defines."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._names: dict[str, str] = {}

    def visit_Template(self, node: nodes.Template, frame: Frame | None = None) -> None:
        super().visit_Template(node, frame)
        for text, name in self._names.items():
            self.writeline(f"{name} = environment.own({text!r})")

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        self.write(self._written(node.as_const(frame.eval_ctx)))

    def visit_TemplateData(self, node: nodes.TemplateData, frame: Frame) -> None:
        self.write(self._written(node.data))

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return self._written("".join(group))

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat(map(str, (")
        for one in node.nodes:
            self.visit(one, frame)
            self.write(", ")
        self.write(")))")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
            self.write("environment.getitem(")  # a key is only looked up: nobody asks for its author
            self.visit(node.node, frame)
            self.write(f", {node.arg.value!r})")
        else:
            super().visit_Getitem(node, frame)

    def _written(self, value: Any) -> str:
        """Returns: a constant as Python source."""
        if isinstance(value, markupsafe.Markup):
            return f"environment.safe({self._written(str.__str__(value))})"
        if isinstance(value, str):
            return self._names.setdefault(str.__str__(value), f"own_{len(self._names)}")
        if isinstance(value, tuple):
            return "(" + "".join(self._written(one) + ", " for one in value) + ")"
        if isinstance(value, list):
            return "[" + ", ".join(map(self._written, value)) + "]"
        if isinstance(value, dict):
            return "{" + ", ".join(f"{self._written(key)}: {self._written(one)}" for key, one in value.items()) + "}"
        return repr(value)


class _TracedFormatter(SandboxedFormatter):
    """`str.format`, with the authors of what it joins. A format that a client wrote is the client's, all of it."""

    def traced(self, form: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        whole = self.vformat(form, args, kwargs)
        fields = list(_numbered(self.parse(form)))
        if authors_of(form) != TEMPLATE * len(form) or any(not _is_plain(field, rest) for _, field, rest in fields):
            return whole
        made: list[str] = []
        for before, field, rest in fields:
            made.append(written_by(TEMPLATE, before))
            if field is not None:
                value, _key = self.get_field(field, args, kwargs)
                made.append(
                    value if isinstance(value, str) and not rest else self.vformat("{0" + rest + "}", (value,), {})
                )
        return concat(made)


def _numbered(
    pieces: Iterable[tuple[str, str | None, str | None, str | None]],
) -> Iterator[tuple[str, str | None, str]]:
    """Yields: text, field (`{}` as a number) and the rest of the field."""
    count = 0
    for before, field, spec, conversion in pieces:
        if field == "":
            field, count = str(count), count + 1
        yield before, field, (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")


def _is_plain(field: str | None, rest: str) -> bool:
    return field is None or ((field.isdecimal() or field.isidentifier()) and "{" not in rest)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Compiles one chat template.

    Args:
        bos: the vocabulary's begin-of-text token as text; empty if it has none.
        eos: the same for the end.
    """

    code_generator_class = _Compiler
    intercepted_binops = frozenset({"*", "**"})
    concat = staticmethod(concat)

    def __init__(self, *, bos: str = "", eos: str = "") -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        self.globals |= {"bos_token": self.own(bos), "eos_token": self.own(eos)}
        self.filters |= {"tojson": _to_json, "join": _join, "safe": self.safe}

    @staticmethod
    def own(text: str) -> str:
        """Returns: the text as one of the template's."""
        return written_by(TEMPLATE, text)

    @staticmethod
    def safe(value: Any) -> TracedMarkup:
        """Returns: the value as text that needs no escapes."""
        text = str(value)
        return TracedMarkup(text, authors_of(text))

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

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Lists may be changed: every rendering has its own."""
        return (type(obj) is list and attr in _LIST_CHANGES) or super().is_safe_attribute(obj, attr, value)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """As in the sandbox; but what a template itself put into a namespace it gets at once, since long conversations ask very often."""
        if type(obj) is Namespace and attribute[:1] != "_":
            try:
                return getattr(obj, attribute)
            except AttributeError:
                return self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` and `str.format_map`, in the sandbox and with the authors of their pieces."""
        if not isinstance(value, MethodType | BuiltinMethodType) or value.__name__ not in ("format", "format_map"):
            return None
        form = value.__self__
        if not isinstance(form, str) or hasattr(form, "__html__"):
            return super().wrap_str_format(value)
        formatter = _TracedFormatter(self)
        if value.__name__ == "format":
            return lambda *args, **kwargs: formatter.traced(form, args, kwargs)
        return lambda mapping: formatter.traced(form, (), mapping)


def _raise_exception(message: Any) -> None:
    raise RefusedByTemplate(str.__str__(str(message)))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if (indent if isinstance(indent, int) else len(indent or "")) > MAX_INDENT:
        raise jinja2.exceptions.SecurityError("a chat template indents JSON beyond all measure")
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return written_by(sole_author(value), text)


@jinja2.pass_environment
def _join(environment: jinja2.Environment, values: Iterable[Any], between: str = "", attribute: Any = None) -> str:
    if attribute is not None:
        values = environment.call_filter("map", values, kwargs={"attribute": attribute})
    return Traced(between, authors_of(between)).join([str(one) for one in values])
