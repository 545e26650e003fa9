#!/usr/bin/env bash
# langchain-openai: a model's reasoning is lost both ways, and a stream that breaks off is a finished answer.
#
# llama.cpp, vLLM, DeepSeek and others send what a model thinks as `reasoning_content` beside `content`, and templates (gpt-oss, Qwen3 between calls of
# tools) want it back at the next turn. One would guess that a message keeps fields that its client does not know, as the openai package does, in
# `additional_kwargs` say. ChatOpenAI drops it from whole answers and from streams, and leaves it out of requests even where the caller put it into the
# message again. So a chain over such a server never shows reasoning, and never gives it back.
# And a stream that ends with neither finish_reason nor "data: [DONE]" is an AIMessage like any other: `stream` raises nothing.
#
#   seen: whole: content "Hello", reasoning nowhere; stream: the same; sent back: keys role, content
#   seen: cut stream: "Hel", finish_reason None, no exception
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q langchain-openai==1.7.4 langchain-core==1.8.3 openai==3.57.0
LANGSMITH_TRACING=false "$folder/venv/bin/python" - <<'EOF'
import http.server, json, threading
from importlib.metadata import version
from langchain_core.messages import AIMessage, HumanMessage
from langchain_openai import ChatOpenAI
from openai import OpenAI

asked = []

class Server(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_words): pass
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked.append(body)
        streams = body.get("stream")
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream" if streams else "application/json")
        self.end_headers()  # HTTP/1.0: the end of the connection is the end of the body
        base = {"id": "1", "object": "chat.completion.chunk" if streams else "chat.completion", "created": 1, "model": body["model"]}
        if not streams:
            message = {"role": "assistant", "content": "Hello", "reasoning_content": "A greeting."}
            self.wfile.write(json.dumps(base | {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode())
            return
        deltas = [{"reasoning_content": "A greeting."}, {"content": "Hel"}] + ([{"content": "lo"}] if body["model"] == "whole" else [])
        for number, delta in enumerate(deltas):
            reason = "stop" if number == 2 else None
            chunk = base | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        if body["model"] == "whole":
            self.wfile.write(b"data: [DONE]\n\n")

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/v1"
print("langchain-openai", version("langchain-openai"), "langchain-core", version("langchain-core"), "openai", version("openai"))
plain = OpenAI(base_url=url, api_key="none").chat.completions.create(model="whole", messages=[{"role": "user", "content": "hi"}])
print("openai:", plain.choices[0].message.content, plain.choices[0].message.reasoning_content)
assert plain.choices[0].message.reasoning_content == "A greeting."
chat = ChatOpenAI(base_url=url, api_key="none", model="whole", max_retries=0)
answer = chat.invoke("hi")
print("invoke:", answer)
streamed = list(chat.stream("hi"))
print("stream:", streamed)
for one in (answer, *streamed):
    assert "A greeting." not in repr(one)
assert answer.content == "".join(one.content for one in streamed) == "Hello"
back = AIMessage("Hello", additional_kwargs={"reasoning_content": "A greeting."})
chat.invoke([HumanMessage("hi"), back, HumanMessage("and?")])
print("sent back:", asked[-1]["messages"][1])
assert sorted(asked[-1]["messages"][1]) == ["content", "role"]
cut = list(ChatOpenAI(base_url=url, api_key="none", model="cut", max_retries=0).stream("hi"))
print("cut stream:", cut)
assert "".join(one.content for one in cut) == "Hel"
assert not any(one.response_metadata.get("finish_reason") for one in cut)
EOF
