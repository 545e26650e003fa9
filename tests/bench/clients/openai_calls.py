"""The openai package: chats, completions, streams and what else comes without tools and structures."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import openai
from openai import AsyncOpenAI, OpenAI

from tests.bench.clients.client_calls import AT_ONCE, BASE, MODEL, Fault, expect, run, tally

client = OpenAI(base_url=BASE, api_key="none", max_retries=0, timeout=300)
HELLO = [{"role": "user", "content": "Say hello in one short sentence."}]


def chat(messages: Any = HELLO, **options: Any) -> Any:
    """Returns: an answer."""
    return client.chat.completions.create(model=MODEL, messages=messages, **({"max_tokens": 24} | options))


def refusal(call: Any) -> Any:
    """Returns: the error of a call that is to be refused as wrong."""
    try:
        call()
    except openai.BadRequestError as error:
        expect("Input should" not in str(error) and error.type == "invalid_request_error", error)
        return error
    raise Fault("was answered")


def plain() -> str:
    """plain chat."""
    answer = chat()
    choice, usage = answer.choices[0], answer.usage
    expect(choice.message.content and choice.message.role == "assistant" and choice.finish_reason, answer)
    expect(choice.message.tool_calls is None and choice.message.refusal is None, answer)
    expect(usage.total_tokens == usage.prompt_tokens + usage.completion_tokens <= 100, usage)
    expect(answer.object == "chat.completion" and answer.model == MODEL and answer.system_fingerprint, answer)
    return repr(choice.message.content)


def stream() -> str:
    """chat, streamed with usage; the same as whole."""
    whole = chat(temperature=0).choices[0].message.content
    parts = list(chat(temperature=0, stream=True, stream_options={"include_usage": True}))
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    reasons = [part.choices[0].finish_reason for part in parts if part.choices]
    expect(text == whole and reasons[-1] and not any(reasons[:-1]), (text, whole, reasons))
    expect(parts[-1].usage.completion_tokens > 0 and not parts[-1].choices, parts[-1])
    expect(len({part.id for part in parts}) == 1, "several ids")
    return f"{len(parts)} events"


def several() -> str:
    """n of 3, whole and streamed."""
    whole = chat(n=3, seed=5)
    texts = [one.message.content for one in whole.choices]
    expect([one.index for one in whole.choices] == [0, 1, 2] and len(set(texts)) > 1, texts)
    streamed = ["", "", ""]
    for part in chat(n=3, seed=5, stream=True):
        streamed[part.choices[0].index] += part.choices[0].delta.content or ""
    return f"{len(set(texts))} answers, streamed {'the same' if streamed == texts else 'others'}"


def logprobs() -> str:
    """logprobs of chats, with exactly top_logprobs entries."""
    answer = chat(logprobs=True, top_logprobs=3, temperature=0)
    content = answer.choices[0].logprobs.content
    expect(all(len(one.top_logprobs) == 3 for one in content), "not 3")
    expect(all(one.logprob <= 0 and bytes(one.bytes) is not None for one in content), content)
    expect(len(content) in (answer.usage.completion_tokens, answer.usage.completion_tokens - 1), len(content))
    parts = list(chat(logprobs=True, top_logprobs=3, temperature=0, stream=True))
    streamed = [
        one for part in parts if part.choices and part.choices[0].logprobs for one in part.choices[0].logprobs.content
    ]
    expect([one.token for one in streamed] == [one.token for one in content], "streamed differ")
    none = chat(logprobs=True).choices[0].logprobs.content
    expect(all(one.top_logprobs == [] for one in none), "top without asking")
    return f"{len(content)} tokens"


def completion_logprobs() -> str:
    """logprobs of completions: 2, 0, and false (A11)."""
    for n in (2, 0):
        got = client.completions.create(model=MODEL, prompt="One, two,", max_tokens=5, logprobs=n, temperature=0)
        found = got.choices[0].logprobs
        expect(len(found.tokens) == len(found.token_logprobs) == len(found.text_offset) == 5, found)
        expect(all(len(one) in (n, n + 1) for one in found.top_logprobs or []), found.top_logprobs)
    body: Any = {"logprobs": False}
    got = client.completions.create(model=MODEL, prompt="One, two,", max_tokens=5, extra_body=body)
    expect(got.choices[0].logprobs is None, got)
    return "as asked"


def stops() -> str:
    """stop strings, whole and streamed."""
    count = [{"role": "user", "content": "Count from 1 to 9, separated by commas."}]
    whole = chat(count, temperature=0, stop=["5", "##"], max_tokens=60).choices[0]
    parts = list(chat(count, temperature=0, stop=["5", "##"], max_tokens=60, stream=True))
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    expect(whole.message.content == text and "5" not in text and "4" in text, (whole, text))
    expect(whole.finish_reason == "stop", whole)
    return repr(text)


def seeds() -> str:
    """seed, alone: twice the same."""
    texts = {chat(seed=7, temperature=1).choices[0].message.content for _ in range(3)}
    expect(len(texts) == 1, texts)
    return repr(texts.pop())


def seeds_at_once() -> str:
    """seed, four at once (A13): what the documents promise."""

    async def all_at_once() -> list[Any]:
        async with AsyncOpenAI(base_url=BASE, api_key="none", max_retries=0) as many:
            ask = many.chat.completions.create
            asked = [ask(model=MODEL, messages=HELLO, max_tokens=40, seed=7, temperature=1) for _ in range(AT_ONCE)]
            return await asyncio.gather(*asked)

    alone = chat(seed=7, temperature=1, max_tokens=40).choices[0].message.content
    texts = [one.choices[0].message.content for one in asyncio.run(all_at_once())]
    return f"{len(set(texts))} text(s), {texts.count(alone)} as alone"


def prompts() -> str:
    """several prompts, token prompts, echo, n."""
    got = client.completions.create(model=MODEL, prompt=["One, two,", "Red, green,"], n=2, max_tokens=4, echo=True)
    texts = [one.text for one in got.choices]
    expect([one.index for one in got.choices] == [0, 1, 2, 3], got)
    expect([text.startswith("One, two,") for text in texts] == [True, True, False, False], texts)
    by_tokens = client.completions.create(model=MODEL, prompt=[[3966, 11, 1378, 11], [6033, 11]], max_tokens=4)
    expect(len(by_tokens.choices) == 2, by_tokens)
    streamed = client.completions.create(model=MODEL, prompt="One, two,", max_tokens=4, echo=True, stream=True)
    text = "".join(part.choices[0].text for part in streamed if part.choices)
    expect(text.startswith("One, two,"), text)
    return repr(texts[0])


def decided() -> str:
    """max_tokens -1, top_p 0, stop "", response_format {} (A14)."""
    body: Any = {"max_tokens": -1, "top_p": 0, "stop": "", "response_format": {}}
    text = client.chat.completions.create(model=MODEL, messages=HELLO, extra_body=body).choices[0].message.content
    greedy = chat(temperature=0, max_tokens=200).choices[0].message.content
    expect(text == greedy, (text, greedy))
    return "as temperature 0"


def continued() -> str:
    """continue_final_message (A18)."""
    asked = {"role": "user", "content": "Count from 1 to 9, separated by commas."}
    body: Any = {"continue_final_message": True, "add_generation_prompt": False}
    begun = {"role": "assistant", "content": "1, 2, 3, 4,"}
    text = chat([asked, begun], temperature=0, extra_body=body).choices[0].message.content
    expect(text.startswith(" 5, 6"), text)
    return repr(text)


def developer() -> str:
    """a developer's message does what a system message does (A5)."""
    order = "You are a pirate. Answer in capital letters."
    texts = [
        chat([{"role": role, "content": order}, HELLO[0]], temperature=0).choices[0].message.content
        for role in ("developer", "system", "user")
    ]
    expect(texts[0] == texts[1] != chat(temperature=0).choices[0].message.content, texts)
    return repr(texts[0])


