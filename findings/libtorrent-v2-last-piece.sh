#!/usr/bin/env bash
# libtorrent: of a BitTorrent v2 torrent of one file, total_size() and piece_size() are those of whole pieces, not of the file.
#
# A file of 200,000 bytes in pieces of 64 KiB: total_size() says 262,144 and piece_size(3) 65,536, where 3,392 bytes are left for the last piece (of a v1
# torrent they say 200,000 and 3,392). torrent_handle.add_piece() with as many bytes as piece_size() names, zeros behind the file's end, is passed
# over: the piece stays missing. With the bytes that the file has there it is taken and proved.
#
#   seen: v1 (200000, 3392), v2 (262144, 65536); 3 of 4 pieces with the padded last one, 4 of 4 with the real one
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q libtorrent==2.1.1
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import os
import time
from pathlib import Path

import libtorrent as lt

SIZE, PIECE = 200_000, 1 << 16
data = os.urandom(SIZE)
for name in ("origin", "padded", "real"):
    Path(name).mkdir()
Path("origin/file").write_bytes(data)


def torrent(flags):
    made = lt.create_torrent([lt.create_file_entry("file", SIZE, 0, 0)], PIECE, flags)
    lt.set_piece_hashes(made, "origin")
    return lt.bencode(made.generate())


def sizes(flags):
    info = lt.torrent_info(lt.bdecode(torrent(flags)))
    return info.total_size(), info.piece_size(info.num_pieces() - 1)


def pieces_taken(folder, last):
    """How many of four pieces a download has that is given them by add_piece()."""
    session = lt.session({"listen_interfaces": "127.0.0.1:0", "enable_dht": False, "enable_lsd": False})
    params = lt.load_torrent_buffer(torrent(lt.create_torrent.v2_only))
    params.save_path = folder
    handle = session.add_torrent(params)
    while handle.status().state != lt.torrent_status.states.downloading:
        time.sleep(0.05)
    for index in range(4):
        handle.add_piece(index, last if index == 3 else data[index * PIECE : (index + 1) * PIECE], 0)
    time.sleep(2)
    return sum(handle.status(lt.status_flags_t.query_pieces).pieces)


print("libtorrent", lt.version)
v1, v2 = sizes(lt.create_torrent.v1_only), sizes(lt.create_torrent.v2_only)
print(f"total_size, piece_size of the last: v1 {v1}, v2 {v2}")
assert v1 == (200_000, 3_392), "v1 is told otherwise now"
assert v2 == (262_144, 65_536), "v2 is told otherwise now"
rest = data[3 * PIECE :]
padded, real = pieces_taken("padded", rest.ljust(PIECE, b"\0")), pieces_taken("real", rest)
print(f"pieces taken: {padded} of 4 with the padded last one, {real} of 4 with the real one")
assert (padded, real) == (3, 4), "the padded piece is taken now, or the real one is not"
EOF
