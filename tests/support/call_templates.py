"""Small chat templates, each in the shape of one format of calls."""

from __future__ import annotations

_BEGIN, _CALL, _PART, _END, _CLOSE = (
    f"<\uff5ctool\u2581{one}\uff5c>"
    for one in ("calls\u2581begin", "call\u2581begin", "sep", "call\u2581end", "calls\u2581end")
)
_JSON = '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}'
_FUNCTION = (
    "<function={{ f.name }}>\n{% for k, v in f.arguments.items() %}<parameter={{ k }}>\n"
    "{{ v if v is string else v | tojson }}\n</parameter>\n{% endfor %}</function>"
)


def _in_list(opened: str, one: str, closed: str) -> str:
    return f"{{% if loop.first %}}{opened}{{% endif %}}{one}{{% if loop.last %}}{closed}{{% else %}}, {{% endif %}}"


def _in_section(opened: str, one: str, closed: str) -> str:
    return f"{{% if loop.first %}}{opened}{{% endif %}}{one}{{% if loop.last %}}{closed}{{% endif %}}"


def _invoked(tag: str, opened: str, closed: str) -> str:
    told = ' string="{{ (v is string) | tojson }}"' if tag else ""
    argument = f'<{tag}parameter name="{{{{ k }}}}"{told}>{{{{ v if v is string else v | tojson }}}}</{tag}parameter>\n'
    body = f'<{tag}invoke name="{{{{ f.name }}}}">\n{{% for k, v in f.arguments.items() %}}{argument}{{% endfor %}}</{tag}invoke>\n'
    return _in_section(opened + "\n", body, closed)


CALLS: dict[str, str] = {
    "hermes": f"\n<tool_call>\n{_JSON}\n</tool_call>",
    "qwen3 coder": f"\n<tool_call>\n{_FUNCTION}\n</tool_call>",
    "seed": f"\n<seed:tool_call>\n{_FUNCTION}\n</seed:tool_call>",
    "glm": (
        "\n<tool_call>{{ f.name }}\n{% for k, v in f.arguments.items() %}<arg_key>{{ k }}</arg_key>\n"
        "<arg_value>{{ v if v is string else v | tojson }}</arg_value>\n{% endfor %}</tool_call>"
    ),
    "minimax m2": _invoked("", "\n<minimax:tool_call>", "</minimax:tool_call>"),
    "minimax m3": (
        "{% macro tags(v) %}{% if v is mapping %}{% for k, x in v.items() %}M<{{ k }}>{{ tags(x) }}M</{{ k }}>{% endfor %}"
        "{% elif v is string %}{{ v }}{% elif v is iterable %}{% for x in v %}M<item>{{ tags(x) }}M</item>{% endfor %}"
        "{% else %}{{ v | tojson }}{% endif %}{% endmacro %}"
        + _in_section(
            "M<tool_call>\n", 'M<invoke name="{{ f.name }}">{{ tags(f.arguments) }}M</invoke>\n', "M</tool_call>"
        )
    ).replace("M<", "]<]minimax[>[<"),
    "kimi k3": (
        "{% macro tag(x) %}<|open|>{{ x }}<|sep|>{% endmacro %}{% macro end(x) %}<|close|>{{ x }}<|sep|>{% endmacro %}"
        + _in_section(
            "{{ tag('tools') }}",
            "{{ tag('call tool=\"' ~ f.name ~ '\" index=\"' ~ loop.index ~ '\"') }}{% for k, v in f.arguments.items() %}"
            "{{ tag('argument key=\"' ~ k ~ '\" type=\"' ~ ('string' if v is string else 'array') ~ '\"') }}"
            "{{ v if v is string else v | tojson }}{{ end('argument') }}{% endfor %}{{ end('call') }}",
            "{{ end('tools') }}",
        )
    ),
    "deepseek dsml": _invoked(
        "\uff5cDSML\uff5c", "\n\n<\uff5cDSML\uff5cfunction_calls>", "</\uff5cDSML\uff5cfunction_calls>"
    ),
    "deepseek v3.1": _in_section(_BEGIN, f"{_CALL}{{{{ f.name }}}}{_PART}{{{{ f.arguments | tojson }}}}{_END}", _CLOSE),
    "kimi": _in_section(
        "<|tool_calls_section_begin|>",
        "<|tool_call_begin|>{{ c.id }}<|tool_call_argument_begin|>{{ f.arguments | tojson }}<|tool_call_end|>",
        "<|tool_calls_section_end|>",
    ),
    "llama": '{# <|python_tag|> #}{{ "<|python_tag|>"[:0] }}{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}',
    "mistral": "[TOOL_CALLS]{{ f.name }}[ARGS]{{ f.arguments | tojson }}",
    "mistral list": (
        "{% if c.id | length != 9 %}{{ raise_exception('nine letters') }}{% endif %}"
        + _in_list(
            "[TOOL_CALLS][",
            '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}, "id": "{{ c.id }}"}',
            "]",
        )
    ),
    "command r": _in_list(
        "<|START_ACTION|>[\n",
        '{"tool_call_id": "{{ loop.index0 }}", "tool_name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}',
        "\n]<|END_ACTION|>",
    ),
    "nemotron": _in_list("<TOOLCALL>[", _JSON, "]</TOOLCALL>"),
    "lists": _in_list("<tool_calls>[", _JSON, "]</tool_calls>"),
    "apertus": _in_list("<|tools_prefix|>[", '{"{{ f.name }}": {{ f.arguments | tojson }}}', "]<|tools_suffix|>"),
    "functionary": "<function={{ f.name }}>{{ f.arguments | tojson }}</function>",
    "solar": _in_section(
        "<|tool_calls|>",
        "<|tool_call:begin|>{{ c.id }}<|tool_call:name|>{{ f.name }}<|tool_call:args|>{{ f.arguments | tojson }}<|tool_call:end|>",
        "",
    ),
    "gemma": (
        "<|tool_call>call:{{ f.name }}{{ '{' }}{% for k, v in f.arguments.items() %}{{ k }}:"
        '{% if v is string %}<|"|>{{ v }}<|"|>{% elif v is iterable %}[{% for x in v %}<|"|>{{ x }}<|"|>'
        "{{ ',' if not loop.last }}{% endfor %}]{% else %}{{ v | tojson }}{% endif %}{{ ',' if not loop.last }}{% endfor %}}<tool_call|>"
    ),
    "python": _in_list(
        "<|tool_call_start|>[",
        "{{ f.name }}({% for k, v in f.arguments.items() %}{{ k }}={{ v | tojson }}{{ ', ' if not loop.last }}{% endfor %})",
        "]<|tool_call_end|>",
    ),
}
"""How each writes one of the calls `c` of function `f`."""

_TURNS = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for m in messages %}<|{{ m.role }}|>{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{% set f = c.function %}CALL{% endfor %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEMPLATES = {name: _TURNS.replace("CALL", call) for name, call in CALLS.items()} | {
    "functionary 3.2": (
        "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for m in messages %}<|{{ m.role }}|>"
        "{% if m.content %}{{ '>>>all\n' if m.role == 'assistant' }}{{ m.content }}{% endif %}"
        "{% for c in m.tool_calls or [] %}>>>{{ c.function.name }}\n{{ c.function.arguments | tojson }}{% endfor %}<|end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>>>>{% endif %}"
    ),
    "harmony": (
        "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for m in messages %}{% if m.tool_calls %}"
        "{% if m.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
        "{% set f = m.tool_calls[0].function %}<|start|>assistant<|channel|>commentary to=functions.{{ f.name }} <|constrain|>json<|message|>"
        "{{ f.arguments | tojson }}<|call|>{% elif m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>"
        "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    ),
}