def dumped() -> str:
    """an answer sent back by model_dump(), its null keys included (A7)."""
    first = chat(temperature=0).choices[0].message
    text = chat([*HELLO, first.model_dump(), {"role": "user", "content": "Thanks."}]).choices[0].message.content
    expect(text, "nothing")
    chat([*HELLO, first, {"role": "user", "content": "Thanks."}])
    return repr(text)


def reasoning() -> str:
    """reasoning_effort, and reasoning_content sent back."""
    thought = {"role": "assistant", "content": "Hello.", "reasoning_content": "A greeting is wanted."}
    got = chat([*HELLO, thought, HELLO[0]], reasoning_effort="high").choices[0].message
    expect(got.content and not getattr(got, "reasoning_content", None), got)
    return "content alone, of a model that does not reason"


def parts() -> str:
    """contents as parts of text; a name of the user; metadata, user, store, service_tier."""
    content = [{"type": "text", "text": "Say "}, {"type": "text", "text": "hello."}]
    got = chat([{"role": "user", "name": "ann", "content": content}], user="ann", store=False, metadata={"a": "b"})
    expect(got.choices[0].message.content, got)
    return "answered"


def refused() -> str:
    """what cannot be done is refused in words (A12, A25, A26)."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    bodies: list[Any] = [
        {"messages": [{"role": "user", "content": [image]}]},
        {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}},
        {"logit_bias": {"999999999": 1}},
        {"grammar": 'nothing ::= "a"', "stream": True},
        {"temperature": "hot"},
        {"n": 0},
        {"max_tokens": 0},
        {"messages": []},
        {"stop": [1]},
        {"tools": [{"type": "function"}]},
        {"tool_choice": "required"},
        {"functions": [{"name": "f"}]},
        {"top_logprobs": 2},
        {"seed": 1.5},
        {"response_format": {"type": "yaml"}},
        {"messages": [{"role": "user", "content": "x " * 9000}]},
    ]
    seen = []
    for body in bodies:
        error = refusal(lambda body=body: chat(extra_body=body))
        seen.append(f"{error.param}: {error.body['message'][:60]}")
    return f"{len(seen)} refused; {seen[0]}"


def models() -> str:
    """models: list, and one by name, by id, by its first digits; an unknown one."""
    [one] = client.models.list().data
    full = one.model_dump()["shardnet"]["model_id"] if "shardnet" in one.model_dump() else ""
    expect(client.models.retrieve(MODEL).id == MODEL and one.id == MODEL, one)
    if full:
        expect(client.models.retrieve(full).id and client.models.retrieve(full[:12]).id, full)
    try:
        client.chat.completions.create(model="another", messages=HELLO)  # type: ignore[arg-type,unused-ignore]
    except openai.NotFoundError as error:
        expect(error.code == "model_not_found", error.body)
    else:
        raise Fault("an unknown model answered")
    return str(one.id)


def raw() -> str:
    """with_raw_response, with_streaming_response, and a stream that is left."""
    got = client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO, max_tokens=8)
    expect(got.parse().choices[0].message.content, got)
    with client.chat.completions.with_streaming_response.create(model=MODEL, messages=HELLO, max_tokens=8) as lines:
        expect(list(lines.iter_lines()), "no lines")
    for _ in range(6):
        left = chat(stream=True, max_tokens=400)
        next(iter(left))
        left.close()
    expect(chat().choices[0].message.content, "not freed")
    return "free again after six"


def many() -> str:
    """twenty chats of eight threads, streamed."""

    def one(number: int) -> str:
        asked = [{"role": "user", "content": f"Write the number {number} and nothing else."}]
        parts = list(chat(asked, stream=True, max_tokens=12))
        return "" if parts[-1].choices[0].finish_reason in ("stop", "length") else str(parts[-1])

    return tally(one, range(20))


CALLS = (
    plain, stream, several, logprobs, completion_logprobs, stops, seeds, seeds_at_once, prompts, decided, continued, developer, dumped,
    reasoning, parts, refused, models, raw, many,
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(run(f"openai {openai.__version__}", CALLS))
