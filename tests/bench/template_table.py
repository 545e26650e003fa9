"""Chat templates as transformers renders them and as shardnet does: a table of what is the same.

    python tests/bench/template_table.py FOLDER --reference PYTHON [--details]

FOLDER holds Jinja files, such as `models/templates` of llama.cpp's sources. PYTHON is an interpreter that has transformers (no torch is needed); only
its own rendering function and what `apply_chat_template` does before it are used. Every template renders every conversation, without and with tools,
and with thinking switched on and off. Two more runs spell each template's control tokens (the second its thinking and tool tags too) in every text
that a client may send, and count how many of them would become control tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Json = dict[str, Any]
CONTROL = re.compile(
    r"<\|[^<>|\s]{1,60}\|>|<\uff5c[^<>\uff5c]{1,60}\uff5c>|<\|[a-z_\"]+\|?>|<[a-z_]+\|>|\[/?[A-Z][A-Z_]+\]|</?[a-z]+_of_[a-z]+>|</?s>|<bos>"
)
TAGS = re.compile(r"</?[a-z][a-z_]*>")
BEFORE, ANSWER, BEHIND = "ZQ", "AQ", "QZ"
"""What stands around a spelled token; `ANSWER` before it in the messages of the assistant."""
BOS, EOS = "<s>", "</s>"


def call(name: str, arguments: Json, number: int = 1) -> Json:
    """Returns: a call as the OpenAI API has it."""
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": f"call{number:05}", "type": "function", "function": function}


def result(text: str, number: int = 1, name: str = "weather") -> Json:
    """Returns: what a tool answered."""
    return {"role": "tool", "tool_call_id": f"call{number:05}", "name": name, "content": text}


def said(role: str, text: str, **more: Any) -> Json:
    """Returns: a message."""
    if role == "assistant":
        text = text.replace(BEFORE, ANSWER)
        more = {key: one.replace(BEFORE, ANSWER) if isinstance(one, str) else one for key, one in more.items()}
    return {"role": role, "content": text, **more}


def conversations(spelled: str = "") -> dict[str, list[Json]]:
    """Returns: what the templates are given; `spelled` stands in every text."""
    s, paris = spelled, {"city" + spelled: "Paris" + spelled, "days": 2, "tags": ["a", "ö<&'\""]}
    calls = said("assistant", "", tool_calls=[call("weather", paris)]) | {"content": None}
    two = calls | {"tool_calls": [call("weather", paris), call("weather", {"city": "Rom"}, 2)]}
    nulls = {"refusal": None, "tool_calls": None, "function_call": None, "audio": None, "reasoning_content": None}
    ask = said("user", f"What is the weather in Paris?{s}")
    return {
        "user": [said("user", f"Hello{s}")],
        "system": [said("system", f"Be brief.{s}"), said("user", f"Hello{s}")],
        "turns": [
            said("system", f"Be brief.{s}"),
            ask,
            said("assistant", f"It rains.{s}"),
            said("user", f"And Rom?{s}"),
        ],
        "signs": [said("user", f"  x<y & é 你好 'a' \"b\" {{{{ c }}}} {{% d %}}\n\n{s}\n")],
        "reasoning": [ask, said("assistant", f"Rain.{s}", reasoning_content=f"Clouds.{s}"), said("user", f"Sure?{s}")],
        "thinks": [ask, said("assistant", f"<think>\nClouds.{s}\n</think>\n\nRain.{s}"), said("user", f"Sure?{s}")],
        "call": [ask, calls, result(f'{{"t": 7}}{s}')],
        "called": [ask, calls, result(f"7 °C{s}"), said("assistant", f"It is 7 °C.{s}"), said("user", f"Thanks{s}")],
        "calls": [
            said("system", f"Be brief.{s}"),
            ask,
            two,
            result(f"7{s}"),
            result("8", 2),
            said("assistant", f"7, 8{s}"),
        ],
        "said and called": [ask, calls | said("assistant", f"Let me see.{s}"), result(f"7{s}")],
        "nulls": [ask, said("assistant", f"Rain.{s}") | nulls, said("user", f"Sure?{s}")],
        "developer": [said("developer", f"Be brief.{s}"), said("user", f"Hello{s}")],
        "two systems": [said("system", f"Be brief.{s}"), said("system", f"Be kind.{s}"), said("user", f"Hello{s}")],
    }


def tools(spelled: str = "") -> list[Json]:
    """Returns: a tool, `spelled` in its description and in an argument's name."""
    city = {"type": "string", "description": f"a 'city' <b>{spelled}"}
    days = {"type": "integer", "enum": [1, 2, 3]}
    properties = {"city" + spelled: city, "days": days, "tags": {"type": "array", "items": {"type": "string"}}}
    parameters = {"type": "object", "properties": properties, "required": ["city" + spelled]}
    description = f"What the weather is & will be: 你好{spelled}"
    return [{"type": "function", "function": {"name": "weather", "description": description, "parameters": parameters}}]


