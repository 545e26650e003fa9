#!/usr/bin/env bash
# Python's own HTTP client: read in pieces, a body that breaks off ends like a whole one.
#
# One would guess that a client which knows the Content-Length, and complains of a short body in read(), complains of it in read(n) too, which is how every
# large file is fetched: shutil.copyfileobj(urlopen(url), file). It does not: read(n) answers b"" where the connection broke, as at the end. Whoever fetches
# with it has to count. httpx and requests (urllib3) raise, however they are read.
#
#   seen: CPython 3.11.7: read() IncompleteRead; copyfileobj 300000 of 1000000 bytes and no error; httpx 0.28.1 RemoteProtocolError; requests 2.32.5
#         ChunkedEncodingError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q httpx==0.28.1 requests==2.32.5
"$folder/venv/bin/python" - <<'EOF2'
import io
import platform
import shutil
import socket
import threading
import urllib.request
from importlib.metadata import version

import httpx
import requests

print("CPython", platform.python_version(), *(f"{name} {version(name)}" for name in ("httpx", "requests", "urllib3")))
SENT, PROMISED = 300_000, 1_000_000
listener = socket.create_server(("127.0.0.1", 0))


def serve():
    while True:
        connection, _ = listener.accept()
        connection.recv(65536)
        connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {PROMISED}\r\n\r\n".encode() + bytes(SENT))
        connection.close()


threading.Thread(target=serve, daemon=True).start()
url = f"http://127.0.0.1:{listener.getsockname()[1]}/"


def error_of(fetch):
    try:
        fetch()
    except Exception as error:
        return type(error).__name__
    return "none"


def in_pieces():
    out = io.BytesIO()
    with urllib.request.urlopen(url) as answer:
        shutil.copyfileobj(answer, out)
    return len(out.getvalue())


def httpx_in_pieces():
    with httpx.stream("GET", url, trust_env=False) as answer:
        for _ in answer.iter_raw(65536):
            pass


def requests_in_pieces():
    session = requests.Session()
    session.trust_env = False
    with session.get(url, stream=True) as answer:
        for _ in answer.iter_content(65536):
            pass


seen = {
    "urllib read()": error_of(lambda: urllib.request.urlopen(url).read()),
    "urllib in pieces": error_of(in_pieces),
    "httpx in pieces": error_of(httpx_in_pieces),
    "requests in pieces": error_of(requests_in_pieces),
}
print(seen, f"copyfileobj: {in_pieces()} of {PROMISED} bytes")
assert seen["urllib read()"] == "IncompleteRead"
assert seen["urllib in pieces"] == "none", "it complains now"
assert seen["httpx in pieces"] == "RemoteProtocolError"
assert seen["requests in pieces"] == "ChunkedEncodingError"
EOF2
