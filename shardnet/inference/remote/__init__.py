"""A GGUF at an http(s) address, read piece by piece as if it were here.

Knows addresses, ranges, retries and how a file that changed is noticed. Refuses to know shards and where they are written: it gives a `GgufHeader`
whose tensors' data come over the network, and `splitting` cuts that as it cuts any other. Begin with `opening`, then `ranges` and `tensors`.
"""
