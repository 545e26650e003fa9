"""The formats that are known, each with the marks that tell it. Data.

Source: the chat templates of the named models, as llama.cpp collects them (`models/templates`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from shardnet.coordinator.text.calls.answer import CallFormat
from shardnet.coordinator.text.calls.gemma_calls import GemmaCalls
from shardnet.coordinator.text.calls.json_calls import JsonCalls
from shardnet.coordinator.text.calls.named_calls import NamedCalls
from shardnet.coordinator.text.calls.nested_tags import NestedTags
from shardnet.coordinator.text.calls.python_calls import PythonCalls
from shardnet.coordinator.text.calls.tagged_calls import TaggedCalls

FENCED = {"{": "", "```json\n": "```", "```\n": "```"}
"""What small models write in the place of marks, at the very beginning of an answer."""


@dataclass(frozen=True, slots=True)
class Known:
    """A format and what tells it.

    Attributes:
        evidence: all of it stands in the template's own words.
        thinking, wraps: of a format that puts its marks together, so that a template does not spell them out.
        opened, text_begins: see `AnswerFormat`.
    """

    name: str
    calls: CallFormat
    evidence: tuple[str, ...]
    thinking: tuple[tuple[str, str], ...] = ()
    wraps: tuple[str, ...] = ()
    opened: str = ""
    text_begins: str = ""


def _tagged_like_html(begin: str, end: str, tag: str = "") -> TaggedCalls:
    """`<invoke name="f"><parameter name="k">v</parameter></invoke>` within a section."""
    return TaggedCalls(
        marks={begin: end},
        begin=f'<{tag}invoke name="',
        name_ends=('">',),
        key=f'<{tag}parameter name="',
        key_ends={'">': None, '" string="true">': True, '" string="false">': False}
        if tag.startswith("\uff5c")
        else {'">': None},
        value_end=f"</{tag}parameter>",
        end=f"</{tag}invoke>",
    )


def _tagged_like_functions(begin: str, end: str) -> TaggedCalls:
    """`<function=f><parameter=k>v</parameter></function>` within a section."""
    return TaggedCalls(
        marks={begin: end},
        begin="<function=",
        name_ends=(">",),
        key="<parameter=",
        key_ends={">": None},
        value_end="</parameter>",
        end="</function>",
        written=("\n", "\n"),
    )


def _tagged_by_pairs(suffix: str = "", section: tuple[str, str] | None = None, name_end: str = "\n") -> TaggedCalls:
    """`<tool_call>f<arg_key>k</arg_key><arg_value>v</arg_value></tool_call>`."""
    call, key = f"<tool_call{suffix}>", f"<arg_key{suffix}>"
    end = f"</tool_call{suffix}>"
    return TaggedCalls(
        marks={call: ""} if section is None else {section[0]: section[1]},
        begin="" if section is None else call,
        name_ends=(name_end, key, end) if name_end == "\n" else (name_end,),
        key=key,
        key_ends={f"</arg_key{suffix}>": None},
        value_begin=f"<arg_value{suffix}>",
        value_end=f"</arg_value{suffix}>",
        end=end,
    )


def _xtml(tag: str) -> tuple[str, str]:
    """Kimi-K3's tags, which its template puts together."""
    return f"<|open|>{tag}<|sep|>", f"<|close|>{tag}<|sep|>"


HERMES = JsonCalls({"<tool_call>": "</tool_call>"}, FENCED, spelled=("\n", "\n"), between="\n")
LLAMA = JsonCalls({"<|python_tag|>": ""}, FENCED, arguments_key="parameters", is_bare=True)
_MINIMAX = "]<]minimax[>["
_KINDS = ("string", "number", "boolean", "null", "object", "array")
DSML = "\uff5cDSML\uff5c"
_DEEPSEEK = {"<\uff5ctool\u2581calls\u2581begin\uff5c>": "<\uff5ctool\u2581calls\u2581end\uff5c>"}
_DEEPSEEK_CALL, _DEEPSEEK_END = "<\uff5ctool\u2581call\u2581begin\uff5c>", "<\uff5ctool\u2581call\u2581end\uff5c>"
_DEEPSEEK_PART = "<\uff5ctool\u2581sep\uff5c>"
_KIMI = {"<|tool_calls_section_begin|>": "<|tool_calls_section_end|>"}
_APERTUS = JsonCalls({"<|tools_prefix|>": "<|tools_suffix|>"}, as_list=True, name_is_key=True)

