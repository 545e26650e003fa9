"""Models in other types: a GGUF, on disk or nowhere yet, becomes one that is nowhere yet, whose weights are quantised while they are written.

Knows llama.cpp's mixtures, importance matrices, and ggml's own kernels, which make the bytes. Refuses to know families' arithmetic, shards, and what
becomes of the bytes. Begin with `model.quantise`; `mixtures` decides which type a tensor gets, `rows` makes its bytes, `losses` says what was lost.
"""
