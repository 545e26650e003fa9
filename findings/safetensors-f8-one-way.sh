#!/usr/bin/env bash
# safetensors: its numpy front end writes F8 and cannot read the file that it wrote.
#
# One would guess that save_file and load_file of one module are each other's inverse, all the more since BF16, which numpy does not know either, comes
# back once ml_dtypes is imported. For F8 the reader does not ask numpy for a dtype by its name, as it does for BF16, but for an attribute of the
# module numpy, which no other package registers there; the writer takes the array by the name of its dtype and is content.
#
#   seen: saved F8_E4M3 and F8_E5M2; load_file and get_tensor: AttributeError: module 'numpy' has no attribute 'float8_e4m3fn' (float8_e5m2)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q safetensors==0.8.0 numpy==2.4.6 ml_dtypes==0.6.0
"$folder/venv/bin/python" - "$folder" <<'EOF'
import sys
from importlib.metadata import version
import ml_dtypes
import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

print(*(f"{name} {version(name)}" for name in ("safetensors", "numpy", "ml_dtypes")))

def refusal(read):
    try:
        read()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    raise SystemExit("F8 is read back now")

bf16 = f"{sys.argv[1]}/bf16.safetensors"
save_file({"w": np.ones((2, 2), ml_dtypes.bfloat16)}, bf16)
print("BF16 comes back:", load_file(bf16)["w"].dtype)
for dtype in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
    path = f"{sys.argv[1]}/{dtype.__name__}.safetensors"
    save_file({"w": np.ones((2, 2), dtype)}, path)
    with safe_open(path, framework="numpy") as file:
        print("saved:", file.get_slice("w").get_dtype())
        for name, read in (("load_file", lambda: load_file(path)), ("get_tensor", lambda: file.get_tensor("w"))):
            found = refusal(read)
            print(f"{name}: {found}")
            assert "no attribute" in found, "refused otherwise now"
EOF
