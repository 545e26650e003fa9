#!/usr/bin/env bash
# safetensors: its numpy front end reads BF16 only if ml_dtypes happens to be imported, and a file's tensors are not in the order they were given.
#
# One would guess that what the reader can do does not depend on the caller's imports: either the package needs ml_dtypes and says so, or it does
# not read BF16. It neither depends on it nor imports it; an `import ml_dtypes` anywhere in the process registers the dtype's name with numpy, and
# the same call works. And one would guess that tensors are written as given, or by name; they go by size of element first, the largest in front,
# then by name, so the tensors of one layer lie apart as soon as their types differ, and "one read per layer" is not to be had.
#
#   seen: without ml_dtypes: TypeError: data type 'bfloat16' not understood; with it: [1, 2] of dtype bfloat16
#   seen: order b.full d.full a.half c.half e.byte
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q safetensors==0.8.0 numpy==2.4.6 ml_dtypes==0.6.0
"$folder/venv/bin/python" - "$folder" <<'EOF'
import json, struct, sys
from importlib.metadata import version
import numpy as np
from safetensors.numpy import load_file, save_file

print(*(f"{name} {version(name)}" for name in ("safetensors", "numpy", "ml_dtypes")))
bf16 = sys.argv[1] + "/bf16.safetensors"
header = json.dumps({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
with open(bf16, "wb") as file:
    file.write(struct.pack("<Q", len(header)) + header + b"\x80\x3f\x00\x40")  # 1.0 and 2.0
try:
    load_file(bf16)
    raise SystemExit("BF16 is read without ml_dtypes now")
except TypeError as error:
    print("installed, not imported:", error)
import ml_dtypes
print("imported:", repr(load_file(bf16)["w"]))
assert load_file(bf16)["w"].astype(np.float32).tolist() == [1.0, 2.0]

mixed = sys.argv[1] + "/mixed.safetensors"
half, full = np.zeros(3, np.float16), np.zeros(3, np.float32)
save_file({"a.half": half, "b.full": full, "c.half": half, "d.full": full, "e.byte": np.zeros(1, np.uint8)}, mixed)
with open(mixed, "rb") as file:
    (length,) = struct.unpack("<Q", file.read(8))
    places = json.loads(file.read(length))
order = sorted(places, key=lambda name: places[name]["data_offsets"])
print("order in the file:", *order)
assert order == ["b.full", "d.full", "a.half", "c.half", "e.byte"], "another order now"
EOF
