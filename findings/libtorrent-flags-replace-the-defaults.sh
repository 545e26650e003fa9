#!/usr/bin/env bash
# libtorrent's Python binding: naming one flag of a new torrent takes away the flags that it has by default, the session's IP filter among them.
#
# One would guess that `{"flags": torrent_flags.seed_mode}` adds seed_mode. The value replaces the whole set, so the torrent is no longer auto-managed,
# updates no subscriptions and does not apply the session's IP filter; nothing says so. What is meant is `default_flags | seed_mode`.
#
#   seen: without flags: apply_ip_filter True, auto_managed True; flags=seed_mode: False, False; default_flags | seed_mode: True, True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q libtorrent==2.1.1
"$folder/venv/bin/python" - "$folder" <<'EOF'
import sys
from pathlib import Path
import libtorrent as lt

folder = Path(sys.argv[1])
(folder / "file.bin").write_bytes(b"x" * 65536)
files = lt.list_files(str(folder / "file.bin")) if hasattr(lt, "list_files") else None
made = lt.create_torrent(files, 0, lt.create_torrent.v2_only)
lt.set_piece_hashes(made, str(folder))
info = lt.torrent_info(made.generate())
session = lt.session({"listen_interfaces": "127.0.0.1:0", "enable_dht": False, "enable_lsd": False, "enable_upnp": False, "enable_natpmp": False})
flags = lt.torrent_flags
print("libtorrent", lt.__version__)
seen = []
for name, given in (("no flags", {}), ("seed_mode", {"flags": flags.seed_mode}), ("default_flags | seed_mode", {"flags": flags.default_flags | flags.seed_mode})):
    handle = session.add_torrent({"ti": info, "save_path": str(folder), **given})
    now = handle.flags()
    seen.append((bool(now & flags.apply_ip_filter), bool(now & flags.auto_managed)))
    print(f"{name}: apply_ip_filter {seen[-1][0]}, auto_managed {seen[-1][1]}")
    session.remove_torrent(handle)
    while not any(isinstance(alert, lt.torrent_removed_alert) for alert in session.pop_alerts()):
        session.wait_for_alert(1000)
assert seen == [(True, True), (False, False), (True, True)], "the flags are another set now"
EOF