THINKING: list[Json] = [{}, {"enable_thinking": True}, {"enable_thinking": False}, {"reasoning_effort": "high"}]


def jobs(spelled: str = "") -> Iterator[tuple[str, list[Json], list[Json] | None, Json]]:
    """Yields: a name, messages, tools and variables."""
    for (name, messages), given, variables in itertools.product(
        conversations(spelled).items(), (None, tools(spelled)), THINKING
    ):
        about = " ".join([name, *(["tools"] if given else []), *(f"{key}={one}" for key, one in variables.items())])
        yield about, messages, given, variables | ({"date_string": "1 May" + spelled} if spelled else {})


# -- the reference, in an interpreter of its own -----------------------------------------------------------------------------------


def reference() -> None:
    """Answer jobs, one JSON a line, as transformers renders them."""
    from transformers.utils.chat_template_utils import (
        _normalize_chat_messages,
        render_jinja_template,
    )

    for line in sys.stdin:
        job = json.loads(line)
        try:
            rendered, _ = render_jinja_template(
                conversations=[_normalize_chat_messages(job["messages"])],
                tools=job["tools"],
                chat_template=job["template"],
                add_generation_prompt=True,
                **({"bos_token": BOS, "eos_token": EOS} | job["variables"]),
            )
            answer = {"text": rendered[0]}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


