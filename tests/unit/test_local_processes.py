"""A swarm of this machine's processes, asked over HTTP."""

from __future__ import annotations

import http.server
import threading
from pathlib import Path

import pytest

from shardnet.local.processes import LocalSwarm


class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b'{"ready": true}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Nobody reads it."""


def test_this_machine_is_not_asked_by_way_of_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            monkeypatch.setattr(LocalSwarm, "api", f"http://127.0.0.1:{server.server_port}")
            with LocalSwarm(tmp_path) as swarm:
                assert swarm.get("/healthz") == {"ready": True}
        finally:
            server.shutdown()
