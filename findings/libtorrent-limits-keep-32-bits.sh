#!/usr/bin/env bash
# libtorrent: a rate limit above 2 GiB/s is none, or a tiny one: its Python binding keeps the low 32 bits of every number among a session's settings.
#
# Rates are bytes per second, and settings of libtorrent are C++ ints; Python's numbers have no end. One would expect an OverflowError, as for most bindings.
# 25 Gbit/s are 3,125,000,000 bytes per second: as an int a negative number, of which libtorrent makes 0, "no limit". 4 GiB/s is no limit either; 4 GiB/s and
# 1000 bytes are a limit of 1000 bytes per second. Nothing is said.
#
#   seen: 2147483647 is kept; 3125000000 and 4294967296 become 0; 4294968296 becomes 1000
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q libtorrent==2.1.1
"$folder/venv/bin/python" - <<'EOF'
import libtorrent as lt

print("libtorrent", lt.__version__)
session = lt.session({"listen_interfaces": "", "enable_dht": False, "enable_lsd": False, "enable_upnp": False, "enable_natpmp": False})
expected = {2**31 - 1: 2**31 - 1, 3_125_000_000: 0, 2**32: 0, 2**32 + 1000: 1000}
for given, kept in expected.items():
    session.apply_settings({"upload_rate_limit": given})
    found = session.get_settings()["upload_rate_limit"]
    print(f"{given} -> {found}")
    assert found == kept, "it keeps other bits now, or refuses"
EOF