class Reference:
    """The other interpreter."""

    def __init__(self, python: str) -> None:
        self._process = subprocess.Popen(
            [python, __file__, "--serve-reference"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, job: Json) -> Json:
        """Returns: `text` or `error`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer: Json = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def with_mappings(messages: list[Json]) -> list[Json]:
    """Returns: the messages with the arguments of calls as mappings, as transformers wants them."""
    made: list[Json] = json.loads(json.dumps(messages))
    for message in made:
        for one in message.get("tool_calls") or []:
            one["function"]["arguments"] = json.loads(one["function"]["arguments"])
    return made


# -- ours --------------------------------------------------------------------------------------------------------------------------


def ours(template: Any, job: Json) -> Json:
    """Returns: `text` and `flags` (for each character, whether it may be part of a control token), or `error`."""
    from shardnet.errors import ShardnetError

    try:
        parts = asyncio.run(
            template.render(job["messages"], variables=job["variables"], tools=job["tools"], timeout_s=20)
        )
    except ShardnetError as error:
        return {"error": str(error)}
    text = "".join(part.text for part in parts)
    return {"text": text, "flags": "".join(("1" if part.special else "0") * len(part.text) for part in parts)}


def changed(template: Any, job: Json, shows_system: bool | None) -> list[Json]:
    """Returns: the messages as we hand them to the template: what docs/chat-templates.md says we change."""
    from shardnet.coordinator.text.conversation import as_template_wants

    traits = template.traits(tools=bool(job["tools"]))
    made: list[Json] = json.loads(json.dumps(as_template_wants(job["messages"], traits, shows_system=shows_system)))
    return made


def compare(template: Any, job: Json, ask: Reference) -> tuple[str, str]:
    """Returns: the outcome, and what to show of it."""
    mine = ours(template, job)
    theirs = [ask(job | {"messages": messages}) for messages in (with_mappings(job["messages"]), job["messages"])]
    texts = [one["text"] for one in theirs if "text" in one]
    if "error" in mine:
        return ("refused by us" if texts else "refused by both"), mine["error"]
    if not texts:
        return "only we render", theirs[0]["error"]
    if mine["text"] in texts:
        return "same", ""
    for shows_system in (None, False):
        if ask(job | {"messages": changed(template, job, shows_system)}).get("text") == mine["text"]:
            return "different messages, for a reason", ""
    return "different", f"{texts[0]!r}\n    {mine['text']!r}"


def forged(template: Any, job: Json, tokens: list[str]) -> Counter[str]:
    """Returns: how many spelled tokens are in the prompt, and how many of them would be control tokens.

    A template that splits an answer at `</think>` writes its own where the client's was: such ones are counted apart.
    """
    mine = ours(template, job)
    counts: Counter[str] = Counter()
    pattern = f"({BEFORE}|{ANSWER})({'|'.join(map(re.escape, sorted(tokens, key=len, reverse=True)))}){BEHIND}"
    for match in re.finditer(pattern, mine.get("text", "")):
        counts["tokens spelled by clients"] += 1
        if "0" not in mine["flags"][match.start(2) : match.end(2)]:
            split = match[1] == ANSWER and re.search(rf"split\(['\"]{re.escape(match[2])}['\"]", job["template"])
            counts["of them split off and written anew by the template" if split else "of them forged"] += 1
    return counts


def compiled(source: str, tokens: list[str]) -> Any:
    """Returns: our template with a vocabulary of these control tokens."""
    from shardnet.coordinator.text.template import ChatTemplate

    return ChatTemplate(source, model="m", bos=BOS, eos=EOS, control=tokens)


def words_of(source: str) -> str:
    """Returns: all that a template's source says."""
    import jinja2
    from jinja2 import nodes

    tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(
        re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", source)
    )
    constants = [one.value for one in tree.find_all(nodes.Const) if isinstance(one.value, str)]
    return "\n".join([one.data for one in tree.find_all(nodes.TemplateData)] + constants)


def main() -> int:
    """Print the table. Returns: 1 if anything differs without a reason, or is forged."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--reference", required=True, help="an interpreter with transformers")
    parser.add_argument("--details", action="store_true", help="each rendering that is not the same")
    parser.add_argument("--only", default="", help="templates whose name holds this")
    asked = parser.parse_args()
    ask = Reference(asked.reference)
    totals: dict[str, Counter[str]] = {"plain": Counter(), "tokens spelled": Counter(), "tags spelled": Counter()}
    files = [file for file in sorted(asked.folder.glob("*.jinja")) if asked.only in file.name]
    for file in files:
        source = file.read_text()
        words = words_of(source)
        tokens = sorted(set(CONTROL.findall(words)) | {BOS, EOS})
        tags = sorted(set(tokens) | set(TAGS.findall(words)) | {"<think>", "</think>"})
        for run, vocabulary, spelled in (
            ("plain", tokens, []),
            ("tokens spelled", tokens, tokens),
            ("tags spelled", tags, tags),
        ):
            template = compiled(source, vocabulary)
            text = "".join(f" {BEFORE}{one}{BEHIND}" for one in spelled[:16])
            for name, messages, given, variables in jobs(text):
                job = {"template": source, "messages": messages, "tools": given, "variables": variables}
                outcome, about = compare(template, job, ask)
                totals[run][outcome] += 1
                if asked.details and outcome != "same" and run == "plain":
                    print(f"{file.name} | {name} | {outcome}: {about}"[:1500])
                elif asked.details and outcome == "different":
                    print(f"{file.name} | {run} | {name} | {outcome}: {about}"[:3000])
                if spelled:
                    totals[run] += forged(template, job, spelled)
                elif name != "thinks" and (flags := ours(template, job).get("flags")) and "0" in flags:
                    totals[run]["with a control token of the template lost"] += 1
    ask.close()
    print(f"{len(files)} templates")
    for run, counts in totals.items():
        print(f"{run}: {dict(sorted(counts.items()))}")
    return int(any(counts["different"] or counts["of them forged"] for counts in totals.values()))


if __name__ == "__main__":
    if "--serve-reference" in sys.argv:
        reference()
    else:
        sys.exit(main())
