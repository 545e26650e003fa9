# ruff: noqa: E501
"""Answers as models of each format write them, and what they mean. Beside them small templates in the shape of each format."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from shardnet.coordinator.text.calls.answer import AnswerFormat, AnswerParser, Thinking
from shardnet.coordinator.text.calls.events import (
    CallArguments,
    CallBegun,
    CallBroken,
    CallDone,
    Content,
    Event,
    Reasoning,
)
from shardnet.coordinator.text.calls.known import GENERIC, KNOWN, THINKING

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["city"],
}
TOOLS = {"weather": WEATHER, "now": {"type": "object", "properties": {}}}
PARIS: dict[str, Any] = {"city": "Pa\"r'is <é>", "days": 2, "tags": ["a", "ö"]}
_JSON = json.dumps(PARIS, ensure_ascii=False)
_HTML = '<{0}invoke name="weather">\n<{0}parameter name="city">Pa"r\'is <é></{0}parameter>\n<{0}parameter name="days">2</{0}parameter>\n<{0}parameter name="tags">["a", "ö"]</{0}parameter>\n</{0}invoke>'
_FUNCTIONS = '<function=weather>\n<parameter=city>\nPa"r\'is <é>\n</parameter>\n<parameter=days>\n2\n</parameter>\n<parameter=tags>\n["a", "ö"]\n</parameter>\n</function>'
_PAIRS = 'weather\n<arg_key>city</arg_key>\n<arg_value>Pa"r\'is <é></arg_value>\n<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n<arg_key>tags</arg_key>\n<arg_value>["a", "ö"]</arg_value>\n'
_M = "]<]minimax[>["
_PART = "<\uff5ctool\u2581sep\uff5c>"
_CALL, _END = "<\uff5ctool\u2581call\u2581begin\uff5c>", "<\uff5ctool\u2581call\u2581end\uff5c>"
_CALLS, _CALLS_END = "<\uff5ctool\u2581calls\u2581begin\uff5c>", "<\uff5ctool\u2581calls\u2581end\uff5c>"

WRITTEN: dict[str, str] = {
    "hermes": f'<tool_call>\n{{"name": "weather", "arguments": {_JSON}}}\n</tool_call>\n<tool_call>\n{{"name": "now", "arguments": {{}}}}\n</tool_call>',
    "qwen3 coder": f"<tool_call>\n{_FUNCTIONS}\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
    "seed": f"<seed:tool_call>\n{_FUNCTIONS}\n</seed:tool_call>\n<seed:tool_call>\n<function=now>\n</function>\n</seed:tool_call>",
    "glm": f"<tool_call>{_PAIRS}</tool_call>\n<tool_call>now\n</tool_call>",
    "minimax m2": f'<minimax:tool_call>\n{_HTML.format("")}\n<invoke name="now">\n</invoke>\n</minimax:tool_call>',
    "minimax m3": f'{_M}<tool_call>\n{_M}<invoke name="weather">{_M}<city>Pa"r\'is <é>{_M}</city>{_M}<days>2{_M}</days>{_M}<tags>{_M}<item>a{_M}</item>{_M}<item>ö{_M}</item>{_M}</tags>{_M}</invoke>\n{_M}<invoke name="now">{_M}</invoke>\n{_M}</tool_call>',
    "kimi k3": '<|open|>tools<|sep|><|open|>call tool="weather" index="1"<|sep|>'
    '<|open|>argument key="city" type="string"<|sep|>Pa"r\'is <é><|close|>argument<|sep|>'
    '<|open|>argument key="days" type="number"<|sep|>2<|close|>argument<|sep|>'
    '<|open|>argument key="tags" type="array"<|sep|>["a", "ö"]<|close|>argument<|sep|><|close|>call<|sep|>'
    '<|open|>call tool="now" index="2"<|sep|><|close|>call<|sep|><|close|>tools<|sep|>',
    "muse": f'<atem:function_calls>\n{_HTML.format("atem:")}\n<atem:invoke name="now">\n</atem:invoke>\n</atem:function_calls>',
    "minicpm": '<function name="weather"><param name="city">Pa"r\'is <é></param><param name="days">2</param><param name="tags">["a", "ö"]</param></function>\n<function name="now"></function>',
    "llama": f'{{"name": "weather", "parameters": {_JSON}}}; {{"name": "now", "parameters": {{}}}}',
    "mistral": f"[TOOL_CALLS]weather[ARGS]{_JSON}[TOOL_CALLS]now[CALL_ID]abcdefghi[ARGS]{{}}",
    "mistral list": f'[TOOL_CALLS][{{"name": "weather", "arguments": {_JSON}, "id": "abcdefghi"}}, {{"name": "now", "arguments": {{}}}}]',
    "kimi": f"<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{_JSON}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{{}}<|tool_call_end|><|tool_calls_section_end|>",
    "deepseek v3.1": f"{_CALLS}{_CALL}weather{_PART}{_JSON}{_END}{_CALL}function{_PART}now\n```json\n{{}}\n```{_END}{_CALLS_END}",
    "deepseek dsml": "<\uff5cDSML\uff5cfunction_calls>\n"
    + _HTML.format("\uff5cDSML\uff5c")
    .replace('city">', 'city" string="true">')
    .replace('">2', '" string="false">2')
    .replace('">[', '" string="false">[')
    + '\n<\uff5cDSML\uff5cinvoke name="now">\n</\uff5cDSML\uff5cinvoke>\n</\uff5cDSML\uff5cfunction_calls>',
    "gemma": '<|tool_call>call:weather{city:<|"|>Pa"r\'is <é><|"|>,days:2,tags:[<|"|>a<|"|>,<|"|>ö<|"|>]}<tool_call|><|tool_call>call:now{}<tool_call|>',
    "python": "<|tool_call_start|>[weather(city='Pa\"r\\'is <é>', days=2, tags=['a', 'ö']), now()]<|tool_call_end|>",
    "solar": f"<|tool_calls|><|tool_call:begin|>id1<|tool_call:name|>weather<|tool_call:args|>{_JSON}<|tool_call:end|><|tool_call:begin|>id2<|tool_call:name|>now<|tool_call:args|>{{}}<|tool_call:end|>",
    "functionary": f"<function=weather>{_JSON}</function><function=now>{{}}</function>",
    "functionary 3.2": f">>>weather\n{_JSON}>>>now\n{{}}",
    "apertus": f'<|tools_prefix|>[{{"weather": {_JSON}}}, {{"now": {{}}}}]<|tools_suffix|>',
    "nemotron": f'<TOOLCALL>[{{"name": "weather", "arguments": {_JSON}}}, {{"name": "now", "arguments": {{}}}}]</TOOLCALL>',
    "command r": f'<|START_ACTION|>[\n    {{"tool_call_id": "0", "tool_name": "weather", "parameters": {_JSON}}},\n    {{"tool_call_id": "1", "tool_name": "now", "parameters": {{}}}}\n]<|END_ACTION|>',
    "granite 3": f'<|tool_call|>[{{"name": "weather", "arguments": {_JSON}}}, {{"name": "now"}}]',
    "lists": f'<tool_calls>\n{{"name": "weather", "arguments": {_JSON}}}\n{{"name": "now", "arguments": {{}}}}\n</tool_calls>',
    "generic": f'```json\n{{"name": "weather", "arguments": {_JSON}}}\n```',
    "harmony": f"<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{_JSON}<|call|><|start|>assistant to=functions.now<|channel|>commentary json<|message|>{{}}<|call|>",
}
"""A call of `weather` with PARIS, then mostly one of `now`."""
FORMATS = {one.name: AnswerFormat(one.name, one.calls, Thinking(THINKING[:1])) for one in (GENERIC, *KNOWN)} | {
    "harmony": AnswerFormat("harmony", harmony=True)
}
BEFORE = {name: "Let me see.\n\n" for name in WRITTEN if name not in ("llama", "generic", "harmony")} | {
    "harmony": "<|channel|>analysis<|message|>Hm, hm.<|end|><|start|>assistant<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant"
}
"""What the model said before."""


@dataclass
class Found:
    """An answer put together from its events."""

    content: str
    reasoning: str
    calls: list[tuple[str, str]]
    broken: list[str]
    names_told: int
    done: int

    @property
    def arguments(self) -> list[Any]:
        """What the calls were given."""
        return [json.loads(text) for _, text in self.calls]


def put_together(events: Iterable[Event]) -> Found:
    """Returns: what a client that reads all events has at the end."""
    found = Found("", "", [], [], 0, 0)
    for event in events:
        match event:
            case Content(text):
                found.content += text
            case Reasoning(text):
                found.reasoning += text
            case CallBegun(index, _, name):
                assert index == len(found.calls)
                found.calls.append((name, ""))
                found.names_told += 1
            case CallArguments(index, text):
                assert index == len(found.calls) - 1
                found.calls[index] = (found.calls[index][0], found.calls[index][1] + text)
            case CallDone():
                found.done += 1
            case CallBroken(_, text):
                found.broken.append(text)
    return found


def read(
    format: AnswerFormat,
    pieces: Sequence[str],
    *,
    tools: dict[str, Any] | None = TOOLS,
    thinks: bool = False,
    control: Sequence[str] = (),
) -> Found:
    """Returns: what a parser finds in an answer that comes in these pieces; those that are one of `control` are control tokens."""
    parser = AnswerParser(format, tools, thinks=thinks)
    events: list[Event] = []
    for piece in pieces:
        events += parser.push(piece, control=piece in control)
    return put_together([*events, *parser.end()])
