"""The grammar of an answer that must call, or of one whose calls must fit their schemas: in the model's own format, in Lark's syntax (llguidance's
dialect). Pure: how a JSON schema becomes a rule is given by who asks.

Formats that write values as Python or gemma do are held to JSON between the same marks, which their readers take as well.

Source: llguidance's docs/syntax.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping, Sequence
from typing import Any

from shardnet.coordinator.text.calls.answer import AnswerFormat, CallFormat
from shardnet.coordinator.text.calls.harmony import CHANNEL, CONSTRAIN, MESSAGE, START
from shardnet.coordinator.text.calls.json_calls import JsonCalls
from shardnet.coordinator.text.calls.named_calls import NamedCalls
from shardnet.coordinator.text.calls.nested_tags import NestedTags
from shardnet.coordinator.text.calls.rules import ANYTHING, Rules
from shardnet.coordinator.text.calls.tagged_calls import TaggedCalls
from shardnet.coordinator.text.calls.tagged_rules import ArgumentRules, JsonRule

NUMBER, ID = "/[0-9]{1,3}/", "/[A-Za-z0-9]{9}/"
_FENCE, _BEGINS_BARE = r"/```(json)?\n/", r"/\s*(\{|```(json)?\n)(?s:.*)/"
"""What `JsonCalls` takes for a call with no mark."""
MOST_CALLS = 8
"""In an answer that must call: small models that may call once more often do, over and over."""
STRUCTURE = "structure"
_MORE = f"{{0,{MOST_CALLS - 1}}}"
_SLOTS = re.compile("(NAME|NUMBER|ID)")


def calls_grammar(
    format: AnswerFormat,
    functions: Sequence[tuple[str, Mapping[str, Any]]],
    json_rule: JsonRule,
    control: Mapping[str, int],
    *,
    required: bool,
    parallel: bool,
    thinks: bool,
    strict: Container[str] = (),
    structure: str | None = None,
) -> str:
    """Write the grammar of an answer.

    Args:
        functions: that may be called, each with the schema of its arguments.
        json_rule: as `ArgumentRules` has it. May raise UsageError.
        control: the vocabulary's control tokens by their texts.
        required: the answer is calls; else it is text, in which every call is well-formed.
        thinks: the prompt ended within reasoning.
        strict: functions whose schema is enforced as a whole, or refused.
        structure: what an answer that does not call is, a grammar in Lark's syntax with its first line; None for any text.

    Raises: UsageError for a schema that the format cannot be held to.
    """
    rules = Rules(control)
    arguments = ArgumentRules(rules, json_rule, strict)
    if format.harmony:
        final = None if required else ANYTHING if structure is None else STRUCTURE
        bodies = [(name, arguments.json(name, schema)) for name, schema in functions]
        return _harmony(rules, bodies, final=final, thinks=thinks) + _as_rule(None if required else structure)
    assert format.calls is not None
    reasoning = _reasoning(rules, format, thinks)
    opened, calls = _calls(rules, format.calls, functions, arguments, parallel)
    rules.add("calls", calls)
    first = "calls" if format.opened == opened else _line(rules.text(opened), "calls")
    text_begins = rules.text(format.text_begins)
    if required:
        rules.add("start", f"{reasoning} {first}")
    elif structure is None:
        free = f"({_free(rules, format.calls, opened, parallel)})"
        rules.add("start", f"{reasoning} {f'({first} | {text_begins} {free})' if format.opened else free}")
    else:  # a structure begins at once, as without tools, unless the prompt has opened reasoning
        before, within = (reasoning, "") if thinks else ("", reasoning)
        rules.add("start", _line(before, f"({_line(within, first)} | {_line(text_begins, STRUCTURE)})"))
    return rules.written() + _as_rule(None if required else structure)


def _free(rules: Rules, calls: CallFormat, opened: str, parallel: bool) -> str:
    """Returns: text, in which whatever its reader would take for a call is one."""
    spelled = "".join(f" & ~/(?s:.*){_in_slashes(mark)}(?s:.*)/" for mark in calls.marks)
    bare, plain = "", ""
    if isinstance(calls, JsonCalls) and calls.bare:
        rules.add("bare", f'one | {_FENCE} one "\\n```"')
        bare, plain = "bare | ", f" & ~{_BEGINS_BARE}"
    rules.add("OTHER", f"{ANYTHING}{spelled}{plain}")
    if not opened:
        return f"{bare}OTHER"
    times = "*" if parallel else "?"
    if rules.is_control(opened):
        rules.add("BETWEEN", f"{ANYTHING}{spelled}")
        return f"{bare}OTHER ({rules.text(opened)} calls BETWEEN){times}"
    mark = _in_slashes(opened)
    others = "".join(f" & ~/(?s:.*){_in_slashes(one)}(?s:.*)/" for one in calls.marks if one != opened)
    rules.add("OPENING", f"/(?s:.*){mark}/ & ~/(?s:.*){mark}(?s:.+)/{others}{plain}")
    return f"{bare}(OPENING calls){times} OTHER"


def behind_reasoning(grammar: str, format: AnswerFormat, control: Mapping[str, int], *, thinks: bool = True) -> str:
    """Returns: a grammar in Lark's syntax, its first line included, that begins when the reasoning ends that the prompt opened; for Harmony, whose
    answers have channels, in the last one; behind what else a text begins with. Args: thinks: the prompt ended within reasoning."""
    rules = Rules(control)
    if format.harmony:
        written = _harmony(rules, (), final=STRUCTURE, thinks=thinks)
    else:
        reasoning = _reasoning(rules, format, thinks=True) if thinks else ""
        rules.add("start", _line(reasoning, rules.text(format.text_begins), STRUCTURE))
        written = rules.written()
    return grammar.partition("\n")[0] + "\n" + _as_rule(grammar) + written


def _as_rule(grammar: str | None) -> str:
    """Returns: a grammar without its first line, its `start` called STRUCTURE; nothing for none."""
    return re.sub(r"(?m)^start(?=\W)", STRUCTURE, (grammar or "").partition("\n")[2], count=1)


def _in_slashes(text: str) -> str:
    return re.escape(text).replace("/", r"\/").replace("\\\n", r"\n").replace("\n", r"\n")


def _reasoning(rules: Rules, format: AnswerFormat, thinks: bool) -> str:
    pairs = format.thinking.pairs
    if not pairs:
        return ""
    opened, close = pairs[0]
    rules.up_to("thoughts", close)
    rules.add("space", r"/[ \n]{0,4}/")
    if thinks:
        return "thoughts space"
    rules.add("reasoning", f"{rules.text(opened)} thoughts space")
    return "reasoning?"


def _calls(
    rules: Rules,
    calls: CallFormat,
    functions: Sequence[tuple[str, Mapping[str, Any]]],
    arguments: ArgumentRules,
    parallel: bool,
) -> tuple[str, str]:
    """Returns: what opens calls, and the right side of the rule for what follows it."""
    opened, close = next(iter(calls.marks.items()))
    match calls:
        case NamedCalls():
            bodies = [_named(rules, calls, name, arguments.json(name, schema)) for name, schema in functions]
            one = f"({' | '.join(bodies)})"
            if not calls.begin:
                return opened, f"{one} ({rules.text(opened)} {one}){_MORE}" if parallel else one
            begin = rules.text(calls.begin)
            return opened, f"{begin} {one} {f'({begin} {one}){_MORE}' if parallel else ''} {rules.text(close)}"
        case TaggedCalls():
            bodies = [_tagged(rules, calls, name, arguments.tagged(calls, name, schema)) for name, schema in functions]
            one = f"({' | '.join(bodies)})"
            line = rules.add("line", r"/\n?/")
            if not calls.begin:
                return opened, f"{one} ({line} {rules.text(opened)} {one}){_MORE}" if parallel else one
            begin = rules.text(calls.begin)
            more = f"({line} {begin} {one}){_MORE}" if parallel else ""
            return opened, f"{line} {begin} {one} {more} {line} {rules.text(close)}"
        case NestedTags():
            ends = rules.text('">'), rules.text(f"{calls.mark}</invoke>")
            bodies = [
                _line(rules.text(name), ends[0], arguments.tagged(calls, name, schema), ends[1])
                for name, schema in functions
            ]
            begin, line = rules.text(calls.begin), rules.add("line", r"/\n?/")
            one = f"{line} {begin} ({' | '.join(bodies)})"
            return opened, f"{one} {f'({one}){_MORE}' if parallel else ''} {line} {rules.text(close)}"
    written = calls if isinstance(calls, JsonCalls) else JsonCalls(dict(calls.marks))
    bodies = [_object(rules, written, name, arguments.json(name, schema)) for name, schema in functions]
    one = rules.add("one", " | ".join(bodies))
    if written.is_bare:
        return "", one
    before, behind = written.spelled
    if written.as_list:
        more = f'(", " {one}){_MORE}' if parallel else ""
        return opened, _line(rules.text("["), one, more, rules.text("]" + close))
    body = _line(rules.text(before), one, rules.text(behind + close))
    more = f"({_line(rules.text(written.between + opened), body)}){_MORE}" if parallel and close else ""
    return opened, _line(body, more)


def _line(*parts: str) -> str:
    return " ".join(one for one in parts if one)


def _object(rules: Rules, calls: JsonCalls, name: str, arguments: str) -> str:
    key = json.dumps(name)
    if calls.name_is_key:
        return _line(rules.text(f"{{{key}: "), arguments, '"}"')
    begun = f"{{{json.dumps(calls.name_key)}: {key}, {json.dumps(calls.arguments_key)}: "
    return _line(rules.text(begun), arguments, '"}"')


def _named(rules: Rules, calls: NamedCalls, name: str, arguments: str) -> str:
    slots = {"NAME": "", "NUMBER": NUMBER, "ID": ID}
    texts, made, held = _SLOTS.split(calls.written), list[str](), ""
    for one in texts:
        if one == "NAME":
            held += name
        elif one in slots:
            made += [rules.text(held), slots[one]]
            held = ""
        else:
            held += one
    return _line(*made, rules.text(held), arguments, rules.text(calls.written_end))


def _tagged(rules: Rules, calls: TaggedCalls, name: str, arguments: str) -> str:
    name_end = "" if calls.name_ends[0] == "\n" else calls.name_ends[0]
    number = _line(NUMBER, rules.text(calls.head_end)) if calls.head_end else ""
    return _line(rules.text(name + name_end), number, "/\\n?/", arguments, rules.text(calls.end))


def _harmony(
    rules: Rules,
    functions: Sequence[tuple[str, str]],
    *,
    final: str | None,
    thinks: bool,
) -> str:
    """One call at the end of an answer; its `<|call|>` is an end-of-text token, which is permitted behind any whole text.

    Args:
        functions: each with the rule of its arguments.
        final: what may come in its place; None for nothing.
    """
    bodies = [
        _line(rules.text(f"{CHANNEL}commentary to=functions.{name} {CONSTRAIN}json{MESSAGE}"), arguments)
        for name, arguments in functions
    ]
    rules.up_to("thoughts", f"<|end|>{START}assistant")
    analysis = rules.text(f"{CHANNEL}analysis{MESSAGE}")
    if final is not None:
        bodies.append(_line(rules.text(f"{CHANNEL}final{MESSAGE}"), final))
    one = f"({' | '.join(bodies)})"
    rules.add("start", f"thoughts {one}" if thinks else f"({analysis} thoughts)? {one}")
    return rules.written()
