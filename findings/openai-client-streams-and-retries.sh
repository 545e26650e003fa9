#!/usr/bin/env bash
# openai (Python): a stream that breaks off looks like one that ended, and a long Retry-After means no retry at all.
#
# One would guess that the client raises where an answer's stream ends without finish_reason and without "data: [DONE]": that is the one thing that
# tells a whole answer from half of one. It ends the loop in silence; only the caller who looks at the last finish_reason knows. And one would guess
# that a Retry-After that is too long is cut to a maximum, or replaced by the client's own back-off. Up to 120 s it is obeyed to the second; from
# 121 s on nothing is tried again, so a server that asks for patience gets an error shown to the user instead.
#
#   seen: stream without an end: 2 chunks "Hel" "lo", finish reasons [None, None], no exception
#   seen: Retry-After 120: 3 requests, pauses 120 120; Retry-After 121: 1 request
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q openai==3.57.0
"$folder/venv/bin/python" - <<'EOF'
import http.server, json, threading, time
import openai

asked = []

class Server(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_words): pass
    def do_POST(self):
        model = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["model"]
        asked.append(model)
        if model != "stream":
            self.send_response(429)
            self.send_header("Retry-After", model)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()  # HTTP/1.0: the end of the connection is the end of the body
        for word in ("Hel", "lo"):
            choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
            chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none")
print("openai", openai.__version__)
chunks = list(client.chat.completions.create(model="stream", messages=[{"role": "user", "content": "hi"}], stream=True))
reasons = [chunk.choices[0].finish_reason for chunk in chunks]
print("stream without an end:", [chunk.choices[0].delta.content for chunk in chunks], reasons, "and no exception")
assert reasons == [None, None]
pauses = []
time.sleep = pauses.append  # the client's waiting, not passed but noted
found = {}
for seconds in ("60", "120", "121", "600"):
    asked.clear(), pauses.clear()
    try:
        client.chat.completions.create(model=seconds, messages=[{"role": "user", "content": "hi"}])
    except openai.RateLimitError:
        found[seconds] = (len(asked), [p for p in pauses if p > 1])
    print(f"Retry-After {seconds}: {found[seconds][0]} requests, pauses {found[seconds][1]}")
assert found == {"60": (3, [60, 60]), "120": (3, [120, 120]), "121": (1, []), "600": (1, [])}
EOF
