#!/usr/bin/env bash
# kademlia: a value above 8,137 bytes is kept by who sets it and by nobody else; and `get` prefers the node's own copy to the network's.
#
# One would guess that a `set` that raises has set nothing, so that a later `get` finds nothing, too. The check is a datagram's limit of 8 KiB, made
# when the value is sent; by then the setter may have stored it in its own table. From then on its own `get` answers it, as if all were well, while
# everybody else's `get` finds that copy and raises: they try to pass it on, as Kademlia does after a look-up, and it does not fit. That `get`
# looks into its own table first also means that a newer value in the network is not seen by a node that holds an old one.
#
#   seen: 8137 bytes: set True, the setter gets 8137, another gets 8137
#   seen: 8138 bytes: set raises MalformedMessage, the setter gets 8138, another's get raises MalformedMessage; only the setter holds it
#   seen: own copy "old", everybody else "new": get answers "old"
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q kademlia==2.2.3 rpcudp==5.0.1
"$folder/venv/bin/python" - <<'EOF'
import asyncio
from importlib.metadata import version
from kademlia.network import Server
from kademlia.utils import digest

async def outcome(call):
    try:
        found = await call
    except Exception as error:
        return type(error).__name__
    return len(found) if isinstance(found, bytes) else found

async def main():
    nodes = [Server(ksize=20, alpha=3, node_id=digest(f"node {i}")) for i in range(3)]  # ids fixed: so is who is near to what
    for node in nodes:
        await node.listen(0, interface="127.0.0.1")
    first = ("127.0.0.1", nodes[0].transport.get_extra_info("sockname")[1])
    for node in nodes[1:]:
        await node.bootstrap([first])
    one, setter, other = nodes
    # Of three nodes the setter keeps a copy where it is nearer to the key than the farthest of the others: take keys for which it is.
    def is_near(key):
        far = [int(digest(key).hex(), 16) ^ node.node.long_id for node in (one, other)]
        return int(digest(key).hex(), 16) ^ setter.node.long_id < max(far)
    keys = [f"key {i}" for i in range(99) if is_near(f"key {i}")]
    found = {}
    for size, key in zip((8137, 8138), keys):
        found[size] = [await outcome(setter.set(key, bytes(size))), await outcome(setter.get(key)), await outcome(other.get(key))]
        holders = [name for name, node in zip(("one", "setter", "other"), nodes) if node.storage.get(digest(key)) is not None]
        print(f"{size} bytes: set, own get, another's get: {found[size]}; held by {holders}")
    assert found[8137] == [True, 8137, 8137], "8137 bytes do not go any more"
    assert found[8138] == ["MalformedMessage", 8138, "MalformedMessage"] and holders == ["setter"], "larger values do something else now"
    key = keys[2]
    await setter.set(key, b"old")
    for node in (one, other):
        node.storage[digest(key)] = b"new"
    assert setter.storage.get(digest(key)) == b"old"
    answer = await setter.get(key)
    print("own copy old, everybody else's new: get answers", answer)
    assert answer == b"old", "get asks the network first now"
    for node in nodes:
        node.stop()

print("kademlia", version("kademlia"), "rpcudp", version("rpcudp"))
asyncio.run(main())
EOF