KNOWN: tuple[Known, ...] = (
    Known("gemma", GemmaCalls({"<|tool_call>": "<tool_call|>"}), ("<|tool_call>", "<tool_call|>")),
    Known(
        "kimi",
        NamedCalls(
            marks=_KIMI,
            begin="<|tool_call_begin|>",
            first="id",
            words={"id": {"<|tool_call_argument_begin|>": "arguments"}},
            end=("<|tool_call_end|>",),
            written="functions.NAME:NUMBER<|tool_call_argument_begin|>",
            written_end="<|tool_call_end|>",
        ),
        ("<|tool_calls_section_begin|>",),
    ),
    Known(
        "kimi k3",
        TaggedCalls(
            marks=dict([_xtml("tools")]),
            begin='<|open|>call tool="',
            name_ends=('" index="',),
            head_end='"<|sep|>',
            key='<|open|>argument key="',
            key_ends={f'" type="{kind}"<|sep|>': kind == "string" for kind in _KINDS},
            value_end=_xtml("argument")[1],
            end=_xtml("call")[1],
            escapes=True,
        ),
        ("<|open|>", "<|sep|>", "<|close|>", "argument"),
        thinking=(_xtml("think"),),
        wraps=(*_xtml("response"), _xtml("message")[1]),
        text_begins=_xtml("response")[0],
    ),
    Known(
        "deepseek v3.1",
        NamedCalls(
            marks=_DEEPSEEK,
            begin=_DEEPSEEK_CALL,
            words={"name": {_DEEPSEEK_PART: "arguments"}, "old": {"\n```json\n": "arguments"}},
            end=("```", _DEEPSEEK_END),
            written=f"NAME{_DEEPSEEK_PART}",
            written_end=_DEEPSEEK_END,
        ),
        (*_DEEPSEEK, _DEEPSEEK_PART),
    ),
    Known(
        "deepseek dsml",
        _tagged_like_html(f"<{DSML}function_calls>", f"</{DSML}function_calls>", DSML),
        (f"<{DSML}function_calls>",),
    ),
    Known("deepseek dsml 4", _tagged_like_html(f"<{DSML}tool_calls>", f"</{DSML}tool_calls>", DSML), (DSML,)),
    Known(
        "minimax m3",
        NestedTags({f"{_MINIMAX}<tool_call>": f"{_MINIMAX}</tool_call>"}, _MINIMAX),
        (_MINIMAX, "<tool_call>", "<invoke name="),
    ),
    Known("minimax m2", _tagged_like_html("<minimax:tool_call>", "</minimax:tool_call>"), ("<minimax:tool_call>",)),
    Known(
        "muse",
        _tagged_like_html("<atem:function_calls>", "</atem:function_calls>", "atem:"),
        ("<atem:function_calls>",),
    ),
    Known("seed", _tagged_like_functions("<seed:tool_call>", "</seed:tool_call>"), ("<seed:tool_call>",)),
    Known("qwen3 coder", _tagged_like_functions("<tool_call>", "</tool_call>"), ("<tool_call>", "<function=")),
    Known(
        "hunyuan",
        _tagged_by_pairs(
            ":opensource", ("<tool_calls:opensource>", "</tool_calls:opensource>"), "<tool_sep:opensource>"
        ),
        ("tool_sep", "arg_key"),
    ),
    Known("glm", _tagged_by_pairs(), ("<tool_call>", "<arg_key>")),
    Known(
        "minicpm",
        TaggedCalls(
            marks={'<function name="': ""},
            begin="",
            name_ends=('">',),
            key='<param name="',
            key_ends={'">': None},
            value_end="</param>",
            end="</function>",
        ),
        ('<function name="', '<param name="'),
    ),
    Known(
        "mistral",
        NamedCalls(
            marks={"[TOOL_CALLS]": ""},
            begin="",
            words={"name": {"[ARGS]": "arguments", "[CALL_ID]": "id"}, "id": {"[ARGS]": "arguments"}},
            end=(),
            written="NAME[ARGS]",
        ),
        ("[TOOL_CALLS]", "[ARGS]"),
    ),
    Known("mistral list", JsonCalls({"[TOOL_CALLS]": ""}, as_list=True), ("[TOOL_CALLS]",)),
    Known(
        "solar",
        NamedCalls(
            marks={"<|tool_calls|>": ""},
            begin="<|tool_call:begin|>",
            first="id",
            words={"id": {"<|tool_call:name|>": "name"}, "name": {"<|tool_call:args|>": "arguments"}},
            end=("<|tool_call:end|>",),
            written="ID<|tool_call:name|>NAME<|tool_call:args|>",
            written_end="<|tool_call:end|>",
        ),
        ("<|tool_call:begin|>",),
    ),
    Known(
        "functionary",
        NamedCalls(
            marks={"<function=": ""},
            begin="",
            words={"name": {">": "arguments"}},
            end=("</function>",),
            written="NAME>",
            written_end="</function>",
        ),
        ("<function=",),
    ),
    Known(
        "functionary 3.2",
        NamedCalls(marks={">>>": ""}, begin="", words={"name": {"\n": "arguments"}}, end=(), written="NAME\n"),
        (">>>all",),
        wraps=(">>>all\n",),
        opened=">>>",
        text_begins="all\n",
    ),
    Known("python", PythonCalls({"<|tool_call_start|>": "<|tool_call_end|>"}), ("<|tool_list_start|>",)),
    Known("apertus", _APERTUS, ("<|tools_prefix|>",)),
    Known("nemotron", JsonCalls({"<TOOLCALL>": "</TOOLCALL>"}, as_list=True), ("<TOOLCALL>",)),
    Known(
        "command r",
        JsonCalls(
            {"<|START_ACTION|>": "<|END_ACTION|>"}, name_key="tool_name", arguments_key="parameters", as_list=True
        ),
        ("<|START_ACTION|>",),
    ),
    Known("gigachat", JsonCalls({"<|function_call|>": ""}), ("<|function_call|>",)),
    Known("gigachat 3.0", JsonCalls({"function call<|role_sep|>\n": ""}), ("function call<|role_sep|>",)),
    Known("granite 3", JsonCalls({"<|tool_call|>": "<|/tool_call|>"}, FENCED, as_list=True), ("<|tool_call|>",)),
    Known("lists", JsonCalls({"<tool_calls>": "</tool_calls>"}, as_list=True), ("<tool_calls>",)),
    Known("firefunction", JsonCalls({"functools": ""}, as_list=True), ("functools",)),
    Known("hermes", HERMES, ("<tool_call>",)),
    Known("llama", LLAMA, ('"parameters":', "python_tag")),
    Known(
        "command r plus",
        JsonCalls(
            {"Action: ```json": "```", "Action:```json": "```"},
            name_key="tool_name",
            arguments_key="parameters",
            as_list=True,
        ),
        ("Action:", "tool_name"),
    ),
)
_ANY_JSON = JsonCalls({"<tool_call>": "</tool_call>", "[TOOL_CALLS]": "", "<tool_calls>": "</tool_calls>"}, FENCED)
GENERIC = Known("generic", _ANY_JSON, ())
"""Where nothing is known: JSON in the marks that most models were shown, or with none."""
SPOKEN = replace(HERMES, marks=_ANY_JSON.marks)
"""Of models whose template shows no tools, which are told of them in words (`spoken_tools`)."""

THINKING = (
    ("<think>", "</think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("<think:opensource>", "</think:opensource>"),
    ("<|think|>", "<|end|>"),
    ("<|channel>thought", "<channel|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
)
WRAPS = (
    "<response>",
    "</response>",
    "[END FINAL RESPONSE]",
    "<|START_RESPONSE|>",
    "<|END_RESPONSE|>",
    "<|START_TEXT|>",
    "<|END_TEXT|>",
)
