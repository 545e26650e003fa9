#!/usr/bin/env bash
# libtorrent: listening at "0.0.0.0:0" takes a port of its own at every address of the machine, and listen_port() tells one of them.
#
# One expects of a wildcard one socket at one port, as of any other server. libtorrent takes "0.0.0.0" for the list of the machine's addresses and opens a socket
# at each; with port 0 the system chooses for each anew. session.listen_port(), and the first listen_succeeded_alert, tell the first one's, which is
# usually loopback's. Whoever announces that port is reached by nobody on the network. A port that is named (one that was found free) is the same at all.
#
#   seen: addresses 127.0.0.1 and 192.0.2.1, listen_interfaces "0.0.0.0:0": two ports; "0.0.0.0:PORT": that one at both
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q libtorrent==2.1.1
cat > "$folder/listen.py" <<'EOF'
import socket
import time

import libtorrent as lt


def ports(port):
    """By address, where a session with the wildcard listens."""
    off = dict.fromkeys(("enable_dht", "enable_lsd", "enable_upnp", "enable_natpmp", "enable_incoming_utp", "enable_outgoing_utp"), False)
    session = lt.session({"listen_interfaces": f"0.0.0.0:{port}", "alert_mask": int(lt.alert_category.status)} | off)
    found, until = {}, time.monotonic() + 5
    while len(found) < 2 and time.monotonic() < until:
        session.wait_for_alert(200)
        found |= {a.address: a.port for a in session.pop_alerts() if isinstance(a, lt.listen_succeeded_alert)}
    return found, session.listen_port()


print("libtorrent", lt.version)
chosen, told = ports(0)
print(f"port 0: {chosen}, listen_port() {told}")
assert set(chosen) == {"127.0.0.1", "192.0.2.1"}, "it listens elsewhere now"
assert len(set(chosen.values())) == 2, "it takes one port for all addresses now"
assert told in chosen.values(), "listen_port() tells something else now"
with socket.socket() as probe:
    probe.bind(("0.0.0.0", 0))
    free = probe.getsockname()[1]
named, told = ports(free)
print(f"port {free}: {named}, listen_port() {told}")
assert set(named.values()) == {free}, "a named port is not kept now"
EOF
# A network of its own with two addresses, so that the machine's own has no part in it.
unshare --user --map-root-user --net sh -c \
    "ip link set lo up && ip address add 192.0.2.1/32 dev lo && exec '$folder/venv/bin/python' '$folder/listen.py'"
