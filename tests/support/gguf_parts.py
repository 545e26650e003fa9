"""Models in several files, as llama.cpp's own `llama-gguf-split` writes them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from tests.support.random_models import add_value


def parts_of(whole: Path, folder: Path, count: int) -> list[Path]:
    """Split a model as `llama-gguf-split` does: metadata in the first file, tensors dealt out in order."""
    reader = gguf.GGUFReader(whole)
    paths = [folder / f"big-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]
    share = -(-len(reader.tensors) // count)
    for number, path in enumerate(paths):
        writer = gguf.GGUFWriter(path, "llama")
        if number == 0:
            for key, field in reader.fields.items():
                if not key.startswith("GGUF.") and key != "general.architecture":
                    add_value(writer, key, field.contents())
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[number * share : (number + 1) * share]:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths
